//! A ModelDeployment that replaces its pods under streaming load: no request fails, and what has begun on one revision ends there.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::{Load, SERVED, apply, await_ready, eventually, get, in_namespace, model_route, worker};

/// Streams a second, each of which takes three seconds: some hundred run when the pods are replaced.
const RATE: u32 = 30;
const BEHAVIOUR: [(&str, &str); 3] = [("TOKENS", "60"), ("FIRST_TOKEN", "50ms"), ("PER_TOKEN", "50ms")];

#[tokio::test]
async fn streams_end_on_the_revision_on_which_they_began() -> Result<()> {
    in_namespace(async |namespace| {
        let mut deployment = worker("rolling", &BEHAVIOUR);
        deployment["spec"]["replicas"] = json!(2);
        apply(&namespace, &deployment).await?;
        let old = await_ready(&namespace, "modeldeployment", "rolling", SERVED).await?;
        let old = old["status"]["revision"].as_str().context("a revision")?.to_owned();
        let model = format!("rolling-{namespace}");
        apply(&namespace, &model_route("chat", &model, &[("rolling", 1)])).await?;
        await_ready(&namespace, "modelroute", "chat", SERVED).await?;
        let seconds = 45;
        let all_streams = ["--streamed", "1", "--max-tokens", "60"];
        let load = Load::start(&namespace, "load", &model, RATE, seconds, &all_streams).await?;
        load.await_running().await?;

        // Another environment is another revision; it answers as the one before.
        let env = deployment["spec"]["podTemplate"]["env"].as_array_mut().context("an environment")?;
        env.push(json!({"name": "FAIRLEAD_WORKER_SEED", "value": "1"}));
        apply(&namespace, &deployment).await?;
        let new = eventually(SERVED, async || {
            let live = get(&namespace, "modeldeployment", "rolling").await?;
            let new = live["status"]["revision"].as_str().unwrap_or_default().to_owned();
            ensure!(!new.is_empty() && new != old, "still {old}: {}", live["status"]);
            Ok(new)
        })
        .await?;
        await_ready(&namespace, "modeldeployment", "rolling", SERVED).await?;
        ensure!(!load.is_over().await?, "the pods were replaced after the load");
        // Every event of a stream names its revision, and `two revisions` would be a failure.
        let report = load.report(seconds).await?;
        ensure!(report.failed.is_empty() && report.answered == report.sent, "{:?}", report.failed);
        let by_both =
            [&old, &new].iter().all(|it| report.revisions.get(*it).is_some_and(|answers| *answers > 0));
        ensure!(by_both && report.revisions.len() == 2, "from {old} to {new}: {:?}", report.revisions);
        println!("{} streams while the pods were replaced, none failed: {:?}", report.sent, report.revisions);
        Ok(())
    })
    .await
}
