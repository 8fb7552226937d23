//! What is wrong in a namespace, in a text for people.
//!
//! Owns: choosing what is worth reading: pods that are not well, their logs, warnings. Called where waiting failed.

use std::fmt::Write;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, LogParams};
use kube::{Api, Client, ResourceExt};

/// How much of each container's log is shown.
const LOG_LINES: i64 = 15;
/// How many of the newest warnings are shown.
const EVENTS: usize = 12;

/// Describes the pods of a namespace that are not ready, with the ends of their logs, and the newest warnings. What cannot
/// be read is said so: a dump never fails.
pub async fn dump(client: &Client, namespace: &str) -> String {
    let mut text = format!("--- namespace {namespace}\n");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.list(&ListParams::default()).await {
        Ok(list) if list.items.is_empty() => text.push_str("no pods\n"),
        Ok(list) => {
            for pod in list.items.iter().filter(|pod| !is_well(pod)) {
                describe(&pods, pod, &mut text).await;
            }
        }
        Err(error) => text.push_str(&format!("pods cannot be listed: {error}\n")),
    }
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    match events.list(&ListParams::default()).await {
        Ok(list) => text.push_str(&warnings(list.items)),
        Err(error) => text.push_str(&format!("events cannot be listed: {error}\n")),
    }
    text
}

fn is_well(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    ready || status.phase.as_deref() == Some("Succeeded")
}

async fn describe(pods: &Api<Pod>, pod: &Pod, text: &mut String) {
    let name = pod.name_any();
    let Some(status) = &pod.status else { return };
    // Writing to a string does not fail.
    let _ = writeln!(text, "pod {name}: {}", status.phase.as_deref().unwrap_or("no phase"));
    for condition in status.conditions.iter().flatten().filter(|one| one.status != "True") {
        let message = condition.message.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "  {}: {} {message}",
            condition.type_,
            condition.reason.as_deref().unwrap_or_default()
        );
    }
    let containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    for container in containers.filter(|container| !container.ready) {
        let state = serde_json::to_string(&container.state).unwrap_or_default();
        let _ =
            writeln!(text, "  container {} ({} restarts): {state}", container.name, container.restart_count);
        for previous in [true, false] {
            let params = LogParams {
                container: Some(container.name.clone()),
                tail_lines: Some(LOG_LINES),
                previous,
                ..LogParams::default()
            };
            for line in pods.logs(&name, &params).await.unwrap_or_default().lines() {
                let _ = writeln!(text, "    | {line}");
            }
        }
    }
}

fn warnings(mut events: Vec<Event>) -> String {
    events.retain(|event| event.type_.as_deref() == Some("Warning"));
    events.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    let newest = events.split_off(events.len().saturating_sub(EVENTS));
    let line = |event: &Event| {
        let object = &event.involved_object;
        format!(
            "warning {} {}: {} {}\n",
            object.kind.as_deref().unwrap_or_default(),
            object.name.as_deref().unwrap_or_default(),
            event.reason.as_deref().unwrap_or_default(),
            event.message.as_deref().unwrap_or_default().trim_end()
        )
    };
    newest.iter().map(line).collect()
}
