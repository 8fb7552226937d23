//! Which backend and endpoint a request goes to, attempt by attempt. Pure but for endpoints' live counts.
//!
//! The backend is drawn once, by weight. When it has no endpoint that can take the request, the draw is repeated among the
//! backends that have one, which gives each of them the share it would have had without the missing one. The answer says
//! so (`x-fairlead-diverted-from`).

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;

use crate::endpoint::Endpoint;
use crate::policy::EndpointPolicy;
use crate::snapshot::{Route, RouteBackend};
use crate::split;

/// Why no endpoint could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// No backend has a weight above zero.
    NoWeight,
    /// No backend that takes traffic has a ready endpoint.
    NoEndpoint,
}

/// Where the next attempt goes.
#[derive(Debug)]
pub struct Choice<'a> {
    /// The backend.
    pub backend: &'a RouteBackend,
    /// Its endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Whether this request has not been to that endpoint before.
    pub fresh: bool,
}

/// One request's way through a route's backends.
#[derive(Debug, Default)]
pub struct Selection {
    intended: Option<String>,
    tried: Vec<String>,
}

/// How good a candidate is; the first class that has any is chosen from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Not tried for this request, and well.
    Well,
    /// Not tried, but left alone after failures. Better than none.
    Ejected,
    /// Tried for this request already.
    Tried,
}

impl Selection {
    /// The backend that the first draw chose.
    pub fn intended(&self) -> Option<&str> {
        self.intended.as_deref()
    }

    /// Whether an endpoint is left that this request has not been to.
    pub fn has_fresh(&self, route: &Route) -> bool {
        let mut endpoints = route.backends.iter().filter(|b| b.weight > 0).flat_map(|b| &b.endpoints);
        endpoints.any(|endpoint| !self.tried.contains(&endpoint.address()))
    }

