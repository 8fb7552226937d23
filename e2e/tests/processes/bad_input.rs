//! Requests that are wrong: the answer names the field and the remedy in OpenAI's shape, and nothing is harmed.

use serde_json::{Value, json};

use crate::model::LONGEST;
use crate::programs::{CHAT, Gateway, Pod, chat};

#[tokio::test]
async fn wrong_requests_are_answered_in_openais_shape() {
    let pod = Pod::start().await;
    let gateway = Gateway::start(&[("v1", 1, &pod)]).await;
    let long = "x".repeat(LONGEST as usize);
    let cases = [
        ("{\"model\": ".to_owned(), 400, None, Some("invalid_json"), "line 1 column 10"),
        (
            chat(json!({"model": "other"})).to_string(),
            404,
            Some("model"),
            Some("model_not_found"),
            "/v1/models",
        ),
        (chat(json!({"max_tokens": -1})).to_string(), 400, Some("max_tokens"), None, "max_tokens must be"),
        (chat(json!({"messages": []})).to_string(), 400, Some("messages"), None, "messages"),
        (
            chat(json!({"messages": [{"role": "user", "content": long}]})).to_string(),
            400,
            Some("messages"),
            Some("context_length_exceeded"),
            "shorten the prompt",
        ),
        (
            chat(json!({"max_tokens": LONGEST})).to_string(),
            400,
            Some("max_tokens"),
            Some("context_length_exceeded"),
            "lower max_tokens",
        ),
    ];
    for (body, status, param, code, said) in cases {
        let shown: String = body.chars().take(200).collect();
        let answer = gateway.post(CHAT, body).await;
        assert_eq!(answer.status(), status, "{shown}");
        let answer: Value = answer.json().await.expect("JSON");
        let error = &answer["error"];
        assert_eq!(error["type"], "invalid_request_error", "{answer}");
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (param, code), "{answer}");
        assert!(error["message"].as_str().expect("text").contains(said), "{answer}");
    }
    assert_eq!(gateway.chat(json!({})).await.status(), 200, "a good request is answered after all that");
    pod.until_running(|running| running == 0.0).await;
}
