//! Real pods on loopback that embed and rerank: their numbers against sentence-transformers, their errors, their end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use pod::{Pod, make_model, run_to_failure};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";
const TOLERANCE: f64 = 1e-4;

fn encoders() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend-torch/tests/encoders")
}

fn read(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("{value}")).iter().map(|it| it.as_f64().unwrap()).collect()
}

fn assert_close(what: &Value, got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let worst = got.iter().zip(wanted).map(|(got, wanted)| (got - wanted).abs()).fold(0.0, f64::max);
    assert!(worst <= TOLERANCE, "{what}: off by {worst}");
}

/// Compares all texts at once and one by one with what sentence-transformers made of them.
async fn agrees(pod: &Pod, expected: &[Value]) {
    let texts: Vec<&Value> = expected.iter().map(|entry| &entry["text"]).collect();
    let (status, all) = pod.ask(EMBEDDINGS, json!({"model": "tiny", "input": texts, "truncate": true})).await;
    assert_eq!(status, 200, "{all}");
    for (index, (entry, object)) in expected.iter().zip(all["data"].as_array().unwrap()).enumerate() {
        assert_eq!((&object["object"], &object["index"]), (&json!("embedding"), &json!(index)));
        let wanted = numbers(&entry["embedding"]);
        assert_close(&entry["text"], &numbers(&object["embedding"]), &wanted);
        let alone = json!({"model": "tiny", "input": entry["text"], "truncate_prompt_tokens": -1});
        let (_, alone) = pod.ask(EMBEDDINGS, alone).await;
        assert_close(&entry["text"], &numbers(&alone["data"][0]["embedding"]), &wanted);
    }
}

