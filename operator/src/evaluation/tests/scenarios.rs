//! Whole reconciles against an API server in memory.

use std::sync::Arc;

use fairlead_crds::evaluation::{Evaluation, Score, Standing};
use serde_json::{Value, json};

use super::world::{JOBS, OBJECT, QUESTIONS, ROUTE, World, deployment_path};
use crate::error::Error;
use crate::evaluation::reconcile;
use crate::metrics::Outcome;
use crate::stores::get;

/// Both backends have answered: v1 three of three, v2 one of three.
async fn evaluated(spec: &Value) -> World {
    let mut world = World::new(spec);
    world.step().await.unwrap();
    assert_eq!(world.answers(3, "r1"), "v1");
    world.step().await.unwrap();
    world.step().await.unwrap();
    assert_eq!(world.answers(1, "r2"), "v2");
    world.step().await.unwrap();
    world.cluster.writes();
    world.cluster.events();
    world
}

#[tokio::test]
async fn the_stable_backend_and_the_canary_are_asked_one_after_the_other() {
    let mut world = World::new(&json!({}));
    world.step().await.unwrap();
    let (job, backend) = world.running();
    assert_eq!(backend, "v1");
    let writes = world.cluster.writes();
    let expected = [
        "serviceaccounts/quality-evaluation",
        "roles/quality-evaluation",
        "rolebindings/quality-evaluation",
        "configmaps/quality-items-v1",
        &format!("jobs/{job}"),
        "evaluations/quality/status",
    ];
    assert_eq!(writes.len(), expected.len(), "{writes:?}");
    for (write, child) in writes.iter().zip(expected) {
        assert!(write.starts_with("PATCH") && write.ends_with(child), "{write} is not {child}");
    }
    let (status, reason, message) = world.ready();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Evaluating"));
    assert!(message.contains("asks v1 3 questions; then v2"), "{message}");
    assert_eq!(world.cluster.events(), ["Evaluating"]);
    world.step().await.unwrap();
    assert_eq!(world.cluster.writes(), Vec::<String>::new(), "the Job is waited for");

    world.answers(3, "r1");
    world.step().await.unwrap();
    assert_eq!(world.cluster.events(), ["Scored"]);
    let status = world.status();
    assert_eq!(status["summary"], "exactMatch v1=1.00");
    let (job, backend) = world.running();
    assert_eq!((backend.as_str(), &status["current"][1]["job"]), ("v2", &json!(job)), "the next is asked");
    world.answers(1, "r2");
    world.step().await.unwrap();
    let (status, reason, message) = world.ready();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Evaluated"));
    assert!(
        message.contains("v1 at revision r1: exactMatch 1.00 (3 of 3), f1 0.70, errors 0.00 (0 of 3)"),
        "{message}"
    );
    assert_eq!(world.cluster.events(), ["Scored", "Evaluated"]);
    let status = world.status();
    assert_eq!(status["summary"], "exactMatch v1=1.00 v2=0.33");
    assert_eq!((&status["target"], &status["questions"]["count"]), (&json!("chat"), &json!(3)));
    assert_eq!(status["results"][0]["startedAt"], "2026-01-01T00:00:10Z");
    assert_eq!(status["results"][0]["items"]["configMap"], "quality-items-v2");

    // What a rollout reads.
    let object: Evaluation = serde_json::from_value(world.cluster.get(OBJECT).unwrap()).unwrap();
    let Standing::Scored(canary) = object.standing("v2", "m2", "r2") else { panic!("{object:?}") };
    assert_eq!(canary.measured(Score::ExactMatch).unwrap().hits, Some(1));

    world.cluster.writes();
    for _ in 0..3 {
        world.step().await.unwrap();
    }
    assert_eq!(world.cluster.writes(), Vec::<String>::new(), "it is settled");
}

#[tokio::test]
async fn a_result_is_not_written_over_by_a_store_that_is_behind() {
    let mut world = World::new(&json!({}));
    world.step().await.unwrap();
    world.answers(3, "r1");
    world.cluster.sync();
    let behind = get(&world.cluster.context.stores.evaluations, "models", "quality").unwrap();
    world.step().await.unwrap();
    world.answers(1, "r2");
    world.step().await.unwrap();
    let status = world.status();
    assert_eq!(status["summary"], "exactMatch v1=1.00 v2=0.33");
    world.cluster.events();
    let late = reconcile(behind, Arc::clone(&world.cluster.context)).await;
    assert!(matches!(late, Err(Error::Outdated)), "{late:?}");
    assert_eq!(world.status(), status);
    assert_eq!(world.cluster.events(), Vec::<String>::new(), "nothing is scored twice");
}

