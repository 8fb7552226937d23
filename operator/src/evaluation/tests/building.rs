//! What is built for a run, and which changes concern which Evaluation.

use fairlead_crds::evaluation::Evaluation;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use serde_json::json;

use super::world::{OBJECT, ROUTE, World};
use crate::evaluation::build::{self, access, items, job};
use crate::evaluation::dereference::dereference;
use crate::evaluation::triggers::{Changed, concerned, with_questions_in};
use crate::evaluation::validate::{ValidatedEvaluation, validate};

async fn validated(spec: &serde_json::Value) -> ValidatedEvaluation {
    let mut world = World::new(spec);
    world.cluster.sync();
    let object: Evaluation = serde_json::from_value(world.cluster.get(OBJECT).unwrap()).unwrap();
    let found = dereference(&object, &world.cluster.context).await.unwrap();
    validate(&object, &found, &world.cluster.context.settings).unwrap()
}

fn job_of(validated: &ValidatedEvaluation) -> Job {
    let run = build::run(validated, &validated.targets[0], "r1".to_owned(), None, false);
    job::job(validated, &run)
}

#[tokio::test]
async fn a_job_with_everything_set() {
    let validated = validated(&json!({
        "target": {"route": "chat", "backends": ["v1"]},
        "scores": ["f1", "latency"], "ignore": [], "refusals": ["costs $(HOME) $5", "no"],
        "systemPrompt": "Be brief.", "sampling": {"temperature": "0.50", "maxTokens": 9, "seed": 3},
        "concurrency": 2, "requestTimeout": "1m30s", "timeout": "2h", "backoffLimit": 0,
        "ttlSecondsAfterFinished": 60,
        "podTemplate": {
            "labels": {"team": "support", "fairlead.dev/evaluation": "stolen"}, "annotations": {"a": "b"},
            "nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "imagePullSecrets": [{"name": "pull"}], "priorityClassName": "low", "cpu": "1", "memory": "1Gi", "image": "own:1",
        },
    }))
    .await;
    insta::assert_yaml_snapshot!(job_of(&validated));
}

#[tokio::test]
async fn a_job_with_nothing_set_and_what_it_may() {
    let validated = validated(&json!({})).await;
    insta::assert_yaml_snapshot!("defaults", job_of(&validated));
    insta::assert_yaml_snapshot!("role", access::role(&validated));
    assert_eq!(access::role_binding(&validated).role_ref.name, access::role(&validated).name_any());
    assert_eq!(access::service_account(&validated).automount_service_account_token, Some(false));
    assert_eq!(items::config_map(&validated, "v1").data, None, "the operator owns none of its contents");
}

#[tokio::test]
async fn names_fit_and_tell_runs_apart() {
    let mut validated = validated(&json!({})).await;
    validated.name = "q".repeat(40);
    let target = validated.targets[0].clone();
    let run = |revision: &str, request: Option<&str>| {
        build::run(&validated, &target, revision.to_owned(), request.map(str::to_owned), request.is_some())
    };
    let (first, other, asked) = (run("r1", None), run("r2", None), run("r1", Some("again")));
    assert!(asked.job.len() <= 63, "{}", asked.job);
    assert_ne!(first.job, other.job);
    assert_ne!(first.job, asked.job);
    assert!(first.has_form_of(&asked.job) && first.has_form_of(&first.job) && !first.has_form_of(&other.job));
    let mut not_ready = target.clone();
    not_ready.not_ready = Some("it restarts".to_owned());
    assert_eq!(build::run(&validated, &not_ready, "r1".to_owned(), None, false).job, first.job);
}

#[tokio::test]
async fn changes_concern_those_who_name_what_has_changed() {
    let mut world = World::new(&json!({}));
    world.step().await.unwrap();
    world.cluster.sync();
    let store = &world.cluster.context.stores.evaluations;
    let here = |name: &str| ("models".to_owned(), name.to_owned());
    let of = |changed: Changed| concerned(&changed, store).len();
    let deployment = |(namespace, name)| Changed::Deployment(namespace, name);
    let route = |(namespace, name)| Changed::Route(namespace, name);
    assert_eq!(of(route(here("chat"))), 1);
    assert_eq!(of(route(here("other"))), 0);
    assert_eq!(of(deployment(here("m2"))), 1);
    assert_eq!(of(deployment(here("m3"))), 0, "spare is not asked");
    assert_eq!(of(deployment(("elsewhere".to_owned(), "m2".to_owned()))), 0);
    assert_eq!(with_questions_in("models", "questions", store).len(), 1);
    assert_eq!(with_questions_in("models", "other", store).len(), 0);
    assert_eq!(with_questions_in("elsewhere", "questions", store).len(), 0);
}

/// The other end: a route whose canary is judged by it.
#[tokio::test]
async fn a_route_reads_the_evaluations_that_its_gates_name() {
    let mut world = World::new(&json!({}));
    world.cluster.edit(ROUTE, |it| {
        it["spec"]["canary"]["analysis"] = json!({"gates": [
            {"metric": "Evaluation", "evaluation": "quality", "score": "exactMatch", "maxRegression": "2%"},
            {"metric": "Evaluation", "evaluation": "missing", "score": "f1", "min": "0.5"},
        ]});
    });
    world.cluster.sync();
    let stores = &world.cluster.context.stores;
    let route = crate::stores::get(&stores.model_routes, "models", "chat").unwrap();
    let found = crate::model_route::dereference::dereference(&route, stores);
    assert_eq!(found.evaluations.keys().collect::<Vec<_>>(), ["quality"]);
    let of = |name: &str| {
        let changed = crate::model_route::triggers::Changed::Evaluation("models".to_owned(), name.to_owned());
        crate::model_route::triggers::concerned(&changed, &stores.model_routes).len()
    };
    assert_eq!((of("quality"), of("missing"), of("other")), (1, 1, 0));
}
