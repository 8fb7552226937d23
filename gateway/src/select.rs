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
mod tests;
