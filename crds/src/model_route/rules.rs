//! `spec.rules` of a ModelRoute: which requests go elsewhere than by the backends' weights. What is wrong with them is said in
//! [`check`].

pub mod check;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cost;
use crate::validation::rule;

/// One rule. Of all rules whose conditions hold the first has the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "!(has(self.split) && has(self.choose))",
    "spec.rules[]: set split or choose, not both; with neither the backends' own weights and the canary decide",
)]))]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Name of the rule within the route; answers tell it.
    #[schemars(length(max = 63), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "spec.rules[].name must be lower-case letters, digits and -, beginning and ending with a letter or digit",
    )]))]
    pub name: String,
    /// Which requests it is for: all that is given must hold.
    #[serde(rename = "match")]
    pub when: RuleMatch,
    /// Where they go. A canary does not move it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["backend"],
        "x-kubernetes-validations" = [rule(
            "self.exists(s, !has(s.weight) || s.weight > 0)",
            "spec.rules[].split: the weights sum to zero; give at least one backend a weight above 0",
        )],
    ))]
    pub split: Vec<RuleShare>,
    /// Where they go by cost. When no backend is within the cap, the rule does not hold and the next ones decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choose: Option<Choose>,
}

/// Conditions on a request. All that are given must hold; of a list one entry is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "has(self.tenants) || has(self.tenantTiers) || has(self.users) || has(self.headers) || has(self.promptTokens) || \
     has(self.promptContains) || has(self.maxCostPerMillionTokens)",
    "spec.rules[].match is empty and would hold for every request; give a condition, or give the backends weights instead",
)]))]
#[serde(rename_all = "camelCase")]
pub struct RuleMatch {
    /// The tenant is one of these. Known from the gateway's trusted tenant header alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    pub tenants: Vec<String>,
    /// The tenant's tier is one of these. Known from the gateway's trusted tier header alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 63)))]
    pub tenant_tiers: Vec<String>,
    /// The user is one of these. Known from the gateway's trusted user header alone, never from the request's `user`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    pub users: Vec<String>,
    /// All of these hold for the client's headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub headers: Vec<HeaderMatch>,
    /// How long the prompt is, in tokens: an estimate of one for every four bytes of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<TokenRange>,
    /// The last message of the user (or the prompt, the query, or the texts to embed) contains one of these. Upper and lower
    /// case are the same; of more than a MiB the last counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    pub prompt_contains: Vec<String>,
    /// The request names the most it may cost (`x-fairlead-max-cost-per-million-tokens`), and that is in this range; `{}` for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost_per_million_tokens: Option<CostRange>,
}

/// A condition on a header. A header that comes more than once holds if one of its values does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "[has(self.exact), has(self.prefix), has(self.regex), has(self.present)].exists_one(it, it)",
    "spec.rules[].match.headers[]: set exactly one of exact, prefix, regex and present",
)]))]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Name of the header, in any case.
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[A-Za-z0-9_-]+$')",
        "spec.rules[].match.headers[].name must be the name of a header, such as x-priority",
    )]))]
    pub name: String,
    /// The value is this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub exact: Option<String>,
    /// The value begins with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub prefix: Option<String>,
    /// The whole value matches this regular expression (RE2's syntax, of ASCII; `(?i)` for any case).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = [rule(
        "''.matches(self) in [true, false]",
        "spec.rules[].match.headers[].regex must be a regular expression in RE2's syntax",
    )]))]
    pub regex: Option<String>,
    /// Whether it is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// A range of token counts, ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(has(self.min) || has(self.max)) && (!has(self.min) || !has(self.max) || self.min <= self.max)",
    "spec.rules[].match.promptTokens: give min, max, or both with min at most max",
)]))]
#[serde(rename_all = "camelCase")]
pub struct TokenRange {
    /// At least so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100_000_000))]
    pub min: Option<u32>,
    /// At most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100_000_000))]
    pub max: Option<u32>,
}

/// A range of costs, ends included; without ends every cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CostRange {
    /// At least so much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "cost_schema")]
    pub min: Option<String>,
    /// At most so much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "cost_schema")]
    pub max: Option<String>,
}

/// One backend's share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleShare {
    /// One of `spec.backends`.
    #[schemars(length(min = 1, max = 63))]
    pub backend: String,
    /// Share, relative to the others'. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub weight: Option<u32>,
}

/// A choice by what backends cost. A backend without a pod that serves is passed over; those of one cost share the requests by
/// their weights, or evenly where none has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Choose {
    /// Which of those within the cap.
    pub prefer: Prefer,
    /// Names of backends to choose among. Default: all that have a cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub among: Vec<String>,
    /// The most that a million tokens may cost. The request's own cap counts too; the lower one decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "cost_schema")]
    pub max_cost_per_million_tokens: Option<String>,
}

/// Which of several backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Prefer {
    /// The one that costs least.
    Cheapest,
    /// The one that costs most within the cap: the best, where price goes by quality.
    MostExpensive,
}

/// A cost: a decimal in a string.
pub(crate) fn cost_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": cost::MAX_LENGTH,
        "x-kubernetes-validations": [rule(
            &format!("self.matches('{}')", cost::PATTERN),
            "a cost must be a decimal in a string with at most 9 digits before and 6 behind the point, such as \"0.15\"",
        )],
    })
}
