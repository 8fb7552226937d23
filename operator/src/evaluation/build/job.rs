//! The Job that asks one backend all questions, by `fairlead-rag evaluate`.

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_crds::evaluation::{EvaluationPodTemplate, Ignored};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, KeyToPath, PodSecurityContext, PodSpec, PodTemplateSpec,
    ResourceRequirements, SeccompProfile, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Run, account, items, labels, metadata};
use crate::evaluation::validate::{Asking, Pod, ValidatedEvaluation};
use crate::model_deployment::build::pod::{USER, mount, restricted};

/// The container that asks.
pub const CONTAINER: &str = "evaluate";
/// What it ends with when a setting or a question is wrong: `fairlead_rag::failure::Failure::WRONG`.
const WRONG: i32 = 2;
/// Where the questions are mounted.
const QUESTIONS_DIR: &str = "/etc/fairlead/questions";
/// Their file there.
const QUESTIONS_FILE: &str = "questions";
/// Live requests go first at an engine that has much to do: the largest number that our engines take.
const PRIORITY: i32 = 8;

/// The Job.
pub fn job(validated: &ValidatedEvaluation, run: &Run) -> Job {
    let Pod { template, cpu, memory, image } = &validated.pod;
    let EvaluationPodTemplate {
        labels: extra,
        annotations,
        node_selector,
        tolerations,
        image_pull_secrets,
        priority_class_name,
        cpu: _,
        memory: _,
        image: _,
    } = template;
    let mut pod_labels = extra.clone();
    pod_labels.extend(labels(validated));
    let container = Container {
        name: CONTAINER.to_owned(),
        image: Some(image.clone()),
        args: Some(arguments(validated, run)),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".to_owned(), cpu.clone()),
                ("memory".to_owned(), memory.clone()),
            ])),
            limits: Some(BTreeMap::from([("memory".to_owned(), memory.clone())])),
            claims: None,
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![mount(QUESTIONS_FILE, QUESTIONS_DIR, true)]),
        ..Container::default()
    };
    let questions = Volume {
        name: QUESTIONS_FILE.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: validated.config_map.clone(),
            items: Some(vec![KeyToPath {
                key: validated.key.clone(),
                path: QUESTIONS_FILE.to_owned(),
                mode: None,
            }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let spec = PodSpec {
        containers: vec![container],
        volumes: Some(vec![questions]),
        restart_policy: Some("Never".to_owned()),
        service_account_name: Some(account(validated)),
        // It writes its answers down by itself.
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        node_selector: (!node_selector.is_empty()).then(|| node_selector.clone()),
        tolerations: (!tolerations.is_empty()).then(|| tolerations.clone()),
        image_pull_secrets: (!image_pull_secrets.is_empty()).then(|| image_pull_secrets.clone()),
        priority_class_name: priority_class_name.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    };
    Job {
        metadata: metadata(validated, run.job.clone()),
        spec: Some(JobSpec {
            backoff_limit: Some(validated.backoff_limit),
            active_deadline_seconds: i64::try_from(validated.timeout.as_secs()).ok(),
            ttl_seconds_after_finished: Some(validated.ttl_seconds),
            pod_failure_policy: Some(failure_policy()),
            pod_replacement_policy: Some("Failed".to_owned()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

/// What is wrong with a setting is not better the second time; a pod that a drain has taken is no failure.
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "FailJob".to_owned(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: Some(CONTAINER.to_owned()),
                    operator: "In".to_owned(),
                    values: vec![WRONG],
                }),
                on_pod_conditions: None,
            },
            PodFailurePolicyRule {
                action: "Ignore".to_owned(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    type_: "DisruptionTarget".to_owned(),
                    status: Some("True".to_owned()),
                }]),
            },
        ],
    }
}

fn arguments(validated: &ValidatedEvaluation, run: &Run) -> Vec<String> {
    // Without `..`: a new setting must become an argument.
    let Asking { scores, ignore, refusals, system_prompt, temperature, max_tokens, seed, request_timeout } =
        &validated.asking;
    let mut arguments = vec!["evaluate".to_owned(), "--log-format=json".to_owned()];
    let mut set = |name: &str, value: &str| arguments.push(format!("--{name}={}", unexpanded(value)));
    set("questions", &format!("{QUESTIONS_DIR}/{QUESTIONS_FILE}"));
    set("expect-digest", &validated.questions.digest);
    set("base-url", &format!("http://{}.{}.svc", run.target.deployment, validated.namespace));
    set("model", &run.target.model);
    set("result-config-map", &items::name(validated, &run.target.backend));
    set("priority", &PRIORITY.to_string());
    set("concurrency", &validated.concurrency.to_string());
    set("request-timeout", &seconds(*request_timeout));
    set("temperature", temperature);
    set("max-tokens", &max_tokens.to_string());
    set("seed", &seed.to_string());
    if !scores.is_empty() {
        set("scores", &scores.iter().map(|score| score.name()).collect::<Vec<_>>().join(","));
    }
    let named: Vec<&str> = ignore.iter().map(|ignored| name_of(*ignored)).collect();
    set("ignore", if named.is_empty() { "None".to_owned() } else { named.join(",") }.as_str());
    for phrase in refusals {
        set("refusal", phrase);
    }
    if let Some(system_prompt) = system_prompt {
        set("system-prompt", system_prompt);
    }
    arguments
}

fn name_of(ignored: Ignored) -> &'static str {
    match ignored {
        Ignored::Case => "Case",
        Ignored::Punctuation => "Punctuation",
        Ignored::Articles => "Articles",
        Ignored::Citations => "Citations",
    }
}

fn seconds(duration: Duration) -> String {
    duration.as_secs().to_string()
}

/// Kubernetes puts variables in place of `$(NAME)` in arguments; `$$` is how to say `$`.
fn unexpanded(text: &str) -> String {
    text.replace('$', "$$")
}
