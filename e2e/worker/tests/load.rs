//! The load against the worker: what one does, the other counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fairlead_test_worker::tally::Report;

struct Worker {
    child: Child,
    url: String,
}

impl Worker {
    fn start(behaviour: &[&str]) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_fairlead-test-worker"))
            .args(["serve", "--listen", &address.to_string(), "--model", "m"])
            .args(behaviour)
            .spawn()
            .unwrap();
        let worker = Self { child, url: format!("http://{address}") };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the worker does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        worker
    }

    fn load(&self, options: &[&str]) -> Report {
        let output = Command::new(env!("CARGO_BIN_EXE_fairlead-test-worker"))
            .args(["load", "--url", &self.url, "--rate", "200", "--lasting", "1s", "--check-tokens"])
            .args(options)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_worker_without_faults_answers_everything() {
    let worker = Worker::start(&["--tokens", "5", "--first-token", "5ms", "--per-token", "1ms"]);
    let report = worker.load(&["--model", "m"]);
    assert_eq!((report.answered, report.failed.len(), report.unsent), (report.sent, 0, 0));
    assert!(report.sent > 100, "{report:?}");
    assert!(report.backends[""].total_ms.p50 >= 9.0, "{report:?}");
}

#[test]
fn faults_are_counted_as_what_they_are() {
    let worker = Worker::start(&["--error-rate", "0.3", "--break-rate", "0.3", "--tokens", "5"]);
    let report = worker.load(&["--model", "m"]);
    let failed = |word: &str| report.failed.get(word).copied().unwrap_or(0);
    assert!(failed("status 500") > 20 && failed("broken") > 10, "{report:?}");
    assert_eq!(report.answered + report.failed.values().sum::<u64>(), report.sent);
    let hanging = Worker::start(&["--hang-rate", "1"]);
    let report = hanging.load(&["--model", "m", "--timeout", "200ms"]);
    assert_eq!(report.failed.get("timeout"), Some(&report.sent), "{report:?}");
}

#[test]
fn another_model_is_refused() {
    let worker = Worker::start(&[]);
    let report = worker.load(&["--model", "another"]);
    assert_eq!(report.failed.get("status 404"), Some(&report.sent), "{report:?}");
}

#[tokio::test]
async fn an_answer_that_broke_off_is_resumed_from_exactly_its_tokens() {
    let worker = Worker::start(&["--tokens", "5"]);
    let ask = async |more: serde_json::Value| {
        let mut body =
            serde_json::json!({"model": "m", "stream": true, "return_token_ids": true, "messages": []});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", worker.url));
        let answer = request.header("x-fairlead-model", "public").json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, whole) = ask(serde_json::json!({})).await;
    assert!(
        status == 200 && whole.contains("\"token_ids\":[4]") && whole.contains("\"model\":\"public\""),
        "{whole}"
    );
    let (status, rest) = ask(serde_json::json!({"resume_token_ids": [0, 1, 2]})).await;
    assert_eq!((status, rest.matches("token_ids").count()), (200, 2), "{rest}");
    assert!(rest.contains("w3 ") && rest.contains("w4 ") && !rest.contains("role"), "{rest}");
    let (status, refused) = ask(serde_json::json!({"resume_token_ids": [0, 2]})).await;
    assert!(
        status == 400 && refused.contains("resume_token_ids[1] is 2, where the answer had 1"),
        "{refused}"
    );
}
