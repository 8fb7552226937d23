//! `fairlead-rag evaluate` as a process, by its documented command line, against a server that answers as it is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod server;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use server::{Server, Turn};

fn questions(folder: &Path) -> String {
    let path = folder.join("questions.jsonl");
    let lines = [
        json!({"id": "ring", "question": "What is a fairlead?", "contexts": ["A cleat.", "A ring."], "expected": ["a ring"]}),
        json!({"id": "capital", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"}],
            "expected": "Paris", "tags": ["geography"]}),
        json!({"id": "absent", "question": "Who made it?", "refusal": true}),
        json!({"id": "seven", "question": "How many?", "expected": "7"}),
    ];
    std::fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn evaluate(server: &Server, questions: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fairlead-rag"))
        .args(["evaluate", "--questions", questions, "--base-url", &server.url, "--model", "tiny"])
        .args(more)
        .env_remove("OPENAI_API_KEY")
        .env("FAIRLEAD_TERMINATION_LOG", "/nowhere")
        .output()
        .unwrap()
}

fn good(server: &Server) {
    server.says("What is a fairlead?", &[Turn::Answer("A ring!")]);
    server.says("Capital?", &[Turn::Answer("I think it is Paris, of course")]);
    server.says("Who made it?", &[Turn::Answer("The passages do not say.")]);
    server.says("How many?", &[Turn::Answer("17")]);
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn error(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().find(|line| line.starts_with("error: ")).unwrap_or(&text).to_owned()
}

fn score(result: &Value, name: &str) -> Value {
    let scores = result["summary"]["scores"].as_array().unwrap();
    scores.iter().find(|score| score["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn every_question_is_asked_scored_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    good(&server);
    let items = folder.path().join("items.jsonl");
    let questions = questions(folder.path());
    let output = evaluate(
        &server,
        &questions,
        &[
            "-o",
            "json",
            "--items",
            items.to_str().unwrap(),
            "--system-prompt",
            "Use the passages.",
            "--priority",
            "8",
        ],
    );
    assert_eq!(code(&output), 0, "{}", error(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        score(&result, "exactMatch"),
        json!({"name": "exactMatch", "n": 3, "hits": 1, "mean": "0.333333", "pattern": "8"})
    );
    assert_eq!(score(&result, "contains")["hits"], 2, "7 is not in 17");
    assert_eq!(score(&result, "refusal")["hits"], 1);
    assert_eq!(score(&result, "falseRefusal")["hits"], 0);
    assert_eq!(score(&result, "errors")["hits"], 0);
    assert_eq!(score(&result, "latency")["n"], 4);
    assert_eq!(result["summary"]["revisions"], json!({"rev-1": 4}));
    let ids: Vec<&Value> = result["items"].as_array().unwrap().iter().map(|item| &item["id"]).collect();
    assert_eq!(ids, ["ring", "capital", "absent", "seven"], "in the questions' order");
    assert_eq!(result["items"][1]["tags"], json!(["geography"]));
    assert_eq!(result["items"][0]["completionTokens"], 5);
    let kept = std::fs::read_to_string(items).unwrap();
    assert_eq!(kept.lines().count(), 4);

    let asked = server.asked();
    let of = |text: &str| asked.iter().find(|body| body.to_string().contains(text)).unwrap();
    let plain = of("What is a fairlead?");
    assert_eq!(
        plain["messages"],
        json!([
            {"role": "system", "content": "Use the passages."},
            {"role": "user", "content": "Question: What is a fairlead?\n[1] A cleat.\n[2] A ring."},
        ])
    );
    assert_eq!(of("Capital?")["messages"][0]["content"], "Be brief.", "it has messages of its own");
    for (field, value) in [
        ("model", json!("tiny")),
        ("temperature", json!(0.0)),
        ("max_tokens", json!(256)),
        ("seed", json!(0)),
        ("priority", json!(8)),
    ] {
        assert_eq!(plain[field], value, "{field}");
    }
}

#[test]
fn people_get_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    good(&server);
    let output = evaluate(&server, &questions(folder.path()), &["--scores", "contains,f1"]);
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["SCORE", "MEAN", "HITS", "N", "STD.DEV"], "{table}");
    assert_eq!(lines[1], ["contains", "0.667", "2", "3", "-"]);
    assert_eq!(lines[2][..2], ["f1", "0.417"], "1, 2/8 and 0: {table}");
    assert_eq!(lines[3], ["errors", "0.000", "0", "4", "-"]);
    assert!(lines[4].join(" ").starts_with("seconds to the whole answer: p50 "), "{table}");
}

#[test]
fn a_busy_server_is_asked_again_and_what_stays_without_an_answer_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    good(&server);
    server.says("What is a fairlead?", &[Turn::Status(503), Turn::Status(429), Turn::Answer("a ring")]);
    server.says("Capital?", &[Turn::Status(400)]);
    server.says("How many?", &[Turn::BreakOff, Turn::Answer("7")]);
    let output = evaluate(&server, &questions(folder.path()), &["-o", "json", "--retries", "2"]);
    assert_eq!(code(&output), 0, "{}", error(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let attempts: Vec<&Value> =
        result["items"].as_array().unwrap().iter().map(|item| &item["attempts"]).collect();
    assert_eq!(attempts, [3, 1, 1, 2], "what the question is to blame for is not tried again");
    assert_eq!(result["items"][1]["error"], "400 Bad Request: as I was told");
    assert_eq!(result["items"][1]["exactMatch"], false, "no answer is no right answer");
    let second = json!({"name": "errors", "n": 4, "hits": 1, "mean": "0.25", "pattern": "4"});
    assert_eq!(score(&result, "errors"), second);
    assert_eq!(score(&result, "exactMatch")["hits"], 2);
    assert_eq!(score(&result, "latency")["n"], 3);
}

#[test]
fn where_nobody_answers_it_ends_early_and_may_be_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let lines: Vec<String> =
        (0..200).map(|n| json!({"question": format!("Number {n}"), "expected": "x"}).to_string()).collect();
    let questions = folder.path().join("many.jsonl");
    std::fs::write(&questions, lines.join("\n")).unwrap();
    // Nothing is known to the server, so that it answers 503 to everything.
    let output = evaluate(&server, questions.to_str().unwrap(), &["--retries", "0"]);
    assert_eq!(code(&output), 1);
    assert!(
        error(&output).contains("nobody answers: 8 questions in a row got nothing"),
        "{}",
        error(&output)
    );
    assert!(server.asked().len() < 50, "{} were asked", server.asked().len());
}

#[test]
fn what_every_question_would_meet_is_told_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let questions = questions(folder.path());
    for (status, part) in
        [(404, "correct --model or --base-url"), (401, "--api-key-file"), (301, "correct --base-url")]
    {
        for text in ["What is a fairlead?", "Capital?", "Who made it?", "How many?"] {
            server.says(text, &[Turn::Status(status)]);
        }
        let output = evaluate(&server, &questions, &[]);
        assert_eq!(code(&output), 2, "{}", error(&output));
        assert!(error(&output).contains(part), "{}", error(&output));
    }
}

#[test]
fn settings_and_questions_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let questions = questions(folder.path());
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"question\": \"a\"}").unwrap();
    for (arguments, exit, part) in [
        (&["--questions", bad.to_str().unwrap()][..], 2, "line 1: has neither expected nor refusal"),
        (&["--questions", "/nowhere.jsonl"][..], 2, "--questions /nowhere.jsonl: can't be read"),
        (&["--base-url", "ftp://x"][..], 2, "must begin with http://"),
        (&["--api-key-file", "/nowhere"][..], 2, "--api-key-file /nowhere: can't be read"),
        (&["--expect-digest", "0000"][..], 1, "not 0000: they have changed"),
        (&["--log", "=["][..], 2, "--log =["),
    ] {
        // The last of two flags wins nowhere: clap refuses them, so each run names its own.
        let mut all = vec!["evaluate", "--model", "tiny"];
        for (flag, usual) in [("--questions", questions.as_str()), ("--base-url", server.url.as_str())] {
            if !arguments.contains(&flag) {
                all.extend([flag, usual]);
            }
        }
        all.extend(arguments);
        let output = Command::new(env!("CARGO_BIN_EXE_fairlead-rag")).args(&all).output().unwrap();
        assert_eq!(code(&output), exit, "{arguments:?}: {}", error(&output));
        assert!(error(&output).contains(part), "{arguments:?}: {}", error(&output));
    }
    let output = evaluate(&server, &questions, &["--scores", "bleu"]);
    assert_eq!(code(&output), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("choose from exactMatch, contains, f1"));
}

