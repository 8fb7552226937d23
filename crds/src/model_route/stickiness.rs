//! `spec.stickiness` of a ModelRoute: who stays with the backend that they were given.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validation::rule;

/// Who stays with the backend that they were given. As long as one weight only grows, requests of one key go to it from some
/// moment on and never back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(self.by == 'Header') == has(self.header)",
    "spec.stickiness.header is the name of the header that by: Header goes by; give it with that and with nothing else",
)]))]
#[serde(rename_all = "camelCase")]
pub struct Stickiness {
    /// What requests have in common that go to one backend. A request that has none of it is given a backend by chance.
    pub by: StickyBy,
    /// With `by: Header`: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[A-Za-z0-9_-]+$')",
        "spec.stickiness.header must be the name of a header, such as x-session-id",
    )]))]
    pub header: Option<String>,
}

/// What requests have in common that go to one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StickyBy {
    /// Nothing: each request is given a backend by chance. As without `stickiness`.
    #[default]
    Request,
    /// The user: the trusted user header where the gateway is given one, otherwise the request's own `user`.
    User,
    /// The tenant, from the trusted tenant header.
    Tenant,
    /// The value of a header, such as a session's id.
    Header,
}
