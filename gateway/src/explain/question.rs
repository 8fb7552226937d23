//! Reads what `/debug/explain` is asked about: a whole request as JSON, or a simple one in a query. Pure.

use bytes::Bytes;
use fairlead_openai::ApiError;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use crate::identity::TrustedHeaders;
use crate::metrics::Api;
use crate::proxy::percent_decode;
use crate::request::InferenceRequest;

/// A request that is asked about.
#[derive(Debug)]
pub struct Question {
    /// The request.
    pub request: InferenceRequest,
    /// The headers that it would have at the gateway.
    pub headers: HeaderMap,
}

/// The APIs that can be asked about, by the path that clients use.
const APIS: [(&str, Api); 7] = [
    ("/v1/chat/completions", Api::ChatCompletions),
    ("/v1/completions", Api::Completions),
    ("/v1/embeddings", Api::Embeddings),
    ("/v1/rerank", Api::Rerank),
    ("/rerank", Api::Rerank),
    ("/tokenize", Api::Tokenize),
    ("/detokenize", Api::Detokenize),
];

/// Reads `{"api": …, "headers": {…}, "body": {…}}`.
///
/// # Errors
/// 400 naming the field and the remedy.
pub fn from_body(text: &[u8]) -> Result<Question, ApiError> {
    let value: Value = serde_json::from_slice(text).map_err(|error| {
        ApiError::bad_request(format!("the body is not JSON: {error}; send {{\"body\": {{\"model\": …}}}}"))
    })?;
    let Value::Object(mut fields) = value else {
        return Err(ApiError::bad_request("the body is not an object; send {\"body\": {\"model\": …}}"));
    };
    let body = match fields.remove("body") {
        Some(body @ Value::Object(_)) => body,
        _ => {
            return Err(ApiError::invalid(
                "body",
                "body must be the OpenAI request that is asked about, an object",
            ));
        }
    };
    let headers = match fields.remove("headers") {
        None | Some(Value::Null) => HeaderMap::new(),
        Some(Value::Object(given)) => headers(&given)?,
        Some(_) => return Err(ApiError::invalid("headers", "headers must be an object of names and values")),
    };
    let api = match fields.remove("api") {
        None | Some(Value::Null) => api_of(&body),
        Some(Value::String(path)) => named(&path)?,
        Some(_) => return Err(ApiError::invalid("api", "api must be a path such as /v1/chat/completions")),
    };
    if let Some(unknown) = fields.keys().next() {
        let message = format!("{unknown:?} is not known here; send api, headers and body");
        return Err(ApiError::invalid(unknown.as_str(), message));
    }
    let request = InferenceRequest::parse(api, Bytes::from(body.to_string()))?;
    Ok(Question { request, headers })
}

/// Reads `model=…&message=…&user=…&tenant=…&tier=…&header=NAME:VALUE`.
///
/// # Errors
/// 400 naming the parameter and the remedy.
pub fn from_query(query: &str, trusted: &TrustedHeaders) -> Result<Question, ApiError> {
    let (mut model, mut message) = (None, String::new());
    let mut headers = HeaderMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(&value.replace('+', " "));
        let mut identity = |known: &Option<HeaderName>| match known {
            Some(header) => append(&mut headers, header.as_str(), &value),
            None => {
                let message = format!(
                    "{name}: this gateway knows no {name}; start it with --trusted-{name}-header NAME"
                );
                Err(ApiError::invalid(name, message))
            }
        };
        match name {
            "model" => model = Some(value),
            "message" => message = value,
            "tenant" => identity(&trusted.tenant)?,
            "tier" => identity(&trusted.tier)?,
            "user" => identity(&trusted.user)?,
            "header" => match value.split_once(':') {
                Some((name, value)) => append(&mut headers, name, value.trim())?,
                None => return Err(ApiError::invalid("header", "header must be NAME:VALUE")),
            },
            _ => {
                let message = format!(
                    "{name:?} is not known here; send model, message, tenant, tier, user and header, or POST a whole request"
                );
                return Err(ApiError::invalid(name, message));
            }
        }
    }
    let Some(model) = model else {
        return Err(ApiError::invalid("model", "model is missing; name one of GET /v1/models"));
    };
    let body = json!({"model": model, "messages": [{"role": "user", "content": message}]});
    let request = InferenceRequest::parse(Api::ChatCompletions, Bytes::from(body.to_string()))?;
    Ok(Question { request, headers })
}

