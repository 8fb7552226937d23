//! The text of answers. Token `i` is always `w{i} ` with the id `i`, so a reader knows what is missing or came twice. Pure.

use serde_json::{Value, json};

/// Which of the two APIs asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// /v1/chat/completions.
    Chat,
    /// /v1/completions.
    Text,
}

/// What is the same in all parts of one answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which API it is for.
    pub form: Form,
    /// Its id.
    pub id: String,
    /// When it was begun, in Unix seconds.
    pub created: i64,
    /// The model's name.
    pub model: String,
    /// Whether the ids of tokens are told (`return_token_ids`).
    pub token_ids: bool,
    /// The revision that computes it, told as `system_fingerprint`.
    pub revision: Option<String>,
}

/// The text of token `index`.
pub fn token(index: u32) -> String {
    format!("w{index} ")
}

impl Answer {
    /// A whole answer, of which the client has the first `resumed` tokens.
    pub fn whole(&self, resumed: u32, tokens: u32, prompt_tokens: u32, finished: &str) -> Value {
        let text: String = (resumed..tokens).map(token).collect();
        let mut choice = match self.form {
            Form::Chat => {
                json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finished})
            }
            Form::Text => json!({"index": 0, "text": text, "finish_reason": finished}),
        };
        if self.token_ids {
            choice["token_ids"] = (resumed..tokens).collect();
        }
        let object = match self.form {
            Form::Chat => "chat.completion",
            Form::Text => "text_completion",
        };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.revision, "choices": [choice], "usage": usage(prompt_tokens, tokens),
        })
    }

    /// The event of one token; `finished` with the last.
    pub fn event(&self, index: u32, finished: Option<&str>) -> String {
        let mut choice = match self.form {
            Form::Chat if index == 0 => {
                json!({"index": 0, "delta": {"role": "assistant", "content": token(0)}, "finish_reason": finished})
            }
            Form::Chat => json!({"index": 0, "delta": {"content": token(index)}, "finish_reason": finished}),
            Form::Text => json!({"index": 0, "text": token(index), "finish_reason": finished}),
        };
        if self.token_ids {
            choice["token_ids"] = json!([index]);
        }
        self.framed(&json!([choice]), &Value::Null)
    }

    /// The event that tells the usage, and the last word.
    pub fn usage_event(&self, prompt_tokens: u32, tokens: u32) -> String {
        self.framed(&json!([]), &usage(prompt_tokens, tokens))
    }

    fn framed(&self, choices: &Value, usage: &Value) -> String {
        let object = match self.form {
            Form::Chat => "chat.completion.chunk",
            Form::Text => "text_completion",
        };
        let mut chunk = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.revision, "choices": choices,
        });
        if !usage.is_null() {
            chunk["usage"] = usage.clone();
        }
        format!("data: {chunk}\n\n")
    }
}

fn usage(prompt: u32, completion: u32) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": u64::from(prompt) + u64::from(completion),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_says_what_a_whole_answer_says() {
        for form in [Form::Chat, Form::Text] {
            let revision = Some("r1".to_owned());
            let answer =
                Answer { form, id: "a".into(), created: 1, model: "m".into(), token_ids: true, revision };
            let whole = answer.whole(0, 3, 5, "length");
            let (mut text, mut ids) = (String::new(), Vec::new());
            for index in 0..3 {
                let event = answer.event(index, (index == 2).then_some("length"));
                let data = event.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
                let chunk: Value = serde_json::from_str(data).unwrap();
                assert_eq!(chunk["system_fingerprint"], whole["system_fingerprint"]);
                let choice = &chunk["choices"][0];
                text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap();
                ids.extend(choice["token_ids"].as_array().unwrap().clone());
                assert_eq!(choice["finish_reason"] == "length", index == 2);
            }
            let choice = &whole["choices"][0];
            assert_eq!(
                choice["message"]["content"].as_str().or(choice["text"].as_str()),
                Some(text.as_str())
            );
            assert_eq!(choice["token_ids"], Value::from(ids));
            assert_eq!(whole["usage"]["total_tokens"], 8);
            let resumed = answer.whole(2, 3, 5, "length");
            assert_eq!(resumed["choices"][0]["token_ids"], json!([2]));
            assert_eq!(resumed["usage"], whole["usage"], "as if nothing had happened");
        }
    }
}
