//! The weights that are in force: those of the spec, with what the rollout has decided. One function for the operator, which shows
//! them, and for the gateways, which go by them. Pure.

use fairlead_rollout::machine::Promotion;
use sha2::{Digest, Sha256};

use super::canary::Canary;
use super::{Backend, ModelRoute};

impl ModelRoute {
    /// Each backend with its share of the requests, relative to the others' shares.
    ///
    /// A canary has nothing until the operator has decided on this very spec.
    pub fn weights(&self) -> Vec<(&Backend, u32)> {
        let Some(canary) = &self.spec.canary else {
            return self.spec.backends.iter().map(|backend| (backend, self.own_weight(backend))).collect();
        };
        let standing = self.standing(canary);
        let sum: u32 = standing.iter().map(|(_, weight)| weight).sum();
        let percent = self.canary_percent(canary);
        standing
            .into_iter()
            .map(|(backend, weight)| {
                // 16 backends of a million at most, times a hundred.
                if backend.name == canary.backend {
                    (backend, percent * sum)
                } else {
                    (backend, (100 - percent) * weight)
                }
            })
            .collect()
    }

    /// What the canary is compared with, by the spec: the backends that have a weight, as `v1` or `v1+v2`.
    pub fn stable_in_spec(&self) -> String {
        let canary = self.spec.canary.as_ref().map(|canary| canary.backend.as_str());
        let standing = self.spec.backends.iter().filter(|backend| Some(backend.name.as_str()) != canary);
        let names: Vec<&str> = standing
            .filter(|backend| self.own_weight(backend) > 0)
            .map(|backend| backend.name.as_str())
            .collect();
        names.join("+")
    }

