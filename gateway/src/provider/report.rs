//! `GET /providers` on the admin port: whether this gateway can call the providers that its routes name. Nothing in it is secret, and
//! asking changes nothing. `?uid=UID` tells of one ModelRoute only.

use std::collections::BTreeMap;

use fairlead_crds::model_route::provider::reach::{
    ProviderReach, ProvidersReport, RouteProviders, Trouble, TroubleKind,
};

use crate::routing::Routing;
use crate::snapshot::{Route, RouteBackend, Unusable};

/// The answer.
pub fn report(routing: &Routing, uid: Option<&str>) -> ProvidersReport {
    let snapshot = routing.snapshot();
    let routes =
        snapshot.routes().into_iter().filter(|route| uid.is_none_or(|uid| uid == route.observed.uid));
    let routes = routes.map(|route| of_route(route)).filter(|told| !told.backends.is_empty());
    ProvidersReport { synced: routing.is_synced(), routes: routes.collect() }
}

fn of_route(route: &Route) -> RouteProviders {
    let backends =
        route.backends.iter().filter_map(|backend| Some((backend.name.to_string(), of_backend(backend)?)));
    let backends: BTreeMap<_, _> = backends.collect();
    RouteProviders { route: route.id.to_string(), uid: route.observed.uid.clone(), backends }
}

/// `None` of a backend that is no provider.
fn of_backend(backend: &RouteBackend) -> Option<ProviderReach> {
    match (&backend.provider, &backend.unusable) {
        (Some(target), _) => Some(target.health().told()),
        (None, Some(Unusable { problem, since })) => {
            let trouble = Trouble { kind: TroubleKind::NotUsable, message: problem.clone(), since: *since };
            Some(ProviderReach { reached: false, trouble: Some(trouble) })
        }
        (None, None) => None,
    }
}
