//! Reads what a ModelDeployment's reconcile needs: from the stores, and from `/startup` of pods that are starting.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fairlead_crds::model_deployment::{ModelDeployment, StartupProgress};
use fairlead_crds::{MODEL_DEPLOYMENT_LABEL, REVISION_LABEL};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use serde::Deserialize;

use super::build::{INFERENCE, NAME_LABEL, config_map};
use super::observe::{self, Seen};
use crate::context::Context;
use crate::stores::get;

/// Starting pods that are asked for their progress in one reconcile; the slowest of these is shown.
const ASKED: usize = 8;

/// Bytes of an answer of `/startup` that are read.
const LONGEST_STARTUP: usize = 4096;

/// What the stores have.
#[derive(Clone, Default)]
pub struct Dereferenced {
    /// Replicas that a new Deployment starts with.
    pub initial_replicas: i32,
    /// The Deployment.
    pub deployment: Option<Arc<Deployment>>,
    /// The Service.
    pub service: Option<Arc<Service>>,
    /// The ConfigMap.
    pub config_map: Option<Arc<ConfigMap>>,
    /// The ServiceAccount.
    pub service_account: Option<Arc<ServiceAccount>>,
    /// The PodDisruptionBudget.
    pub pod_disruption_budget: Option<Arc<PodDisruptionBudget>>,
    /// The inspection Job.
    pub job: Option<Arc<Job>>,
    /// Engine pods.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of the inspection Job.
    pub inspection_pods: Vec<Arc<Pod>>,
    /// The labels of every node, when they matter.
    pub nodes: Vec<BTreeMap<String, String>>,
}

/// Reads from the stores.
pub fn dereference(object: &ModelDeployment, context: &Context) -> Dereferenced {
    let stores = &context.stores;
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let mut of_object = stores.pods.state_filter(|pod| {
        pod.metadata.namespace.as_deref() == Some(&namespace)
            && pod.labels().get(MODEL_DEPLOYMENT_LABEL) == Some(&name)
    });
    // A store has no order, and the first pod with a trouble is the one that is told of.
    of_object.sort_by_key(|pod| (pod.creation_timestamp(), pod.name_any()));
    let (pods, inspection_pods) =
        of_object.into_iter().partition(|pod| pod.labels().get(NAME_LABEL).is_some_and(|it| it == INFERENCE));
    let resources = &object.spec.resources;
    let nodes = if resources.gpus > 0 && resources.gpu_memory.is_none() {
        stores.nodes.state().iter().map(|node| node.labels().clone()).collect()
    } else {
        Vec::new()
    };
    Dereferenced {
        initial_replicas: object.spec.replicas.unwrap_or(1),
        deployment: get(&stores.deployments, &namespace, &name),
        service: get(&stores.services, &namespace, &name),
        config_map: get(&stores.config_maps, &namespace, &format!("{name}-config")),
        service_account: get(&stores.service_accounts, &namespace, &name),
        pod_disruption_budget: get(&stores.pod_disruption_budgets, &namespace, &name),
        job: get(&stores.jobs, &namespace, &format!("{name}-inspect")),
        pods,
        inspection_pods,
        nodes,
    }
}

impl Dereferenced {
    /// The engine settings that pods of whatever revision mount, or that the Deployment as it is would give to new ones.
    pub fn settings_in_use(&self) -> BTreeMap<String, String> {
        let Some(live) = &self.config_map else { return BTreeMap::new() };
        let template = self.deployment.iter().filter_map(|it| it.spec.as_ref()?.template.spec.as_ref());
        config_map::in_use(live, self.pods.iter().filter_map(|pod| pod.spec.as_ref()).chain(template))
    }

    /// What the pods' observation is made from. `current` is the Deployment as it is after it was applied, and the wanted
    /// revision; without it, what the store has and the revision that the Deployment's pods have.
    pub fn seen(&self, current: Option<(&Deployment, &str)>) -> Seen {
        let deployment =
            current.map(|(deployment, _)| deployment.clone()).or_else(|| self.deployment.as_deref().cloned());
        let revision = current.map(|(_, revision)| revision.to_owned()).or_else(|| {
            let template = deployment.as_ref()?.spec.as_ref()?.template.metadata.as_ref()?;
            template.labels.as_ref()?.get(REVISION_LABEL).cloned()
        });
        Seen {
            deployment,
            revision,
            initial_replicas: self.initial_replicas,
            pods: self.pods.clone(),
            startup: BTreeMap::new(),
        }
    }
}

/// What a pod says at `/startup`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Startup {
    phase: String,
    #[serde(default)]
    bytes_done: Option<u64>,
    #[serde(default)]
    bytes_total: Option<u64>,
}

/// Asks pods that are starting how far they are. Who does not answer is left out.
pub async fn startup(seen: &Seen, context: &Context) -> BTreeMap<String, StartupProgress> {
    let asked = addresses(seen, context.settings.inference_port)
        .into_iter()
        .map(|(name, address)| async move { Some((name, ask(&context.http, address).await?)) });
    let answers: Vec<_> = futures::stream::iter(asked).buffer_unordered(ASKED).collect().await;
    answers.into_iter().flatten().collect()
}

fn addresses(seen: &Seen, port: u16) -> Vec<(String, SocketAddr)> {
    observe::starting(seen)
        .filter_map(|pod| {
            let address: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
            Some((pod.name_any(), SocketAddr::new(address, port)))
        })
        .take(ASKED)
        .collect()
}

async fn ask(http: &reqwest::Client, address: SocketAddr) -> Option<StartupProgress> {
    let mut answer = http.get(format!("http://{address}/startup")).send().await.ok()?;
    if answer.status() != reqwest::StatusCode::OK {
        return None;
    }
    // A pod may run an image of anyone's: no more is read, and nothing goes into a status, than an engine of ours says.
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > LONGEST_STARTUP {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    progress(&body)
}

fn progress(body: &[u8]) -> Option<StartupProgress> {
    let Startup { phase, bytes_done, bytes_total } = serde_json::from_slice(body).ok()?;
    if !observe::PHASES.contains(&phase.as_str()) {
        return None;
    }
    let percent = match (bytes_done, bytes_total) {
        (Some(done), Some(total)) if total > 0 => {
            u8::try_from((u128::from(done) * 100 / u128::from(total)).min(100)).ok()
        }
        _ => None,
    };
    Some(StartupProgress { phase, bytes_done, bytes_total, percent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_engine_says_becomes_progress() {
        let done = progress(br#"{"phase": "Loading", "bytesDone": 3, "bytesTotal": 4}"#).unwrap();
        assert_eq!((done.phase.as_str(), done.percent), ("Loading", Some(75)));
        assert_eq!(
            progress(br#"{"phase": "Loading", "bytesDone": 9, "bytesTotal": 4}"#).unwrap().percent,
            Some(100)
        );
        for strange in
            [&br#"{"phase": "<script>"}"#[..], b"", b"{}", br#"{"phase": "Loading", "bytesDone": -1}"#]
        {
            assert_eq!(progress(strange), None);
        }
    }
}
