//! A route's rules, made ready to be held against requests. Pure.
//!
//! Made by `snapshot` from `spec.rules`, handed on from snapshot to snapshot while they stay the same, asked by `decide` and by
//! `explain`. A rule that cannot be followed is left out and told of; a target that is not there takes nothing.

use std::cell::OnceCell;

use fairlead_crds::model_route::cost::Cost;
use fairlead_crds::model_route::rules::check::{self, header_regex};
use fairlead_crds::model_route::rules::{Choose, HeaderMatch, Prefer, Rule, RuleMatch};
use fairlead_crds::model_route::{Backend, ModelRouteSpec};
use http::header::{HeaderMap, HeaderName};
use regex::bytes::Regex;

use crate::identity::{Identity, TrustedHeaders};
use crate::prompt::PromptFacts;

/// The rules of one route, in order.
#[derive(Debug, Default)]
pub struct Rules {
    source: Source,
    /// Those that can be followed.
    pub ready: Vec<ReadyRule>,
    /// Those that cannot: field and remedy.
    pub problems: Vec<String>,
}

/// All that rules are made of: they name backends, and choose by their costs.
#[derive(Debug, Default, PartialEq)]
struct Source {
    rules: Vec<Rule>,
    costs: Vec<(String, Option<String>)>,
}

/// A rule that can be held against a request.
#[derive(Debug)]
pub struct ReadyRule {
    /// Its name within the route.
    pub name: String,
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Where its requests go.
    pub target: Target,
}

/// Where a rule's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Where the route's own split has them.
    Route,
    /// By these weights.
    Split(Vec<(String, u32)>),
    /// By what backends cost.
    Cost(CostChoice),
}

/// A choice by cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostChoice {
    /// Which of those within the cap.
    pub prefer: Prefer,
    /// The backends to choose among, with what they cost.
    pub among: Vec<(String, Cost)>,
    /// The rule's cap.
    pub cap: Option<Cost>,
}

/// One condition of a rule.
#[derive(Debug)]
pub enum Condition {
    /// The tenant is one of these.
    Tenant(Vec<String>),
    /// The tenant's tier is one of these.
    Tier(Vec<String>),
    /// The user is one of these.
    User(Vec<String>),
    /// A header.
    Header(HeaderName, HeaderTest),
    /// The prompt has so many tokens.
    PromptTokens(Option<u32>, Option<u32>),
    /// The question contains one of these, in lower case.
    PromptContains(Vec<String>),
    /// The request's cap lies between these.
    MaxCost(Option<Cost>, Option<Cost>),
}

/// What a header must be.
#[derive(Debug)]
pub enum HeaderTest {
    /// This.
    Exact(String),
    /// This at its beginning.
    Prefix(String),
    /// What matches this.
    Regex(Regex),
    /// There, or not.
    Present(bool),
}

/// What rules are held against.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Who asks, as far as is trusted.
    pub identity: &'a Identity,
    /// The client's headers.
    pub headers: &'a HeaderMap,
    /// What the body is about.
    pub prompt: &'a PromptFacts,
    /// The most that it may cost.
    pub cap: Option<Cost>,
    /// Whose request it is to a split that sticks by user.
    pub sticky_user: Option<&'a str>,
    question: OnceCell<String>,
}

impl<'a> Asked<'a> {
    /// A request; what it says itself of its user counts for stickiness.
    pub fn new(
        identity: &'a Identity,
        headers: &'a HeaderMap,
        prompt: &'a PromptFacts,
        cap: Option<Cost>,
    ) -> Self {
        let sticky_user = identity.user.as_deref().or(prompt.user.as_deref());
        Self { identity, headers, prompt, cap, sticky_user, question: OnceCell::new() }
    }

    /// The same where some headers are trusted: with a trusted user, clients cannot go from one variant to another by naming
    /// themselves anew.
    #[must_use]
    pub fn with_trust(self, trusted: &TrustedHeaders) -> Self {
        let told = || trusted.user_to_stick_to(self.headers, self.prompt.user.as_deref());
        Self { sticky_user: self.identity.user.as_deref().or_else(told), ..self }
    }

    /// The question in lower case; made once, when a rule first asks.
    fn question(&self) -> &str {
        self.question.get_or_init(|| self.prompt.question.to_lowercase())
    }
}

