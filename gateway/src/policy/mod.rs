//! Endpoint choice: which of a backend's endpoints gets a request. One policy, one file.
//!
//! Policies see plain data: what the request asks and, for each candidate, who it is and how loaded. What they remember is
//! this process's own; several gateways share nothing, agree where nothing speaks against it (they rank endpoints by the same
//! hashes), and are right in any case, since a wrong guess about a pod's cache costs time only. Called by `select`.

pub mod least_load;
pub mod prefix_aware;
pub mod prefix_index;
pub mod prompt;
pub mod rendezvous;
pub mod session_affinity;

use std::sync::Arc;

use fairlead_crds::model_route::endpoint_policy::{
    EndpointPolicy as Spec, EndpointPolicyKind as Kind, SessionBy, SessionKey,
};
use http::HeaderMap;
use prometheus_client::encoding::EncodeLabelValue;
use rand::Rng;
use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::endpoint::{Endpoint, FEW};
use crate::metrics::Metrics;
use least_load::LeastLoad;
use prefix_aware::PrefixAware;
use prompt::PromptKey;
use session_affinity::SessionAffinity;

/// Chooses among endpoints that may all take the request.
pub trait EndpointPolicy: Send + Sync + 'static {
    /// The choice; `None` only when there are no candidates. Changes nothing.
    fn choose(&self, asked: &Asked<'_>, candidates: &[Candidate], rng: &mut dyn Rng) -> Option<Verdict>;

    /// The request goes to this candidate.
    fn sent(&self, _asked: &Asked<'_>, _to: &Candidate) {}

    /// Bytes of the prompt that each candidate is believed to have, for those who want to know why.
    fn matched(&self, _asked: &Asked<'_>, candidates: &[Candidate]) -> Matched {
        Matched::from_elem(0, candidates.len())
    }
}

/// Bytes of a prompt, by candidate.
pub type Matched = SmallVec<[usize; FEW]>;

/// What a policy may know of a request.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// How the route wants it.
    pub rules: Rules,
    /// Keeps apart what shares no cache: routes, backends, adapters, cache salts.
    pub scope: u64,
    /// What its prompt begins with.
    pub prompt: &'a PromptKey,
    /// The session it belongs to, when the route asks for sessions and it names one.
    pub session: Option<u64>,
}

/// An endpoint as policies see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Tells it from all others that this process has seen, also from an earlier one at the same address. Never 0.
    pub id: u32,
    /// A hash of its address, the same in every gateway.
    pub key: u64,
    /// Requests that it is answering now.
    pub in_flight: usize,
}

/// How a route wants endpoints chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The policy.
    pub kind: Kind,
    /// Part of the prompt that must match, in percent.
    pub min_match_percent: u32,
    /// How much more loaded than the least loaded an endpoint may be.
    pub guard: LoadGuard,
}

/// When an endpoint is too loaded to be preferred: when both bounds are exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadGuard {
    /// Requests beyond the least loaded endpoint's.
    pub extra: usize,
    /// Percent of the least loaded endpoint's.
    pub percent: usize,
}

impl LoadGuard {
    /// Whether `load` is too much where the least loaded has `least`.
    pub fn exceeded(&self, load: usize, least: usize) -> bool {
        load > least.saturating_add(self.extra)
            && load.saturating_mul(100) > least.saturating_mul(self.percent)
    }
}

impl From<&Spec> for Rules {
    fn from(spec: &Spec) -> Self {
        let Spec { kind, min_match_percent, max_extra_requests, max_load_percent, session: _ } = spec;
        Self {
            kind: kind.unwrap_or_default(),
            min_match_percent: min_match_percent.unwrap_or(Spec::MIN_MATCH_PERCENT),
            guard: LoadGuard {
                extra: max_extra_requests.unwrap_or(Spec::MAX_EXTRA_REQUESTS) as usize,
                percent: max_load_percent.unwrap_or(Spec::MAX_LOAD_PERCENT) as usize,
            },
        }
    }
}

/// Why an endpoint was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Why {
    /// It has the beginning of the prompt.
    PrefixMatch,
    /// Those that have the beginning of the prompt are too loaded.
    PrefixOverruled,
    /// None has enough of the prompt: one with few requests.
    NoPrefixMatch,
    /// It has the session.
    Session,
    /// The one that has the session is too loaded: the next in its order.
    SessionOverruled,
    /// It has the fewest requests.
    LeastLoad,
}

impl Why {
    /// The word that answers and explanations use.
    pub fn word(self) -> &'static str {
        match self {
            Self::PrefixMatch => "prefix-match",
            Self::PrefixOverruled => "prefix-overruled-by-load",
            Self::NoPrefixMatch => "no-prefix-match",
            Self::Session => "session",
            Self::SessionOverruled => "session-overruled-by-load",
            Self::LeastLoad => "least-load",
        }
    }
}

/// A choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The chosen candidate.
    pub index: usize,
    /// Why.
    pub why: Why,
    /// Bytes of the prompt that it is believed to have.
    pub matched: usize,
}

