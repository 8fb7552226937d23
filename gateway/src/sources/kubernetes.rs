//! Routes from the Kubernetes API: watches ModelRoutes, ModelDeployments, their EndpointSlices, and of their pods the metadata,
//! whose label says which revision each serves.
//!
//! A change is in force as soon as the watch tells of it, changes that come together in one rebuild. When the API server
//! goes away the last snapshot stays in force; the watches come back by themselves. Writes nothing.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use fairlead_crds::{MODEL_DEPLOYMENT_LABEL, REVISION_LABEL};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::credentials::Reader;
use crate::metrics::Metrics;
use crate::provider::credentials::Credentials;
use crate::routing::Routing;
use crate::snapshot::{Objects, Origin};

/// Changes that come within this time of one another make one snapshot.
const COALESCE: Duration = Duration::from_millis(25);
/// How often Secrets and ConfigMaps of providers are read again: how long a changed key takes to be in force.
const REREAD_CREDENTIALS: Duration = Duration::from_secs(15);
/// A watch is renewed this often, so that one which has silently died is noticed.
const WATCH_SECONDS: u32 = 120;

/// A client for the cluster this runs in, or that KUBECONFIG names.
///
/// # Errors
/// When there is neither.
pub async fn client() -> anyhow::Result<Client> {
    let remedy = "run in a cluster, set KUBECONFIG, or pass --manifests DIR to run without Kubernetes";
    let mut config =
        kube::Config::infer().await.with_context(|| format!("no Kubernetes API is configured; {remedy}"))?;
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 30));
    Client::try_from(config).context("the Kubernetes client cannot be set up; see the kubeconfig")
}

#[derive(Debug)]
struct Watched<K> {
    cache: Mutex<Cache<K>>,
    error: Mutex<Option<String>>,
}