impl Rules {
    /// Makes a route's rules ready.
    pub fn new(spec: &ModelRouteSpec) -> Self {
        let bad = check::problems(spec);
        let mut rules = Self { source: Source::of(spec), ready: Vec::new(), problems: Vec::new() };
        for (index, rule) in spec.rules.iter().enumerate() {
            let made = match bad.iter().find(|problem| problem.rule == index) {
                Some(problem) => Err(problem.text.clone()),
                None => ready(rule, &spec.backends),
            };
            match made {
                Ok(rule) => rules.ready.push(rule),
                Err(problem) => rules.problems.push(problem),
            }
        }
        rules
    }

    /// Whether these are the rules of that spec.
    pub fn are_of(&self, spec: &ModelRouteSpec) -> bool {
        self.source == Source::of(spec)
    }
}

impl Source {
    fn of(spec: &ModelRouteSpec) -> Self {
        let backends = if spec.rules.is_empty() { &[] } else { spec.backends.as_slice() };
        let costs = backends.iter().map(|it| (it.name.clone(), it.cost_per_million_tokens.clone()));
        Self { rules: spec.rules.clone(), costs: costs.collect() }
    }
}

fn ready(rule: &Rule, backends: &[Backend]) -> Result<ReadyRule, String> {
    let Rule { name, when, split, choose } = rule;
    let target = match choose {
        Some(choose) => Target::Cost(cost_choice(choose, backends)?),
        None if split.is_empty() => Target::Route,
        None => Target::Split(
            split.iter().map(|share| (share.backend.clone(), share.weight.unwrap_or(1))).collect(),
        ),
    };
    Ok(ReadyRule { name: name.clone(), conditions: conditions(when)?, target })
}

fn conditions(when: &RuleMatch) -> Result<Vec<Condition>, String> {
    let RuleMatch {
        tenants,
        tenant_tiers,
        users,
        headers,
        prompt_tokens,
        prompt_contains,
        max_cost_per_million_tokens,
    } = when;
    // The cheap ones first.
    let mut conditions = Vec::new();
    let mut list = |texts: &[String], make: fn(Vec<String>) -> Condition| {
        if !texts.is_empty() {
            conditions.push(make(texts.to_vec()));
        }
    };
    list(tenants, Condition::Tenant);
    list(tenant_tiers, Condition::Tier);
    list(users, Condition::User);
    for header in headers {
        conditions.push(header_condition(header)?);
    }
    if let Some(range) = prompt_tokens {
        conditions.push(Condition::PromptTokens(range.min, range.max));
    }
    if let Some(range) = max_cost_per_million_tokens {
        let cost = |text: &Option<String>| text.as_deref().map(str::parse::<Cost>).transpose();
        conditions.push(Condition::MaxCost(cost(&range.min)?, cost(&range.max)?));
    }
    if !prompt_contains.is_empty() {
        let lower = prompt_contains.iter().map(|text| text.to_lowercase()).collect();
        conditions.push(Condition::PromptContains(lower));
    }
    Ok(conditions)
}

fn header_condition(header: &HeaderMatch) -> Result<Condition, String> {
    let HeaderMatch { name, exact, prefix, regex, present } = header;
    let name = HeaderName::try_from(name.as_str()).map_err(|error| error.to_string())?;
    let test = match (exact, prefix, regex) {
        (Some(exact), _, _) => HeaderTest::Exact(exact.clone()),
        (_, Some(prefix), _) => HeaderTest::Prefix(prefix.clone()),
        (_, _, Some(regex)) => HeaderTest::Regex(header_regex(regex)?),
        _ => HeaderTest::Present(present.unwrap_or(true)),
    };
    Ok(Condition::Header(name, test))
}

fn cost_choice(choose: &Choose, backends: &[Backend]) -> Result<CostChoice, String> {
    let Choose { prefer, among, max_cost_per_million_tokens } = choose;
    let mut costs = Vec::new();
    for backend in backends.iter().filter(|it| among.is_empty() || among.contains(&it.name)) {
        if let Some(cost) = &backend.cost_per_million_tokens {
            costs.push((backend.name.clone(), cost.parse::<Cost>()?));
        }
    }
    let cap = max_cost_per_million_tokens.as_deref().map(str::parse::<Cost>).transpose()?;
    Ok(CostChoice { prefer: *prefer, among: costs, cap })
}

