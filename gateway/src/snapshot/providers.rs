//! A provider's part of the snapshot: whether it may be called, and with which key. Pure.

use std::sync::Arc;

use fairlead_crds::model_route::Backend;
use fairlead_crds::model_route::provider::Provider;

use super::{Objects, Origin};
use crate::provider::credentials::{Hidden, Place, ca_place, key_place};
use crate::provider::hosts;
use crate::provider::target::{Inputs, Target};

/// The target of a provider; the known one where nothing has changed, with its connections.
pub(super) fn target(
    objects: &Objects,
    namespace: &str,
    backend: &Backend,
    provider: &Provider,
    known: Option<&Arc<Target>>,
) -> Result<Arc<Target>, String> {
    if backend.model_deployment.is_some() || !backend.endpoints.is_empty() {
        return Err(
            "url: beside a provider a backend has neither modelDeployment nor endpoints; leave them out"
                .to_owned(),
        );
    }
    if objects.origin == Origin::Cluster
        && let Some(field) = provider.by_hand()
    {
        return Err(format!("{field}: is for a gateway without Kubernetes; name a Secret instead"));
    }
    if objects.origin == Origin::Manifests
        && let Some((field, kind, name)) = provider.in_cluster()
    {
        return Err(format!(
            "{field}: there is no {kind} {name} without Kubernetes; use apiKeyFile or apiKeyEnv, and caFile"
        ));
    }
    if let Some((one, other)) = provider.ca_twice() {
        return Err(format!("{other}: there is {one}, too; leave one of them out"));
    }
    let host = provider.host();
    if let Some(hosts) = &objects.provider_hosts
        && !hosts.iter().any(|allowed| hosts::allows(allowed, host))
    {
        return Err(format!(
            "url: this gateway may not call {host:?}; whoever runs it allows hosts by --provider-hosts (gateway.providers.hosts of \
             the chart)"
        ));
    }
    let inputs = Inputs {
        url: provider.url.clone(),
        model: provider.model.clone(),
        key: read(objects, key_place(namespace, provider)).map_err(|problem| format!("apiKey: {problem}"))?,
        ca: read(objects, ca_place(namespace, provider)).map_err(|problem| format!("ca: {problem}"))?,
    };
    match known.filter(|known| *known.inputs() == inputs) {
        Some(known) => Ok(Arc::clone(known)),
        None => Target::new(inputs).map(Arc::new).map_err(|problem| format!("url: {problem}")),
    }
}

/// What is at a place, which must be readable where one is named.
fn read(objects: &Objects, place: Option<Place>) -> Result<Option<Hidden>, String> {
    let Some(place) = place else { return Ok(None) };
    match objects.credentials.get(&place) {
        Some(found) => Ok(Some(found.clone())),
        None => Err(match place.allowed_by() {
            Some(value) => format!(
                "{place} is not there, or the gateway may not read it ({value} of the chart); create or allow it"
            ),
            None => format!("{place} is not there, or the gateway may not read it; create it"),
        }),
    }
}