/// A candidate and what spoke for and against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Requests that it is answering now.
    pub in_flight: usize,
    /// Whether that is too much for it to be preferred.
    pub too_loaded: bool,
    /// Bytes of the prompt that it is believed to have.
    pub matched: usize,
}

/// What a request has that its endpoint may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What its prompt begins with.
    pub prompt: &'a PromptKey,
    /// The `cache_salt` it goes to the pod with.
    pub salt: Option<&'a str>,
    /// Whose request it is, as [`TrustedHeaders::user_to_stick_to`](crate::identity::TrustedHeaders::user_to_stick_to) says.
    pub user: Option<&'a str>,
    /// The client's headers.
    pub headers: &'a HeaderMap,
}

/// Where the request goes: what of it decides which caches it can share.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `namespace/name` of the route.
    pub route: &'a str,
    /// The route's policy; `None` where it says nothing.
    pub policy: Option<&'a Spec>,
    /// Name of the backend.
    pub backend: &'a str,
    /// What its pods call the model, which names the adapter too.
    pub served_model: Option<&'a str>,
}

/// All policies and what they remember.
#[derive(Debug)]
pub struct Policies {
    prefix_aware: PrefixAware,
    metrics: Arc<Metrics>,
}

impl Policies {
    /// Policies that remember prefixes in at most so many bytes.
    pub fn new(prefix_index_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self { prefix_aware: PrefixAware::new(prefix_index_bytes), metrics }
    }

    fn of(&self, kind: Kind) -> &dyn EndpointPolicy {
        match kind {
            Kind::PrefixAware => &self.prefix_aware,
            Kind::LeastLoad => &LeastLoad,
            Kind::SessionAffinity => &SessionAffinity,
        }
    }

    /// Chooses the endpoint that the request is sent to now, and remembers that it was.
    pub fn choose(
        &self,
        ask: &Ask<'_>,
        target: &Target<'_>,
        endpoints: &[&Arc<Endpoint>],
        rng: &mut dyn Rng,
    ) -> Option<Verdict> {
        let asked = asked(ask, target);
        let policy = self.of(asked.rules.kind);
        let candidates = candidates(endpoints);
        let verdict = policy.choose(&asked, &candidates, rng)?;
        policy.sent(&asked, candidates.get(verdict.index)?);
        self.metrics.endpoint_chosen(verdict.why, ask.prompt.bytes(), verdict.matched);
        Some(verdict)
    }

    /// What [`Policies::choose`] would look at, candidate by candidate, and what it would choose. Nothing is remembered or counted.
    pub fn explain(
        &self,
        ask: &Ask<'_>,
        target: &Target<'_>,
        endpoints: &[&Arc<Endpoint>],
        rng: &mut dyn Rng,
    ) -> (Option<Verdict>, Vec<Explained>) {
        let asked = asked(ask, target);
        let policy = self.of(asked.rules.kind);
        let candidates = candidates(endpoints);
        let least = candidates.iter().map(|candidate| candidate.in_flight).min().unwrap_or(0);
        let explained = candidates
            .iter()
            .zip(policy.matched(&asked, &candidates))
            .map(|(candidate, matched)| Explained {
                in_flight: candidate.in_flight,
                too_loaded: asked.rules.guard.exceeded(candidate.in_flight, least),
                matched,
            })
            .collect();
        (policy.choose(&asked, &candidates, rng), explained)
    }
}

fn candidates(endpoints: &[&Arc<Endpoint>]) -> SmallVec<[Candidate; FEW]> {
    endpoints
        .iter()
        .map(|endpoint| Candidate { id: endpoint.id(), key: endpoint.key(), in_flight: endpoint.in_flight() })
        .collect()
}

fn asked<'a>(ask: &Ask<'a>, target: &Target<'_>) -> Asked<'a> {
    let Ask { prompt, salt, user, headers } = *ask;
    let Target { route, policy, backend, served_model } = *target;
    // An endpoint is of one revision, and prefixes are remembered by endpoint: they cannot cross revisions. So the revision
    // need not be part of the scope, which it would change whenever it is unknown for a moment.
    let parts = [Some(route), Some(backend), served_model, salt];
    // Part by part, so that no two lists of parts read the same.
    let scope = parts.into_iter().fold(0_u64, |scope, part| match part {
        Some(part) => xxh3_64_with_seed(part.as_bytes(), scope),
        None => scope.wrapping_add(1),
    });
    let session = policy.and_then(|policy| policy.session.as_ref());
    Asked {
        rules: policy.map_or_else(|| Rules::from(&Spec::default()), Rules::from),
        scope,
        prompt,
        session: session
            .and_then(|key| session_name(key, user, headers))
            .map(|name| xxh3_64(name.as_bytes())),
    }
}

fn session_name<'a>(key: &SessionKey, user: Option<&'a str>, headers: &'a HeaderMap) -> Option<&'a str> {
    let name = match (key.by, &key.header) {
        (SessionBy::User, _) => user,
        (SessionBy::Header, Some(header)) => headers.get(header).and_then(|value| value.to_str().ok()),
        (SessionBy::Header, None) => None,
    };
    name.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
