//! A client's inference request: read and checked once, then sent on byte for byte but for the model's name.
//!
//! Pure. Only the span of the `model` value is replaced, so fields this gateway has never heard of, numbers of any
//! precision and the order of keys reach the pod as the client wrote them.

use std::mem::take;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use fairlead_openai::{
    ApiError, ChatCompletionRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest,
    GenerationOptions, RequestBody, RerankRequest, TokenizeRequest,
};
use http::HeaderMap;

use crate::identity::TrustedHeaders;
use crate::metrics::Api;
use crate::policy::Ask;
use crate::policy::prompt::PromptKey;
use crate::prompt::PromptFacts;

/// An inference request whose fields are valid.
#[derive(Debug)]
pub struct InferenceRequest {
    /// The API it came by.
    pub api: Api,
    /// The model it names.
    pub model: String,
    /// Whether it asks for server-sent events.
    pub stream: bool,
    /// Whether its stream could go on elsewhere in the middle: it is of one answer, which does not repeat the prompt.
    pub resumable: bool,
    /// Whether its stream ends with the counts of tokens.
    pub include_usage: bool,
    /// What rules may know of it.
    pub facts: PromptFacts,
    prompt: PromptKey,
    salt: Option<String>,
    body: Bytes,
    model_span: Range<usize>,
}

impl InferenceRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn parse(api: Api, body: Bytes) -> Result<Self, ApiError> {
        // Encoders keep nothing of a text, and all but two of these are answered whole.
        let (mut prompt, mut salt, mut how) = (PromptKey::default(), None, How::default());
        let read = RequestBody::parse(&body)?;
        let json = read.json();
        let (model, facts) = match api {
            Api::Completions => {
                let mut request = CompletionRequest::from_json(json)?;
                prompt = PromptKey::of_completion(&request.prompts);
                how = How::of(&request.options, request.prompts.len() == 1 && !request.echo);
                salt = request.options.cache_salt.take();
                (take(&mut request.model), PromptFacts::of_completion(request))
            }
            Api::Tokenize => {
                let mut request = TokenizeRequest::from_json(json)?;
                (take(&mut request.model), PromptFacts::of_tokenize(request))
            }
            Api::Detokenize => {
                let request = DetokenizeRequest::from_json(json)?;
                let facts = PromptFacts::of_detokenize(&request);
                (request.model, facts)
            }
            Api::Embeddings => {
                let mut request = EmbeddingRequest::from_json(json)?;
                (take(&mut request.model), PromptFacts::of_embedding(request))
            }
            Api::Rerank => {
                let mut request = RerankRequest::from_json(json)?;
                (take(&mut request.model), PromptFacts::of_rerank(request))
            }
            _ => {
                let mut request = ChatCompletionRequest::from_json(json)?;
                prompt = PromptKey::of_chat(&request.prompt);
                how = How::of(&request.options, true);
                salt = request.options.cache_salt.take();
                (take(&mut request.model), PromptFacts::of_chat(request))
            }
        };
        let model_span = read.model_span()?;
        drop(read);
        let How { stream, resumable, include_usage } = how;
        Ok(Self { api, model, stream, resumable, include_usage, facts, prompt, salt, body, model_span })
    }

    /// What of the request the choice of an endpoint may depend on.
    pub fn ask<'a>(&'a self, headers: &'a HeaderMap, trusted: &TrustedHeaders) -> Ask<'a> {
        let user = trusted.user_to_stick_to(headers, self.facts.user.as_deref());
        Ask { prompt: &self.prompt, salt: self.salt.as_deref(), user, headers }
    }

    /// The body as the client wrote it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body with another model name, or as it is.
    pub fn body_for(&self, served_model: Option<&str>) -> Bytes {
        match served_model {
            Some(name) if name != self.model => {
                // A JSON string of our own making: names of Kubernetes objects hold nothing that needs escaping, and
                // Value's Display escapes whatever does.
                let name = serde_json::Value::from(name).to_string();
                let Range { start, end } = self.model_span;
                let mut body = BytesMut::with_capacity(self.body.len() + name.len());
                body.put_slice(&self.body[..start]);
                body.put_slice(name.as_bytes());
                body.put_slice(&self.body[end..]);
                body.freeze()
            }
            _ => self.body.clone(),
        }
    }
}

/// How a request wants to be answered.
#[derive(Default)]
struct How {
    stream: bool,
    resumable: bool,
    include_usage: bool,
}

