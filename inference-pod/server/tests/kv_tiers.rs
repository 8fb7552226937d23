//! KV tiers with the real backend: what comes back from main memory or disk answers as what was computed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use pod::Pod;
use serde_json::{Value, json};

/// A hundred letters that no other number's text begins with, each a token.
fn prompt(number: u32) -> String {
    (0..100).map(|place| char::from(b'a' + ((number * 5 + place * place) % 26) as u8)).collect()
}

async fn ask(pod: &Pod, number: u32) -> Value {
    let body =
        json!({"model": "tiny", "prompt": prompt(number), "max_tokens": 8, "temperature": 0, "logprobs": 2});
    let (status, answer) = pod.ask("/v1/completions", body).await;
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0].clone()
}

/// The same tokens, and log-probabilities as near as two orders of adding up.
fn assert_same(found: &Value, expected: &Value) {
    assert_eq!(found["text"], expected["text"]);
    assert_eq!(found["logprobs"]["tokens"], expected["logprobs"]["tokens"]);
    let logprobs = |choice: &Value| -> Vec<f64> {
        let all = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        all.iter().map(|value| value.as_f64().unwrap()).collect()
    };
    for (found, expected) in logprobs(found).iter().zip(logprobs(expected)) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

fn metric(text: &str, name: &str, tier: &str) -> u64 {
    let line = text.lines().find(|line| {
        line.starts_with(&format!("fairlead_kv_tier_{name}{{")) && line.contains(&format!("tier=\"{tier}\""))
    });
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect(name)
}

async fn metrics(pod: &Pod) -> String {
    pod.client.get(format!("{}/metrics", pod.url)).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overrun_cache_and_a_restart_lose_nothing_and_broken_files_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let small = ["--max-model-len", "128", "--max-sequences", "1"];
    let disk = ["--disk-tier", folder, "--disk-tier-bytes", "100000000"];

    let mut pod = Pod::start(&[&small[..], &disk, &["--host-tier-bytes", "100000000"]].concat()).await;
    let first = ask(&pod, 1).await;
    pod.until("/metrics", |_, text| metric(text, "blocks", "host") >= 6).await;
    for number in 2..6 {
        ask(&pod, number).await;
    }
    assert_eq!(metric(&metrics(&pod).await, "hits_total", "host"), 0);
    assert_same(&ask(&pod, 1).await, &first);
    let text = metrics(&pod).await;
    assert!(metric(&text, "hits_total", "host") >= 5, "{text}");
    assert!(metric(&text, "load_bytes_total", "host") > 0);
    // A new prompt after the folder was opened is on it when its blocks are counted.
    let sixth = ask(&pod, 6).await;
    pod.until("/metrics", |_, text| metric(text, "blocks", "disk") >= 6).await;
    pod.terminate();
    assert!(pod.wait().success());

    let mut pod = Pod::start(&[&small[..], &disk].concat()).await;
    pod.until("/metrics", |_, text| metric(text, "blocks", "disk") >= 6).await;
    assert_same(&ask(&pod, 1).await, &first);
    assert_same(&ask(&pod, 6).await, &sixth);
    let text = metrics(&pod).await;
    assert!(metric(&text, "hits_total", "disk") >= 5, "{text}");
    assert_eq!(metric(&text, "corrupt_total", "disk"), 0);
    pod.terminate();
    assert!(pod.wait().success());

    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut contents = std::fs::read(&path).unwrap();
        let middle = contents.len() / 2;
        if let Some(byte) = contents.get_mut(middle) {
            *byte ^= 1;
            std::fs::write(&path, contents).unwrap();
        }
    }
    let pod = Pod::start(&[&small[..], &disk].concat()).await;
    pod.until("/metrics", |_, text| metric(text, "blocks", "disk") >= 6).await;
    assert_same(&ask(&pod, 1).await, &first);
    assert_same(&ask(&pod, 6).await, &sixth);
    let text = metrics(&pod).await;
    assert!(metric(&text, "corrupt_total", "disk") >= 1, "{text}");
    assert_eq!(metric(&text, "hits_total", "disk"), 0);
}

#[test]
fn sizes_that_hold_nothing_are_named() {
    let model = pod::make_model();
    let (code, reason) = pod::run_to_failure(model.path(), &["--host-tier-bytes", "10"]);
    assert_eq!(code, Some(1));
    assert!(
        reason.starts_with("InvalidSpec: kvCache.hostBytes (--host-tier-bytes): is 10 bytes"),
        "{reason}"
    );
    let (_, reason) = pod::run_to_failure(model.path(), &["--host-tier-bytes", "900000000000000"]);
    assert!(reason.starts_with("DoesNotFit: kvCache.hostBytes"), "{reason}");
    let file = model.path().join("config.json/kv");
    let path = file.to_str().unwrap();
    let (_, reason) =
        pod::run_to_failure(model.path(), &["--disk-tier", path, "--disk-tier-bytes", "1000000"]);
    assert!(reason.starts_with("InvalidSpec: kvCache.disk.path"), "{reason}");
}