impl CostChoice {
    /// The backends within rule's and request's cap, the preferred first; those of one cost together. Empty when none is.
    pub fn ranks(&self, cap: Option<Cost>) -> Vec<Vec<&str>> {
        let cap = match (self.cap, cap) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let mut fitting: Vec<_> =
            self.among.iter().filter(|(_, cost)| cap.is_none_or(|cap| *cost <= cap)).collect();
        fitting.sort_by(|(_, one), (_, other)| match self.prefer {
            Prefer::Cheapest => one.cmp(other),
            Prefer::MostExpensive => other.cmp(one),
        });
        let ranks = fitting.chunk_by(|(_, one), (_, other)| one == other);
        ranks.map(|rank| rank.iter().map(|(name, _)| name.as_str()).collect()).collect()
    }
}

impl ReadyRule {
    /// Whether it is for this request.
    pub fn holds(&self, asked: &Asked<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(asked)) && self.within_cap(asked)
    }

    /// Why it is not for this request, in words; `None` when it is.
    pub fn why_not(&self, asked: &Asked<'_>) -> Option<String> {
        let failed = self.conditions.iter().find(|condition| !condition.holds(asked));
        match failed {
            Some(condition) => Some(condition.why_not(asked)),
            None if !self.within_cap(asked) => Some("choose: no backend is within the cap".to_owned()),
            None => None,
        }
    }

    fn within_cap(&self, asked: &Asked<'_>) -> bool {
        match &self.target {
            Target::Cost(choice) => !choice.ranks(asked.cap).is_empty(),
            Target::Route | Target::Split(_) => true,
        }
    }
}

impl Condition {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let one_of =
            |names: &[String], known: &Option<String>| known.as_ref().is_some_and(|it| names.contains(it));
        match self {
            Self::Tenant(names) => one_of(names, &asked.identity.tenant),
            Self::Tier(names) => one_of(names, &asked.identity.tier),
            Self::User(names) => one_of(names, &asked.identity.user),
            Self::Header(name, test) => test.holds(name, asked.headers),
            Self::PromptTokens(min, max) => {
                let tokens = asked.prompt.tokens;
                min.is_none_or(|min| tokens >= u64::from(min))
                    && max.is_none_or(|max| tokens <= u64::from(max))
            }
            Self::PromptContains(texts) => texts.iter().any(|text| asked.question().contains(text)),
            Self::MaxCost(min, max) => asked
                .cap
                .is_some_and(|cap| min.is_none_or(|min| cap >= min) && max.is_none_or(|max| cap <= max)),
        }
    }

    fn why_not(&self, asked: &Asked<'_>) -> String {
        let other = |what: &str, flag: &str, known: &Option<String>| match known {
            Some(known) => format!("match.{what}: {known:?} is none of them"),
            None => format!(
                "match.{what}: not known; the gateway's --trusted-{flag}-header, or that header, is not set"
            ),
        };
        match self {
            Self::Tenant(_) => other("tenants", "tenant", &asked.identity.tenant),
            Self::Tier(_) => other("tenantTiers", "tier", &asked.identity.tier),
            Self::User(_) => other("users", "user", &asked.identity.user),
            // Its value may be a secret, and whoever asks has sent it.
            Self::Header(name, _) => format!("match.headers: {name} is not as asked for"),
            Self::PromptTokens(..) => {
                format!("match.promptTokens: the estimate is {}", asked.prompt.tokens)
            }
            Self::PromptContains(_) => "match.promptContains: the question has none of them".to_owned(),
            Self::MaxCost(..) => match asked.cap {
                Some(cap) => format!("match.maxCostPerMillionTokens: the request's cap is {cap}"),
                None => "match.maxCostPerMillionTokens: the request has no cap".to_owned(),
            },
        }
    }
}

impl HeaderTest {
    fn holds(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii());
        match self {
            Self::Exact(exact) => values.any(|value| value == exact.as_bytes()),
            Self::Prefix(prefix) => values.any(|value| value.starts_with(prefix.as_bytes())),
            Self::Regex(regex) => values.any(|value| regex.is_match(value)),
            Self::Present(present) => values.next().is_some() == *present,
        }
    }
}

#[cfg(test)]
mod tests;
