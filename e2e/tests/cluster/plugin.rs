//! `kubectl fairlead`, run as a person runs it, with rights that a person has.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::plugin::{command, fairlead, ok};
use crate::support::{
    DECIDED, Gateway, SERVED, apply, await_ready, chat, eventually, get, in_namespace, kubectl,
    model_deployment, model_image, model_route,
};

async fn rollout(namespace: &str) -> Result<Value> {
    Ok(serde_json::from_str(&ok(namespace, &["rollout", "status", "chat", "-o", "json"]).await?)?)
}

/// A route with a canary that stays at its first step until somebody asks for something else.
async fn prepare(namespace: &str) -> Result<String> {
    for name in ["one", "two"] {
        apply(namespace, &model_deployment(name, &model_image())).await?;
        await_ready(namespace, "modeldeployment", name, SERVED).await?;
    }
    let model = format!("plugin-{namespace}");
    let mut route = model_route("chat", &model, &[("one", 1), ("two", 0)]);
    route["spec"]["canary"] = json!({"backend": "two", "steps": [{"weight": 40, "hold": "1h"}]});
    apply(namespace, &route).await?;
    eventually(SERVED, async || {
        let report = rollout(namespace).await?;
        ensure!(report["phase"] == "Progressing" && report["steps"]["heldSeconds"].is_u64(), "{report}");
        Ok(())
    })
    .await?;
    Ok(model)
}

