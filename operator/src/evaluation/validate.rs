//! What an Evaluation's spec means, with the defaults filled in and its targets looked up: pure, and the only input of the plan
//! and the builders. The schema's rules refuse most of what is refused here; who goes around them is told the same.

use std::collections::BTreeSet;
use std::time::Duration;

use fairlead_crds::condition::stalled;
use fairlead_crds::evaluation::{
    Evaluation, EvaluationPodTemplate, EvaluationSampling, EvaluationSpec, EvaluationTarget, Ignored,
    QuestionsSeen, QuestionsSource, RunOn, Score,
};
use fairlead_crds::model_deployment::{ModelDeployment, Task};
use fairlead_crds::model_route::{Backend, ModelRoute};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::SignedDuration;
use kube::{Resource, ResourceExt};

use super::dereference::Dereferenced;
use crate::config::Settings;
use crate::error::Error;
use crate::model_deployment::plan::short_hash;
use crate::model_route::validate::not_ready;
use crate::quantity;

/// Results that are kept where the spec names no number.
const HISTORY: u32 = 10;
/// How long a Job is kept where the spec names no time, in seconds.
const TTL_SECONDS: i32 = 3600;
/// How often a pod is tried again where the spec names no number.
const BACKOFF_LIMIT: i32 = 2;
/// How long a run may take where the spec names no time.
const TIMEOUT: &str = "1h";
/// How long an answer may take where the spec names no time.
const REQUEST_TIMEOUT: &str = "60s";
/// Tokens of an answer where the spec names no number.
const MAX_TOKENS: u32 = 256;
/// Questions at the same time where the spec names no number.
const CONCURRENCY: u32 = 4;
/// A ConfigMap that is not there yet is watched.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// An Evaluation that can be run.
#[derive(Clone, Debug)]
pub struct ValidatedEvaluation {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What children point back with.
    pub owner: OwnerReference,
    /// What is asked, in a word.
    pub target: String,
    /// Who is asked.
    pub targets: Vec<Target>,
    /// The ConfigMap with the questions.
    pub config_map: String,
    /// The key in it.
    pub key: String,
    /// What was read there.
    pub questions: QuestionsSeen,
    /// Hash of all that makes another evaluation.
    pub inputs: String,
    /// What changes answers and scores.
    pub asking: Asking,
    /// Questions at the same time.
    pub concurrency: u32,
    /// How long a run may take.
    pub timeout: Duration,
    /// When to ask.
    pub run_on: RunOn,
    /// How often a pod is tried again.
    pub backoff_limit: i32,
    /// Results that are kept.
    pub history: usize,
    /// How long a Job is kept, in seconds.
    pub ttl_seconds: i32,
    /// What to add to the pods.
    pub pod: Pod,
}

/// One of those who are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The backend's name, or the ModelDeployment's where there is no route.
    pub backend: String,
    /// The ModelDeployment.
    pub deployment: String,
    /// The name that it is asked by: its own, or an adapter's.
    pub model: String,
    /// The revision that it serves or will serve.
    pub revision: Option<String>,
    /// Why it can't be asked now.
    pub not_ready: Option<String>,
}

/// What changes answers and scores, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// What is measured; empty is everything.
    pub scores: Vec<Score>,
    /// Differences that do not count.
    pub ignore: BTreeSet<Ignored>,
    /// Phrases that make an answer a refusal; empty are the usual ones.
    pub refusals: Vec<String>,
    /// A system message.
    pub system_prompt: Option<String>,
    /// A decimal.
    pub temperature: String,
    /// Tokens of an answer.
    pub max_tokens: u32,
    /// Seed of the draws.
    pub seed: u64,
    /// How long an answer may take.
    pub request_timeout: Duration,
}

/// What to add to the pods, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// As in the spec.
    pub template: EvaluationPodTemplate,
    /// CPU request.
    pub cpu: Quantity,
    /// Memory request and limit.
    pub memory: Quantity,
    /// What the container runs.
    pub image: String,
}

