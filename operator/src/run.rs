//! Starts everything and stops it in the right order: listen, become the leader, reconcile; at the end stop reconciling
//! first and give the Lease up last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::context::Context;
use crate::inspector::Inspector;
use crate::leader::Candidate;
use crate::metrics::{Kind, Metrics};
use crate::server::{self, Health, Refresh};
use crate::stores::{self, Stores};
use crate::{conditions, evaluation, model_deployment, model_route};

/// Runs the operator until `stop`.
///
/// # Errors
/// When the port is taken, the HTTP client can't be made, or leadership was lost (the process then starts afresh).
pub async fn run(
    mut settings: Settings,
    client: Client,
    inspector: Arc<dyn Inspector>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let identity = settings
        .identity
        .get_or_insert_with(|| format!("fairlead-operator-{:08x}", rand::random::<u32>()))
        .clone();
    let metrics = Metrics::default();
    let (stores, watches) = stores::open(&client, (&settings.namespace, &settings.gateway_admin_service));
    let ready = Arc::new(AtomicBool::new(false));
    let health = Health {
        ready: ready.clone(),
        metrics: metrics.clone(),
        refresh: Arc::new(Counts { stores: stores.clone(), metrics: metrics.clone() }),
    };
    let listener =
        server::bind(settings.listen).await.with_context(|| format!("listen on {}", settings.listen))?;
    // The server outlives the controllers, so that probes are answered while they stop.
    let server_stop = CancellationToken::new();
    let server = tokio::spawn(server::serve(listener, health, server_stop.clone()));

    let candidate = Candidate::new(client.clone(), &settings.namespace, identity.clone());
    tracing::info!(identity, namespace = settings.namespace, "waiting to lead");
    // A follower has nothing to fill: it is as ready as it will be until it leads.
    ready.store(true, Ordering::Relaxed);
    let led = if candidate.acquire(&stop).await {
        ready.store(false, Ordering::Relaxed);
        metrics.leads(true);
        tracing::info!(identity, "leading");
        let http = reqwest::Client::builder()
            .connect_timeout(std::time::Duration::from_secs(1))
            .timeout(std::time::Duration::from_secs(2))
            .no_proxy()
            // A pod may run an image of anyone's, which should not send this process elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("make an HTTP client")?;
        let context = Arc::new(Context::new(client, settings, stores, metrics.clone(), inspector, http));
        let led = lead(&candidate, context, watches, ready, &stop).await;
        metrics.leads(false);
        if led {
            candidate.release().await;
        }
        led
    } else {
        true
    };
    server_stop.cancel();
    server.await.context("the HTTP server panicked")?.context("the HTTP server failed")?;
    if !led {
        bail!("leadership was lost; starting afresh");
    }
    Ok(())
}

/// Reconciles until `stop` (true) or until leadership is lost (false).
async fn lead(
    candidate: &Candidate,
    context: Arc<Context>,
    watches: stores::Watches,
    ready: Arc<AtomicBool>,
    stop: &CancellationToken,
) -> bool {
    // Stops the controllers at shutdown and when leadership is lost.
    let controllers_stop = CancellationToken::new();
    let stores = context.stores.clone();
    let (deployments, routes, evaluations) = controllers(context, watches, &controllers_stop);
    let mut deployments = tokio::spawn(deployments);
    let mut routes = tokio::spawn(routes);
    let mut evaluations = tokio::spawn(evaluations);
    let filled = tokio::spawn(async move {
        stores.wait_until_ready().await;
        ready.store(true, Ordering::Relaxed);
        tracing::info!("caches are filled");
    });
    let led = tokio::select! {
        led = candidate.keep(stop) => led,
        _ = &mut deployments => { tracing::error!("the ModelDeployment controller ended"); false }
        _ = &mut routes => { tracing::error!("the ModelRoute controller ended"); false }
        _ = &mut evaluations => { tracing::error!("the Evaluation controller ended"); false }
    };
    controllers_stop.cancel();
    filled.abort();
    // Reconciles that have begun may finish, but not for longer than the Lease holds without being renewed.
    let finished = async {
        for controller in [deployments, routes, evaluations] {
            if !controller.is_finished() {
                let _ = controller.await;
            }
        }
    };
    if tokio::time::timeout(std::time::Duration::from_secs(4), finished).await.is_err() {
        tracing::warn!("reconciles were still running at shutdown");
    }
    led
}

fn controllers(
    context: Arc<Context>,
    watches: stores::Watches,
    stop: &CancellationToken,
) -> (
    impl Future<Output = ()> + Send + 'static,
    impl Future<Output = ()> + Send + 'static,
    impl Future<Output = ()> + Send + 'static,
) {
    let stores::Watches {
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
        every_config_map,
    } = watches;
    // Nobody is triggered by gateways; the store is read when a canary is looked at, and when they are asked of their providers.
    tokio::spawn(stores::follow(gateways, stop.clone()));
    let (changed, routes_of_changed) = model_route::triggers::channel();
    let poll = model_route::poll::run(context.clone(), changed.clone(), stop.clone());
    let (changed_for_evaluations, evaluations_of_changed) = evaluation::triggers::channel();
    let model_deployments =
        evaluation::triggers::tell_of_deployments(model_deployments, changed_for_evaluations.clone());
    let model_routes = evaluation::triggers::tell_of_routes(model_routes, changed_for_evaluations);
    let deployments = model_deployment::controller::run(
        context.clone(),
        model_deployment::controller::Triggers {
            model_deployments: model_route::triggers::tell_of_deployments(model_deployments, changed.clone()),
            deployments,
            services,
            config_maps,
            service_accounts,
            pod_disruption_budgets,
            jobs,
            pods,
            nodes,
        },
        stop.clone(),
    );
    let evaluations = evaluation::controller::run(
        context.clone(),
        evaluation::controller::Triggers {
            evaluations: model_route::triggers::tell_of_evaluations(evaluations, changed.clone()),
            evaluation_jobs,
            evaluation_pods,
            every_config_map,
            changed: evaluations_of_changed,
        },
        stop.clone(),
    );
    let routes = model_route::controller::run(
        context,
        model_route::triggers::tell_of_routes(model_routes, changed),
        routes_of_changed,
        stop.clone(),
    );
    let routes = async move {
        tokio::join!(routes, poll);
    };
    (deployments, routes, evaluations)
}

/// Counts objects by state when metrics are read.
struct Counts {
    stores: Stores,
    metrics: Metrics,
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

impl Refresh for Counts {
    fn refresh(&self) {
        let count = |kind, conditions: Vec<Vec<_>>| {
            let [ready, reconciling, stalled] = conditions::count_states(&conditions);
            self.metrics.count_objects(kind, ready, reconciling, stalled);
        };
        let of_deployments = self.stores.model_deployments.state().into_iter();
        count(
            Kind::ModelDeployment,
            of_deployments.map(|it| it.status.clone().unwrap_or_default().conditions).collect(),
        );
        let of_routes = self.stores.model_routes.state().into_iter();
        count(
            Kind::ModelRoute,
            of_routes.map(|it| it.status.clone().unwrap_or_default().conditions).collect(),
        );
        let of_evaluations = self.stores.evaluations.state().into_iter();
        count(
            Kind::Evaluation,
            of_evaluations.map(|it| it.status.clone().unwrap_or_default().conditions).collect(),
        );
    }
}
