//! `spec.endpointPolicy` of a ModelRoute: which pod of a backend gets a request.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validation::rule;

/// Which pod of a backend gets a request, once the backend is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "(has(self.kind) && self.kind == 'SessionAffinity') == has(self.session)",
        "spec.endpointPolicy.session goes with kind SessionAffinity: set both or neither",
    ),
    rule(
        "!has(self.minMatchPercent) || !has(self.kind) || self.kind == 'PrefixAware'",
        "spec.endpointPolicy.minMatchPercent is for kind PrefixAware; remove it",
    ),
    rule(
        "!has(self.kind) || self.kind != 'LeastLoad' || !(has(self.maxExtraRequests) || has(self.maxLoadPercent))",
        "spec.endpointPolicy: kind LeastLoad always takes the least loaded pod; remove maxExtraRequests and maxLoadPercent",
    ),
]))]
#[serde(rename_all = "camelCase")]
pub struct EndpointPolicy {
    /// `PrefixAware` (the default): a pod that has answered a request with the same beginning, since it has that in its KV cache.
    /// `LeastLoad`: the pod with the fewest requests. `SessionAffinity`: the same pod for the same session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<EndpointPolicyKind>,
    /// With `PrefixAware`: part of the prompt, in percent, that a pod must have for the match to count. Default: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_match_percent: Option<u32>,
    /// A match or session loses to the load of its pod when that has more requests than the least loaded one by more than this
    /// and by more than `maxLoadPercent`. Default: 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100_000))]
    pub max_extra_requests: Option<u32>,
    /// See `maxExtraRequests`; in percent of the least loaded pod's requests. Default: 150.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 10_000))]
    pub max_load_percent: Option<u32>,
    /// With `SessionAffinity`: what tells sessions apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionKey>,
}

/// How a pod is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EndpointPolicyKind {
    /// A pod that has seen the beginning of the prompt.
    #[default]
    PrefixAware,
    /// The pod with the fewest requests.
    LeastLoad,
    /// The same pod for the same session.
    SessionAffinity,
}

/// What tells sessions apart. Requests without it go to the pod with the fewest requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(self.by == 'Header') == has(self.header)",
    "spec.endpointPolicy.session.header goes with by: Header: set both or neither",
)]))]
#[serde(rename_all = "camelCase")]
pub struct SessionKey {
    /// `User`: the request's field `user`. `Header`: the header that `header` names.
    pub by: SessionBy,
    /// Name of the header, for example `x-session-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[A-Za-z0-9-]+$')",
        "spec.endpointPolicy.session.header must be the name of a header: letters, digits and -",
    )]))]
    pub header: Option<String>,
}

/// Where a session's name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionBy {
    /// The request's field `user`.
    User,
    /// A header.
    Header,
}

impl EndpointPolicy {
    /// `minMatchPercent` where it is not given.
    pub const MIN_MATCH_PERCENT: u32 = 30;
    /// `maxExtraRequests` where it is not given.
    pub const MAX_EXTRA_REQUESTS: u32 = 8;
    /// `maxLoadPercent` where it is not given.
    pub const MAX_LOAD_PERCENT: u32 = 150;

    /// What the schema would refuse, for those who read objects that no API server has seen: field and remedy, from
    /// `spec.endpointPolicy` on.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let kind = self.kind.unwrap_or_default();
        let within = |field: &str, value: Option<u32>, low: u32, high: u32| match value {
            Some(value) if !(low..=high).contains(&value) => {
                Err(format!("spec.endpointPolicy.{field}: is {value}; write {low} to {high}"))
            }
            _ => Ok(()),
        };
        within("minMatchPercent", self.min_match_percent, 1, 100)?;
        within("maxExtraRequests", self.max_extra_requests, 0, 100_000)?;
        within("maxLoadPercent", self.max_load_percent, 100, 10_000)?;
        if self.min_match_percent.is_some() && kind != EndpointPolicyKind::PrefixAware {
            return Err("spec.endpointPolicy.minMatchPercent: is for kind PrefixAware; remove it".to_owned());
        }
        let guarded = self.max_extra_requests.is_some() || self.max_load_percent.is_some();
        if guarded && kind == EndpointPolicyKind::LeastLoad {
            return Err(
                "spec.endpointPolicy: kind LeastLoad always takes the least loaded pod; remove maxExtraRequests and maxLoadPercent"
                    .to_owned(),
            );
        }
        match (&self.session, kind == EndpointPolicyKind::SessionAffinity) {
            (Some(session), true) => session.check(),
            (None, false) => Ok(()),
            (Some(_), false) => {
                Err("spec.endpointPolicy.session: is for kind SessionAffinity; remove it or set the kind"
                    .to_owned())
            }
            (None, true) => {
                Err("spec.endpointPolicy.session: missing; say what tells sessions apart, such as {by: User}"
                    .to_owned())
            }
        }
    }
}

impl SessionKey {
    fn check(&self) -> Result<(), String> {
        match (self.by, &self.header) {
            (SessionBy::User, Some(_)) => {
                Err("spec.endpointPolicy.session.header: is for by: Header; remove it".to_owned())
            }
            (SessionBy::Header, None) => {
                Err("spec.endpointPolicy.session.header: missing; name the header".to_owned())
            }
            (SessionBy::Header, Some(name))
                if name.is_empty()
                    || name.len() > 128
                    || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                Err(format!(
                    "spec.endpointPolicy.session.header: {name:?} is not the name of a header; use letters, digits and -"
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<(), String> {
        serde_json::from_str::<EndpointPolicy>(json).map_err(|error| error.to_string())?.check()
    }

    #[test]
    fn what_goes_together() {
        for good in [
            "{}",
            r#"{"kind": "PrefixAware", "minMatchPercent": 50, "maxExtraRequests": 0, "maxLoadPercent": 100}"#,
            r#"{"kind": "LeastLoad"}"#,
            r#"{"kind": "SessionAffinity", "session": {"by": "User"}, "maxExtraRequests": 4}"#,
            r#"{"kind": "SessionAffinity", "session": {"by": "Header", "header": "x-session-id"}}"#,
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, wanted) in [
            (r#"{"kind": "RoundRobin"}"#, "RoundRobin"),
            (r#"{"minMatchPercent": 0}"#, "spec.endpointPolicy.minMatchPercent: is 0"),
            (r#"{"maxLoadPercent": 99}"#, "spec.endpointPolicy.maxLoadPercent: is 99"),
            (r#"{"kind": "LeastLoad", "minMatchPercent": 3}"#, "spec.endpointPolicy.minMatchPercent"),
            (r#"{"kind": "LeastLoad", "maxExtraRequests": 3}"#, "remove maxExtraRequests"),
            (r#"{"kind": "SessionAffinity"}"#, "spec.endpointPolicy.session: missing"),
            (r#"{"session": {"by": "User"}}"#, "spec.endpointPolicy.session: is for kind SessionAffinity"),
            (r#"{"kind": "SessionAffinity", "session": {"by": "Header"}}"#, "session.header: missing"),
            (
                r#"{"kind": "SessionAffinity", "session": {"by": "User", "header": "x"}}"#,
                "session.header: is for by: Header",
            ),
            (
                r#"{"kind": "SessionAffinity", "session": {"by": "Header", "header": "x y"}}"#,
                "is not the name of a header",
            ),
        ] {
            let error = check(bad).expect_err(bad);
            assert!(error.contains(wanted), "{bad}: {error}");
        }
    }
}
