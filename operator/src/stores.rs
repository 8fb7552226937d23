//! What the operator knows of the cluster: one watch and one store per kind, shared by all controllers. A reconcile reads
//! from here and never lists.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fairlead_crds::evaluation::Evaluation;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use fairlead_crds::{EVALUATION_LABEL, MODEL_DEPLOYMENT_LABEL};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::error_boundary::InvalidObject;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Every store. Cloning is cheap.
#[derive(Clone)]
pub struct Stores {
    /// ModelDeployments.
    pub model_deployments: Store<ModelDeployment>,
    /// ModelRoutes.
    pub model_routes: Store<ModelRoute>,
    /// Deployments of ours.
    pub deployments: Store<Deployment>,
    /// Services of ours.
    pub services: Store<Service>,
    /// ConfigMaps of ours.
    pub config_maps: Store<ConfigMap>,
    /// ServiceAccounts of ours.
    pub service_accounts: Store<ServiceAccount>,
    /// PodDisruptionBudgets of ours.
    pub pod_disruption_budgets: Store<PodDisruptionBudget>,
    /// Inspection Jobs of ours.
    pub jobs: Store<Job>,
    /// Engine pods and inspection pods.
    pub pods: Store<Pod>,
    /// Every node's metadata: the labels say how much memory its GPUs have.
    pub nodes: Store<PartialObjectMeta<Node>>,
    /// Where the gateways' admin ports are. Not waited for: without it canaries with gates wait, and nothing else does.
    pub gateways: Store<EndpointSlice>,
    /// Evaluations.
    pub evaluations: Store<Evaluation>,
    /// Jobs that ask an Evaluation's questions.
    pub evaluation_jobs: Store<Job>,
    /// Their pods.
    pub evaluation_pods: Store<Pod>,
    filled: Arc<Filled>,
}

/// Counts the stores that have not been filled yet.
#[derive(Debug)]
struct Filled {
    missing: AtomicUsize,
    done: CancellationToken,
}

impl Filled {
    /// For this many stores.
    fn new(stores: usize) -> Arc<Self> {
        let filled = Self { missing: AtomicUsize::new(stores), done: CancellationToken::new() };
        if stores == 0 {
            filled.done.cancel();
        }
        Arc::new(filled)
    }

    fn one_more(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.cancel();
        }
    }
}

/// Label that an EndpointSlice has of its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Stores in [`Stores`] that are waited for.
const STORES: usize = 13;

/// Objects as they come and go; the store is up to date before an object is yielded.
pub type Changes<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// The watches that fill [`Stores`]; the controllers drive them, and are triggered by them.
pub struct Watches {
    /// ModelDeployments.
    pub model_deployments: Changes<ModelDeployment>,
    /// ModelRoutes.
    pub model_routes: Changes<ModelRoute>,
    /// Deployments of ours.
    pub deployments: Changes<Deployment>,
    /// Services of ours.
    pub services: Changes<Service>,
    /// ConfigMaps of ours.
    pub config_maps: Changes<ConfigMap>,
    /// ServiceAccounts of ours.
    pub service_accounts: Changes<ServiceAccount>,
    /// PodDisruptionBudgets of ours.
    pub pod_disruption_budgets: Changes<PodDisruptionBudget>,
    /// Inspection Jobs of ours.
    pub jobs: Changes<Job>,
    /// Engine pods and inspection pods.
    pub pods: Changes<Pod>,
    /// Nodes whose labels have changed.
    pub nodes: Changes<PartialObjectMeta<Node>>,
    /// EndpointSlices of the gateways' admin Service.
    pub gateways: Changes<EndpointSlice>,
    /// Evaluations.
    pub evaluations: Changes<Evaluation>,
    /// Jobs that ask an Evaluation's questions.
    pub evaluation_jobs: Changes<Job>,
    /// Their pods.
    pub evaluation_pods: Changes<Pod>,
    /// Every ConfigMap's metadata, kept nowhere: any may have an Evaluation's questions.
    pub every_config_map: Changes<PartialObjectMeta<ConfigMap>>,
}