    /// Chooses the next endpoint and counts it as tried.
    pub fn next<'a>(
        &mut self,
        route: &'a Route,
        policy: &dyn EndpointPolicy,
        now: Instant,
        rng: &mut dyn Rng,
    ) -> Result<Choice<'a>, Unavailable> {
        let known =
            self.intended.as_ref().and_then(|name| route.backends.iter().position(|b| b.name == *name));
        let intended = match known {
            Some(index) => index,
            None => split::draw(route.backends.iter().map(|b| b.weight), rng).ok_or(Unavailable::NoWeight)?,
        };
        self.intended = Some(route.backends[intended].name.clone());
        for class in [Class::Well, Class::Ejected, Class::Tried] {
            let members: Vec<Vec<&Arc<Endpoint>>> =
                route.backends.iter().map(|backend| self.members(backend, class, now)).collect();
            let index = if members[intended].is_empty() {
                let weights = route.backends.iter().zip(&members);
                split::draw(weights.map(|(b, m)| if m.is_empty() { 0 } else { b.weight }), rng)
            } else {
                Some(intended)
            };
            let Some(index) = index else { continue };
            let Some(chosen) = policy.choose(&members[index], rng) else { continue };
            let endpoint = Arc::clone(members[index][chosen]);
            self.tried.push(endpoint.address());
            return Ok(Choice { backend: &route.backends[index], endpoint, fresh: class != Class::Tried });
        }
        Err(Unavailable::NoEndpoint)
    }

    fn members<'b>(&self, backend: &'b RouteBackend, class: Class, now: Instant) -> Vec<&'b Arc<Endpoint>> {
        if backend.weight == 0 {
            return Vec::new();
        }
        let of_class = |endpoint: &&Arc<Endpoint>| {
            if !self.tried.is_empty() && self.tried.contains(&endpoint.address()) {
                return class == Class::Tried;
            }
            match class {
                Class::Well => !endpoint.is_ejected(now),
                Class::Ejected => endpoint.is_ejected(now),
                Class::Tried => false,
            }
        };
        backend.endpoints.iter().filter(of_class).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ejection::Failure;
    use crate::policy::least_load::LeastLoad;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn backend(name: &str, weight: u32, addresses: &[&str]) -> RouteBackend {
        let endpoints = addresses
            .iter()
            .map(|a| Arc::new(Endpoint::parse(&format!("http://{a}:1")).expect("parses")))
            .collect();
        RouteBackend { name: name.to_owned(), weight, served_model: None, revision: None, endpoints }
    }

    fn route(backends: Vec<RouteBackend>) -> Route {
        Route { id: "ns/r".to_owned(), model: "m".to_owned(), created: 0, backends }
    }

    fn walk(route: &Route, attempts: usize, seed: u64) -> Vec<Result<(String, bool), Unavailable>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut selection = Selection::default();
        (0..attempts)
            .map(|_| {
                let choice = selection.next(route, &LeastLoad, Instant::now(), &mut rng)?;
                Ok((choice.endpoint.address(), choice.fresh))
            })
            .collect()
    }

    #[test]
    fn a_backend_without_endpoints_leaves_its_share_to_the_others_in_proportion() {
        let route = route(vec![backend("gone", 50, &[]), backend("a", 40, &["a"]), backend("b", 10, &["b"])]);
        let mut rng = StdRng::seed_from_u64(3);
        let (mut a, mut diverted) = (0_u32, 0_u32);
        for _ in 0..10_000 {
            let mut selection = Selection::default();
            let choice = selection.next(&route, &LeastLoad, Instant::now(), &mut rng).expect("a choice");
            assert_ne!(choice.backend.name, "gone");
            a += u32::from(choice.backend.name == "a");
            diverted += u32::from(selection.intended() != Some(choice.backend.name.as_str()));
        }
        // Binomial: sigma is 40 for p = 0.8 and 50 for p = 0.5.
        assert!(a.abs_diff(8_000) < 200, "{a}");
        assert!(diverted.abs_diff(5_000) < 250, "{diverted}");
    }

    #[test]
    fn attempts_go_to_untried_endpoints_of_the_backend_then_of_others_then_again() {
        let route =
            route(vec![backend("v1", 1, &["a", "b"]), backend("v2", 0, &["c"]), backend("v3", 1, &["d"])]);
        let seed =
            (0..).find(|seed| walk(&route, 1, *seed)[0].as_ref().expect("ok").0 != "d:1").expect("a seed");
        let walked: Vec<_> = walk(&route, 4, seed).into_iter().map(|step| step.expect("ok")).collect();
        let mut first: Vec<_> = walked[..2].iter().map(|step| step.0.as_str()).collect();
        first.sort_unstable();
        assert_eq!(first, ["a:1", "b:1"]);
        assert_eq!(
            walked[2],
            ("d:1".to_owned(), true),
            "a backend of weight 0 takes nothing, not even retries"
        );
        assert!(!walked[3].1 && walked[3].0 != "d:1", "{walked:?}");
    }

    #[test]
    fn an_ejected_endpoint_is_passed_over_unless_it_is_the_last() {
        let route = route(vec![backend("v1", 1, &["a", "b"])]);
        let now = Instant::now();
        assert!(route.backends[0].endpoints[0].record_failure(Failure::Connect, now));
        for seed in 0..20 {
            assert_eq!(walk(&route, 1, seed), [Ok(("b:1".to_owned(), true))]);
        }
        assert!(route.backends[0].endpoints[1].record_failure(Failure::Connect, now));
        let chosen: std::collections::BTreeSet<_> =
            (0..20).map(|seed| walk(&route, 1, seed)[0].clone().expect("never none").0).collect();
        assert_eq!(chosen.len(), 2, "with all ejected, all are used");
    }

    #[test]
    fn nothing_to_choose_says_why() {
        assert_eq!(walk(&route(vec![backend("a", 0, &["a"])]), 1, 0), [Err(Unavailable::NoWeight)]);
        assert_eq!(walk(&route(vec![backend("a", 1, &[])]), 1, 0), [Err(Unavailable::NoEndpoint)]);
    }

    #[test]
    fn fresh_endpoints_run_out() {
        let route = route(vec![backend("a", 1, &["a"]), backend("off", 0, &["b"])]);
        let mut selection = Selection::default();
        assert!(selection.has_fresh(&route));
        selection.next(&route, &LeastLoad, Instant::now(), &mut StdRng::seed_from_u64(0)).expect("a choice");
        assert!(!selection.has_fresh(&route));
    }
}
