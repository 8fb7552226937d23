//! What the pods tell: how many serve, how far those are that start, what keeps others from starting. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_crds::REVISION_LABEL;
use fairlead_crds::condition::{ready, reconciling, stalled};
use fairlead_crds::model_deployment::StartupProgress;
use fairlead_model::Reason;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt;

use super::plan::stalled_reason;
use crate::conditions::Verdict;

/// What an engine goes through while it starts, in this order.
pub const PHASES: [&str; 4] = ["Fetching", "SizingCache", "Loading", "WarmingUp"];

/// What an observation is made from.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The Deployment, as it was last written or seen.
    pub deployment: Option<Deployment>,
    /// The wanted revision.
    pub revision: Option<String>,
    /// Replicas that a new Deployment starts with.
    pub initial_replicas: i32,
    /// Engine pods of every revision.
    pub pods: Vec<Arc<Pod>>,
    /// What starting pods said, by name.
    pub startup: BTreeMap<String, StartupProgress>,
}

/// What is known of the pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// How the pods are.
    pub verdict: Verdict,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods of the wanted revision that are ready.
    pub ready_replicas: i32,
    /// Pods that are wanted.
    pub wanted: i32,
    /// Label selector of the pods.
    pub selector: Option<String>,
    /// The wanted revision.
    pub revision: Option<String>,
    /// How far the slowest starting pod is.
    pub startup: Option<StartupProgress>,
    /// Whether a pod is starting, so that its progress should be asked for soon.
    pub starting: bool,
}

/// Makes the observation.
pub fn observe(seen: &Seen) -> Observation {
    let Seen { deployment, revision, initial_replicas, pods, startup } = seen;
    let spec = deployment.as_ref().and_then(|it| it.spec.as_ref());
    let wanted = spec.map_or(*initial_replicas, |spec| spec.replicas.unwrap_or(1));
    let live: Vec<&Pod> = pods.iter().map(|pod| &**pod).filter(|pod| !is_over(pod)).collect();
    let (current, older): (Vec<&Pod>, Vec<&Pod>) =
        live.into_iter().partition(|pod| is_current(pod, revision.as_deref()));
    let ready_count = count(current.iter().filter(|pod| is_ready(pod) && !is_terminating(pod)));
    let slowest = current
        .iter()
        .filter_map(|pod| startup.get(&pod.name_any()))
        .min_by_key(|progress| (phase_order(&progress.phase), progress.percent))
        .cloned();
    let verdict = match deployment {
        None => Verdict::Reconciling {
            reason: reconciling::ROLLING_OUT,
            message: "no pod has been made yet".to_owned(),
        },
        Some(deployment) => verdict(deployment, wanted, ready_count, &current, &older, slowest.as_ref()),
    };
    Observation {
        replicas: count(current.iter().chain(&older).filter(|pod| !is_terminating(pod))),
        ready_replicas: ready_count,
        wanted,
        selector: spec.and_then(|spec| selector(spec.selector.match_labels.as_ref()?)),
        revision: revision.clone(),
        startup: slowest,
        starting: starting(seen).next().is_some(),
        verdict,
    }
}

fn verdict(
    deployment: &Deployment,
    wanted: i32,
    ready_count: i32,
    current: &[&Pod],
    older: &[&Pod],
    slowest: Option<&StartupProgress>,
) -> Verdict {
    let rolling = |message: String| Verdict::Reconciling { reason: reconciling::ROLLING_OUT, message };
    let so_far = format!("{ready_count} of {wanted} pods serve the current revision");
    if let Some((reason, message)) = current.iter().find_map(|pod| failure(pod)) {
        return Verdict::Stalled { reason, message };
    }
    let status = deployment.status.clone().unwrap_or_default();
    if ready_count < wanted {
        let trouble = current.iter().find_map(|pod| trouble(pod)).or_else(|| refused(&status));
        return rolling(match (trouble, slowest) {
            (Some(trouble), _) => format!("{so_far}; {trouble}"),
            (None, Some(progress)) => format!("{so_far}; {}", in_words(progress)),
            (None, None) => so_far,
        });
    }
    if status.observed_generation < deployment.metadata.generation
        || status.updated_replicas.unwrap_or_default() < wanted
        || status.available_replicas.unwrap_or_default() < wanted
    {
        return rolling(so_far);
    }
    if !older.is_empty() {
        let (pods, finish) =
            if older.len() == 1 { ("pod", "finishes its") } else { ("pods", "finish their") };
        return rolling(format!("{so_far}; {} {pods} of an older revision {finish} streams", older.len()));
    }
    if current.iter().any(|pod| !is_terminating(pod)) && wanted == 0 {
        return rolling("pods are being removed".to_owned());
    }
    Verdict::Ready {
        reason: ready::AVAILABLE,
        message: if wanted == 0 { "scaled to no replicas".to_owned() } else { so_far },
    }
}

/// Pods of the wanted revision that run and are not ready yet.
pub fn starting(seen: &Seen) -> impl Iterator<Item = &Pod> {
    seen.pods.iter().map(|pod| &**pod).filter(|pod| {
        let running = pod.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Running");
        running && is_current(pod, seen.revision.as_deref()) && !is_ready(pod) && !is_terminating(pod)
    })
}