/// Opens every watch. `gateways`: namespace and name of the gateways' admin Service.
pub fn open(client: &Client, (namespace, service): (&str, &str)) -> (Stores, Watches) {
    let every = watcher::Config::default();
    let ours = watcher::Config::default().labels(MODEL_DEPLOYMENT_LABEL);
    let of_evaluations = watcher::Config::default().labels(EVALUATION_LABEL);
    let filled = Filled::new(STORES);
    let (model_deployments, model_deployment_changes) = reflect(client, every.clone(), &filled);
    let (model_routes, model_route_changes) = reflect(client, every.clone(), &filled);
    let (deployments, deployment_changes) = reflect(client, ours.clone(), &filled);
    let (services, service_changes) = reflect(client, ours.clone(), &filled);
    let (config_maps, config_map_changes) = reflect(client, ours.clone(), &filled);
    let (service_accounts, service_account_changes) = reflect(client, ours.clone(), &filled);
    let (pod_disruption_budgets, pod_disruption_budget_changes) = reflect(client, ours.clone(), &filled);
    let (jobs, job_changes) = reflect(client, ours.clone(), &filled);
    let (pods, pod_changes) = reflect(client, ours, &filled);
    let slices = watcher::Config::default().labels(&format!("{SERVICE_LABEL}={service}"));
    let (gateways, gateway_changes) = reflect_in(Api::namespaced(client.clone(), namespace), slices, None);
    let (nodes, node_changes) = reflect::<PartialObjectMeta<Node>>(client, every.clone(), &filled);
    let (evaluations, evaluation_changes) = reflect(client, every.clone(), &filled);
    let (evaluation_jobs, evaluation_job_changes) = reflect(client, of_evaluations.clone(), &filled);
    let (evaluation_pods, evaluation_pod_changes) = reflect(client, of_evaluations, &filled);
    let every_config_map =
        watcher(Api::<PartialObjectMeta<ConfigMap>>::all(client.clone()), every).default_backoff();
    (
        Stores {
            model_deployments,
            model_routes,
            deployments,
            services,
            config_maps,
            service_accounts,
            pod_disruption_budgets,
            jobs,
            pods,
            nodes,
            gateways,
            evaluations,
            evaluation_jobs,
            evaluation_pods,
            filled,
        },
        Watches {
            model_deployments: model_deployment_changes.boxed(),
            model_routes: model_route_changes.boxed(),
            deployments: deployment_changes.boxed(),
            services: service_changes.boxed(),
            config_maps: config_map_changes.boxed(),
            service_accounts: service_account_changes.boxed(),
            pod_disruption_budgets: pod_disruption_budget_changes.boxed(),
            jobs: job_changes.boxed(),
            pods: pod_changes.boxed(),
            nodes: node_changes
                .predicate_filter(predicates::labels, kube::runtime::PredicateConfig::default())
                .boxed(),
            gateways: gateway_changes.boxed(),
            evaluations: evaluation_changes.boxed(),
            evaluation_jobs: evaluation_job_changes.boxed(),
            evaluation_pods: evaluation_pod_changes.boxed(),
            every_config_map: every_config_map.touched_objects().boxed(),
        },
    )
}

fn reflect<K>(
    client: &Client,
    config: watcher::Config,
    filled: &Arc<Filled>,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + 'static)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    reflect_in(Api::all(client.clone()), config, Some(filled.clone()))
}

fn reflect_in<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    mut filled: Option<Arc<Filled>>,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + 'static)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let known = store.clone();
    let events = watcher(api, config)
        .default_backoff()
        .try_filter_map(move |event| std::future::ready(Ok(readable(event, &known))))
        .reflect(writer)
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone)
                && let Some(filled) = filled.take()
            {
                filled.one_more();
            }
        });
    (store, events.touched_objects())
}

/// Keeps a store up to date that triggers nobody, until `stop`.
pub async fn follow<K: 'static>(mut changes: Changes<K>, stop: CancellationToken) {
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = stop.cancelled() => return,
        };
        match change {
            Some(Ok(_)) => {}
            Some(Err(error)) => tracing::warn!(%error, "watch of the gateways' EndpointSlices"),
            None => return,
        }
    }
}

/// Keeps one object that can't be read (a newer version's, most likely) from stopping the watch of all others. To us it is
/// not there: what it owns stays as it is.
fn readable<K>(event: watcher::Event<DeserializeGuard<K>>, known: &Store<K>) -> Option<watcher::Event<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    use watcher::Event;
    let unreadable = |invalid: &InvalidObject| {
        let (kind, name) = (K::kind(&()), invalid.metadata.name.clone().unwrap_or_default());
        let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
        tracing::error!(%kind, namespace, name, error = invalid.error, "an object can't be read and is left alone");
        get(known, &namespace, &name)
    };
    match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(DeserializeGuard(Ok(object))) => Some(Event::InitApply(object)),
        Event::InitApply(DeserializeGuard(Err(invalid))) => {
            unreadable(&invalid);
            None
        }
        Event::Apply(DeserializeGuard(Ok(object))) => Some(Event::Apply(object)),
        Event::Delete(DeserializeGuard(Ok(object))) => Some(Event::Delete(object)),
        Event::Apply(DeserializeGuard(Err(invalid))) | Event::Delete(DeserializeGuard(Err(invalid))) => {
            unreadable(&invalid).map(|last| Event::Delete((*last).clone()))
        }
    }
}

