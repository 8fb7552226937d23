//! `/debug/explain`: what would happen to a request, and why, without sending it anywhere.
//!
//! Walks the same `decide` and `select` as a request does, on the snapshot of now, and writes down what they found. Nothing is
//! counted and no endpoint learns of it. Called by `admin`, for who knows the admin token.

pub mod question;

use std::time::Instant;

use fairlead_crds::model_route::shares;
use fairlead_crds::model_route::stickiness::StickyBy;
use fairlead_openai::ApiError;
use http::HeaderMap;
use serde::Serialize;

use crate::decide::{self, Decision};
use crate::identity::TrustedHeaders;
use crate::name::Name;
use crate::policy::{Ask, Policies};
use crate::request::InferenceRequest;
use crate::rules::Asked;
use crate::select::{self, Candidates, Selection, Unavailable};
use crate::snapshot::{Route, RoutingSnapshot};

/// What would happen to a request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The model that it names.
    pub model: String,
    /// `namespace/name` of the route.
    pub route: String,
    /// Who asks, as far as is trusted.
    pub identity: Who,
    /// The prompt's length by estimate.
    pub prompt_tokens: u64,
    /// The most that it may cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost_per_million_tokens: Option<String>,
    /// The rules that were looked at, to the first that holds; those after it are not.
    pub rules: Vec<RuleLook>,
    /// The rule that holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What is wrong with rules that are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule_problems: Vec<String>,
    /// The split in force for it.
    pub split: Split,
    /// What sticks to its backend; absent where chance decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// The backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Place>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<&'static str>,
    /// Endpoints that could take it, of the backends that the split names.
    pub candidates: Vec<Candidate>,
    /// Where the route's canary is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// Who asks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Who {
    /// The tenant, where known.
    pub tenant: Option<String>,
    /// The tier, where known.
    pub tier: Option<String>,
    /// The user, where known.
    pub user: Option<String>,
}

/// A rule that was looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleLook {
    /// Its name.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A split.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    /// `Route` or `Rule`.
    pub of: &'static str,
    /// In one line, as answers have it.
    pub line: String,
    /// In percent; several ranks where a rule has preferences: the next counts when those before it have no endpoint.
    pub ranks: Vec<Vec<Share>>,
}

/// One backend's share.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Its name.
    pub backend: String,
    /// Percent, as a decimal in a string.
    pub percent: String,
}

/// What sticks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// The kind of its key.
    pub by: StickyBy,
    /// The hash of route and key, as 16 hexadecimal digits.
    pub hash: String,
}

/// Where it would go.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The backend's name.
    pub name: String,
    /// `Subject`, or `Chance`: then another request may go elsewhere.
    pub chosen_by: &'static str,
    /// The backend that was chosen first and has no endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diverted_from: Option<String>,
    /// The endpoint's address.
    pub endpoint: String,
    /// Why that one of the backend's: as `x-fairlead-endpoint-choice` says it.
    pub endpoint_because: &'static str,
    /// The revision there, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What pods are asked for as `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_model: Option<String>,
    /// What a million tokens cost there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_per_million_tokens: Option<String>,
}

/// An endpoint that could take it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Its backend.
    pub backend: String,
    /// Its address.
    pub endpoint: String,
    /// The revision there, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Requests that this gateway has there now.
    pub in_flight: usize,
    /// Whether that is too much for it to be preferred.
    pub too_loaded: bool,
    /// Bytes of the prompt's beginning that it is believed to have in its cache.
    pub prompt_bytes_cached: usize,
    /// Whether it is left alone for a while after failures.
    pub ejected: bool,
}

/// Where a canary is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Its phase.
    pub phase: String,
    /// The backend that is tried.
    pub canary: String,
    /// Its share in percent.
    pub weight: u32,
    /// The step and how many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