/// What keeps a pod from starting that may yet go away by itself: no node, no image, no volume.
pub fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = pod.name_any();
    let unschedulable = status.conditions.iter().flatten().find(|it| {
        it.type_ == "PodScheduled" && it.status == "False" && it.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        return Some(format!(
            "pod {name} finds no node: {}",
            condition.message.as_deref().unwrap_or("no reason given")
        ));
    }
    containers(pod).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        // The usual steps of a start, and crashes, which are told otherwise.
        if matches!(reason, "ContainerCreating" | "PodInitializing" | "CrashLoopBackOff") {
            return None;
        }
        let message = waiting.message.as_deref().unwrap_or_default();
        // The kubelet alternates between the two; told alike, they cause no writes.
        if matches!(reason, "ErrImagePull" | "ImagePullBackOff") {
            let (_, why) = message.rsplit_once("ErrImagePull: ").unwrap_or(("", message));
            return Some(format!("pod {name}: image {} can't be pulled: {why}", container.image));
        }
        Some(format!("pod {name}: {reason}: {message}").trim_end_matches([':', ' ']).to_owned())
    })
}

/// Why a pod will not start by itself: its engine says so, or it has crashed more than once.
fn failure(pod: &Pod) -> Option<(&'static str, String)> {
    if is_ready(pod) || is_terminating(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten().map(|it| (it, true));
    let main = status.container_statuses.iter().flatten().map(|it| (it, false));
    init.chain(main).find_map(|(container, may_end)| {
        let now = container.state.as_ref().and_then(|it| it.terminated.as_ref());
        let before = container.last_state.as_ref().and_then(|it| it.terminated.as_ref());
        // An engine that ends has failed, whatever its code.
        let crash = now.or(before).filter(|it| it.exit_code != 0 || !may_end)?;
        let (reason, message) = split_reason(crash.message.as_deref().unwrap_or_default());
        match reason {
            Some(reason) => Some((stalled_reason(reason), message)),
            None if container.restart_count < 2 => None,
            None => Some((stalled::POD_FAILED, crashed(&pod.name_any(), container, crash, &message))),
        }
    })
}

fn crashed(
    pod: &str,
    container: &ContainerStatus,
    crash: &ContainerStateTerminated,
    message: &str,
) -> String {
    let name = &container.name;
    let times = container.restart_count;
    if crash.reason.as_deref() == Some("OOMKilled") {
        return format!(
            "pod {pod}: container {name} ran out of memory {times} times: raise spec.resources.memory"
        );
    }
    let code = crash.exit_code;
    // The log's end may be long; its last lines say most.
    let end: String = message.chars().rev().take(512).collect::<Vec<_>>().into_iter().rev().collect();
    let detail = if end.is_empty() { "see kubectl logs".to_owned() } else { end };
    format!("pod {pod}: container {name} ended with code {code}, {times} restarts so far: {detail}")
}

/// Splits a termination message of ours, `<Reason>: <message>`. The log's end may stand before it.
pub fn split_reason(text: &str) -> (Option<Reason>, String) {
    let told = text.lines().rev().find_map(|line| {
        let (word, message) = line.trim().split_once(": ")?;
        Some((Reason::parse(word)?, message.to_owned()))
    });
    match told {
        Some((reason, message)) => (Some(reason), message),
        None => (None, text.trim().to_owned()),
    }
}

/// Why the ReplicaSet may not make pods: a quota, a policy.
fn refused(status: &DeploymentStatus) -> Option<String> {
    let conditions = status.conditions.as_ref()?;
    let failure = conditions.iter().find(|it| it.type_ == "ReplicaFailure" && it.status == "True")?;
    Some(format!("pods can't be made: {}", failure.message.as_deref().unwrap_or_default()))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|it| it.init_container_statuses.as_ref()).into_iter().flatten();
    let main = status.and_then(|it| it.container_statuses.as_ref()).into_iter().flatten();
    init.chain(main)
}

fn is_current(pod: &Pod, revision: Option<&str>) -> bool {
    pod.labels().get(REVISION_LABEL).map(String::as_str) == revision
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|it| it.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
}

fn count<'a>(pods: impl Iterator<Item = &'a &'a Pod>) -> i32 {
    i32::try_from(pods.count()).unwrap_or(i32::MAX)
}

fn selector(labels: &BTreeMap<String, String>) -> Option<String> {
    (!labels.is_empty())
        .then(|| labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

fn phase_order(phase: &str) -> usize {
    PHASES.iter().position(|it| *it == phase).unwrap_or(usize::MAX)
}

/// A start's progress, for the `Ready` message.
fn in_words(progress: &StartupProgress) -> String {
    let phase = match progress.phase.as_str() {
        "Fetching" => "fetching the model",
        "Loading" => "loading the weights",
        "WarmingUp" => "warming up",
        "SizingCache" => "sizing the KV cache",
        _ => return "starting".to_owned(),
    };
    match (progress.percent, progress.bytes_total) {
        (Some(percent), Some(total)) => format!("{phase}: {percent} % of {}", human(total)),
        _ => phase.to_owned(),
    }
}

fn human(bytes: u64) -> String {
    let (unit, size) = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, size)| bytes >= *size)
        .unwrap_or(("B", 1));
    // One decimal is shown; what f64 loses is far behind it.
    if size == 1 { format!("{bytes} {unit}") } else { format!("{:.1} {unit}", bytes as f64 / size as f64) }
}
