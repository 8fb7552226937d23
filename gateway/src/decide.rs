//! What is decided of a request before a backend is chosen: by which rule, by whose weights, and whether its subject sticks. Once
//! a request, by the snapshot of its first attempt; pure.
//!
//! Called by `forward` and by `explain`. It names backends and chooses none: that is `select`'s, attempt by attempt.

use fairlead_crds::model_route::cost::Cost;
use fairlead_crds::model_route::shares;
use fairlead_crds::model_route::stickiness::StickyBy;
use fairlead_openai::ApiError;
use http::HeaderMap;
use http::header::HeaderName;
use smallvec::SmallVec;

use crate::endpoint::FEW;
use crate::headers;
use crate::identity::TrustedHeaders;
use crate::name::Name;
use crate::prompt::PromptFacts;
use crate::rules::{Asked, Target};
use crate::snapshot::Route;
use crate::split;

/// What was decided of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The rule that matched, if one did.
    pub rule: Option<String>,
    /// Whose weights are in force for it.
    pub by: Weights,
    /// The split in one line, as answers tell it: `v1=80 v2=20`.
    pub split: Name,
    /// What sticks; [`StickyBy::Request`] where chance decides.
    pub sticky: StickyBy,
    /// The hash of the route and the sticky key; `None` where chance decides.
    pub subject: Option<u64>,
}

/// Whose weights are in force for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// The route's own, with what its canary has.
    #[default]
    Route,
    /// A rule's: backends and their weights, in ranks; a rank counts when those before it have no endpoint.
    Rule(Vec<Vec<(String, u32)>>),
}

/// The weight of each of a route's backends.
pub type RankWeights = SmallVec<[u32; FEW]>;
/// Weights, the preferred ones first. Requests without a rule's preferences have one rank.
pub type Ranks = SmallVec<[RankWeights; 1]>;

/// Whose requests stay with one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stick {
    /// What they have in common.
    pub by: StickyBy,
    /// The header, when they go by one.
    pub header: Option<HeaderName>,
}

/// Decides of a request as it has arrived.
///
/// # Errors
/// 400 for what it says wrongly of itself: a header of identity or of cost that cannot be read.
pub fn of_request(
    route: &Route,
    trusted: &TrustedHeaders,
    client: &HeaderMap,
    prompt: &PromptFacts,
) -> Result<Decision, ApiError> {
    let identity = trusted.read(client)?;
    let cap = cap(client)?;
    Ok(decide(route, &Asked::new(&identity, client, prompt, cap).with_trust(trusted)))
}

/// The most that a request may cost.
///
/// # Errors
/// 400 when that is not a cost.
pub fn cap(client: &HeaderMap) -> Result<Option<Cost>, ApiError> {
    let name = headers::MAX_COST;
    let Some(value) = client.get(&name) else { return Ok(None) };
    let parsed =
        value.to_str().map_err(|_| "it is not plain text".to_owned()).and_then(|text| text.trim().parse());
    parsed.map(Some).map_err(|problem| ApiError::bad_request(format!("the header {name}: {problem}")))
}

/// Decides. The first rule that holds has the request.
pub fn decide(route: &Route, asked: &Asked<'_>) -> Decision {
    let rule = route.rules.ready.iter().find(|rule| rule.holds(asked));
    let by = match rule.map(|rule| &rule.target) {
        None | Some(Target::Route) => Weights::Route,
        Some(Target::Split(shares)) => Weights::Rule(vec![shares.clone()]),
        Some(Target::Cost(choice)) => {
            let ranks = choice.ranks(asked.cap);
            Weights::Rule(ranks.into_iter().map(|names| of_equal_cost(route, &names)).collect())
        }
    };
    let split = match &by {
        Weights::Route => route.split.clone(),
        Weights::Rule(ranks) => {
            let first = ranks.first().map(Vec::as_slice).unwrap_or_default();
            shares::line(first.iter().map(|(name, weight)| (name.as_str(), *weight))).into()
        }
    };
    let subject = sticky_key(&route.stick, asked).map(|key| {
        // With the name and not the uid: a route that was restored from a backup keeps its users where they are.
        split::subject_of(&route.id, kind(route.stick.by), key)
    });
    let sticky = if subject.is_some() { route.stick.by } else { StickyBy::Request };
    Decision { rule: rule.map(|rule| rule.name.clone()), by, split, sticky, subject }
}

/// Backends of one cost share by their weights, or evenly where none has one.
fn of_equal_cost(route: &Route, names: &[&str]) -> Vec<(String, u32)> {
    let weight = |name: &str| route.backends.iter().find(|it| it.name == name).map_or(0, |it| it.weight);
    let none = names.iter().all(|name| weight(name) == 0);
    names.iter().map(|name| ((*name).to_owned(), if none { 1 } else { weight(name) })).collect()
}

fn sticky_key<'a>(stick: &Stick, asked: &Asked<'a>) -> Option<&'a str> {
    let key = match stick.by {
        StickyBy::Request => None,
        StickyBy::User => asked.sticky_user,
        StickyBy::Tenant => asked.identity.tenant.as_deref(),
        StickyBy::Header => {
            let name = stick.header.as_ref()?;
            asked.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
        }
    };
    key.filter(|key| !key.is_empty())
}

/// How a kind of key is written, in answers and in hashes.
pub fn kind(by: StickyBy) -> &'static str {
    match by {
        StickyBy::Request => "Request",
        StickyBy::User => "User",
        StickyBy::Tenant => "Tenant",
        StickyBy::Header => "Header",
    }
}

impl Decision {
    /// The weight of each of a route's backends for this request, in the route's order; more than one rank where a rule has
    /// preferences.
    ///
    /// The route may be a newer one than was decided by: its own weights are those of now.
    pub fn ranks(&self, route: &Route) -> Ranks {
        match &self.by {
            Weights::Route => {
                Ranks::from_buf([route.backends.iter().map(|backend| backend.weight).collect()])
            }
            Weights::Rule(ranks) => ranks
                .iter()
                .map(|rank| {
                    let weight =
                        |name: &str| rank.iter().find(|(known, _)| known == name).map_or(0, |(_, it)| *it);
                    route.backends.iter().map(|backend| weight(&backend.name)).collect()
                })
                .collect(),
        }
    }

    /// Says what was decided in the headers of an answer.
    pub fn tell(&self, answer: &mut HeaderMap) {
        if let Some(rule) = &self.rule {
            headers::set(answer, headers::RULE, rule);
        }
        if !self.split.is_empty() {
            headers::set_name(answer, headers::SPLIT, &self.split);
        }
        if self.subject.is_some() {
            headers::set(answer, headers::STICKY, kind(self.sticky));
        }
    }

    /// Whether the route's own split decides, so that the request says something of a canary.
    pub fn by_own_split(&self) -> bool {
        self.by == Weights::Route
    }
}

#[cfg(test)]
mod tests;
