//! What a gateway says of the canaries it carries (`GET /rollouts` on its admin port), and how the answers of several are added up.
//! Pure: the gateway writes it, the operator reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::counts::Counts;

/// Another whenever counts of one version cannot be added to those of another.
pub const FORMAT: u32 = 1;
/// Into so many parts a gateway divides the subjects of a sticky split, so that each subject is counted at one gateway only.
pub const PARTS: u32 = 16;

/// One gateway's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Another with every start of a gateway, whose counts begin with nothing.
    pub instance: String,
    /// Whether it has routes already; until then it serves nothing.
    pub synced: bool,
    /// The routes that it has.
    pub routes: Vec<RouteReport>,
}

/// What it says of one route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteReport {
    /// `namespace/name`.
    pub route: String,
    /// Of the ModelRoute.
    pub uid: String,
    /// Of the rollout that it goes by; empty where there is none.
    pub fingerprint: String,
    /// The epoch that it goes by and counts for; 0 where it counts nothing.
    pub epoch: u64,
    /// What it has counted, by backend.
    pub backends: BTreeMap<String, BackendReport>,
}

/// What it has counted of one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendReport {
    /// Since the epoch began.
    pub step: Counts,
    /// Of the requests since an interval began, by its number: the stretches that are kept ([`crate::stretch`]).
    pub stretches: BTreeMap<i64, Counts>,
}

impl BackendReport {
    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        self.step.merge(&other.step);
        for (begun, counts) in &other.stretches {
            self.stretches.entry(*begun).or_default().merge(counts);
        }
    }
}

/// Which counts are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Of the ModelRoute.
    pub uid: &'a str,
    /// Of the rollout.
    pub fingerprint: &'a str,
    /// Of the step.
    pub epoch: u64,
    /// The backend that is tried.
    pub canary: &'a str,
    /// The backends that stand, joined by `+`.
    pub stable: &'a str,
}

/// What all gateways have counted together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sum {
    /// Of the canary.
    pub canary: BackendReport,
    /// Of stable.
    pub stable: BackendReport,
    /// The gateways that could not be read, each with why.
    pub unread: Vec<String>,
}

/// Adds up. `answers`: the name of each gateway that carries requests, and its report or why there is none.
///
/// A gateway that goes by another epoch sends its requests by other weights: what it counted is left out, and it is told as unread. One
/// that does not know the route sends it nothing.
pub fn sum(answers: &[(String, Result<Report, String>)], wanted: Wanted<'_>) -> Sum {
    let mut sum = Sum::default();
    for (gateway, answer) in answers {
        let report = match answer {
            Ok(report) if report.format == FORMAT => report,
            Ok(report) => {
                let theirs = report.format;
                sum.unread.push(format!(
                    "{gateway} counts in form {theirs}, not {FORMAT}: it is of another version"
                ));
                continue;
            }
            Err(why) => {
                sum.unread.push(format!("{gateway} {why}"));
                continue;
            }
        };
        if !report.synced {
            continue;
        }
        let Some(route) = report.routes.iter().find(|route| route.uid == wanted.uid) else { continue };
        if route.fingerprint != wanted.fingerprint || route.epoch != wanted.epoch {
            sum.unread.push(format!("{gateway} has not taken over the last step yet"));
            continue;
        }
        for (backend, counted) in &route.backends {
            if backend == wanted.canary {
                sum.canary.merge(counted);
            } else if wanted.stable.split('+').any(|stable| stable == backend) {
                sum.stable.merge(counted);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'static> =
        Wanted { uid: "u", fingerprint: "f", epoch: 3, canary: "v2", stable: "v1+also" };

    fn counted(requests: u64) -> BackendReport {
        BackendReport {
            step: Counts { requests, ..Counts::default() },
            stretches: [(7, Counts { requests: requests / 2, ..Counts::default() })].into(),
        }
    }

    fn report(epoch: u64) -> Report {
        let backends = [("v1", 80), ("also", 10), ("v2", 10), ("other", 7)];
        let backends = backends.map(|(name, requests)| (name.to_owned(), counted(requests)));
        let route = RouteReport {
            route: "ns/chat".into(),
            uid: "u".into(),
            fingerprint: "f".into(),
            epoch,
            backends: backends.into(),
        };
        Report { format: FORMAT, instance: "i".into(), synced: true, routes: vec![route] }
    }

    fn summed(answers: Vec<Result<Report, String>>) -> Sum {
        let named: Vec<_> =
            answers.into_iter().enumerate().map(|(index, it)| (format!("gateway-{index}"), it)).collect();
        sum(&named, WANTED)
    }

    #[test]
    fn several_gateways_add_up() {
        let Sum { canary, stable, unread } = summed(vec![Ok(report(3)), Ok(report(3))]);
        assert_eq!((canary, stable, unread.len()), (counted(20), counted(180), 0));
    }

    #[test]
    fn what_cannot_be_read_is_told_and_left_out() {
        let other_form = Report { format: 7, ..report(3) };
        let sum = summed(vec![Ok(report(3)), Ok(report(2)), Err("does not answer".into()), Ok(other_form)]);
        assert_eq!(sum.canary, counted(10));
        assert_eq!(sum.unread.len(), 3, "{:?}", sum.unread);
        assert!(sum.unread[0].contains("gateway-1 has not taken over"), "{:?}", sum.unread);
        assert_eq!(sum.unread[1], "gateway-2 does not answer");
    }

    #[test]
    fn who_serves_none_of_it_keeps_nobody_waiting() {
        let starting = Report { synced: false, routes: vec![], ..report(3) };
        let elsewhere = Report { routes: vec![], ..report(3) };
        let sum = summed(vec![Ok(starting), Ok(elsewhere), Ok(report(3))]);
        assert_eq!((sum.canary, sum.unread.len()), (counted(10), 0));
    }

    #[test]
    fn a_report_is_the_same_after_it_was_written_and_read_and_fields_of_the_future_do_not_matter() {
        let mut json = serde_json::to_value(report(3)).unwrap();
        assert_eq!(serde_json::from_value::<Report>(json.clone()).unwrap(), report(3));
        json["routes"][0]["backends"]["v1"]["step"]["newer"] = serde_json::json!({});
        json["newer"] = serde_json::json!(1);
        assert_eq!(serde_json::from_value::<Report>(json.clone()).unwrap(), report(3));
        // A gateway that keeps no stretches is judged by its step alone.
        json["routes"][0]["backends"]["v2"] =
            serde_json::json!({"step": {"requests": 10}, "recent": {"requests": 5}});
        let older: Report = serde_json::from_value(json).unwrap();
        let Sum { canary, unread, .. } = summed(vec![Ok(older), Ok(report(3))]);
        assert_eq!((canary.step.requests, canary.stretches[&7].requests, unread.len()), (20, 5, 0));
    }
}
