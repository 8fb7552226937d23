//! The seam between the operator and the places that models come from: who can look at a model, and how that ends.

use fairlead_fetch::{FetchError, Hub, Inspection, RetryPolicy, SourceUri};
use fairlead_model::Reason;
use futures::future::BoxFuture;

/// Why a model could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// The model is not one that can be served.
    #[error("{message}")]
    Model {
        /// The condition reason.
        reason: Reason,
        /// Names the file and the remedy.
        message: String,
    },
    /// The hub could not be asked; trying again may help.
    #[error("{0}")]
    Unreachable(String),
}

impl From<FetchError> for InspectError {
    fn from(error: FetchError) -> Self {
        if error.is_transient() {
            Self::Unreachable(error.to_string())
        } else {
            Self::Model { reason: error.reason(), message: error.to_string() }
        }
    }
}

/// A model at a hub.
#[derive(Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `hf://org/name@revision`.
    pub source: SourceUri,
    /// For a private one.
    pub token: Option<String>,
}

/// Looks at models without fetching their weights.
pub trait Inspector: Send + Sync {
    /// Looks at one model.
    fn inspect(&self, model: HubModel) -> BoxFuture<'_, Result<Inspection, InspectError>>;

    /// The commit that a revision stands for.
    fn resolve(&self, model: HubModel) -> BoxFuture<'_, Result<String, InspectError>>;
}

/// Looks at models at a hub by range requests.
#[derive(Clone, Debug)]
pub struct HubInspector {
    endpoint: String,
}

impl HubInspector {
    /// For the hub at `endpoint`.
    ///
    /// # Errors
    /// When the endpoint is no URL.
    pub fn new(endpoint: &str) -> Result<Self, FetchError> {
        // Made once here so that a wrong endpoint is said at start-up, not on every object.
        Hub::new(endpoint, None)?;
        Ok(Self { endpoint: endpoint.to_owned() })
    }

    /// Trying again is the controller's business: it says so in the status meanwhile.
    fn hub(&self, token: Option<String>) -> Result<Hub, FetchError> {
        Ok(Hub::new(&self.endpoint, token)?.with_retry(RetryPolicy::once()))
    }
}

impl Inspector for HubInspector {
    fn inspect(&self, model: HubModel) -> BoxFuture<'_, Result<Inspection, InspectError>> {
        Box::pin(async move {
            let HubModel { source, token } = model;
            Ok(fairlead_fetch::inspect(&source, &self.hub(token)?).await?)
        })
    }

    fn resolve(&self, model: HubModel) -> BoxFuture<'_, Result<String, InspectError>> {
        Box::pin(async move {
            let HubModel { source, token } = model;
            match &source {
                SourceUri::Hub { repository, revision } => {
                    Ok(self.hub(token)?.resolve(repository, revision).await?.commit)
                }
                other => Err(FetchError::InvalidUri(format!("{other} is not at a hub")).into()),
            }
        })
    }
}

/// Reads what an inspection Job has left in its termination message.
///
/// # Errors
/// What serde has against it.
pub fn parse_inspection(message: &str) -> Result<Inspection, serde_json::Error> {
    serde_json::from_str(message.trim())
}
