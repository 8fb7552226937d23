//! Which backend and endpoint a request goes to, attempt by attempt. Pure but for endpoints' live counts.
//!
//! The backend is chosen once, by the weights that [`Decision`] names: by chance, or where the subject sticks. When it has no
//! endpoint that can take the request, the choice is repeated among the backends that have one, which gives each of them the
//! share it would have had without the missing one. The answer says so (`x-fairlead-diverted-from`).
//!
//! Further attempts stay in the backend that was chosen, and in it with the revision that the first attempt went to, as long as
//! an endpoint is left there that this request has not been to. An answer that has begun is pinned: it goes on there or nowhere.

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;
use smallvec::SmallVec;

use crate::decide::{Decision, RankWeights};
use crate::endpoint::{Endpoint, FEW, least_loaded};
use crate::name::Name;
use crate::policy::{Ask, Policies, Target, Verdict};
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
    /// Why this endpoint and no other of the backend.
    pub verdict: Verdict,
}

/// Endpoints of one backend. Kept without an allocation while they are few, as everything is that each request makes anew.
pub type Members<'a> = SmallVec<[&'a Arc<Endpoint>; FEW]>;

/// Where the next attempt may go.
#[derive(Debug)]
pub struct Candidates<'a> {
    /// The backend.
    pub backend: &'a RouteBackend,
    /// Endpoints of it, of which a policy takes one.
    pub endpoints: Members<'a>,
    /// Whether this request has not been to them before.
    pub fresh: bool,
}

/// One request's way through a route's backends.
#[derive(Debug, Default)]
pub struct Selection {
    decision: Decision,
    intended: Option<Name>,
    began: Option<Variant>,
    pinned: bool,
    /// Addresses, as [`Endpoint::key`] has them.
    tried: SmallVec<[u64; 2]>,
    left_out: Vec<Name>,
}

/// A backend at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Variant {
    backend: Name,
    /// `None` where it is not known.
    revision: Option<Name>,
}

/// How good a candidate is; the first class that has any is chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Not tried for this request, and well.
    Well,
    /// Not tried, but left alone after failures. Better than none.
    Ejected,
    /// Tried for this request already.
    Tried,
}

impl Selection {
    /// The way of a request of which this was decided.
    pub fn new(decision: Decision) -> Self {
        Self { decision, ..Self::default() }
    }

    /// What was decided of the request.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// The backend that was chosen first.
    pub fn intended(&self) -> Option<&Name> {
        self.intended.as_ref()
    }

    /// An answer of this backend and revision has begun: from now on only endpoints of both are chosen, whatever the weights say
    /// by then. With a revision of `None`, or of an endpoint whose revision is not known, compare what the pod answers.
    pub fn pin(&mut self, backend: &Name, revision: Option<&str>) {
        self.began = Some(Variant { backend: backend.clone(), revision: revision.map(Name::from) });
        self.pinned = true;
    }

    /// This backend is no more for this request: it is full, or its circuit is open.
    pub fn leave_out(&mut self, backend: &Name) {
        self.left_out.push(backend.clone());
    }

    /// Counts an endpoint as tried that was chosen elsewhere.
    pub fn note_tried(&mut self, endpoint: &Endpoint) {
        self.tried.push(endpoint.key());
    }

    /// Another endpoint of a backend that is well and that this request has not been to, for a second question beside the
    /// first. Counts as tried only when [`Self::note_tried`] says so.
    pub fn another(&self, backend: &RouteBackend, now: Instant, rng: &mut dyn Rng) -> Option<Arc<Endpoint>> {
        let members = self.members(backend, 1, Class::Well, now);
        let candidates = self.of_one_revision(backend, members);
        least_loaded(&candidates, rng).map(|index| Arc::clone(candidates[index]))
    }