/// Checks the spec against what was found and fills the defaults in.
///
/// # Errors
/// [`Error::Invalid`] naming the field and the remedy.
pub fn validate(
    object: &Evaluation,
    found: &Dereferenced,
    settings: &Settings,
) -> Result<ValidatedEvaluation, Error> {
    let EvaluationSpec {
        questions: QuestionsSource { config_map_ref },
        target,
        scores,
        ignore,
        refusals,
        system_prompt,
        sampling,
        concurrency,
        request_timeout,
        timeout,
        run_on,
        backoff_limit,
        history_limit,
        ttl_seconds_after_finished,
        pod_template,
    } = &object.spec;
    let owner = object.controller_owner_ref(&()).ok_or_else(|| invalid("metadata has no uid yet"))?;
    let namespace = object.namespace().unwrap_or_default();
    let EvaluationSampling { temperature, max_tokens, seed } = sampling;
    let squad = || BTreeSet::from([Ignored::Case, Ignored::Punctuation, Ignored::Articles]);
    let asking = Asking {
        scores: scores.clone(),
        ignore: ignore.as_ref().map_or_else(squad, |ignore| ignore.iter().copied().collect()),
        refusals: refusals.clone(),
        system_prompt: system_prompt.clone(),
        temperature: decimal(temperature.as_deref())?,
        max_tokens: max_tokens.unwrap_or(MAX_TOKENS),
        seed: seed
            .map_or(Ok(0), u64::try_from)
            .map_err(|_| invalid("spec.sampling.seed is negative; give a whole number that is not"))?,
        request_timeout: duration("requestTimeout", request_timeout.as_deref().unwrap_or(REQUEST_TIMEOUT))?,
    };
    let targets = targets(target, &namespace, found)?;
    let questions =
        questions(&config_map_ref.name, &config_map_ref.key, &namespace, found.questions.as_ref())?;
    Ok(ValidatedEvaluation {
        name: object.name_any(),
        owner,
        target: target.route.clone().or_else(|| target.model_deployment.clone()).unwrap_or_default(),
        targets,
        config_map: config_map_ref.name.clone(),
        key: config_map_ref.key.clone(),
        // Plain data always has one form.
        inputs: short_hash(&format!("1 {} {asking:?}", questions.digest)),
        questions,
        asking,
        concurrency: concurrency.unwrap_or(CONCURRENCY),
        timeout: duration("timeout", timeout.as_deref().unwrap_or(TIMEOUT))?,
        run_on: *run_on,
        backoff_limit: backoff_limit.unwrap_or(BACKOFF_LIMIT),
        history: usize::try_from(history_limit.unwrap_or(HISTORY)).unwrap_or(usize::MAX),
        ttl_seconds: ttl_seconds_after_finished.unwrap_or(TTL_SECONDS),
        pod: pod(pod_template, settings)?,
        namespace,
    })
}

fn invalid(message: impl Into<String>) -> Error {
    Error::invalid(stalled::INVALID_SPEC, message)
}

fn not_found(message: impl Into<String>) -> Error {
    Error::invalid(stalled::TARGET_NOT_FOUND, message)
}

/// The decimal as numbers are written, so that `1` and `1.0` are one.
fn decimal(text: Option<&str>) -> Result<String, Error> {
    let text = text.unwrap_or("0");
    let number: Option<f64> = text.parse().ok().filter(|number| (0.0..=2.0).contains(number));
    number.map(|number| number.to_string()).ok_or_else(|| {
        invalid(format!(
            "spec.sampling.temperature is {text:?}; it must be a decimal between 0 and 2, in quotes; for example \"0.7\""
        ))
    })
}

fn duration(field: &str, text: &str) -> Result<Duration, Error> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|it| Duration::try_from(it).ok());
    parsed.filter(|duration| *duration >= Duration::from_secs(1)).ok_or_else(|| {
        invalid(format!(
            "spec.{field} is {text:?}; write hours, minutes and seconds, a second at least, such as 30s or 10m"
        ))
    })
}

fn pod(template: &EvaluationPodTemplate, settings: &Settings) -> Result<Pod, Error> {
    let positive = |field: &str, value: &Option<Quantity>, default: &str| {
        let value = value.clone().unwrap_or_else(|| Quantity(default.to_owned()));
        if quantity::thousandths(&value.0).is_some_and(|it| it > 0) {
            return Ok(value);
        }
        Err(invalid(format!(
            "spec.podTemplate.{field} is {}; it must be a positive quantity, for example {default}",
            value.0
        )))
    };
    Ok(Pod {
        cpu: positive("cpu", &template.cpu, "50m")?,
        memory: positive("memory", &template.memory, "128Mi")?,
        image: template.image.clone().unwrap_or_else(|| settings.rag_image.clone()),
        template: template.clone(),
    })
}

