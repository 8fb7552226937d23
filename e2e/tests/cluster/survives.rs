//! What the operator has decided survives: the operator itself, edits that are taken back, and a backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::kubectl::run;
use crate::support::{
    DECIDED, SERVED, apply, await_phase, await_ready, eventually, get, history, in_namespace, kubectl,
    model_route, worker,
};

const OPERATOR: &str = "app.kubernetes.io/name=fairlead-operator";

#[tokio::test]
async fn an_operator_that_is_killed_again_and_again_skips_nothing() -> Result<()> {
    in_namespace(async |namespace| {
        backends(&namespace).await?;
        let hold = 8;
        let weights = [10, 30, 60];
        let steps: Vec<Value> =
            weights.iter().map(|weight| json!({"weight": weight, "hold": format!("{hold}s")})).collect();
        let route = route(&namespace, json!({"backend": "v2", "steps": steps}));
        let over = Arc::new(AtomicBool::new(false));
        let killer = tokio::spawn(kill_operators(Arc::clone(&over)));
        apply(&namespace, &route).await?;
        let outcome = await_phase(&namespace, "chat", "Promoted").await;
        over.store(true, Ordering::Relaxed);
        let killed = killer.await??;
        let live = outcome?;
        println!("the operator was killed {killed} times");
        ensure!(killed >= 3, "the operator was killed {killed} times");
        let history = history(&live)?;
        let seen: Vec<u64> = history.iter().map(|(_, weight)| *weight).collect();
        ensure!(seen == [10, 30, 60, 100], "{:?}", live["status"]["rollout"]);
        for pair in history.windows(2) {
            let lasted = pair[1].0.duration_since(pair[0].0).as_secs();
            ensure!(lasted >= hold, "a step of {hold} s was left after {lasted} s");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_has_ended_stays_so_through_replace_edits_and_a_backup() -> Result<()> {
    in_namespace(async |namespace| {
        backends(&namespace).await?;
        let short = json!({"backend": "v2", "steps": [{"weight": 50, "hold": "2s"}]});
        let promoted_route = route(&namespace, short);
        apply(&namespace, &promoted_route).await?;
        let ended = await_phase(&namespace, "chat", "Promoted").await?;
        let moves = history(&ended)?.len();

        // A -> B -> A, before the operator may have seen B.
        let mut other = promoted_route.clone();
        other["spec"]["canary"]["steps"] = json!([{"weight": 20, "hold": "1h"}]);
        apply(&namespace, &other).await?;
        apply(&namespace, &promoted_route).await?;
        stays_promoted(&namespace, moves).await?;

        // As `kubectl replace` with a file from Git, which has no status.
        let mut replacement = ended.clone();
        replacement.as_object_mut().context("an object")?.remove("status");
        replacement["metadata"] = json!({"name": "chat"});
        let ran = run(&["-n", &namespace, "replace", "-f", "-"], &replacement.to_string()).await?;
        ensure!(ran.code == 0, "{}", ran.err);
        stays_promoted(&namespace, moves).await?;

        // A backup that is restored with its status, in two writes as every tool does it.
        let backup = get(&namespace, "modelroute", "chat").await?;
        kubectl(&["-n", &namespace, "delete", "modelroute", "chat"]).await?;
        let mut restored = backup.clone();
        for of_the_server in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
            restored["metadata"].as_object_mut().context("metadata")?.remove(of_the_server);
        }
        let ran = run(&["-n", &namespace, "create", "-f", "-"], &restored.to_string()).await?;
        ensure!(ran.code == 0, "{}", ran.err);
        let status = json!({"status": backup["status"]}).to_string();
        let patch =
            ["-n", &namespace, "patch", "modelroute", "chat", "--subresource=status", "--type=merge", "-p"];
        kubectl(&[&patch[..], &[&status]].concat()).await?;
        let live = await_phase(&namespace, "chat", "Promoted").await?;
        ensure!(live["status"]["split"] == "v2=100", "{}", live["status"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_rollout_under_way_keeps_its_step_through_replace_and_edits_of_the_same_plan() -> Result<()> {
    in_namespace(async |namespace| {
        backends(&namespace).await?;
        let steps =
            json!([{"weight": 10, "hold": "1s"}, {"weight": 30, "hold": "1h"}, {"weight": 60, "hold": "1h"}]);
        let plan = route(&namespace, json!({"backend": "v2", "steps": steps}));
        apply(&namespace, &plan).await?;
        let at_second = eventually(DECIDED, async || {
            let live = get(&namespace, "modelroute", "chat").await?;
            let rollout = &live["status"]["rollout"];
            ensure!(
                rollout["progress"] == "2/3" && rollout["served"] == true,
                "not at the second step: {rollout}"
            );
            Ok(live)
        })
        .await?;
        let stands = &at_second["status"]["rollout"];
        ensure!(at_second["status"]["split"] == "v1=70 v2=30", "{}", at_second["status"]);
        let same = |live: &Value| {
            let now = &live["status"]["rollout"];
            ["progress", "weight", "epoch", "stepBegan"].iter().all(|field| now[field] == stands[field])
        };

        // As `kubectl replace` with a file from Git, which has no status; with another label, so that the operator looks.
        let mut replacement = plan.clone();
        replacement["metadata"]["labels"] = json!({"release": "2"});
        let ran = run(&["-n", &namespace, "replace", "-f", "-"], &replacement.to_string()).await?;
        ensure!(ran.code == 0, "{}", ran.err);
        // Paused in Git and let go on: the same plan, at the same step, and time was not lost.
        for (paused, phase) in [(true, "Paused"), (false, "Progressing")] {
            replacement["spec"]["canary"]["paused"] = json!(paused);
            let ran = run(&["-n", &namespace, "replace", "-f", "-"], &replacement.to_string()).await?;
            ensure!(ran.code == 0, "{}", ran.err);
            let live = await_phase(&namespace, "chat", phase).await?;
            ensure!(same(&live), "it was {stands}, and is {}", live["status"]["rollout"]);
        }

        // A -> B -> A with B seen: A had not ended, so it begins with its first step, and what happened is told.
        let mut other = plan.clone();
        other["spec"]["canary"]["steps"] = json!([{"weight": 20, "hold": "1h"}]);
        apply(&namespace, &other).await?;
        await_split(&namespace, "v1=80 v2=20").await?;
        apply(&namespace, &plan).await?;
        let again = await_split(&namespace, "v1=70 v2=30").await?;
        let weights: Vec<u64> = history(&again)?.iter().map(|(_, weight)| *weight).collect();
        let moves: Vec<u64> = weights.into_iter().fold(Vec::new(), |mut moves, weight| {
            // A pause is an entry as well, of the same weight.
            if moves.last() != Some(&weight) {
                moves.push(weight);
            }
            moves
        });
        ensure!(moves == [10, 30, 20, 10, 30], "{}", again["status"]["rollout"]);
        let epoch = |rollout: &Value| rollout["epoch"].as_u64();
        ensure!(
            epoch(&again["status"]["rollout"]) > epoch(stands),
            "counts of the first time are not those of the second"
        );
        Ok(())
    })
    .await
}

/// Waits until the route's traffic is split so.
async fn await_split(namespace: &str, split: &str) -> Result<Value> {
    eventually(DECIDED, async || {
        let live = get(namespace, "modelroute", "chat").await?;
        ensure!(live["status"]["split"] == split, "{}", live["status"]);
        Ok(live)
    })
    .await
}

/// Whether nothing moves after the operator has seen the newest spec.
async fn stays_promoted(namespace: &str, moves: usize) -> Result<()> {
    eventually(DECIDED, async || {
        let live = get(namespace, "modelroute", "chat").await?;
        ensure!(live["status"]["observedGeneration"] == live["metadata"]["generation"], "not looked at yet");
        let rollout = &live["status"]["rollout"];
        ensure!(rollout["phase"] == "Promoted" && live["status"]["split"] == "v2=100", "{}", live["status"]);
        // The plan in between may have been seen, and is then part of what happened; what stands has kept everything.
        let entries = rollout["history"].as_array().context("a history")?;
        let since = entries.get(moves..).unwrap_or_default();
        ensure!(since.iter().all(|entry| entry["weight"] == 100), "traffic moved: {rollout}");
        Ok(())
    })
    .await
}

async fn backends(namespace: &str) -> Result<()> {
    for name in ["v1", "v2"] {
        apply(namespace, &worker(name, &[])).await?;
        await_ready(namespace, "modeldeployment", name, SERVED).await?;
    }
    Ok(())
}

fn route(namespace: &str, canary: Value) -> Value {
    let mut route = model_route("chat", &format!("survives-{namespace}"), &[("v1", 1), ("v2", 0)]);
    route["spec"]["canary"] = canary;
    route
}

/// Kills the operator's pods without notice until told that it is over; how often.
async fn kill_operators(over: Arc<AtomicBool>) -> Result<u32> {
    let mut killed = 0;
    while !over.load(Ordering::Relaxed) {
        let arguments = ["-n", "fairlead-system", "delete", "pod", "-l", OPERATOR];
        kubectl(&[&arguments[..], &["--grace-period=0", "--force", "--wait=false"]].concat()).await?;
        killed += 1;
        // Long enough that the next one becomes the leader and decides something, mostly.
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    Ok(killed)
}
