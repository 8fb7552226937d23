//! A namespace for one test.

use std::process::id;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use super::kubectl::{kubectl, run};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs `test` in a new namespace under the restricted Pod Security Standard, prints what it held when the test fails,
/// and deletes it.
pub async fn in_namespace<F>(test: impl FnOnce(String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let name = format!("e2e-{}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed));
    kubectl(&["create", "namespace", &name]).await?;
    kubectl(&["label", "namespace", &name, "pod-security.kubernetes.io/enforce=restricted"]).await?;
    let outcome = test(name.clone()).await;
    if let Err(error) = &outcome {
        eprintln!("--- {name}: {error:#}");
        dump(&name).await;
    }
    kubectl(&["delete", "namespace", &name, "--wait=false"]).await?;
    outcome
}

async fn dump(namespace: &str) {
    for arguments in [
        &["get", "modeldeployments,modelroutes,evaluations,deployments,jobs,pods", "-o", "wide"][..],
        &["get", "modeldeployments,modelroutes,evaluations", "-o", "yaml"],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &[
            "logs",
            "-l",
            "app.kubernetes.io/managed-by=fairlead-operator",
            "--all-containers",
            "--tail=40",
            "--prefix",
        ],
    ] {
        let scoped = [&["-n", namespace][..], arguments].concat();
        if let Ok(ran) = run(&scoped, "").await {
            eprintln!("$ kubectl {}\n{}{}", scoped.join(" "), ran.out, ran.err);
        }
    }
    let operator =
        ["-n", "fairlead-system", "logs", "-l", "app.kubernetes.io/name=fairlead-operator", "--tail=60"];
    if let Ok(ran) = run(&operator, "").await {
        eprintln!("$ kubectl {}\n{}{}", operator.join(" "), ran.out, ran.err);
    }
}