    /// Whether an endpoint is left that this request has not been to.
    pub fn has_fresh(&self, route: &Route) -> bool {
        let ranks = self.decision.ranks(route);
        let taking = route.backends.iter().enumerate();
        let taking = taking.filter(|(index, _)| ranks.iter().any(|rank| rank[*index] > 0));
        let mut endpoints = taking.flat_map(|(_, backend)| &backend.endpoints);
        endpoints.any(|endpoint| !self.has_tried(endpoint))
    }

    /// Chooses the next endpoint and counts it as tried.
    pub fn next<'a>(
        &mut self,
        route: &'a Route,
        policies: &Policies,
        ask: &Ask<'_>,
        now: Instant,
        rng: &mut dyn Rng,
    ) -> Result<Choice<'a>, Unavailable> {
        let Candidates { backend, endpoints, fresh } = self.candidates(route, now, rng)?;
        let chosen = policies.choose(ask, &target(route, backend), &endpoints, rng);
        let verdict = chosen.ok_or(Unavailable::NoEndpoint)?;
        let endpoint = Arc::clone(endpoints[verdict.index]);
        self.tried.push(endpoint.key());
        self.began.get_or_insert_with(|| Variant {
            backend: backend.name.clone(),
            revision: endpoint.revision().cloned(),
        });
        Ok(Choice { backend, endpoint, fresh, verdict })
    }

    /// The backend that the next attempt goes to, and the endpoints there that are equally good; never none.
    pub fn candidates<'a>(
        &mut self,
        route: &'a Route,
        now: Instant,
        rng: &mut dyn Rng,
    ) -> Result<Candidates<'a>, Unavailable> {
        let ranks = self.decision.ranks(route);
        let intended = self.intended_of(route, &ranks, rng)?;
        let classes = [Class::Well, Class::Ejected, Class::Tried];
        for (class, weights) in classes.iter().flat_map(|class| ranks.iter().map(move |rank| (*class, rank)))
        {
            let members = |index: usize| self.members(&route.backends[index], weights[index], class, now);
            let (mut index, mut found) = (intended, members(intended));
            if found.is_empty() {
                let left = weights.iter().enumerate();
                let left: RankWeights =
                    left.map(|(at, weight)| if members(at).is_empty() { 0 } else { *weight }).collect();
                let Some(other) = self.choose_backend(route, &left, rng) else { continue };
                (index, found) = (other, members(other));
            }
            let backend = &route.backends[index];
            let endpoints = self.of_one_revision(backend, found);
            if !endpoints.is_empty() {
                return Ok(Candidates { backend, endpoints, fresh: class != Class::Tried });
            }
        }
        Err(Unavailable::NoEndpoint)
    }

    /// The backend that the request is for, from the first attempt on.
    fn intended_of(
        &mut self,
        route: &Route,
        ranks: &[RankWeights],
        rng: &mut dyn Rng,
    ) -> Result<usize, Unavailable> {
        let pinned = self.began.as_ref().filter(|_| self.pinned).map(|variant| &variant.backend);
        let name = pinned.or(self.intended.as_ref());
        let known = name.and_then(|name| route.backends.iter().position(|b| b.name == *name));
        let index = match known {
            Some(index) => index,
            None if self.pinned => return Err(Unavailable::NoEndpoint),
            None => {
                let mut chosen = ranks.iter().filter_map(|weights| self.choose_backend(route, weights, rng));
                chosen.next().ok_or(Unavailable::NoWeight)?
            }
        };
        self.intended = Some(route.backends[index].name.clone());
        Ok(index)
    }

    /// By chance, or where the subject sticks.
    fn choose_backend(&self, route: &Route, weights: &[u32], rng: &mut dyn Rng) -> Option<usize> {
        match self.decision.subject {
            Some(subject) => {
                let keys = route.backends.iter().map(|backend| backend.key);
                split::stick(keys.zip(weights.iter().copied()), subject)
            }
            None => split::draw(weights.iter().copied(), rng),
        }
    }

    /// A backend's endpoints of one class.
    fn members<'b>(&self, backend: &'b RouteBackend, weight: u32, class: Class, now: Instant) -> Members<'b> {
        let pinned = self.began.as_ref().filter(|_| self.pinned);
        let takes = match pinned {
            Some(variant) => variant.backend == backend.name,
            None => weight > 0,
        };
        if !takes || self.left_out.contains(&backend.name) || backend.circuit.is_open(now) {
            return Members::new();
        }
        let revision = pinned.and_then(|variant| variant.revision.as_ref());
        let same = |endpoint: &Endpoint| {
            let (Some(wanted), Some(serves)) = (revision, endpoint.revision()) else { return true };
            wanted == serves
        };
        let of_class = |endpoint: &&Arc<Endpoint>| self.class(endpoint, now) == class && same(endpoint);
        backend.endpoints.iter().filter(of_class).collect()
    }

    /// How good an endpoint is for this request.
    pub fn class(&self, endpoint: &Endpoint, now: Instant) -> Class {
        if self.has_tried(endpoint) {
            Class::Tried
        } else if endpoint.is_ejected(now) {
            Class::Ejected
        } else {
            Class::Well
        }
    }

    /// Whether this request has been to an endpoint.
    pub fn has_tried(&self, endpoint: &Endpoint) -> bool {
        self.tried.contains(&endpoint.key())
    }

    /// While a backend's pods are being replaced: those of the revision that this request began with, or that its subject
    /// sticks to; the more pods a revision has, the more subjects it has, and none goes back to the old one.
    fn of_one_revision<'b>(&self, backend: &RouteBackend, members: Members<'b>) -> Members<'b> {
        let began = self.began.as_ref().filter(|variant| variant.backend == backend.name);
        let wanted = match began.and_then(|variant| variant.revision.clone()) {
            Some(revision) => Some(revision),
            None => self.decision.subject.and_then(|subject| sticky_revision(&members, subject)),
        };
        let Some(wanted) = wanted else { return members };
        let same: Members<'b> =
            members.iter().copied().filter(|endpoint| endpoint.revision() == Some(&wanted)).collect();
        if same.is_empty() { members } else { same }
    }
}