/// The API that a body belongs to, by the field that only that one has.
fn api_of(body: &Value) -> Api {
    let fields = [("documents", Api::Rerank), ("input", Api::Embeddings), ("prompt", Api::Completions)];
    fields.iter().find(|(field, _)| body.get(field).is_some()).map_or(Api::ChatCompletions, |(_, api)| *api)
}

fn named(path: &str) -> Result<Api, ApiError> {
    APIS.iter().find(|(known, _)| *known == path).map(|(_, api)| *api).ok_or_else(|| {
        let known: Vec<&str> = APIS.iter().map(|(path, _)| *path).collect();
        ApiError::invalid("api", format!("api must be one of {}, but is {path:?}", known.join(", ")))
    })
}

fn headers(given: &Map<String, Value>) -> Result<HeaderMap, ApiError> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        match value {
            Value::String(value) => append(&mut headers, name, value)?,
            Value::Array(values) if values.iter().all(Value::is_string) => {
                for value in values.iter().filter_map(Value::as_str) {
                    append(&mut headers, name, value)?;
                }
            }
            _ => {
                let message = format!("headers.{name} must be a text, or a list of texts");
                return Err(ApiError::invalid("headers", message));
            }
        }
    }
    Ok(headers)
}

fn append(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), ApiError> {
    match (HeaderName::try_from(name.trim()), HeaderValue::try_from(value)) {
        (Ok(name), Ok(value)) => {
            headers.append(name, value);
            Ok(())
        }
        _ => Err(ApiError::invalid("headers", format!("{name:?}: {value:?} cannot be a header; correct it"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_request() {
        let body =
            json!({"headers": {"X-A": "1", "x-b": ["2", "3"]}, "body": {"model": "m", "prompt": "hello"}});
        let Question { request, headers } = from_body(body.to_string().as_bytes()).expect("read");
        assert_eq!((request.api, request.model.as_str(), headers.len()), (Api::Completions, "m", 3));
        assert_eq!(headers["x-a"], "1");
        let body = json!({"api": "/v1/rerank", "body": {"model": "m", "query": "q", "documents": ["d"]}});
        assert_eq!(from_body(body.to_string().as_bytes()).expect("read").request.api, Api::Rerank);
    }

    #[test]
    fn a_simple_one_in_a_query() {
        let name = |text: &'static str| Some(HeaderName::from_static(text));
        let trusted = TrustedHeaders { tenant: name("x-tenant"), tier: None, user: None };
        let query = "model=org%2Fchat&message=in+detail&tenant=acme&header=x-priority:%20urgent";
        let Question { request, headers } = from_query(query, &trusted).expect("read");
        assert_eq!((request.model.as_str(), request.facts.question.as_str()), ("org/chat", "in detail"));
        assert_eq!(
            (&headers["x-tenant"], &headers["x-priority"]),
            (&"acme".parse().expect("a value"), &"urgent".parse().expect("a value"))
        );
        let error = from_query("model=m&tier=gold", &trusted).expect_err("refused").to_string();
        assert!(error.contains("--trusted-tier-header"), "{error}");
    }

    #[test]
    fn mistakes_name_the_field() {
        for (body, param) in [
            ("{}", Some("body")),
            (r#"{"body": 1}"#, Some("body")),
            (r#"{"body": {}}"#, Some("model")),
            (r#"{"body": {"model": "m"}, "headers": 1}"#, Some("headers")),
            (r#"{"body": {"model": "m"}, "headers": {"a b": "1"}}"#, Some("headers")),
            (r#"{"body": {"model": "m"}, "api": "/v1/images"}"#, Some("api")),
            (r#"{"body": {"model": "m"}, "x": 1}"#, Some("x")),
            ("{", None),
            ("[]", None),
        ] {
            let error = from_body(body.as_bytes()).expect_err(body);
            assert_eq!((error.status, error.param.as_deref()), (400, param), "{body}: {error}");
        }
        for (query, param) in [("", "model"), ("model=m&x=1", "x"), ("model=m&header=a", "header")] {
            let error = from_query(query, &TrustedHeaders::default()).expect_err(query);
            assert_eq!(error.param.as_deref(), Some(param), "{query}: {error}");
        }
    }
}