#[tokio::test]
async fn only_what_serves_something_new_is_asked_again() {
    let mut world = evaluated(&json!({})).await;
    world.rolls_out("m2", "r2b");
    world.step().await.unwrap();
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "Waiting");
    assert!(message.contains("backend v2: ModelDeployment m2 is not ready (RollingOut)"), "{message}");
    assert_eq!(world.jobs().len(), 2, "nothing is asked before it serves");
    world.serves("m2", "r2b");
    world.step().await.unwrap();
    assert_eq!(world.running().1, "v2");
    world.answers(2, "r2b");
    world.step().await.unwrap();
    assert_eq!(world.status()["summary"], "exactMatch v1=1.00 v2=0.67");
    let results = world.status()["results"].as_array().unwrap().clone();
    assert_eq!(results.len(), 3, "the earlier one is history");
    let earlier = results.iter().find(|it| it["revision"] == "r2").unwrap();
    assert!(earlier["items"].is_null(), "its answers were written over: {earlier}");

    // Back to the revision before: there is a result already.
    world.serves("m2", "r2");
    let jobs = world.jobs();
    world.step().await.unwrap();
    assert_eq!((world.jobs(), world.ready().1.as_str()), (jobs, "Evaluated"));
    assert_eq!(world.status()["summary"], "exactMatch v1=1.00 v2=0.33");
}

#[tokio::test]
async fn a_run_that_is_outdated_by_a_new_revision_is_replaced() {
    let mut world = World::new(&json!({"target": {"route": "chat", "backends": ["v2"]}}));
    world.step().await.unwrap();
    let (first, _) = world.running();
    world.serves("m2", "r9");
    world.cluster.writes();
    world.step().await.unwrap();
    assert_eq!(world.cluster.writes()[0], format!("DELETE {JOBS}{first}"));
    let (second, _) = world.running();
    assert_ne!(first, second);
    // Also while the new one is not there yet.
    world.rolls_out("m2", "r10");
    world.step().await.unwrap();
    assert_eq!(world.jobs(), [], "what it would say is of no use");
}

#[tokio::test]
async fn other_questions_and_other_settings_make_another_evaluation() {
    let mut world = evaluated(&json!({})).await;
    let inputs = world.status()["inputs"].clone();
    world.ask(&["one", "two", "four"]);
    world.step().await.unwrap();
    assert_ne!(world.status()["inputs"], inputs);
    assert_eq!(world.status()["summary"], Value::Null, "nobody has answered these yet");
    assert_eq!(world.running().1, "v1");
    world.answers(2, "r1");
    world.step().await.unwrap();
    world.step().await.unwrap();
    world.answers(2, "r2");
    world.step().await.unwrap();
    assert_eq!(world.ready().1, "Evaluated");

    // What changes no answer makes no run.
    let jobs = world.jobs();
    world.edit(|it| {
        it["spec"]["concurrency"] = json!(1);
        it["spec"]["sampling"] = json!({"temperature": "0.0", "maxTokens": 256});
    });
    world.step().await.unwrap();
    assert_eq!((world.jobs(), world.ready().1.as_str()), (jobs, "Evaluated"));
    world.edit(|it| it["spec"]["sampling"] = json!({"maxTokens": 8}));
    world.step().await.unwrap();
    assert_eq!(world.ready().1, "Evaluating");
}

#[tokio::test]
async fn a_run_that_fails_is_told_with_its_last_words_and_not_repeated_until_it_may_help() {
    let mut world = World::new(&json!({"target": {"modelDeployment": "m1"}}));
    world.step().await.unwrap();
    let (job, backend) = world.running();
    assert_eq!(backend, "m1", "without a route it is named by its ModelDeployment");
    world.job_ends(&job, "Failed", "BackoffLimitExceeded");
    world.cluster.put(
        &format!("/api/v1/namespaces/models/pods/{job}-x"),
        json!({"metadata": {"name": format!("{job}-x"), "namespace": "models", "labels": {"fairlead.dev/evaluation": "quality"},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job,
                "uid": world.cluster.get(&format!("{JOBS}{job}")).unwrap()["metadata"]["uid"]}]}, "status": {"phase": "Running"}}),
    );
    world.step().await.unwrap();
    assert_eq!(world.ready().1, "Evaluating", "the pod's words are waited for");
    world.pod_ends(&job, 1, "log line\nnobody answers: 8 questions in a row got nothing");
    world.cluster.events();
    world.step().await.unwrap();
    let (status, reason, message) = world.ready();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "RunFailed"));
    assert!(message.contains("backend m1") && message.contains("nobody answers"), "{message}");
    assert!(message.contains("status.request") && !message.contains("log line"), "{message}");
    assert_eq!(world.cluster.events(), ["RunFailed", "RunFailed"], "of the run, and of the object");
    world.cluster.writes();
    for _ in 0..3 {
        world.step().await.unwrap();
    }
    assert_eq!(world.cluster.writes(), Vec::<String>::new(), "it is not tried for ever");
    assert_eq!(world.status()["summary"], "m1=failed");

    // With more memory it may go well.
    world.edit(|it| it["spec"]["podTemplate"] = json!({"memory": "512Mi"}));
    world.step().await.unwrap();
    assert_ne!(world.running().0, job);
    world.answers(3, "r1");
    world.step().await.unwrap();
    assert_eq!(world.ready().1, "Evaluated");
    assert_eq!(world.status()["results"].as_array().unwrap().len(), 1, "the failure is made good");
}

