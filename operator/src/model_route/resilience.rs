//! Checks what a route says of slow and broken backends, of providers and of its shadow. Pure. The schema refuses most of it
//! before.

use fairlead_crds::condition::stalled;
use fairlead_crds::model_deployment::Task;
use fairlead_crds::model_route::provider::Provider;
use fairlead_crds::model_route::resilience::check::problems;
use fairlead_crds::model_route::{ModelRoute, ModelRouteSpec};

use super::dereference::Dereferenced;
use super::validate::invalid;
use crate::error::Error;

/// Whether times can be read, and fallbacks and shadow are backends of the route.
///
/// # Errors
/// [`Error::Invalid`] naming the first field that is not.
pub fn check(spec: &ModelRouteSpec) -> Result<(), Error> {
    problems(spec).into_iter().next().map_or(Ok(()), |problem| Err(invalid(problem)))
}

/// Whether a provider is one that a gateway in a cluster can call.
///
/// # Errors
/// [`Error::Invalid`] naming the field.
pub fn check_provider(backend: &str, provider: &Provider, has_adapter: bool) -> Result<(), Error> {
    let at = format!("spec.backends[{backend}]");
    if has_adapter {
        return Err(invalid(format!(
            "{at}.adapter is of a modelDeployment; name the provider's model in provider.model"
        )));
    }
    if let Some(field) = provider.by_hand() {
        return Err(invalid(format!(
            "{at}.provider.{field} is for a gateway that runs by hand (fairlead-gateway serve --manifests); in a cluster name a \
             Secret instead, or for certificate authorities a ConfigMap"
        )));
    }
    if let Some((one, other)) = provider.ca_twice() {
        return Err(invalid(format!("{at}.provider has {one} and {other}; leave one of them out")));
    }
    if provider.host().is_empty() {
        return Err(invalid(format!(
            "{at}.provider.url is {:?}; write https://HOST with the path that the API begins at, such as \
             https://api.example.com/v1",
            provider.url
        )));
    }
    Ok(())
}

/// Whether the model that a shadow's answers are compared by is there and makes embeddings.
///
/// # Errors
/// [`Error::Invalid`] naming the field.
pub fn check_embedder(object: &ModelRoute, found: &Dereferenced) -> Result<(), Error> {
    let Some(embedder) = object.spec.shadow.as_ref().and_then(|shadow| shadow.embedder.as_ref()) else {
        return Ok(());
    };
    let field = "spec.shadow.embedder";
    if embedder.endpoint.is_some() {
        return Err(invalid(format!(
            "{field}.endpoint is for a gateway that runs by hand; in a cluster name a modelDeployment instead"
        )));
    }
    let name = embedder.model_deployment.as_deref().unwrap_or_default();
    let Some(deployment) = found.deployments.get(name) else {
        return Err(Error::invalid(
            stalled::BACKEND_NOT_FOUND,
            format!(
                "{field}.modelDeployment: there is no ModelDeployment {name}; create it, or correct the name"
            ),
        ));
    };
    if deployment.spec.task != Task::Embed {
        return Err(invalid(format!(
            "{field}.modelDeployment: ModelDeployment {name} makes no embeddings; name one with spec.task Embed"
        )));
    }
    // Whether it is ready is not the route's matter: answers are not compared by meaning until then.
    Ok(())
}