    /// Changes with everything that makes another rollout of it: the backends but not their prices, and the canary but not
    /// `paused`.
    pub fn rollout_fingerprint(&self) -> String {
        let canary = self.spec.canary.as_ref().map(|canary| Canary { paused: false, ..canary.clone() });
        let priceless = |backend: &Backend| Backend { cost_per_million_tokens: None, ..backend.clone() };
        let backends: Vec<Backend> = self.spec.backends.iter().map(priceless).collect();
        // Types of ours, without maps that could not be written.
        let text = serde_json::to_string(&(backends, canary)).unwrap_or_default();
        let digest = Sha256::digest(text.as_bytes());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The canary's share in percent.
    fn canary_percent(&self, canary: &Canary) -> u32 {
        let rollout = self.status.as_ref().and_then(|status| status.rollout.as_ref());
        let decided = rollout.filter(|rollout| rollout.state.fingerprint == self.rollout_fingerprint());
        // What stands already keeps everything while the operator has not seen a change of its plan.
        let stands = || self.promoted().is_some_and(|promoted| promoted.backend == canary.backend);
        decided.map_or_else(|| if stands() { 100 } else { 0 }, |rollout| rollout.state.weight.min(100))
    }

    /// What was promoted over what the spec says now.
    fn promoted(&self) -> Option<&Promotion> {
        let promoted = self.status.as_ref()?.rollout.as_ref()?.state.promoted.as_ref();
        promoted.filter(|promoted| promoted.over == self.stable_in_spec())
    }

    /// The weights without the canary: the spec's, or all to what was promoted over them last.
    fn standing(&self, canary: &Canary) -> Vec<(&Backend, u32)> {
        let promoted = self
            .promoted()
            .filter(|promoted| promoted.backend != canary.backend)
            .filter(|promoted| self.spec.backends.iter().any(|backend| backend.name == promoted.backend));
        let weight = |backend: &Backend| match promoted {
            _ if backend.name == canary.backend => 0,
            Some(promoted) => u32::from(backend.name == promoted.backend),
            None => self.own_weight(backend),
        };
        self.spec.backends.iter().map(|backend| (backend, weight(backend))).collect()
    }

    /// The weight that the spec gives, defaults filled in.
    fn own_weight(&self, backend: &Backend) -> u32 {
        backend.weight.unwrap_or(u32::from(self.spec.backends.len() == 1))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn route(canary: &Value, rollout: &Value) -> ModelRoute {
        let mut route: ModelRoute = serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat"},
            "spec": {
                "backends": [
                    {"name": "v1", "modelDeployment": "m1", "weight": 3}, {"name": "also", "modelDeployment": "m1", "weight": 1},
                    {"name": "v2", "modelDeployment": "m2"}, {"name": "v3", "modelDeployment": "m3"},
                ],
                "canary": canary,
            },
        }))
        .unwrap();
        if rollout.is_object() {
            let mut status = json!({"rollout": rollout});
            if rollout.get("fingerprint").is_none() {
                status["rollout"]["fingerprint"] = json!(route.rollout_fingerprint());
            }
            route.status = Some(serde_json::from_value(status).unwrap());
        }
        route
    }

    /// Operators and gateways of two versions run side by side in an upgrade. A rollout that they call by two names has nothing at the
    /// gateways meanwhile and begins anew at the operator: a field that is added must not be written where the spec does not have it.
    #[test]
    fn all_versions_call_one_rollout_by_one_name() {
        let canary = json!({
            "backend": "v2", "paused": true, "steps": [{"weight": 5, "hold": "10m"}, {"weight": 50, "hold": "1h"}],
            "analysis": {"gates": [
                {"metric": "ErrorRate", "max": "2%"},
                {"metric": "Prometheus", "max": "3", "prometheus": {"query": "up"}},
                {"metric": "Evaluation", "evaluation": "faq", "score": "exactMatch", "min": "80%"},
            ]},
        });
        let made = route(&canary, &json!(null));
        assert_eq!(made.rollout_fingerprint(), "eaa785c1474b1867");
        let written = serde_json::to_string(&(&made.spec.backends, &made.spec.canary)).unwrap();
        assert!(!written.contains("null"), "{written}");
        let mut resumed = made.clone();
        resumed.spec.canary.as_mut().unwrap().paused = false;
        assert_eq!(resumed.rollout_fingerprint(), made.rollout_fingerprint());
    }

    fn shares(route: &ModelRoute) -> Vec<u32> {
        route.weights().iter().map(|(_, weight)| *weight).collect()
    }

    fn canary(backend: &str) -> Value {
        json!({"backend": backend, "steps": [{"weight": 5, "hold": "1m"}]})
    }

    #[test]
    fn without_a_canary_the_spec_is_in_force() {
        assert_eq!(shares(&route(&Value::Null, &Value::Null)), [3, 1, 0, 0]);
        let promoted =
            json!({"promoted": {"backend": "v2", "over": "v1+also"}, "phase": "Idle", "weight": 100});
        assert_eq!(shares(&route(&Value::Null, &promoted)), [3, 1, 0, 0], "Git has the last word");
    }

    #[test]
    fn a_canary_takes_its_part_from_all_others_in_proportion() {
        for (percent, expected) in [(0, [300, 100, 0, 0]), (5, [285, 95, 20, 0]), (100, [0, 0, 400, 0])] {
            assert_eq!(shares(&route(&canary("v2"), &json!({"weight": percent}))), expected);
        }
        // Nothing was decided, or on another spec, or nonsense.
        assert_eq!(shares(&route(&canary("v2"), &Value::Null)), [300, 100, 0, 0]);
        assert_eq!(
            shares(&route(&canary("v2"), &json!({"weight": 50, "fingerprint": "other"}))),
            [300, 100, 0, 0]
        );
        assert_eq!(shares(&route(&canary("v2"), &json!({"weight": 1000}))), [0, 0, 400, 0]);
    }

    #[test]
    fn what_was_promoted_stands_while_the_next_canary_is_tried() {
        let promoted = json!({"weight": 25, "promoted": {"backend": "v2", "over": "v1+also"}});
        assert_eq!(shares(&route(&canary("v3"), &promoted)), [0, 0, 75, 25]);
        // Before the operator has seen the new canary.
        let mut early = promoted.clone();
        early["fingerprint"] = json!("the last one's");
        assert_eq!(shares(&route(&canary("v3"), &early)), [0, 0, 100, 0]);
        // It was promoted over something else than what the spec says now.
        let other = json!({"weight": 25, "promoted": {"backend": "v2", "over": "v0"}});
        assert_eq!(shares(&route(&canary("v3"), &other)), [225, 75, 0, 100]);
        // A changed plan for what stands, before the operator has seen it.
        assert_eq!(shares(&route(&canary("v2"), &early)), [0, 0, 400, 0]);
        // What was promoted is no more.
        let gone = json!({"weight": 25, "promoted": {"backend": "gone", "over": "v1+also"}});
        assert_eq!(shares(&route(&canary("v3"), &gone)), [225, 75, 0, 100]);
    }

    #[test]
    fn the_fingerprint_is_of_what_makes_another_rollout() {
        let fingerprint = |canary: &Value| route(canary, &Value::Null).rollout_fingerprint();
        let one = fingerprint(&canary("v2"));
        let mut paused = canary("v2");
        paused["paused"] = json!(true);
        assert_eq!(fingerprint(&paused), one);
        assert_ne!(fingerprint(&canary("v3")), one);
        let mut dearer = route(&canary("v2"), &Value::Null);
        dearer.spec.backends[0].cost_per_million_tokens = Some("7".to_owned());
        assert_eq!(dearer.rollout_fingerprint(), one, "a price is not a version");
        let mut longer = canary("v2");
        longer["steps"][0]["hold"] = json!("2m");
        assert_ne!(fingerprint(&longer), one);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let mut route = route(&canary("v2"), &json!({"weight": 100}));
        for index in 0..12 {
            let backend = Backend {
                name: format!("b{index}"),
                weight: Some(1_000_000),
                ..route.spec.backends[0].clone()
            };
            route.spec.backends.push(backend);
        }
        let fingerprint = route.rollout_fingerprint();
        if let Some(rollout) = route.status.as_mut().and_then(|status| status.rollout.as_mut()) {
            rollout.state.fingerprint = fingerprint;
        }
        assert_eq!(shares(&route)[2], 100 * 12_000_004);
    }
}
