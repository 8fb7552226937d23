//! A ModelRoute's status, as a pure function. The only place where one is made.

use fairlead_crds::condition::ready;
use fairlead_crds::model_route::{ModelRoute, ModelRouteStatus, SplitShare, shares};
use k8s_openapi::jiff::Timestamp;

use super::reach::{self, Reach};
use super::validate::Routed;
use crate::conditions::{Verdict, conditions};
use crate::error::Error;

/// Makes the status. `object` carries what was decided of its canary just now.
pub fn status(
    object: &ModelRoute,
    before: &ModelRouteStatus,
    outcome: &Result<Routed, Error>,
    reach: &Reach,
    now: Timestamp,
) -> ModelRouteStatus {
    let verdict = match outcome {
        Ok(Routed { backends, rules }) => Verdict::Ready {
            reason: ready::ROUTED,
            message: match rules {
                0 => format!("requests go to {}", backends.join(", ")),
                1 => format!("requests go to {}, but for those of a rule", backends.join(", ")),
                some => format!("requests go to {}, but for those of {some} rules", backends.join(", ")),
            },
        },
        Err(error) => Verdict::of_error(error),
    };
    let effective_split = split(object);
    let rollout = object.status.as_ref().and_then(|status| status.rollout.clone());
    let line =
        shares::line(object.weights().iter().map(|(backend, weight)| (backend.name.as_str(), *weight)));
    let stable = rollout.as_ref().map(|rollout| rollout.state.stable.clone());
    let stable = stable.filter(|name| !name.is_empty()).unwrap_or_else(|| object.stable_in_spec());
    let generation = object.metadata.generation;
    let mut conditions = conditions(&before.conditions, &verdict, generation, now);
    conditions.extend(reach::condition(reach, &before.conditions, generation, now));
    ModelRouteStatus {
        observed_generation: generation,
        conditions,
        model: Some(object.model_name()),
        stable: (!stable.is_empty()).then_some(stable),
        split: (!line.is_empty()).then_some(line),
        effective_split,
        rollout,
        // Written by people.
        request: None,
    }
}

/// Percent by weight, of the backends that have any, with at most two decimals.
fn split(object: &ModelRoute) -> Vec<SplitShare> {
    let weights = object.weights();
    let total: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    weights
        .into_iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(backend, weight)| SplitShare {
            backend: backend.name.clone(),
            percent: shares::percent(weight, total),
        })
        .collect()
}
