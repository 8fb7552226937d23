//! A model's chat template, rendered over a conversation.
#![no_main]

use std::sync::OnceLock;

use fairlead_openai::{ChatCompletionRequest, ChatPrompt};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

// The server's own modules; the server as a whole would bring libtorch along.
#[allow(dead_code, unused_imports)]
#[path = "../../inference-pod/server/src/chat_template/mod.rs"]
mod chat_template;
#[allow(dead_code, unused_imports)]
#[path = "../../inference-pod/server/src/tool_calls/mod.rs"]
mod tool_calls;

fn conversations() -> &'static [ChatPrompt] {
    static PROMPTS: OnceLock<Vec<ChatPrompt>> = OnceLock::new();
    PROMPTS.get_or_init(|| {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
        let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
        let bodies = [
            json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}),
            json!({"model": "m", "tools": [tool], "messages": [
                {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": null, "tool_calls": call},
                {"role": "tool", "tool_call_id": "1", "content": "2"},
            ]}),
        ];
        let request = |body: &Value| ChatCompletionRequest::from_value(body).ok();
        bodies.iter().filter_map(request).map(|request| request.prompt).collect()
    })
}

fuzz_target!(|source: &str| {
    let special: Map<String, Value> = [("bos_token".to_owned(), Value::from("<s>"))].into_iter().collect();
    if let Ok(template) = chat_template::ChatTemplate::compile(source, None, special) {
        for prompt in conversations() {
            let _ = template.render(prompt);
        }
    }
});