#[test]
fn a_key_goes_to_the_server_and_into_no_output() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    good(&server);
    let key = folder.path().join("key");
    std::fs::write(&key, "sk-secret\n").unwrap();
    let output = evaluate(
        &server,
        &questions(folder.path()),
        &["--api-key-file", key.to_str().unwrap(), "--log=debug"],
    );
    assert_eq!(code(&output), 0, "{}", error(&output));
    assert_eq!(server.keys(), ["Bearer sk-secret"; 4]);
    for text in [&output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(text).contains("sk-secret"));
    }
}

#[test]
fn no_more_are_asked_at_a_time_than_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let lines: Vec<String> =
        (0..24).map(|n| json!({"question": format!("Number {n}."), "expected": "x"}).to_string()).collect();
    for n in 0..24 {
        server.says(&format!("Number {n}."), &[Turn::Answer("x")]);
    }
    let questions = folder.path().join("many.jsonl");
    std::fs::write(&questions, lines.join("\n")).unwrap();
    // The server keeps every request until three are there.
    server.waits_for(3);
    let output = evaluate(&server, questions.to_str().unwrap(), &["--concurrency", "3", "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", error(&output));
    assert_eq!(server.most_at_once(), 3);
}

#[test]
fn in_a_cluster_the_answers_go_to_one_config_map_and_the_scores_to_the_termination_log() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    good(&server);
    let log = folder.path().join("termination-log");
    std::fs::write(&log, "").unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let context = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server.url}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "models"}}],
    });
    std::fs::write(&kubeconfig, context.to_string()).unwrap();
    let run = |config_map: &str| {
        Command::new(env!("CARGO_BIN_EXE_fairlead-rag"))
            .args([
                "evaluate",
                "--questions",
                &questions(folder.path()),
                "--base-url",
                &server.url,
                "--model",
                "tiny",
            ])
            .args(["--result-config-map", config_map])
            .env("KUBECONFIG", &kubeconfig)
            .env("FAIRLEAD_TERMINATION_LOG", &log)
            .output()
            .unwrap()
    };
    let output = run("quality-items-v1");
    assert_eq!(code(&output), 0, "{}", error(&output));
    let (path, body) = server.patched().remove(0);
    assert!(
        path.starts_with("/api/v1/namespaces/models/configmaps/quality-items-v1?")
            && path.contains("fieldManager=fairlead-rag"),
        "{path}"
    );
    assert_eq!(body["data"]["items.jsonl"].as_str().unwrap().lines().count(), 4);
    let told: Value = serde_json::from_str(&std::fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        told["items"],
        json!({"configMap": "quality-items-v1", "key": "items.jsonl", "truncated": false})
    );
    assert_eq!(told["asked"], 4);
    let alone: Value = serde_json::from_str(body["data"]["summary.json"].as_str().unwrap()).unwrap();
    assert_eq!(alone["scores"], told["scores"]);

    let output = run("refused");
    assert_eq!(code(&output), 1);
    assert!(error(&output).contains("ConfigMap refused: may not"), "{}", error(&output));
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(told.contains("can't be written to ConfigMap refused"), "the operator reads why: {told}");
}
