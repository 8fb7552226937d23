//! What a person is told when something does not work: what is wrong, and what to do about it.

use std::fmt;

use kube::Error;

/// An error for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    message: String,
}

impl Fault {
    /// From whole words.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// A call to the API server, as RBAC names it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `get`, `list`, `watch`, `patch`, `create`.
    pub verb: &'a str,
    /// `modelroutes.fairlead.dev/status`.
    pub resource: &'a str,
    /// Where; none for all namespaces.
    pub namespace: Option<&'a str>,
    /// A role that has the right.
    pub role: Role,
}

/// Roles that the chart brings, or adds rights to.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Kubernetes' `view`.
    View,
    /// Kubernetes' `edit`.
    Edit,
    /// The Role in the gateways' namespace.
    Inspector,
}

impl Role {
    fn flag(self) -> &'static str {
        match self {
            Self::View => "clusterrole=view",
            Self::Edit => "clusterrole=edit",
            Self::Inspector => "role=fairlead-gateway-inspector",
        }
    }
}

impl Call<'_> {
    /// It is not allowed. `said`: how the API server put it.
    pub fn denied(&self, said: Option<&str>) -> Fault {
        let Self { verb, resource, namespace, role } = *self;
        let (kind, place) = match namespace {
            Some(namespace) => ("rolebinding", format!("namespace {namespace}")),
            None => ("clusterrolebinding", "all namespaces".to_owned()),
        };
        let within = namespace.map(|namespace| format!(" --namespace={namespace}")).unwrap_or_default();
        let said = said.map(|said| format!("\n(the API server said: {said})")).unwrap_or_default();
        Fault::new(format!(
            "you may not {verb} {resource} in {place}. An administrator gives the right by: kubectl create {kind} NAME \
             --{}{within} --user=YOU{said}",
            role.flag(),
        ))
    }

    /// What went wrong with it.
    pub fn failed(&self, error: &Error) -> Fault {
        let Self { verb, resource, namespace, role: _ } = *self;
        let place =
            namespace.map_or("all namespaces".to_owned(), |namespace| format!("namespace {namespace}"));
        Fault::new(match error {
            Error::Api(status) if status.is_forbidden() => return self.denied(Some(&status.message)),
            Error::Api(status) if status.code == 401 => {
                "the API server does not accept the credentials: log in again, or choose another --context".to_owned()
            }
            Error::Api(status) if status.code == 404 && resource.starts_with("modelroutes") && verb == "list" => {
                "this cluster does not know ModelRoutes: install the charts fairlead-crds and fairlead, or choose another --context"
                    .to_owned()
            }
            Error::Api(status) => format!("the API server refused to {verb} {resource} in {place}: {}", status.message),
            Error::Service(cause) => {
                format!("the API server cannot be reached: {}; check --context and --kubeconfig", innermost(cause.as_ref()))
            }
            Error::HyperError(cause) => {
                format!("the API server cannot be reached: {}; check --context and --kubeconfig", innermost(cause))
            }
            Error::Auth(cause) => {
                format!("there are no credentials for the API server: {cause}; log in again, or choose another --context")
            }
            other => format!("{verb} {resource} in {place}: {other}"),
        })
    }
}

/// The last cause: `Connection refused` rather than `client error (Connect)`.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
