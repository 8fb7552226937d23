//! Asks the gateways every few seconds whether they can call the providers that routes name, and has those routes looked at for which
//! the answer has changed. Asks nobody as long as no route names a provider, and each gateway once for all routes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::gateways;
use super::reach::{Reach, names_providers, reach};
use super::triggers::Changed;
use crate::context::Context;

/// How often the gateways are asked.
const EVERY: Duration = Duration::from_secs(15);

/// Asks until `stop`.
pub async fn run(context: Arc<Context>, tell: mpsc::Sender<Changed>, stop: CancellationToken) {
    let mut known = Known::default();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let asking = async {
        context.stores.wait_until_ready().await;
        loop {
            ticks.tick().await;
            for changed in known.look(&context).await {
                if tell.send(changed).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = asking => {}
        () = stop.cancelled() => {}
    }
}

/// What was known of each route when the gateways were last asked, by its uid and generation: of another spec it is nothing.
#[derive(Debug, Default)]
pub struct Known(HashMap<(String, Option<i64>), Reach>);

impl Known {
    /// Asks once. The routes for which something else is known now.
    pub async fn look(&mut self, context: &Context) -> Vec<Changed> {
        let routes = context.stores.model_routes.state_filter(names_providers);
        if routes.is_empty() {
            self.0.clear();
            return Vec::new();
        }
        let slices = context.stores.gateways.state();
        let gateways = gateways::of_slices(slices.iter().map(AsRef::as_ref));
        let said = context.heard.keep(gateways::ask_of_providers(&context.http, &gateways).await);
        let before = std::mem::take(&mut self.0);
        let mut changed = Vec::new();
        for route in routes {
            let spec = (route.uid().unwrap_or_default(), route.metadata.generation);
            let now = reach(&route, &said);
            // What is unknown now changes nothing of what was known.
            let now = if now == Reach::Unknown { before.get(&spec).cloned().unwrap_or(now) } else { now };
            if before.get(&spec).unwrap_or(&Reach::Unknown) != &now {
                changed.push(Changed::Providers(route.namespace().unwrap_or_default(), route.name_any()));
            }
            self.0.insert(spec, now);
        }
        changed
    }
}
