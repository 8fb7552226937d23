//! What the operator knows of the cluster: one watch and one store per kind, shared by both controllers. A reconcile reads
//! from here and never lists.

use std::fmt::Debug;
use std::hash::Hash;

use fairlead_crds::MODEL_DEPLOYMENT_LABEL;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::{Writer, WriterDropped};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

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
}

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
}

/// Opens every watch.
pub fn open(client: &Client) -> (Stores, Watches) {
    let every = watcher::Config::default();
    let ours = watcher::Config::default().labels(MODEL_DEPLOYMENT_LABEL);
    let (model_deployments, model_deployment_changes) = reflect(client, every.clone());
    let (model_routes, model_route_changes) = reflect(client, every.clone());
    let (deployments, deployment_changes) = reflect(client, ours.clone());
    let (services, service_changes) = reflect(client, ours.clone());
    let (config_maps, config_map_changes) = reflect(client, ours.clone());
    let (service_accounts, service_account_changes) = reflect(client, ours.clone());
    let (pod_disruption_budgets, pod_disruption_budget_changes) = reflect(client, ours.clone());
    let (jobs, job_changes) = reflect(client, ours.clone());
    let (pods, pod_changes) = reflect(client, ours);
    let (nodes, node_changes) = reflect::<PartialObjectMeta<Node>>(client, every);
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
        },
    )
}

fn reflect<K>(
    client: &Client,
    config: watcher::Config,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + 'static)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    (store, watcher(Api::all(client.clone()), config).default_backoff().reflect(writer).touched_objects())
}

impl Stores {
    /// Waits until each store has been filled once.
    ///
    /// # Errors
    /// When a watch has ended, which happens at shutdown.
    pub async fn wait_until_ready(&self) -> Result<(), WriterDropped> {
        self.model_deployments.wait_until_ready().await?;
        self.model_routes.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.config_maps.wait_until_ready().await?;
        self.service_accounts.wait_until_ready().await?;
        self.pod_disruption_budgets.wait_until_ready().await?;
        self.jobs.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.nodes.wait_until_ready().await
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
}

/// The object of a namespace and name, if it is there.
pub fn get<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<std::sync::Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    store.get(&ObjectRef::new(name).within(namespace))
}
