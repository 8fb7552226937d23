//! What is decided of a request before a backend is chosen: by which rule, by whose weights, and whether its subject sticks. Once
//! a request, by the snapshot of its first attempt; pure.
//!
//! Called by `forward` and by `explain`. It names backends and chooses none: that is `select`'s, attempt by attempt.

use crate::snapshot::Route;

/// What was decided of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The rule that matched, if one did.
    pub rule: Option<String>,
    /// Whose weights are in force for it.
    pub by: Weights,
    /// The hash of the route and the sticky key; `None` where chance decides.
    pub subject: Option<u64>,
}

/// Whose weights are in force for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// The route's own, with what its canary has.
    #[default]
    Route,
}

/// Decides.
pub fn decide(_route: &Route) -> Decision {
    Decision::default()
}

impl Decision {
    /// The weight of each of a route's backends for this request, in the route's order.
    ///
    /// The route may be a newer one than was decided by: weights are those of now.
    pub fn weights(&self, route: &Route) -> Vec<u32> {
        match self.by {
            Weights::Route => route.backends.iter().map(|backend| backend.weight).collect(),
        }
    }

    /// Whether the route's own split decides, so that the request says something of a canary.
    pub fn by_own_split(&self) -> bool {
        self.by == Weights::Route
    }
}