impl<K> Default for Watched<K> {
    fn default() -> Self {
        Self { cache: Mutex::default(), error: Mutex::default() }
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Watched<K> {
    fn cache(&self) -> MutexGuard<'_, Cache<K>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_error(&self, error: Option<String>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// What is still missing before the first snapshot.
    fn missing(&self) -> Option<String> {
        if self.cache().is_synced() {
            return None;
        }
        let kind = K::plural(&());
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        Some(error.as_ref().map_or_else(|| kind.to_string(), |error| format!("{kind} ({error})")))
    }
}

type PodMeta = PartialObjectMeta<Pod>;

#[derive(Debug)]
struct Caches {
    routes: Watched<ModelRoute>,
    deployments: Watched<ModelDeployment>,
    slices: Watched<EndpointSlice>,
    pods: Watched<PodMeta>,
    changed: Notify,
}

impl Default for Caches {
    fn default() -> Self {
        // A pod changes often in ways that are of no interest here.
        let same = |one: &PodMeta, other: &PodMeta| one.metadata.labels == other.metadata.labels;
        Self {
            routes: Watched::default(),
            deployments: Watched::default(),
            slices: Watched::default(),
            pods: Watched { cache: Mutex::new(Cache::new(same)), error: Mutex::default() },
            changed: Notify::new(),
        }
    }
}

impl Caches {
    fn objects(&self) -> Result<Objects, String> {
        let missing =
            [self.routes.missing(), self.deployments.missing(), self.slices.missing(), self.pods.missing()];
        let missing: Vec<String> = missing.into_iter().flatten().collect();
        if !missing.is_empty() {
            return Err(format!("waiting for the Kubernetes API to list {}", missing.join(", ")));
        }
        Ok(Objects {
            origin: Origin::Cluster,
            routes: self.routes.cache().objects(),
            deployments: self.deployments.cache().objects(),
            slices: self.slices.cache().objects(),
            revisions: self.pods.cache().objects().iter().filter_map(|pod| revision(pod)).collect(),
            credentials: Credentials::default(),
            provider_hosts: None,
        })
    }
}

/// The revision on a pod's label.
fn revision(pod: &PodMeta) -> Option<((String, String), String)> {
    let revision = pod.labels().get(REVISION_LABEL)?.clone();
    Some(((pod.namespace().unwrap_or_default(), pod.name_any()), revision))
}

/// Follows the API and publishes a snapshot on every change, until told to stop.
pub async fn follow(
    client: Client,
    namespace: Option<String>,
    provider_hosts: Vec<String>,
    routing: Arc<Routing>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let provider_hosts: Arc<[String]> = provider_hosts.into();
    let mut credentials = Reader::default();
    let mut rereads = tokio::time::interval(REREAD_CREDENTIALS);
    rereads.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let caches = Arc::new(Caches::default());
    let mut watches = JoinSet::new();
    // An empty variable in a pod's environment means the same as none.
    let namespace = namespace.as_deref().filter(|namespace| !namespace.is_empty());
    let all = || watcher::Config::default().timeout(WATCH_SECONDS);
    // Slices inherit the labels of their Service, and other Services' are of no interest.
    let labelled = all().labels(MODEL_DEPLOYMENT_LABEL);
    watches.spawn(watch(
        api(&client, namespace),
        |guarded| guarded,
        all(),
        Arc::clone(&caches),
        |c: &Caches| &c.routes,
        Arc::clone(&metrics),
    ));
    watches.spawn(watch(
        api(&client, namespace),
        |guarded| guarded,
        all(),
        Arc::clone(&caches),
        |c: &Caches| &c.deployments,
        Arc::clone(&metrics),
    ));
    watches.spawn(watch(
        api(&client, namespace),
        |guarded| guarded,
        labelled.clone(),
        Arc::clone(&caches),
        |c: &Caches| &c.slices,
        Arc::clone(&metrics),
    ));
    watches.spawn(watch(
        // Of itself, because behind the guard the client would ask for whole pods.
        api::<PodMeta>(&client, namespace),
        |pod| DeserializeGuard(Ok(pod)),
        labelled,
        Arc::clone(&caches),
        |c: &Caches| &c.pods,
        metrics,
    ));
    // Read beside everything else, so that no change of weights waits for it.
    let mut rereading = JoinSet::new();
    loop {
        tokio::select! {
            () = caches.changed.notified() => tokio::time::sleep(COALESCE).await,
            _ = rereads.tick(), if credentials.any() && rereading.is_empty() => {
                rereading.spawn(credentials.reread(&client));
                continue;
            }
            Some(Ok(read)) = rereading.join_next() => {
                if !credentials.take(read) {
                    continue;
                }
            }
            () = stop.cancelled() => break,
            _ = watches.join_next() => break,
        }
        match caches.objects() {
            Ok(mut objects) => {
                credentials.follow(&client, &objects.routes).await;
                objects.credentials = credentials.known();
                objects.provider_hosts = Some(Arc::clone(&provider_hosts));
                routing.publish(&objects);
            }
            Err(waiting) => routing.waiting_for(waiting),
        }
    }
    watches.shutdown().await;
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Keeps one kind's cache up to date for ever. What is watched (`W`) is made a guarded object by `guard`.
async fn watch<W, K>(
    api: Api<W>,
    guard: fn(W) -> DeserializeGuard<K>,
    config: watcher::Config,
    caches: Arc<Caches>,
    pick: impl Fn(&Caches) -> &Watched<K> + Send,
    metrics: Arc<Metrics>,
) where
    W: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let mut events = std::pin::pin!(watcher(api, config).backoff(Reconnect::default()));
    while let Some(event) = events.next().await {
        let watched = pick(&caches);
        match event {
            Ok(event) => {
                let applied = watched.cache().apply(guarded(event, guard));
                watched.set_error(None);
                if let Some((object, error)) = applied.unreadable {
                    metrics.source_error();
                    tracing::warn!(
                        kind,
                        object,
                        error,
                        "cannot be read; what was last readable stays in force"
                    );
                }
                if applied.changed {
                    caches.changed.notify_one();
                }
            }
            Err(error) => {
                metrics.source_error();
                // The root alone: each layer above repeats it in its own words.
                let error = anyhow::Error::from(error).root_cause().to_string();
                tracing::warn!(kind, error, "the watch failed and is tried again");
                watched.set_error(Some(error));
                caches.changed.notify_one();
            }
        }
    }
}

fn guarded<W, K>(
    event: watcher::Event<W>,
    guard: fn(W) -> DeserializeGuard<K>,
) -> watcher::Event<DeserializeGuard<K>> {
    match event {
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(guard(object)),
        watcher::Event::InitDone => watcher::Event::InitDone,
        watcher::Event::Apply(object) => watcher::Event::Apply(guard(object)),
        watcher::Event::Delete(object) => watcher::Event::Delete(guard(object)),
    }
}

/// How long to wait before a failed watch is tried again: soon at first, never long. There are few gateways, and each
/// second without a watch is a second of stale routing.
#[derive(Debug, Default)]
struct Reconnect {
    failures: u32,
}

impl Iterator for Reconnect {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let longest = Duration::from_millis(200).saturating_mul(1 << self.failures.min(4));
        self.failures = self.failures.saturating_add(1);
        // Half of it at random, so that gateways do not come back all at once.
        Some(longest.mul_f64(rand::random_range(0.5..=1.0)))
    }
}

impl Backoff for Reconnect {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnecting_starts_soon_and_stays_frequent() {
        let mut reconnect = Reconnect::default();
        let waits: Vec<_> = reconnect.by_ref().take(20).collect();
        assert!(waits[0] <= Duration::from_millis(200));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(3200)));
        assert!(waits[19] >= Duration::from_millis(1600));
        reconnect.reset();
        assert!(reconnect.next().expect("endless") <= Duration::from_millis(200));
    }
}
