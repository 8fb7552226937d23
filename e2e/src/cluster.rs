//! Talking to a cluster, whichever it is.
//!
//! Owns: the client, waiting for conditions, namespaces for tests, port-forwards, dumps of what went wrong. Must not: start
//! or stop clusters. Called by `up`, `install`, the quickstart and the end-to-end tests.

mod dump;
mod namespace;
mod port_forward;

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;

pub use self::dump::dump;
pub use self::namespace::TempNamespace;
pub use self::port_forward::PortForward;
use crate::paths::Paths;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(200);

/// A client of the cluster in use: `KUBECONFIG`'s, or the local one.
pub async fn default_client() -> Result<Client> {
    client(&Paths::find()?.kubeconfig()).await
}

/// A client of the cluster that a kubeconfig describes.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let parsed = Kubeconfig::read_from(kubeconfig).with_context(|| {
        format!("reading {}: is the cluster up (`make cluster-up`)?", kubeconfig.display())
    })?;
    let mut config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("using {}", kubeconfig.display()))?;
    // The local cluster is on the loopback: a proxy of the environment would not reach it.
    config.proxy_url = None;
    Client::try_from(config).context("making a client of the cluster")
}

/// Whether the API server says that it is ready.
pub async fn is_ready(client: &Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else { return false };
    client.request_text(request).await.is_ok_and(|text| text == "ok")
}

/// Waits until the object exists and `condition` holds for it; the error says what it last looked like.
pub async fn await_condition<K>(
    api: &Api<K>,
    name: &str,
    condition: impl Fn(&K) -> bool,
    within: Duration,
) -> Result<()>
where
    K: Clone + DeserializeOwned + Debug + serde::Serialize,
{
    let deadline = Instant::now() + within;
    loop {
        let found = api.get_opt(name).await;
        if let Ok(Some(object)) = &found
            && condition(object)
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let seen = match found {
                Ok(Some(object)) => serde_json::to_value(&object)?["status"].to_string(),
                Ok(None) => "it does not exist".into(),
                Err(error) => error.to_string(),
            };
            bail!("{name} is not as awaited after {} s: {seen}", within.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a node is Ready.
pub fn node_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether a Deployment's newest revision is fully available.
pub fn deployment_available(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return false };
    status.observed_generation == deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
}

/// Whether an aggregated API answers.
pub fn api_service_available(service: &APIService) -> bool {
    let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Available" && condition.status == "True")
}
