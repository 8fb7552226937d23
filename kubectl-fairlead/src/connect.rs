//! A client of the cluster that kubectl would talk to, and the namespace it would use.

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cli::Connection;
use crate::fault::Fault;

/// A client and where it looks.
#[derive(Clone)]
pub struct Session {
    /// Talks to the API server.
    pub client: Client,
    /// The namespace of routes.
    pub namespace: String,
    /// The namespace that the gateways run in.
    pub system_namespace: String,
    /// The API server's address, for errors.
    pub server: String,
}

impl Session {
    /// Connects as kubectl would.
    ///
    /// # Errors
    /// [`Fault`] where no configuration can be used.
    pub async fn open(connection: &Connection) -> Result<Self, Fault> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = config(connection).await?;
        if let Some(user) = &connection.impersonate {
            config.auth_info.impersonate = Some(user.clone());
            if !connection.impersonate_groups.is_empty() {
                config.auth_info.impersonate_groups = Some(connection.impersonate_groups.clone());
            }
        }
        let server = config.cluster_url.to_string();
        let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)
            .map_err(|error| Fault::new(format!("the kubeconfig cannot be used for {server}: {error}")))?;
        Ok(Self { client, namespace, system_namespace: connection.system_namespace.clone(), server })
    }
}

async fn config(connection: &Connection) -> Result<Config, Fault> {
    let options = KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
    if let Some(file) = &connection.kubeconfig {
        let unusable = |error| Fault::new(format!("--kubeconfig {}: {error}", file.display()));
        let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
        let known: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
        return Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|error| with_contexts(&error, &known));
    }
    // A person who names a context means a kubeconfig, and not the account of a pod.
    if connection.context.is_some() {
        let known: Vec<String> = Kubeconfig::read()
            .map(|kubeconfig| kubeconfig.contexts.into_iter().map(|context| context.name).collect())
            .unwrap_or_default();
        return Config::from_kubeconfig(&options).await.map_err(|error| with_contexts(&error, &known));
    }
    match Config::from_kubeconfig(&options).await {
        Ok(config) => Ok(config),
        Err(error) => Config::incluster().map_err(|_| {
            Fault::new(format!(
                "there is no cluster to talk to: {error}; set KUBECONFIG or --kubeconfig to a file that `kubectl get nodes` works with"
            ))
        }),
    }
}

fn with_contexts(error: &dyn std::error::Error, known: &[String]) -> Fault {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Fault::new(format!("the kubeconfig cannot be used: {error}; its contexts are: {known}"))
}
