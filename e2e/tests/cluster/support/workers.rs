//! Inference servers without a model, as pods of a ModelDeployment, and load from a pod beside them: for tests that need more requests
//! a second, or other faults, than engines on a small machine give.

use anyhow::{Context, Result, ensure};
use fairlead_test_worker::tally::Report;
use serde_json::{Value, json};

use super::kubectl::{apply, get, kubectl};
use super::manifests::model_deployment;
use super::wait::eventually;
use super::{SERVED, image};

/// Where pods find the gateways.
const GATEWAY: &str = "http://fairlead-gateway.fairlead-system.svc.cluster.local";

/// A ModelDeployment whose pods are workers that behave as `behaviour` says: names without `FAIRLEAD_WORKER_`, and values.
pub fn worker(name: &str, behaviour: &[(&str, &str)]) -> Value {
    // A hub's model is looked at by the operator and fetched by the pod; these do not fetch.
    let mut object = model_deployment(name, "hf://fairlead/tiny");
    let env: Vec<Value> = behaviour
        .iter()
        .map(|(name, value)| json!({"name": format!("FAIRLEAD_WORKER_{name}"), "value": value}))
        .collect();
    object["spec"]["podTemplate"] =
        json!({"image": image("fairlead-test-worker"), "env": env, "terminationGracePeriodSeconds": 30});
    object
}

/// A load that runs in a pod.
pub struct Load {
    namespace: String,
    name: String,
}

impl Load {
    /// Starts a load on `model` through the gateways' Service: `seconds` long, `rate` requests a second, half of them streamed.
    pub async fn start(
        namespace: &str,
        name: &str,
        model: &str,
        rate: u32,
        seconds: u32,
        more: &[&str],
    ) -> Result<Self> {
        let mut arguments: Vec<String> =
            ["load", "--url", GATEWAY, "--model", model, "--check-tokens", "--rate"]
                .map(str::to_owned)
                .to_vec();
        arguments.extend([rate.to_string(), "--lasting".to_owned(), format!("{seconds}s")]);
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let restricted = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        let pod = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "load", "image": image("fairlead-test-worker"), "imagePullPolicy": "IfNotPresent",
                "args": arguments, "securityContext": restricted,
            }],
        });
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"backoffLimit": 0, "template": {"spec": pod}},
        });
        apply(namespace, &job).await?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Waits until its pod runs.
    pub async fn await_running(&self) -> Result<()> {
        eventually(SERVED, async || {
            let job = get(&self.namespace, "job", &self.name).await?;
            ensure!(job["status"]["ready"] == 1, "the load does not run: {}", job["status"]);
            Ok(())
        })
        .await
    }

    /// Whether its pod is over.
    pub async fn is_over(&self) -> Result<bool> {
        let job = get(&self.namespace, "job", &self.name).await?;
        let count = |what: &str| job["status"][what].as_u64().unwrap_or(0);
        ensure!(count("failed") == 0, "the load failed: {}", job["status"]);
        Ok(count("succeeded") > 0)
    }

    /// Waits for its end, `seconds` and some more, and reads what it saw.
    pub async fn report(self, seconds: u32) -> Result<Report> {
        let within = SERVED + std::time::Duration::from_secs(u64::from(seconds));
        eventually(within, async || {
            ensure!(self.is_over().await?, "the load still runs");
            Ok(())
        })
        .await?;
        let log = kubectl(&["-n", &self.namespace, "logs", &format!("job/{}", self.name)]).await?;
        let report: Report = serde_json::from_str(log.trim()).with_context(|| format!("reading {log}"))?;
        // What the load's own machine could not do says nothing of the gateways.
        ensure!(report.unsent == 0, "{} requests were not sent", report.unsent);
        Ok(report)
    }
}