#[tokio::test]
async fn a_person_has_the_questions_asked_again() {
    let mut world = evaluated(&json!({})).await;
    world.request("again", Some("v2"));
    world.step().await.unwrap();
    let (job, backend) = world.running();
    assert_eq!(backend, "v2", "v1 was not asked for");
    world.answers(2, "r2");
    world.step().await.unwrap();
    assert_eq!(world.status()["summary"], "exactMatch v1=1.00 v2=0.67");
    assert_eq!(world.status()["results"][0]["request"], "again");
    assert_eq!(world.status()["request"]["id"], "again", "it is the person's");
    let runs = |world: &World| {
        [&world.status()["results"][0]["run"], &world.status()["results"][1]["run"]].map(Value::clone)
    };
    assert_eq!(runs(&world), [json!(2), json!(1)], "no fresh chance for a gate");
    let jobs = world.jobs();
    world.step().await.unwrap();
    assert_eq!(world.jobs(), jobs, "once");
    world.request("and again", Some("v2"));
    world.step().await.unwrap();
    let (third, _) = world.running();
    assert_ne!(third, job);
    // One that fails is no finding, and forgets none.
    world.pod_ends(&third, 2, "--model: no such model");
    world.job_ends(&third, "Failed", "PodFailurePolicy");
    world.step().await.unwrap();
    assert_eq!(runs(&world), [json!(2), json!(1)]);
    world.request("once more", Some("v2"));
    world.step().await.unwrap();
    world.answers(3, "r2");
    world.step().await.unwrap();
    assert_eq!(runs(&world), [json!(3), json!(1)]);
    // Another revision begins anew.
    world.serves("m2", "r3");
    world.step().await.unwrap();
    world.answers(3, "r3");
    world.step().await.unwrap();
    assert_eq!(world.status()["results"][0]["run"], json!(1));
}

#[tokio::test]
async fn a_failed_run_that_was_asked_for_is_not_repeated() {
    let mut world = evaluated(&json!({})).await;
    world.request("again", Some("v2"));
    world.step().await.unwrap();
    let (job, _) = world.running();
    world.pod_ends(&job, 2, "--model: no such model");
    world.job_ends(&job, "Failed", "PodFailurePolicy");
    world.step().await.unwrap();
    assert_eq!(world.ready().1, "RunFailed");
    let jobs = world.jobs();
    for _ in 0..3 {
        world.step().await.unwrap();
    }
    assert_eq!(world.jobs(), jobs);
}

#[tokio::test]
async fn on_request_only_nothing_runs_by_itself() {
    let mut world = World::new(&json!({"runOn": "Request"}));
    world.step().await.unwrap();
    assert_eq!(world.jobs(), []);
    let (status, reason, message) = world.ready();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "OnRequest"));
    assert!(message.contains("v1, v2") && message.contains("status.request"), "{message}");
    world.request("first", None);
    for (hits, revision) in [(3, "r1"), (1, "r2")] {
        world.step().await.unwrap();
        world.answers(hits, revision);
        world.step().await.unwrap();
    }
    assert_eq!(world.ready().1, "Evaluated");
    world.serves("m2", "r7");
    world.step().await.unwrap();
    assert_eq!((world.jobs().len(), world.ready().1.as_str()), (2, "OnRequest"));
}

#[tokio::test]
async fn answers_of_another_revision_are_not_taken_for_this_ones() {
    let mut world = World::new(&json!({"target": {"route": "chat", "backends": ["v1"]}}));
    world.step().await.unwrap();
    world.answers(3, "r0");
    world.step().await.unwrap();
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "RunFailed");
    assert!(message.contains("revision r0 gave 3 of the answers, in place of r1"), "{message}");
}