/// The real model, as sentence-transformers runs it: short, long, empty and cut texts in many scripts.
#[tokio::test(flavor = "multi_thread")]
async fn all_minilm_l6_v2_agrees_with_sentence_transformers() {
    let folder = std::env::var("FAIRLEAD_MINILM").map(PathBuf::from).unwrap_or_default();
    assert!(
        folder.join("model.safetensors").is_file(),
        "the model is not there; run: . scripts/env.sh && scripts/setup.sh minilm"
    );
    let pod = Pod::serve(&folder, &["--task", "Embed"]).await;
    assert_eq!(pod.get("/v1/models").await["data"][0]["max_model_len"], 256);
    agrees(&pod, &read(&encoders().join("minilm.json"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_come_in_openais_shapes() {
    let pod =
        Pod::serve(&encoders().join("bert_mean"), &["--task", "Embed", "--max-batched-tokens", "48"]).await;
    agrees(&pod, &read(&encoders().join("bert_mean/texts.json"))).await;

    let ask = |extra: Value| {
        let mut body = json!({"model": "tiny", "input": "hello"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod.ask(EMBEDDINGS, body)
    };
    // Five letters, and a special token at either end.
    let (_, plain) = ask(json!({})).await;
    assert_eq!((&plain["object"], &plain["model"]), (&json!("list"), &json!("tiny")));
    assert_eq!(plain["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
    let wanted = numbers(&plain["data"][0]["embedding"]);
    let (_, encoded) = ask(json!({"encoding_format": "base64"})).await;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let decoded: Vec<f64> =
        bytes.as_chunks::<4>().0.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect();
    assert_close(&json!("base64"), &decoded, &wanted);

    // Tokens are taken as they are: these are what the text above becomes.
    let hello_tokens = json!([2, 12, 45, 52, 52, 55, 3]);
    let hello = json!([hello_tokens, [2, 3]]);
    let (status, tokens) = ask(json!({ "input": hello })).await;
    assert_eq!(status, 200, "{tokens}");
    assert_close(&json!("tokens"), &numbers(&tokens["data"][0]["embedding"]), &wanted);

    let answer = pod
        .post(EMBEDDINGS, &json!({"model": "tiny", "input": "x"}))
        .header("x-fairlead-model", "public")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["model"], "public");

    let long = "a".repeat(60);
    for (extra, status, param, words) in [
        (json!({"input": long}), 400, "input", "has 62 tokens, but this model takes 40"),
        (json!({"input": ["a", long]}), 400, "input[1]", "truncate"),
        (json!({"input": vec![5; 41]}), 400, "input", "has 41 tokens"),
        (json!({"input": [96]}), 400, "input", "token 0 is 96"),
        (json!({"input": "a".repeat(2 << 20), "truncate": true}), 400, "input", "bytes"),
        (json!({"truncate_prompt_tokens": 1}), 400, "truncate_prompt_tokens", "raise it"),
        (json!({"dimensions": 8}), 400, "dimensions", "leave it out"),
        (json!({"model": "other"}), 404, "model", "this server has tiny"),
    ] {
        let (got, answer) = ask(extra).await;
        assert_eq!((got, answer["error"]["param"].as_str()), (status, Some(param)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{answer}");
    }
    assert_eq!(ask(json!({"dimensions": 32})).await.0, 200);
    let (_, cut) = ask(json!({"input": long, "truncate_prompt_tokens": 9})).await;
    assert_eq!(cut["usage"]["prompt_tokens"], 9);

    // Its tokens can be asked for like any other model's.
    let (status, tokens) = pod.ask("/tokenize", json!({"prompt": "hello", "return_token_strs": true})).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!((&tokens["tokens"], &tokens["max_model_len"]), (&hello_tokens, &json!(40)));
    assert_eq!(tokens["token_strs"].as_array().unwrap().len(), 7);
    let (status, back) = pod.ask("/detokenize", json!({"model": "tiny", "tokens": hello_tokens})).await;
    assert_eq!(status, 200, "{back}");
    for (path, body, param) in [
        ("/tokenize", json!({"messages": [{"role": "user", "content": "x"}]}), "messages"),
        ("/tokenize", json!({"prompt": "a".repeat(2 << 20)}), "prompt"),
        ("/detokenize", json!({"tokens": [96]}), "tokens"),
    ] {
        let (status, answer) = pod.ask(path, body).await;
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
    }
    let (_, nothing) = pod.ask("/v1/nothing", json!({})).await;
    let message = nothing["error"]["message"].as_str().unwrap();
    assert!(message.contains(EMBEDDINGS) && !message.contains("chat"), "{message}");

    // What this pod is not for says what it is for.
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}]})),
        ("/v1/completions", json!({"model": "tiny", "prompt": "x"})),
        (RERANK, json!({"model": "tiny", "query": "q", "documents": ["d"]})),
    ] {
        let (status, answer) = pod.ask(path, body).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("unsupported_task")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("use /v1/embeddings"), "{answer}");
    }

    let metrics = pod.client.get(format!("{}/metrics", pod.url)).send().await.unwrap().text().await.unwrap();
    let ended_well =
        |line: &str| !line.contains("finished_reason") || line.contains("finished_reason=\"stop\"");
    for name in
        ["vllm:prompt_tokens_total", "vllm:request_success_total", "vllm:e2e_request_latency_seconds_count"]
    {
        let line = metrics.lines().find(|line| line.starts_with(name) && ended_well(line));
        assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{name}: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_matryoshka_embedding_is_cut_and_has_length_one_again() {
    let dir = tempfile::tempdir().unwrap();
    let from = encoders().join("bert_mean");
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["matryoshka_dimensions"] = json!([8, 16]);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let pod = Pod::serve(dir.path(), &["--task", "Embed"]).await;
    let ask = |dimensions: u32| {
        pod.ask(EMBEDDINGS, json!({"model": "tiny", "input": "hello", "dimensions": dimensions}))
    };
    let whole = numbers(&ask(32).await.1["data"][0]["embedding"]);
    let cut = numbers(&ask(8).await.1["data"][0]["embedding"]);
    let length = whole[..8].iter().map(|it| it * it).sum::<f64>().sqrt();
    let wanted: Vec<f64> = whole[..8].iter().map(|it| it / length).collect();
    assert_close(&json!("cut"), &cut, &wanted);
    let (status, refused) = ask(9).await;
    assert_eq!(status, 400);
    assert!(refused["error"]["message"].as_str().unwrap().contains("8, 16"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reranking_agrees_with_the_cross_encoder() {
    let pod = Pod::serve(&encoders().join("bert_score"), &["--task", "Rerank"]).await;
    let expected = read(&encoders().join("bert_score/texts.json"));
    for path in [RERANK, "/rerank"] {
        let query = &expected[0]["query"];
        let of_query: Vec<&Value> = expected.iter().filter(|entry| entry["query"] == *query).collect();
        let documents: Vec<Value> = of_query
            .iter()
            .enumerate()
            .map(|(index, entry)| match index % 2 {
                0 => entry["document"].clone(),
                _ => json!({"text": entry["document"]}),
            })
            .collect();
        let body = json!({"model": "tiny", "query": query, "documents": documents, "truncate": true,
            "return_documents": true});
        let (status, answer) = pod.ask(path, body).await;
        assert_eq!(status, 200, "{answer}");
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), documents.len());
        let mut last = f64::INFINITY;
        for result in results {
            let entry = of_query[usize::try_from(result["index"].as_u64().unwrap()).unwrap()];
            assert_eq!(result["document"]["text"], entry["document"]);
            let score = result["relevance_score"].as_f64().unwrap();
            assert_close(entry, &[score], &[entry["score"].as_f64().unwrap()]);
            assert!(score <= last, "the best come first: {answer}");
            last = score;
        }
        assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 40);
    }

    // A query and a document that are both too long are both cut.
    let far = &expected[5];
    let body =
        json!({"model": "tiny", "query": far["query"], "documents": [far["document"]], "truncate": true});
    let (_, answer) = pod.ask(RERANK, body.clone()).await;
    let score = answer["results"][0]["relevance_score"].as_f64().unwrap();
    assert_close(far, &[score], &[far["score"].as_f64().unwrap()]);
    assert!(answer["results"][0].get("document").is_none());

    let mut whole = body;
    whole["truncate"] = json!(false);
    let (status, refused) = pod.ask(RERANK, whole).await;
    assert_eq!((status, refused["error"]["param"].as_str()), (400, Some("documents[0]")), "{refused}");
    let top = json!({"model": "tiny", "query": "q", "documents": ["a", "b", "c"], "top_n": 2});
    assert_eq!(pod.ask(RERANK, top).await.1["results"].as_array().unwrap().len(), 2);
    let (status, wrong) = pod.ask(EMBEDDINGS, json!({"model": "tiny", "input": "x"})).await;
    assert_eq!((status, wrong["error"]["code"].as_str()), (400, Some("unsupported_task")), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let pod = Pod::serve(
        &encoders().join("bert_mean"),
        &["--task", "Embed", "--max-queued-requests", "1", "--max-batched-tokens", "40"],
    )
    .await;
    // As tokens, which are read in a moment and run for much longer.
    let crowd = json!({"model": "tiny", "input": vec![vec![5; 40]; 2048]});
    let (first, second) =
        tokio::join!(pod.post(EMBEDDINGS, &crowd).send(), pod.post(EMBEDDINGS, &crowd).send());
    let answers = [first.unwrap(), second.unwrap()];
    let refused = answers.iter().find(|answer| answer.status() == 429).expect("one finds the queue full");
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(answers.iter().any(|answer| answer.status() == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_drains_like_any_other_pod() {
    let mut pod = Pod::serve(&encoders().join("bert_mean"), &["--task", "Embed"]).await;
    assert_eq!(pod.ask(EMBEDDINGS, json!({"model": "tiny", "input": "x"})).await.0, 200);
    pod.terminate();
    assert_eq!(pod.wait().code(), Some(0));
}

#[test]
fn a_task_that_the_model_is_not_for_ends_the_pod_with_the_right_one() {
    // A copy, because the reason is left beside the model.
    let copy = |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(encoders().join(name).join(file), dir.path().join(file)).unwrap();
        }
        dir
    };
    let decoder = make_model();
    for (model, arguments, words) in [
        (copy("bert_mean"), vec![], "InvalidSpec: task: is Generate, but the model is a BertModel"),
        (copy("bert_score"), vec!["--task", "Embed"], "set task to Rerank"),
        (decoder, vec!["--task", "Embed"], "set task to Generate"),
        (
            copy("bert_mean"),
            vec!["--task", "Embed", "--max-model-len", "49"],
            "engine.maxModelLen (--max-model-len): is 49",
        ),
        (copy("bert_mean"), vec!["--task", "Embed", "--host-tier-bytes", "9"], "kvCache.hostBytes"),
    ] {
        let (code, reason) = run_to_failure(model.path(), &arguments);
        assert_eq!(code, Some(1), "{reason}");
        assert!(reason.contains(words), "{reason}");
    }
}