#[tokio::test]
async fn a_person_steers_a_canary_with_the_plugin() -> Result<()> {
    in_namespace(async |namespace| {
        prepare(&namespace).await?;
        let text = ok(&namespace, &["rollout", "status", "mr/chat"]).await?;
        ensure!(text.contains("step 1/1 at 40 %") && text.contains("two against one"), "{text}");
        ensure!(!text.contains('\u{1b}'), "colours without a terminal: {text}");

        // Followed from before the first request to the end.
        let followed = command(&namespace, &["rollout", "status", "chat", "-w", "--timeout", "3m"])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl-fairlead")?;
        let said = ok(&namespace, &["rollout", "pause", "chat"]).await?;
        ensure!(said.starts_with("modelroute.fairlead.dev/chat paused: two stays at 40 %"), "{said}");
        ensure!(rollout(&namespace).await?["phase"] == "Paused");
        ok(&namespace, &["rollout", "resume", "chat"]).await?;
        let again = fairlead(&namespace, &["rollout", "resume", "chat"]).await?;
        ensure!(
            again.code == 1 && again.err.contains("the operator refused to resume chat: nobody has paused"),
            "{again:?}"
        );
        let said = ok(&namespace, &["rollout", "abort", "chat", "-o", "json"]).await?;
        ensure!(serde_json::from_str::<Value>(&said)?["outcome"] == "Followed", "{said}");
        let followed = tokio::time::timeout(Duration::from_secs(60), followed.wait_with_output()).await??;
        let lines = String::from_utf8_lossy(&followed.stdout).into_owned();
        ensure!(followed.status.code() == Some(1), "a rollback is exit code 1: {lines}");
        ensure!(lines.contains("chat Progressing step 1/1") && lines.contains("chat RolledBack"), "{lines}");

        ok(&namespace, &["rollout", "retry", "chat"]).await?;
        ok(&namespace, &["rollout", "promote", "chat", "--no-wait"]).await?;
        ok(&namespace, &["rollout", "status", "chat", "--watch", "--timeout=1m"]).await?;
        let history = ok(&namespace, &["rollout", "history", "chat"]).await?;
        ensure!(history.contains("RolledBack") && history.contains("Promoted"), "{history}");

        // Requests have an owner of their own, so that Git's tools see no drift.
        let live: Value = serde_json::from_str(
            &kubectl(&["-n", &namespace, "get", "mr", "chat", "-o", "json", "--show-managed-fields"]).await?,
        )?;
        let managers = live["metadata"]["managedFields"].as_array().context("managers")?;
        let mine: Vec<&Value> = managers.iter().filter(|entry| entry["manager"] == "fairlead-cli").collect();
        ensure!(
            mine.len() == 1 && mine[0]["subresource"] == "status" && mine[0]["operation"] == "Apply",
            "{managers:?}"
        );
        let fields = &mine[0]["fieldsV1"]["f:status"];
        ensure!(fields.as_object().is_some_and(|fields| fields.keys().eq(["f:request"])), "{fields}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn mistakes_and_missing_rights_are_told_with_the_remedy() -> Result<()> {
    in_namespace(async |namespace| {
        let mut route = model_route("chat", &format!("plain-{namespace}"), &[("one", 1)]);
        apply(&namespace, &route).await?;
        for (arguments, part) in [
            (&["rollout", "status", "cha"][..], "there is no ModelRoute cha in namespace"),
            (&["rollout", "status", "cha"], "there are: chat"),
            (&["rollout", "promote", "chat"], "chat has no canary, so there is nothing to promote"),
            (&["rollout", "status", "chat", "--context", "nowhere"], "its contexts are: "),
            (&["top", "chat", "--system-namespace", "nowhere"], "there is no gateway in namespace nowhere"),
        ] {
            let ran = fairlead(&namespace, arguments).await?;
            ensure!(
                ran.code == 1 && ran.err.starts_with("error: ") && ran.err.contains(part),
                "{arguments:?}: {ran:?}"
            );
        }
        let ran = fairlead(&namespace, &["rollout"]).await?;
        ensure!(ran.code == 2, "a wrong command line: {ran:?}");

        // Who may look may not steer: the roles are Kubernetes' own, with what the chart adds to them.
        route["spec"]["backends"] = json!([{"name": "one", "modelDeployment": "one", "weight": 1},
            {"name": "two", "modelDeployment": "two"}]);
        route["spec"]["canary"] = json!({"backend": "two", "steps": [{"weight": 40, "hold": "1h"}]});
        apply(&namespace, &route).await?;
        for (user, role) in [("viewer", "view"), ("editor", "edit")] {
            let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
            let name = user.trim_start_matches("--user=");
            kubectl(&["-n", &namespace, "create", "rolebinding", name, &role, &user]).await?;
        }
        eventually(DECIDED, async || {
            ok(&namespace, &["rollout", "status", "chat", "--as", "viewer"]).await.map(drop)
        })
        .await?;
        let denied =
            fairlead(&namespace, &["rollout", "abort", "chat", "--no-wait", "--as", "viewer"]).await?;
        let expected = format!("you may not patch modelroutes.fairlead.dev/status in namespace {namespace}.");
        ensure!(denied.code == 1 && denied.err.contains(&expected), "{denied:?}");
        ensure!(denied.err.contains("--clusterrole=edit"), "{denied:?}");
        // The roles are put together by a controller, one after the other.
        eventually(DECIDED, async || {
            ok(&namespace, &["rollout", "abort", "chat", "--no-wait", "--as", "editor"]).await.map(drop)
        })
        .await?;
        let denied = fairlead(&namespace, &["top", "--as", "editor"]).await?;
        ensure!(denied.err.contains("--role=fairlead-gateway-inspector"), "{denied:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn traffic_and_decisions_are_seen_through_the_gateways() -> Result<()> {
    in_namespace(async |namespace| {
        let model = prepare(&namespace).await?;
        let gateway = Gateway::open().await?;
        gateway.await_answer(&model, SERVED).await?;
        eventually(SERVED, async || {
            let watched = fairlead(&namespace, &["top", "chat", "--interval", "5s", "-o", "json"]);
            let asked = async {
                for _ in 0..8 {
                    gateway.post("/v1/chat/completions", &chat(&model, 4)).await?;
                }
                anyhow::Ok(())
            };
            let (watched, asked) = tokio::join!(watched, asked);
            asked?;
            let watched = watched?;
            ensure!(watched.code == 0, "{watched:?}");
            let top: Value = serde_json::from_str(&watched.out)?;
            let backends = top["backends"].as_array().context("backends")?;
            let names: Vec<_> = backends.iter().filter_map(|backend| backend["backend"].as_str()).collect();
            ensure!(names == ["one", "two"] && backends[0]["percent"] == 60.0, "{top}");
            let rate: f64 = backends.iter().filter_map(|backend| backend["requestsPerSecond"].as_f64()).sum();
            ensure!(rate > 0.0 && top["silent"] == json!([]), "{top}");
            Ok(())
        })
        .await?;
        let text = ok(&namespace, &["top", "--interval", "1s"]).await?;
        ensure!(text.contains("gateways, ") && text.contains("BACKEND"), "{text}");

        let explained =
            ok(&namespace, &["explain", "chat", "--user", "ada", "--prompt", "What is a fairlead?"]).await?;
        ensure!(explained.contains(&model) && explained.contains("It would go to "), "{explained}");
        let answer: Value =
            serde_json::from_str(&ok(&namespace, &["explain", "--model", &model, "-o", "json"]).await?)?;
        ensure!(answer["route"] == format!("{namespace}/chat"), "{answer}");
        let unknown = fairlead(&namespace, &["explain", "--model", "nobody"]).await?;
        ensure!(unknown.code == 1 && unknown.err.contains("nobody"), "{unknown:?}");
        ensure!(get(&namespace, "modelroute", "chat").await?["status"]["request"].is_null());
        Ok(())
    })
    .await
}
