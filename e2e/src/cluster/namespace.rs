//! A namespace of its own for each test.
//!
//! Owns: making it and taking it away. Called by the end-to-end tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};

use super::{await_condition, dump};

/// How long a new namespace may take to get its ServiceAccount, without which no pod starts in it.
const PATIENCE: Duration = Duration::from_secs(30);
/// By this label leftovers of killed tests can be found and removed.
const LABEL: (&str, &str) = ("fairlead.dev/e2e", "true");

/// A namespace that a test works in.
pub struct TempNamespace {
    client: Client,
    name: String,
}

impl TempNamespace {
    /// Makes a namespace whose name starts with `prefix` and that pods can run in. It enforces the restricted Pod Security
    /// Standard, as production does.
    pub async fn create(client: &Client, prefix: &str) -> Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let name = format!("{prefix}-{:x}", since.as_micros());
        let labels = [LABEL, ("pod-security.kubernetes.io/enforce", "restricted")];
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .with_context(|| format!("creating {name}"))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
        await_condition(&accounts, "default", |_| true, PATIENCE).await?;
        Ok(Self { client: client.clone(), name })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a test in the namespace. When it fails, what is wrong in the namespace is printed; the namespace is deleted
    /// either way, without waiting for its end.
    pub async fn run<T>(self, test: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = test.await;
        if outcome.is_err() {
            eprintln!("{}", dump(&self.client, &self.name).await);
        }
        self.delete().await?;
        outcome
    }

    /// Deletes the namespace; it goes away in the background.
    pub async fn delete(self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let deleted = namespaces.delete(&self.name, &DeleteParams::background()).await;
        deleted.map(drop).with_context(|| format!("deleting {}", self.name))
    }
}
