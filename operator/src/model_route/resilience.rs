//! Checks what a route says of slow and broken backends, of providers and of its shadow. Pure. The schema refuses most of it
//! before.

use fairlead_crds::condition::stalled;
use fairlead_crds::model_deployment::Task;
use fairlead_crds::model_route::duration;
use fairlead_crds::model_route::provider::Provider;
use fairlead_crds::model_route::resilience::{CircuitBreaker, Fallback, Hedging, Timeouts};
use fairlead_crds::model_route::shadow::Shadow;
use fairlead_crds::model_route::{Backend, ModelRoute};

use super::dereference::Dereferenced;
use super::validate::invalid;
use crate::error::Error;

/// Whether all times can be read.
///
/// # Errors
/// [`Error::Invalid`] naming the field.
pub fn check_times(
    timeouts: Option<&Timeouts>,
    breaker: Option<&CircuitBreaker>,
    hedging: Option<&Hedging>,
    shadow: Option<&Shadow>,
) -> Result<(), Error> {
    let times = [
        ("timeouts.firstByte", timeouts.and_then(|it| it.first_byte.as_ref())),
        ("timeouts.betweenTokens", timeouts.and_then(|it| it.between_tokens.as_ref())),
        ("timeouts.request", timeouts.and_then(|it| it.request.as_ref())),
        ("circuitBreaker.openFor", breaker.and_then(|it| it.open_for.as_ref())),
        ("hedging.after", hedging.map(|it| &it.after)),
        ("shadow.timeout", shadow.and_then(|it| it.timeout.as_ref())),
    ];
    for (field, text) in times {
        if let Some(text) = text.filter(|text| duration::parse(text).is_none()) {
            return Err(invalid(format!(
                "spec.{field} is {text:?}; write a time above 0, such as 250ms, 30s or 1m30s"
            )));
        }
    }
    Ok(())
}

/// Whether fallbacks and shadow are backends of the route.
///
/// # Errors
/// [`Error::Invalid`] naming the field.
pub fn check_names(
    backends: &[Backend],
    fallbacks: &[Fallback],
    shadow: Option<&Shadow>,
) -> Result<(), Error> {
    let known = |name: &str| backends.iter().any(|backend| backend.name == name);
    let named = fallbacks.iter().map(|it| ("fallbacks[].backend", it.backend.as_str()));
    for (field, name) in named.chain(shadow.map(|it| ("shadow.backend", it.backend.as_str()))) {
        if !known(name) {
            return Err(invalid(format!(
                "spec.{field}: there is no backend {name} in spec.backends; name one of them"
            )));
        }
    }
    Ok(())
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
             Secret instead"
        )));
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
