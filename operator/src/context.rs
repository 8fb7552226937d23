//! What every reconcile can use. Made once; shared by all controllers.

use std::sync::Arc;

use kube::Client;

use crate::apply::Applier;
use crate::backoff::{Backoff, Pauses};
use crate::config::Settings;
use crate::inspector::Inspector;
use crate::metrics::{Kind, Metrics};
use crate::model_route::moves::Moves;
use crate::model_route::reach::Heard;
use crate::recorder::Recorder;
use crate::stores::Stores;

/// What every reconcile can use.
pub struct Context {
    /// For what neither the stores nor the appliers do: reading a Secret.
    pub client: Client,
    /// The process's settings.
    pub settings: Settings,
    /// What is known of the cluster.
    pub stores: Stores,
    /// Writes the children and statuses of ModelDeployments.
    pub model_deployments: Applier,
    /// Writes the statuses of ModelRoutes.
    pub model_routes: Applier,
    /// Writes the children and statuses of Evaluations.
    pub evaluations: Applier,
    /// Publishes events.
    pub recorder: Recorder,
    /// Which moves of canaries were told of.
    pub moves: Moves,
    /// Counts.
    pub metrics: Metrics,
    /// Reads models at their hub.
    pub inspector: Arc<dyn Inspector>,
    /// Asks starting pods how far they are.
    pub http: reqwest::Client,
    /// Delays after failures.
    pub backoff: Backoff,
    /// Models that their hub is not asked for again yet.
    pub hub_pauses: Pauses,
    /// What the gateways say of providers.
    pub heard: Heard,
}

impl Context {
    /// The context of a process.
    pub fn new(
        client: Client,
        settings: Settings,
        stores: Stores,
        metrics: Metrics,
        inspector: Arc<dyn Inspector>,
        http: reqwest::Client,
    ) -> Self {
        Self {
            model_deployments: Applier::new(
                client.clone(),
                "fairlead-operator/modeldeployment",
                Kind::ModelDeployment,
                metrics.clone(),
            ),
            model_routes: Applier::new(
                client.clone(),
                "fairlead-operator/modelroute",
                Kind::ModelRoute,
                metrics.clone(),
            ),
            evaluations: Applier::new(
                client.clone(),
                "fairlead-operator/evaluation",
                Kind::Evaluation,
                metrics.clone(),
            ),
            recorder: Recorder::new(client.clone(), settings.identity.clone()),
            moves: Moves::default(),
            client,
            settings,
            stores,
            metrics,
            inspector,
            http,
            backoff: Backoff::default(),
            hub_pauses: Pauses::default(),
            heard: Heard::default(),
        }
    }
}