/// The revision that a subject sticks to, when several are known.
fn sticky_revision(members: &[&Arc<Endpoint>], subject: u64) -> Option<Name> {
    let mut revisions: Vec<(&Name, u32)> = Vec::new();
    for revision in members.iter().filter_map(|endpoint| endpoint.revision()) {
        match revisions.iter_mut().find(|(known, _)| *known == revision) {
            Some((_, pods)) => *pods += 1,
            None => revisions.push((revision, 1)),
        }
    }
    if revisions.len() < 2 {
        return None;
    }
    let shares = revisions.iter().map(|(revision, pods)| (split::key_of(revision), *pods));
    let index = split::stick(shares, subject)?;
    revisions.get(index).map(|(revision, _)| (*revision).clone())
}

/// A backend as endpoint policies see it.
pub fn target<'a>(route: &'a Route, backend: &'a RouteBackend) -> Target<'a> {
    Target {
        route: &route.id,
        policy: route.endpoint_policy.as_ref(),
        backend: &backend.name,
        served_model: backend.served_model.as_deref(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Weights;
    use crate::ejection::Failure;
    use crate::policy::prompt::PromptKey;
    use http::HeaderMap;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::sync::LazyLock;

    fn backend(name: &str, weight: u32, addresses: &[&str]) -> RouteBackend {
        let endpoint = |text: &&str| {
            // `address@revision`
            let (address, revision) = text.split_once('@').map_or((*text, None), |(a, r)| (a, Some(r)));
            let endpoint = Endpoint::parse(&format!("http://{address}:1")).expect("parses");
            Arc::new(endpoint.at_revision(revision.map(str::to_owned)))
        };
        RouteBackend {
            name: name.into(),
            key: split::key_of(name),
            weight,
            endpoints: addresses.iter().map(endpoint).collect(),
            ..RouteBackend::default()
        }
    }

    fn route(backends: Vec<RouteBackend>) -> Route {
        Route { id: "ns/r".into(), model: "m".into(), backends, ..Route::default() }
    }

    /// With policies that remember nothing and a prompt that is too short to tell.
    fn pick<'a>(
        selection: &mut Selection,
        route: &'a Route,
        rng: &mut dyn Rng,
    ) -> Result<Choice<'a>, Unavailable> {
        static POLICIES: LazyLock<Policies> = LazyLock::new(|| Policies::new(0, Arc::default()));
        let (prompt, headers) = (PromptKey::default(), HeaderMap::new());
        let ask = Ask { prompt: &prompt, salt: None, user: None, headers: &headers };
        selection.next(route, &POLICIES, &ask, Instant::now(), rng)
    }

    fn walk(route: &Route, attempts: usize, seed: u64) -> Vec<Result<(String, bool), Unavailable>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut selection = Selection::default();
        (0..attempts)
            .map(|_| {
                let choice = pick(&mut selection, route, &mut rng)?;
                Ok((choice.endpoint.address().to_owned(), choice.fresh))
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
            let choice = pick(&mut selection, &route, &mut rng).expect("a choice");
            assert_ne!(choice.backend.name, "gone");
            a += u32::from(choice.backend.name == "a");
            diverted += u32::from(selection.intended() != Some(&choice.backend.name));
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
        pick(&mut selection, &route, &mut StdRng::seed_from_u64(0)).expect("a choice");
        assert!(!selection.has_fresh(&route));
    }

    fn next(selection: &mut Selection, route: &Route, seed: u64) -> Result<String, Unavailable> {
        let mut rng = StdRng::seed_from_u64(seed);
        pick(selection, route, &mut rng).map(|choice| choice.endpoint.address().to_owned())
    }

    #[test]
    fn a_retry_stays_with_the_revision_it_began_with_and_then_with_the_backend() {
        let route = route(vec![backend("v1", 1, &["a@r1", "b@r1", "c@r2"]), backend("v2", 1, &["d@r9"])]);
        for seed in 0..50 {
            let mut selection = Selection::default();
            let first = next(&mut selection, &route, seed).expect("a choice");
            let walked: Vec<_> =
                (0..3).map(|_| next(&mut selection, &route, seed).expect("a choice")).collect();
            match first.as_str() {
                "a:1" => assert_eq!(walked, ["b:1", "c:1", "d:1"]),
                "b:1" => assert_eq!(walked, ["a:1", "c:1", "d:1"]),
                "c:1" => assert_eq!(walked[2], "d:1"),
                other => assert_eq!(other, "d:1"),
            }
        }
    }

    #[test]
    fn what_is_pinned_goes_on_with_its_backend_and_revision_or_nowhere() {
        let mut selection = Selection::default();
        let one = route(vec![backend("v1", 1, &["a@r1", "b@r1", "c@r2", "x"]), backend("v2", 1, &["d@r1"])]);
        selection.pin(&"v1".into(), Some("r1"));
        let walked: std::collections::BTreeSet<_> =
            (0..3).map(|seed| next(&mut selection, &one, seed).expect("a choice")).collect();
        assert_eq!(walked.into_iter().collect::<Vec<_>>(), ["a:1", "b:1", "x:1"]);
        // The weight is gone by then: what has begun may end all the same.
        let taken_back = route(vec![backend("v1", 0, &["e@r1"]), backend("v2", 1, &["d@r1"])]);
        assert_eq!(next(&mut selection, &taken_back, 0), Ok("e:1".to_owned()));
        let replaced = route(vec![backend("v1", 1, &["f@r2"]), backend("v2", 1, &["d@r1"])]);
        assert_eq!(next(&mut selection, &replaced, 0), Err(Unavailable::NoEndpoint));
        let removed = route(vec![backend("v2", 1, &["d@r1"])]);
        assert_eq!(next(&mut selection, &removed, 0), Err(Unavailable::NoEndpoint));
    }

    fn by_rule(ranks: &[&[(&str, u32)]]) -> Selection {
        let rank =
            |rank: &&[(&str, u32)]| rank.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        let by = Weights::Rule(ranks.iter().map(rank).collect());
        Selection::new(Decision { by, ..Decision::default() })
    }

    #[test]
    fn a_rules_split_stands_by_itself_and_a_target_that_is_gone_takes_nothing() {
        let route = route(vec![backend("v1", 1, &["a"]), backend("v2", 0, &["b"]), backend("v3", 0, &[])]);
        for seed in 0..20 {
            let mut selection = by_rule(&[&[("v2", 1), ("v3", 1), ("v9", 1)]]);
            assert_eq!(next(&mut selection, &route, seed), Ok("b:1".to_owned()));
            assert!(!selection.has_fresh(&route));
            assert_eq!(
                next(&mut selection, &route, seed),
                Ok("b:1".to_owned()),
                "not to v1, whoever is free there"
            );
        }
        assert_eq!(next(&mut by_rule(&[&[("v3", 1)]]), &route, 0), Err(Unavailable::NoEndpoint));
        assert_eq!(next(&mut by_rule(&[&[("v9", 1)]]), &route, 0), Err(Unavailable::NoWeight));
    }

    #[test]
    fn the_next_rank_counts_when_the_first_has_no_endpoint_left() {
        let route =
            route(vec![backend("dear", 1, &["d"]), backend("cheap", 1, &["c"]), backend("gone", 1, &[])]);
        let ranks: &[&[(&str, u32)]] = &[&[("gone", 1)], &[("cheap", 1)], &[("dear", 1)]];
        let mut selection = by_rule(ranks);
        let walked: Vec<_> =
            (0..4).map(|seed| next(&mut selection, &route, seed).expect("a choice")).collect();
        assert_eq!(walked[..2], ["c:1", "d:1"]);
        assert_eq!(walked[2], "c:1", "then again from the first");
        assert_eq!(selection.intended().map(Name::as_str), Some("gone"));
    }

    fn sticky(subject: u64) -> Selection {
        Selection::new(Decision { subject: Some(subject), ..Decision::default() })
    }

    #[test]
    fn a_subject_sticks_whatever_the_dice_say_and_comes_back_after_an_outage() {
        let both = route(vec![backend("v1", 1, &["a"]), backend("v2", 1, &["b"])]);
        let one = route(vec![backend("v1", 1, &["a"]), backend("v2", 1, &[])]);
        let mut diverted = 0;
        for subject in 0..200 {
            let place = next(&mut sticky(subject), &both, 0).expect("a choice");
            for seed in 1..5 {
                assert_eq!(next(&mut sticky(subject), &both, seed).as_ref(), Ok(&place));
            }
            let mut during = sticky(subject);
            assert_eq!(next(&mut during, &one, 0), Ok("a:1".to_owned()));
            diverted += u32::from(during.intended().is_some_and(|name| name == "v2"));
        }
        assert!((60..140).contains(&diverted), "{diverted}");
    }

    #[test]
    fn while_pods_are_replaced_no_subject_goes_back_to_the_old_revision() {
        let stages = [
            &["a@r1", "b@r1", "c@r1"][..],
            &["a@r1", "b@r1", "c@r1", "d@r2"],
            &["a@r1", "b@r1", "d@r2"],
            &["a@r1", "d@r2", "e@r2"],
            &["d@r2", "e@r2", "f@r2"],
        ];
        let revision = |pods: &[&str], subject| {
            let route = route(vec![backend("v1", 1, pods)]);
            let mut rng = StdRng::seed_from_u64(subject);
            let mut selection = sticky(subject);
            let choice = pick(&mut selection, &route, &mut rng).expect("a choice");
            choice.endpoint.revision().expect("known").to_string()
        };
        for subject in 0..500 {
            let seen: Vec<_> = stages.iter().map(|pods| revision(pods, subject)).collect();
            assert!(seen.is_sorted(), "{seen:?}");
            assert_eq!((seen[0].as_str(), seen[4].as_str()), ("r1", "r2"));
        }
    }
}