impl How {
    fn of(options: &GenerationOptions, single: bool) -> Self {
        let GenerationOptions { stream, n, include_usage, .. } = *options;
        Self { stream, resumable: stream && single && n <= 1, include_usage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn chat(body: &str) -> Result<InferenceRequest, ApiError> {
        InferenceRequest::parse(Api::ChatCompletions, Bytes::copy_from_slice(body.as_bytes()))
    }

    fn rewritten(body: &str, name: &str) -> String {
        let body = chat(body).expect("a request").body_for(Some(name));
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[test]
    fn only_the_model_changes() {
        let body = r#"{ "messages":[{"role":"user","content":"model"}], "x":1e3, "mod\u0065l" : "chat" ,"big":123456789012345678901234567890,"nested":{"model":"chat"}}"#;
        let expected = body.replace(r#": "chat" ,"#, r#": "llama-v1" ,"#);
        assert_eq!(rewritten(body, "llama-v1"), expected);
    }

    #[test]
    fn without_another_name_the_body_is_the_very_same() {
        let body = Bytes::from_static(br#"{"model":"chat","messages":[{"role":"user","content":"hi"}]}"#);
        let request = InferenceRequest::parse(Api::ChatCompletions, body.clone()).expect("a request");
        assert_eq!(request.body_for(None).as_ptr(), body.as_ptr());
        assert_eq!(request.body_for(Some("chat")).as_ptr(), body.as_ptr());
    }

    #[test]
    fn bad_requests_name_the_field() {
        let cases = [
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":-1}"#,
                Some("max_tokens"),
            ),
            (r#"{"messages":[{"role":"user","content":"x"}]}"#, Some("model")),
            (r#"{"model":7,"messages":[{"role":"user","content":"x"}]}"#, Some("model")),
            (r#"{"model":"m","model":"n","messages":[{"role":"user","content":"x"}]}"#, Some("model")),
            (r#"{"model":"m","messages":[]}"#, Some("messages")),
            (r#"{"model":"m","messages":"#, None),
            ("[]", None),
            ("", None),
        ];
        for (body, param) in cases {
            let error = chat(body).expect_err(body);
            assert_eq!((error.status, error.param.as_deref()), (400, param), "{body}: {error}");
        }
    }

    #[test]
    fn embeddings_and_reranking_are_checked_and_sent_on() {
        let parse =
            |api, body: &'static str| InferenceRequest::parse(api, Bytes::from_static(body.as_bytes()));
        let sent = |request: InferenceRequest| String::from_utf8(request.body_for(Some("v1")).to_vec());
        let embed =
            parse(Api::Embeddings, r#"{"model":"m","input":["a"],"x":1,"stream":true}"#).expect("a request");
        assert!(!embed.stream);
        assert_eq!(sent(embed).expect("UTF-8"), r#"{"model":"v1","input":["a"],"x":1,"stream":true}"#);
        let rerank = parse(Api::Rerank, r#"{"query":"q","documents":["d"],"model":"m"}"#).expect("a request");
        assert_eq!(sent(rerank).expect("UTF-8"), r#"{"query":"q","documents":["d"],"model":"v1"}"#);
        for (api, param) in [(Api::Embeddings, "input"), (Api::Rerank, "query")] {
            let error = parse(api, r#"{"model":"m"}"#).expect_err("incomplete");
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{error}");
        }
    }

    #[test]
    fn streaming_is_recognized() {
        let body =
            |stream: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{stream}}}"#);
        assert!(chat(&body(r#","stream":true"#)).expect("a request").stream);
        assert!(!chat(&body("")).expect("a request").stream);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no NaN", |x| x.is_finite()).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".{0,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn unknown_fields_survive(
            fields in prop::collection::hash_map("x_[a-z\"\\\\é]{0,6}", any_json(), 0..6),
            first in any::<bool>(),
            served in "[a-z0-9-]{1,20}",
            public in "\\PC{1,20}",
        ) {
            let mut object = serde_json::Map::new();
            if first {
                object.insert("model".into(), json!(public));
            }
            object.insert("messages".into(), json!([{"role": "user", "content": "hi"}]));
            object.extend(fields);
            object.insert("model".into(), json!(public));
            let body = Bytes::from(Value::Object(object.clone()).to_string());
            let request = InferenceRequest { api: Api::ChatCompletions, model: public, stream: false,
                facts: PromptFacts::default(), prompt: PromptKey::default(), salt: None,
                resumable: false, include_usage: false,
                model_span: RequestBody::parse(&body).and_then(|read| read.model_span()).expect("a span"), body };
            object.insert("model".into(), json!(served));
            // Compared as text: byte for byte, not merely equal in value.
            let sent = request.body_for(Some(&served));
            prop_assert_eq!(std::str::from_utf8(&sent).expect("UTF-8"), Value::Object(object).to_string());
        }
    }
}