#[tokio::test]
async fn what_cannot_be_used_is_told_by_its_field() {
    let mut world = World::new(&json!({}));
    let told = async |world: &mut World, reason: &str, part: &str| {
        let (_, outcome) = world.step().await.unwrap();
        let (status, found, message) = world.ready();
        assert_eq!(
            (outcome, status.as_str(), found.as_str()),
            (Outcome::Invalid, "False", reason),
            "{message}"
        );
        assert!(message.contains(part), "{message}");
    };
    world.cluster.edit(QUESTIONS, |it| it["data"]["all.jsonl"] = json!("{\"question\": \"a\"}"));
    told(&mut world, "InvalidQuestions", "key all.jsonl: line 1: has neither expected nor refusal").await;
    world.cluster.edit(QUESTIONS, |it| it["data"] = json!({"other": ""}));
    told(&mut world, "InvalidQuestions", "no text under the key all.jsonl; it has other").await;
    world.cluster.remove(QUESTIONS);
    told(&mut world, "InvalidQuestions", "spec.questions.configMapRef.name: there is no ConfigMap questions")
        .await;
    world.ask(&["one"]);
    world.edit(|it| it["spec"]["target"] = json!({"route": "chat", "backends": ["v7"]}));
    told(&mut world, "TargetNotFound", "no backend v7; it has v1, v2, spare").await;
    world.edit(|it| it["spec"]["target"] = json!({"modelDeployment": "m9"}));
    told(&mut world, "TargetNotFound", "spec.target.modelDeployment: there is no ModelDeployment m9").await;
    world.cluster.edit(&deployment_path("m1"), |it| it["spec"]["task"] = json!("Embed"));
    world.edit(|it| it["spec"]["target"] = json!({"route": "chat"}));
    told(&mut world, "InvalidSpec", "has the task Embed").await;
    world.serves("m1", "r1");
    world.edit(|it| it["spec"]["podTemplate"] = json!({"memory": "0"}));
    told(&mut world, "InvalidSpec", "spec.podTemplate.memory is 0").await;
    assert_eq!(world.jobs(), []);
    world.edit(|it| it["spec"]["podTemplate"] = json!({}));
    world.cluster.remove(ROUTE);
    told(&mut world, "TargetNotFound", "spec.target.route: there is no ModelRoute chat").await;
    let object: Evaluation = serde_json::from_value(world.cluster.get(OBJECT).unwrap()).unwrap();
    assert_eq!(object.standing("v1", "m1", "r1"), Standing::Pending);
}

#[tokio::test]
async fn results_survive_questions_that_are_broken_for_a_while() {
    let mut world = evaluated(&json!({})).await;
    let good = world.cluster.get(QUESTIONS).unwrap();
    world.cluster.edit(QUESTIONS, |it| it["data"]["all.jsonl"] = json!("{"));
    world.step().await.unwrap();
    assert_eq!(world.ready().1, "InvalidQuestions");
    world.cluster.put(QUESTIONS, good);
    let jobs = world.jobs();
    world.step().await.unwrap();
    assert_eq!((world.jobs(), world.ready().1.as_str()), (jobs, "Evaluated"));
}

#[tokio::test]
async fn a_status_that_was_lost_is_read_from_the_jobs_again() {
    let mut world = evaluated(&json!({})).await;
    let before = world.status();
    world.cluster.edit(OBJECT, |it| it["status"] = json!({}));
    world.step().await.unwrap();
    assert_eq!(world.status()["results"], before["results"]);
    assert_eq!(world.ready().1, "Evaluated");
}

#[tokio::test]
async fn hiccups_of_the_api_server_ask_for_backoff_and_a_refusal_is_told() {
    let mut world = World::new(&json!({}));
    world.cluster.fail_next("/configmaps/questions", 500);
    let error = world.step().await.unwrap_err();
    assert!(error.action().is_none() && !error.concerns_the_object(), "{error}");
    world.cluster.fail_next("/jobs/", 500);
    assert!(world.step().await.is_err());
    world.cluster.fail_next("PATCH /apis/batch/v1", 403);
    assert!(world.step().await.is_err());
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "Waiting");
    assert!(message.contains("apply Job quality-"), "{message}");
    world.step().await.unwrap();
    assert_eq!(world.running().1, "v1");
}

#[tokio::test]
async fn the_history_is_bounded_and_keeps_what_stands() {
    let mut world = World::new(&json!({"target": {"route": "chat", "backends": ["v1"]}, "historyLimit": 2}));
    for revision in ["a", "b", "c", "d"] {
        world.serves("m1", revision);
        world.step().await.unwrap();
        world.answers(3, revision);
        world.step().await.unwrap();
    }
    let revisions: Vec<_> =
        world.status()["results"].as_array().unwrap().iter().map(|it| it["revision"].clone()).collect();
    assert_eq!(revisions, ["d", "c"]);
}

#[tokio::test]
async fn a_backend_that_is_asked_by_another_name_has_not_answered() {
    let mut world = evaluated(&json!({})).await;
    world.cluster.edit(ROUTE, |it| it["spec"]["backends"][1]["adapter"] = json!("french"));
    world.step().await.unwrap();
    let (job, backend) = world.running();
    assert_eq!(backend, "v2");
    let job = world.cluster.get(&format!("{JOBS}{job}")).unwrap();
    let arguments = job["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(arguments.contains("--model=french"), "{arguments}");
}
