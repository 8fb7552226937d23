//! What is seen of a route's canary now: its pods, what the gateways have counted, what Prometheus and Evaluations say. Asks nobody as long as
//! no gate is due.

use std::collections::BTreeMap;

use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use fairlead_crds::model_route::analysis::GateSpec;
use fairlead_rollout::machine::{Observation, State, due};
use fairlead_rollout::report::{Sum, Wanted, sum};
use fairlead_rollout::{External, Metric, Plan};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::dereference::Dereferenced;
use super::evaluations::{self, Served};
use super::{gateways, prometheus, providers, validate};
use crate::context::Context;

/// What is seen now.
pub async fn look(
    object: &ModelRoute,
    plan: Option<&Plan>,
    state: Option<&State>,
    found: &Dereferenced,
    context: &Context,
    now: Timestamp,
) -> Observation {
    let Some(plan) = plan else { return Observation::default() };
    // What the canary is compared with may be what was promoted last.
    let stable = state.filter(|it| it.fingerprint == plan.fingerprint).map_or(&plan.stable, |it| &it.stable);
    let (mine, theirs) = (served(object, found, &plan.canary), served(object, found, stable));
    let revisions = |served: &[Option<Served>]| {
        let known: Option<Vec<&str>> =
            served.iter().map(|it| it.as_ref().map(|it| it.revision.as_str())).collect();
        known.filter(|known| !known.is_empty()).map(|known| known.join("+"))
    };
    let seen = Observation {
        canary_ready: canary_ready(object, found, &plan.canary),
        canary_revision: revisions(&mine),
        stable_revision: revisions(&theirs),
        ..Observation::default()
    };
    let Some(state) = state.filter(|state| due(plan, Some(state), now)) else { return seen };
    let (counted, external) = tokio::join!(
        counted(object, plan, state, context),
        external(object, plan, state, found, context, (one(&mine), one(&theirs))),
    );
    let Sum { canary, stable, unread } = counted;
    Observation {
        asked: true,
        epoch: state.epoch,
        canary: canary.step,
        stable: stable.step,
        recent_canary: canary.stretches,
        recent_stable: stable.stretches,
        unread,
        external,
        ..seen
    }
}

/// What the gateways have counted, where a gate asks for it.
async fn counted(object: &ModelRoute, plan: &Plan, state: &State, context: &Context) -> Sum {
    if !plan.gates.iter().any(|gate| gate.metric.is_counted()) {
        return Sum::default();
    }
    let slices = context.stores.gateways.state();
    let known = gateways::of_slices(slices.iter().map(AsRef::as_ref));
    if !known.iter().any(|gateway| gateway.serves) {
        let settings = &context.settings;
        let service = format!("{}/{}", settings.namespace, settings.gateway_admin_service);
        return Sum { unread: vec![format!("no gateway serves behind Service {service}")], ..Sum::default() };
    }
    let uid = object.uid().unwrap_or_default();
    let answers = gateways::ask(&context.http, &known, &uid).await;
    let wanted = Wanted {
        uid: &uid,
        fingerprint: &state.fingerprint,
        epoch: state.epoch,
        canary: &state.canary,
        stable: &state.stable,
    };
    sum(&answers, wanted)
}

/// What others find, by the place of the gate.
async fn external(
    object: &ModelRoute,
    plan: &Plan,
    state: &State,
    found: &Dereferenced,
    context: &Context,
    (mine, theirs): (Option<&Served>, Option<&Served>),
) -> BTreeMap<usize, External> {
    let analysis = object.spec.canary.as_ref().and_then(|canary| canary.analysis.as_ref());
    let specs = analysis.map_or(&[][..], |analysis| analysis.gates.as_slice());
    let names = prometheus::Names::of(object, &state.canary, &state.stable);
    let (mut judged, mut places, mut asked) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (place, (gate, spec)) in plan.gates.iter().zip(specs).enumerate() {
        let GateSpec { metric, prometheus: query, evaluation, score, .. } = spec;
        match (metric, query, evaluation, score) {
            (Metric::Prometheus, Some(query), ..) => {
                places.push(place);
                asked.push(prometheus::judge(
                    &context.http,
                    &context.settings.prometheus_urls,
                    gate,
                    query,
                    &names,
                ));
            }
            (Metric::Evaluation, _, Some(name), Some(score)) => {
                let evaluation = found.evaluations.get(name).map(AsRef::as_ref);
                let alpha = plan.alpha_each();
                let found = evaluations::judge(gate, (name, evaluation), *score, mine, theirs, alpha);
                judged.insert(place, found);
            }
            _ => {}
        }
    }
    judged.extend(places.into_iter().zip(futures::future::join_all(asked).await));
    judged
}

/// Whether the canary's ModelDeployment has pods that serve.
fn canary_ready(object: &ModelRoute, found: &Dereferenced, canary: &str) -> bool {
    if object.spec.backends.iter().any(|backend| backend.name == canary && backend.provider.is_some()) {
        return providers::check(object, &found.keys).is_ok();
    }
    deployment(object, found, canary).is_some_and(|deployment| validate::not_ready(deployment).is_none())
}

/// What the backends of these names, joined by `+`, serve, each as far as it is known.
fn served(object: &ModelRoute, found: &Dereferenced, backends: &str) -> Vec<Option<Served>> {
    let one = |backend: &str| {
        let deployment = deployment(object, found, backend)?;
        let status = deployment.status.as_ref()?;
        // What the status says of an earlier spec is on its way out.
        let current = status.observed_generation == deployment.metadata.generation;
        let revision = status.revision.clone().filter(|_| current)?;
        Some(Served { backend: backend.to_owned(), deployment: deployment.name_any(), revision })
    };
    backends.split('+').map(one).collect()
}

fn deployment<'a>(
    object: &ModelRoute,
    found: &'a Dereferenced,
    backend: &str,
) -> Option<&'a ModelDeployment> {
    let backend = object.spec.backends.iter().find(|known| known.name == backend)?;
    found.deployments.get(backend.model_deployment.as_ref()?).map(AsRef::as_ref)
}

fn one(served: &[Option<Served>]) -> Option<&Served> {
    match served {
        [one] => one.as_ref(),
        _ => None,
    }
}
