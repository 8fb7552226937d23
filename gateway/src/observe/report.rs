//! `GET /rollouts` on the admin port: what this gateway has counted of the canaries under way. Nothing in it is secret, and asking changes
//! nothing.
//!
//! `?uid=UID` tells of one ModelRoute only; `?part=0&of=2` of the first half of the subjects of sticky splits, so that the operator has each
//! subject from one gateway.

use std::time::Instant;

use fairlead_rollout::report::{FORMAT, Report, RouteReport};
use k8s_openapi::jiff::Timestamp;

use crate::routing::Routing;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    uid: Option<String>,
    part: Option<(u32, u32)>,
}

impl Query {
    /// Reads a URL's query. What is not known is passed over.
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let mut pairs = text.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(it, value)| (it == key).then_some(value))
        };
        let number = |key: &str| value(key).and_then(|value| value.parse::<u32>().ok());
        let part = number("part").zip(number("of")).filter(|(part, of)| part < of);
        Self { uid: value("uid").map(str::to_owned), part }
    }

    /// The one ModelRoute that is asked for.
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }
}

/// The answer.
pub fn report(routing: &Routing, instance: &str, query: &Query, now: Instant, wall: Timestamp) -> Report {
    let snapshot = routing.snapshot();
    let wanted = |uid: &str| query.uid.as_ref().is_none_or(|wanted| wanted == uid);
    let routes = snapshot.routes().into_iter().filter(|route| wanted(&route.observed.uid)).map(|route| {
        let told = RouteReport {
            route: route.id.to_string(),
            uid: route.observed.uid.clone(),
            ..RouteReport::default()
        };
        let Some(epoch) = route.observed.epoch() else { return told };
        let part = query.part.filter(|_| epoch.is_sticky());
        RouteReport {
            fingerprint: epoch.key().fingerprint.clone(),
            epoch: epoch.key().epoch,
            backends: epoch.report(part, now, wall),
            ..told
        }
    });
    Report {
        format: FORMAT,
        instance: instance.to_owned(),
        synced: routing.is_synced(),
        routes: routes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_nonsense_is_passed_over() {
        let query = |uid: Option<&str>, part| Query { uid: uid.map(str::to_owned), part };
        assert_eq!(Query::parse(""), Query::default());
        assert_eq!(Query::parse("uid=a-b&part=1&of=3"), query(Some("a-b"), Some((1, 3))));
        assert_eq!(Query::parse("part=3&of=3&x=y"), Query::default());
        assert_eq!(Query::parse("part=1&uid"), Query::default());
    }
}