/// Explains.
///
/// # Errors
/// As the request would be refused: 404 for a model that no route answers to, 400 for what it says wrongly of itself.
pub fn explain(
    snapshot: &RoutingSnapshot,
    trusted: &TrustedHeaders,
    policies: &Policies,
    request: &InferenceRequest,
    headers: &HeaderMap,
    now: Instant,
) -> Result<Explanation, ApiError> {
    let Some(route) = snapshot.route(&request.model) else {
        return Err(ApiError::model_not_found(&request.model, "GET /v1/models lists those there are"));
    };
    let identity = trusted.read(headers)?;
    let cap = decide::cap(headers)?;
    let asked = Asked::new(&identity, headers, &request.facts, cap).with_trust(trusted);
    let decision = decide::decide(route, &asked);
    let ask = request.ask(headers, trusted);
    let (backend, unavailable) = match place(route, &decision, policies, &ask, now) {
        Ok(place) => (Some(place), None),
        Err(Unavailable::NoWeight) => (None, Some("no backend of the split has a weight above 0")),
        Err(Unavailable::NoEndpoint) => {
            (None, Some("no backend of the split has an endpoint that can take it"))
        }
    };
    Ok(Explanation {
        model: request.model.clone(),
        route: route.id.to_string(),
        prompt_tokens: request.facts.tokens,
        max_cost_per_million_tokens: cap.map(|cap| cap.to_string()),
        rules: looks(route, &asked),
        rule_problems: route.rules.problems.clone(),
        split: split(route, &decision),
        subject: decision
            .subject
            .map(|subject| Subject { by: decision.sticky, hash: format!("{subject:016x}") }),
        candidates: candidates(route, &decision, policies, &ask, now),
        rule: decision.rule,
        backend,
        unavailable,
        rollout: route.rollout.as_ref().map(|rollout| Rollout {
            phase: format!("{:?}", rollout.state.phase),
            canary: rollout.state.canary.clone(),
            weight: rollout.state.weight,
            step: rollout.progress.clone(),
        }),
        identity: Who { tenant: identity.tenant, tier: identity.tier, user: identity.user },
    })
}

/// Where it would go now.
fn place(
    route: &Route,
    decision: &Decision,
    policies: &Policies,
    ask: &Ask<'_>,
    now: Instant,
) -> Result<Place, Unavailable> {
    let mut selection = Selection::new(decision.clone());
    let rng = &mut rand::rng();
    let Candidates { backend, endpoints, .. } = selection.candidates(route, now, rng)?;
    let (verdict, _) = policies.explain(ask, &select::target(route, backend), &endpoints, rng);
    let verdict = verdict.ok_or(Unavailable::NoEndpoint)?;
    let endpoint = endpoints.get(verdict.index).ok_or(Unavailable::NoEndpoint)?;
    Ok(Place {
        name: backend.name.to_string(),
        chosen_by: if decision.subject.is_some() { "Subject" } else { "Chance" },
        diverted_from: selection.intended().filter(|name| **name != backend.name).map(Name::to_string),
        endpoint: endpoint.address().to_owned(),
        endpoint_because: verdict.why.word(),
        revision: endpoint.revision().map(Name::to_string),
        served_model: backend.served_model.clone(),
        cost_per_million_tokens: backend.cost.as_ref().map(Name::to_string),
    })
}

fn looks(route: &Route, asked: &Asked<'_>) -> Vec<RuleLook> {
    let mut looks = Vec::new();
    for rule in &route.rules.ready {
        let why = rule.why_not(asked);
        let holds = why.is_none();
        looks.push(RuleLook { name: rule.name.clone(), holds, why });
        if holds {
            break;
        }
    }
    looks
}

fn split(route: &Route, decision: &Decision) -> Split {
    let ranks = decision.ranks(route).into_iter().map(|rank| {
        let total = rank.iter().map(|weight| u64::from(*weight)).sum();
        let taking = route.backends.iter().zip(rank).filter(|(_, weight)| *weight > 0);
        taking
            .map(|(backend, weight)| Share {
                backend: backend.name.to_string(),
                percent: shares::percent(weight, total),
            })
            .collect()
    });
    Split {
        of: if decision.by_own_split() { "Route" } else { "Rule" },
        line: decision.split.to_string(),
        ranks: ranks.collect(),
    }
}

/// All endpoints of the backends that the split names.
fn candidates(
    route: &Route,
    decision: &Decision,
    policies: &Policies,
    ask: &Ask<'_>,
    now: Instant,
) -> Vec<Candidate> {
    let ranks = decision.ranks(route);
    let taking = route.backends.iter().enumerate();
    let taking = taking.filter(|(index, _)| ranks.iter().any(|rank| rank[*index] > 0));
    let mut all = Vec::new();
    for (_, backend) in taking {
        let endpoints: Vec<_> = backend.endpoints.iter().collect();
        let target = select::target(route, backend);
        let (_, explained) = policies.explain(ask, &target, &endpoints, &mut rand::rng());
        all.extend(endpoints.iter().zip(explained).map(|(endpoint, explained)| Candidate {
            backend: backend.name.to_string(),
            endpoint: endpoint.address().to_owned(),
            revision: endpoint.revision().map(Name::to_string),
            in_flight: explained.in_flight,
            too_loaded: explained.too_loaded,
            prompt_bytes_cached: explained.matched,
            ejected: endpoint.is_ejected(now),
        }));
    }
    all
}