fn questions(
    name: &str,
    key: &str,
    namespace: &str,
    config_map: Option<&ConfigMap>,
) -> Result<QuestionsSeen, Error> {
    let field = "spec.questions.configMapRef";
    let wrong = |message: String| Error::Invalid {
        reason: stalled::INVALID_QUESTIONS,
        message,
        retry: Some(LOOK_AGAIN),
    };
    let Some(config_map) = config_map else {
        return Err(wrong(format!(
            "{field}.name: there is no ConfigMap {name} in namespace {namespace}; create it, or correct the name"
        )));
    };
    let Some(text) = config_map.data.as_ref().and_then(|data| data.get(key)) else {
        let known: Vec<&str> =
            config_map.data.iter().flatten().map(|(key, _)| key.as_str()).take(8).collect();
        return Err(wrong(format!(
            "{field}.key: ConfigMap {name} has no text under the key {key}; it has {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        )));
    };
    let parsed = fairlead_evaluation::parse(text)
        .map_err(|error| wrong(format!("ConfigMap {name}, key {key}: {error}")))?;
    Ok(QuestionsSeen {
        digest: fairlead_evaluation::digest(text),
        count: u32::try_from(parsed.len()).unwrap_or(u32::MAX),
    })
}

fn targets(target: &EvaluationTarget, namespace: &str, found: &Dereferenced) -> Result<Vec<Target>, Error> {
    let EvaluationTarget { route, backends, model_deployment } = target;
    match (route, model_deployment) {
        (Some(name), None) => {
            let Some(route) = &found.route else {
                return Err(not_found(format!(
                    "spec.target.route: there is no ModelRoute {name} in namespace {namespace}; create it, or correct the name"
                )));
            };
            of_route(route, backends, namespace, found)
        }
        (None, Some(name)) if backends.is_empty() => {
            let field = "spec.target.modelDeployment";
            let deployment = deployment(name, field, namespace, found)?;
            Ok(vec![looked_up(name.clone(), name, name, deployment)])
        }
        (None, Some(_)) => Err(invalid(
            "spec.target.backends are those of a route; set spec.target.route, or leave backends out",
        )),
        _ => Err(invalid("spec.target: set exactly one of route and modelDeployment")),
    }
}

fn of_route(
    route: &ModelRoute,
    wanted: &[String],
    namespace: &str,
    found: &Dereferenced,
) -> Result<Vec<Target>, Error> {
    let backends = &route.spec.backends;
    if let Some(unknown) = wanted.iter().find(|name| !backends.iter().any(|backend| backend.name == **name)) {
        let known: Vec<&str> = backends.iter().map(|backend| backend.name.as_str()).collect();
        return Err(not_found(format!(
            "spec.target.backends: ModelRoute {} has no backend {unknown}; it has {}",
            route.name_any(),
            known.join(", ")
        )));
    }
    let mut targets = Vec::new();
    for backend in backends.iter().filter(|backend| is_asked(route, backend, wanted)) {
        let Some(name) = &backend.model_deployment else {
            if wanted.is_empty() {
                // What Fairlead does not run has no revision that a result could stand for.
                continue;
            }
            return Err(invalid(format!(
                "spec.target.backends: backend {} has no modelDeployment; only a ModelDeployment has revisions that can be told apart",
                backend.name
            )));
        };
        let field =
            format!("ModelRoute {}: spec.backends[{}].modelDeployment", route.name_any(), backend.name);
        let deployment = deployment(name, &field, namespace, found)?;
        let model = backend.adapter.as_ref().unwrap_or(name);
        targets.push(looked_up(backend.name.clone(), name, model, deployment));
    }
    if targets.is_empty() {
        return Err(not_found(format!(
            "spec.target.route: ModelRoute {} has no backend that could be asked; give one a weight and a modelDeployment, or name \
             some in spec.target.backends",
            route.name_any()
        )));
    }
    Ok(targets)
}

/// Whether a backend is asked: it is named, or it is the canary, or it has a part of the requests, or would have one without
/// the canary.
fn is_asked(route: &ModelRoute, backend: &Backend, wanted: &[String]) -> bool {
    if !wanted.is_empty() {
        return wanted.contains(&backend.name);
    }
    let is_canary = route.spec.canary.as_ref().is_some_and(|canary| canary.backend == backend.name);
    let takes = route.weights().iter().any(|(taker, weight)| taker.name == backend.name && *weight > 0);
    is_canary || takes
}

fn deployment<'a>(
    name: &str,
    field: &str,
    namespace: &str,
    found: &'a Dereferenced,
) -> Result<&'a ModelDeployment, Error> {
    let Some(deployment) = found.deployments.get(name) else {
        return Err(not_found(format!(
            "{field}: there is no ModelDeployment {name} in namespace {namespace}; create it, or correct the name"
        )));
    };
    if deployment.spec.task != Task::Generate {
        return Err(invalid(format!(
            "{field}: ModelDeployment {name} has the task {:?}; only models that continue text can be asked questions",
            deployment.spec.task
        )));
    }
    Ok(deployment)
}

fn looked_up(backend: String, name: &str, model: &str, deployment: &ModelDeployment) -> Target {
    let status = deployment.status.as_ref();
    let revision = status.and_then(|status| status.revision.clone());
    let not_ready = not_ready(deployment)
        .or_else(|| revision.is_none().then(|| "it has no revision yet".to_owned()))
        .or_else(|| {
            status.is_some_and(|status| status.ready_replicas < 1).then(|| "it has no pod".to_owned())
        });
    Target { backend, deployment: name.to_owned(), model: model.to_owned(), revision, not_ready }
}
