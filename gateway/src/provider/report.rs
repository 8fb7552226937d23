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
    RouteProviders {
        route: route.id.to_string(),
        uid: route.observed.uid.clone(),
        generation: route.generation,
        backends,
    }
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::provider::credentials::Credentials;
    use crate::snapshot::{Objects, Origin, RoutingSnapshot};

    #[test]
    fn it_says_which_spec_it_is_of() {
        let mut snapshot = RoutingSnapshot::default();
        for generation in [4, 5] {
            let route = serde_json::from_value(json!({
                "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
                "metadata": {"name": "chat", "namespace": "ns", "uid": "u", "generation": generation},
                "spec": {"backends": [{"name": "cloud", "provider": {"url": "https://h/v1", "model": "m"}}]},
            }))
            .expect("a route");
            let objects = Objects {
                origin: Origin::Cluster,
                routes: vec![Arc::new(route)],
                deployments: vec![],
                slices: vec![],
                revisions: HashMap::new(),
                credentials: Credentials::default(),
                provider_hosts: Some(Arc::from(vec![])),
            };
            snapshot = RoutingSnapshot::build(&objects, &snapshot);
            let told = of_route(snapshot.routes()[0]);
            assert_eq!((told.uid.as_str(), told.generation), ("u", Some(generation)));
            assert!(told.backends.contains_key("cloud"));
        }
    }
}