/// Passes changes on, after telling another controller of each. The channel is bounded: a watch waits until that controller
/// has taken what it was told.
pub fn told<K: Send + 'static, C: Send + 'static>(
    changes: Changes<K>,
    tell: mpsc::Sender<C>,
    what: impl Fn(&K) -> C + Send + Sync + Copy + 'static,
) -> Changes<K> {
    changes
        .then(move |change| {
            let tell = tell.clone();
            async move {
                if let Ok(object) = &change {
                    // Fails only when the other controller has ended, at shutdown.
                    let _ = tell.send(what(object)).await;
                }
                change
            }
        })
        .boxed()
}

impl Stores {
    /// Waits until each store has been filled once.
    ///
    /// kube's own `Store::wait_until_ready` wakes only one of several waiters, and the controllers wait for some stores too.
    pub async fn wait_until_ready(&self) {
        self.filled.done.cancelled().await;
    }

    /// Stores that hold nothing, and what fills them; for tests.
    pub fn detached() -> (Self, Writers) {
        fn store<K: Resource<DynamicType = ()> + Clone + 'static>() -> (Store<K>, Writer<K>) {
            let mut writer = Writer::<K>::new(());
            writer.apply_watcher_event(&watcher::Event::Init);
            writer.apply_watcher_event(&watcher::Event::InitDone);
            (writer.as_reader(), writer)
        }
        let (model_deployments, model_deployments_writer) = store();
        let (model_routes, model_routes_writer) = store();
        let (deployments, deployments_writer) = store();
        let (services, services_writer) = store();
        let (config_maps, config_maps_writer) = store();
        let (service_accounts, service_accounts_writer) = store();
        let (pod_disruption_budgets, pod_disruption_budgets_writer) = store();
        let (jobs, jobs_writer) = store();
        let (pods, pods_writer) = store();
        let (nodes, nodes_writer) = store();
        let (gateways, gateways_writer) = store();
        let (evaluations, evaluations_writer) = store();
        let (evaluation_jobs, evaluation_jobs_writer) = store();
        let (evaluation_pods, evaluation_pods_writer) = store();
        (
            Self {
                model_deployments,
                model_routes,
                deployments,
                services,
                config_maps,
                service_accounts,
                pod_disruption_budgets,
                jobs,
                pods,
                nodes,
                gateways,
                evaluations,
                evaluation_jobs,
                evaluation_pods,
                filled: Filled::new(0),
            },
            Writers {
                model_deployments: model_deployments_writer,
                model_routes: model_routes_writer,
                deployments: deployments_writer,
                services: services_writer,
                config_maps: config_maps_writer,
                service_accounts: service_accounts_writer,
                pod_disruption_budgets: pod_disruption_budgets_writer,
                jobs: jobs_writer,
                pods: pods_writer,
                nodes: nodes_writer,
                gateways: gateways_writer,
                evaluations: evaluations_writer,
                evaluation_jobs: evaluation_jobs_writer,
                evaluation_pods: evaluation_pods_writer,
            },
        )
    }
}

/// The writing ends of [`Stores::detached`].
#[allow(missing_docs)] // named as in Stores
pub struct Writers {
    pub model_deployments: Writer<ModelDeployment>,
    pub model_routes: Writer<ModelRoute>,
    pub deployments: Writer<Deployment>,
    pub services: Writer<Service>,
    pub config_maps: Writer<ConfigMap>,
    pub service_accounts: Writer<ServiceAccount>,
    pub pod_disruption_budgets: Writer<PodDisruptionBudget>,
    pub jobs: Writer<Job>,
    pub pods: Writer<Pod>,
    pub nodes: Writer<PartialObjectMeta<Node>>,
    pub gateways: Writer<EndpointSlice>,
    pub evaluations: Writer<Evaluation>,
    pub evaluation_jobs: Writer<Job>,
    pub evaluation_pods: Writer<Pod>,
}

/// The object of a namespace and name, if it is there.
pub fn get<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn guarded(uri: &serde_json::Value) -> DeserializeGuard<ModelDeployment> {
        serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "a", "namespace": "models"}, "spec": {"model": {"uri": uri, "newer": 1}},
        }))
        .unwrap()
    }

    #[test]
    fn an_object_that_cannot_be_read_is_passed_over_and_forgotten() {
        let (stores, mut writers) = Stores::detached();
        let known = &stores.model_deployments;
        let good = || guarded(&json!("hf://a/b"));
        let bad = || guarded(&json!({"a newer": "form"}));
        assert!(matches!(
            readable(watcher::Event::InitApply(good()), known),
            Some(watcher::Event::InitApply(_))
        ));
        assert!(readable(watcher::Event::InitApply(bad()), known).is_none());
        assert!(readable(watcher::Event::Apply(bad()), known).is_none(), "was never known");
        let event = readable(watcher::Event::Apply(good()), known).unwrap();
        writers.model_deployments.apply_watcher_event(&event);
        assert!(get(known, "models", "a").is_some());
        let event = readable(watcher::Event::Apply(bad()), known).unwrap();
        writers.model_deployments.apply_watcher_event(&event);
        assert!(get(known, "models", "a").is_none());
    }
}
