//! `explain`: where a request would go and why, as a gateway says. Nothing is sent to a pod.

mod answer;

use std::path::Path;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use crate::cli::{self, Connection, route_name};
use crate::connect::Session;
use crate::fault::{Call, Fault, Role};
use crate::gateway::{Answer, Gateway};
use crate::output;
use crate::route;
use crate::screen::Screen;

/// The Secret with the gateways' admin token, made by the chart.
const SECRET: &str = "fairlead-gateway-admin";
const KEY: &str = "token";
const PATH: &str = "/debug/explain";
/// Said where nothing else is given.
const PROMPT: &str = "Hello!";

/// Runs it.
///
/// # Errors
/// [`Fault`] where the question cannot be put or the gateway refuses it.
pub async fn run(connection: &Connection, arguments: cli::Explain) -> Result<u8, Fault> {
    // A gateway that is named by URL may have no cluster behind it.
    let needs_cluster = arguments.gateway.is_none() || arguments.route.is_some();
    let session = if needs_cluster { Some(Session::open(connection).await?) } else { None };
    let model = match (&arguments.route, &session) {
        (Some(name), Some(session)) => Some(route::get(session, route_name(name)).await?.model().to_owned()),
        _ => arguments.model.clone(),
    };
    let file = arguments.file.as_deref().map(read).transpose()?;
    let question = Question::of(&arguments, model, file)?;
    let gateway = match (&arguments.gateway, &session) {
        (Some(url), _) => Gateway::at(url)?,
        (None, Some(session)) => first(Gateway::all(session).await?)?,
        (None, None) => return Err(Fault::new("name a gateway with --gateway, or a cluster with --context")),
    };
    let token = match (&arguments.token_file, &session) {
        (Some(file), _) => Some(text_of(file, "--token-file")?),
        (None, Some(session)) if arguments.gateway.is_none() => Some(token(session).await?),
        _ => None,
    };
    let mut answer = gateway.ask(question.request(token.as_deref())?).await?;
    // A gateway that trusts nobody to name users may still go by the request's own `user`.
    if let Some(other) = question.otherwise(&answer) {
        answer = gateway.ask(other.request(token.as_deref())?).await?;
    }
    let said = said(&answer, &gateway.name, arguments.gateway.is_some())?;
    let text = match arguments.output {
        Some(format) => output::text(format, &said)?,
        None => {
            let explanation = serde_json::from_value(said).map_err(|error| {
                Fault::new(format!(
                    "the answer of {} cannot be read: {error}; see it with -o json",
                    gateway.name
                ))
            })?;
            let screen = Screen::new();
            answer::text(&explanation, &gateway.name, screen.width(), screen.paint())
        }
    };
    output::print(&text)?;
    Ok(0)
}

fn first(gateways: Vec<Gateway>) -> Result<Gateway, Fault> {
    gateways.into_iter().next().ok_or_else(|| Fault::new("there is no gateway"))
}

/// The question as the gateway takes it.
#[derive(Clone, Debug, PartialEq)]
enum Question {
    /// A simple one, from somebody: the gateway knows the headers that say so.
    Simple { query: String, user_alone: Option<Value> },
    /// A whole request.
    Whole(Value),
}

impl Question {
    /// Puts it together. Pure.
    fn of(arguments: &cli::Explain, model: Option<String>, file: Option<Value>) -> Result<Self, Fault> {
        let cli::Explain { user, tenant, tier, headers, prompt, .. } = arguments;
        let prompt = prompt.as_deref().unwrap_or(PROMPT);
        let from_file = file.is_some();
        let mut body = file.unwrap_or_else(|| json!({"messages": [{"role": "user", "content": prompt}]}));
        let model = set_model(&mut body, model)?;
        if from_file && (tenant.is_some() || tier.is_some()) {
            return Err(Fault::new(
                "--tenant and --tier go with --prompt; with -f say who asks by the header that your proxy sets: --header NAME=VALUE",
            ));
        }
        if let (Some(user), Some(fields)) = (user, body.as_object_mut()) {
            fields.insert("user".to_owned(), user.as_str().into());
        }
        let whole = json!({"body": body, "headers": grouped(headers)});
        let identity = [("user", user), ("tenant", tenant), ("tier", tier)];
        if from_file || identity.iter().all(|(_, value)| value.is_none()) {
            return Ok(Self::Whole(whole));
        }
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("model", &model).append_pair("message", prompt);
        for (name, value) in identity {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        for (name, value) in headers {
            query.append_pair("header", &format!("{name}:{value}"));
        }
        let user_alone = (tenant.is_none() && tier.is_none()).then_some(whole);
        Ok(Self::Simple { query: query.finish(), user_alone })
    }

    /// What to ask instead where the gateway knows no users.
    fn otherwise(&self, answer: &Answer) -> Option<Self> {
        let Self::Simple { user_alone: Some(whole), .. } = self else { return None };
        let said: Value = serde_json::from_slice(&answer.body).ok()?;
        let unknown = answer.status == StatusCode::BAD_REQUEST && said["error"]["param"] == "user";
        unknown.then(|| Self::Whole(whole.clone()))
    }

    fn request(&self, token: Option<&str>) -> Result<Request<Full<Bytes>>, Fault> {
        let (method, path, body) = match self {
            Self::Simple { query, .. } => (Method::GET, format!("{PATH}?{query}"), String::new()),
            Self::Whole(question) => (Method::POST, PATH.to_owned(), question.to_string()),
        };
        let uri: Uri = path.parse().map_err(|_| {
            Fault::new("the prompt is too long for a simple question: put the request into a file, and name it with -f")
        })?;
        let mut request =
            Request::builder().method(method).uri(uri).header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let unfit = |_| Fault::new("the token cannot be sent as a header: it must be one line of plain text");
        request.body(Full::new(Bytes::from(body))).map_err(unfit)
    }
}

/// Sees to it that the body names a model, and which.
fn set_model(body: &mut Value, model: Option<String>) -> Result<String, Fault> {
    let Some(fields) = body.as_object_mut() else {
        return Err(Fault::new("the file is no OpenAI request: it must hold a JSON object"));
    };
    match (model, fields.get("model").and_then(Value::as_str)) {
        (Some(model), Some(theirs)) if theirs != model => Err(Fault::new(format!(
            "the file asks for the model {theirs}, the route answers to {model}: correct one, or name only the file"
        ))),
        (Some(model), _) => {
            fields.insert("model".to_owned(), model.as_str().into());
            Ok(model)
        }
        (None, Some(theirs)) => Ok(theirs.to_owned()),
        (None, None) => {
            Err(Fault::new("the file names no model: add \"model\" to it, or name a route or --model"))
        }
    }
}

/// Headers by name, each with all its values.
fn grouped(headers: &[(String, String)]) -> Value {
    let mut all: Map<String, Value> = Map::new();
    for (name, value) in headers {
        let values = all.entry(name.clone()).or_insert_with(|| json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(value.as_str().into());
        }
    }
    all.into()
}

/// What the gateway said, or why it did not.
fn said(answer: &Answer, gateway: &str, by_url: bool) -> Result<Value, Fault> {
    let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let message = value.as_ref().and_then(|value| value["error"]["message"].as_str());
    let remedy = match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if by_url => {
            "; give the file of the gateway's --admin-token-file as --token-file"
        }
        StatusCode::NOT_FOUND if message.is_none_or(|message| message.contains(PATH)) => {
            "; this gateway is older than the plugin and explains nothing"
        }
        _ => "",
    };
    match (answer.status.is_success(), value.clone()) {
        (true, Some(value)) => Ok(value),
        (true, None) => Err(Fault::new(format!("{gateway} did not answer with JSON"))),
        (false, _) => {
            let message = message.map_or_else(|| answer.status.to_string(), str::to_owned);
            Err(Fault::new(format!("the gateway says: {message}{remedy}")))
        }
    }
}

async fn token(session: &Session) -> Result<String, Fault> {
    let namespace = session.system_namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(session.client.clone(), namespace);
    let call = Call { verb: "get", resource: "secrets", namespace: Some(namespace), role: Role::Inspector };
    let secret = secrets.get_opt(SECRET).await.map_err(|error| call.failed(&error))?;
    let Some(secret) = secret else {
        return Err(Fault::new(format!(
            "there is no Secret {SECRET} in namespace {namespace}: upgrade the chart fairlead, which makes it, or give --token-file"
        )));
    };
    let value =
        secret.data.and_then(|mut data| data.remove(KEY)).and_then(|value| String::from_utf8(value.0).ok());
    value.ok_or_else(|| {
        Fault::new(format!("the Secret {namespace}/{SECRET} has no key {KEY}: give --token-file"))
    })
}

/// A request from a file, or from the standard input.
fn read(path: &Path) -> Result<Value, Fault> {
    let text = text_of(path, "-f")?;
    serde_json::from_str(&text)
        .map_err(|error| Fault::new(format!("-f {}: it is not JSON: {error}", path.display())))
}

fn text_of(path: &Path, flag: &str) -> Result<String, Fault> {
    let read = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    read.map_err(|error| Fault::new(format!("{flag} {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn arguments(line: &str) -> cli::Explain {
        let words = ["kubectl-fairlead", "explain"].into_iter().chain(line.split(' '));
        match cli::Arguments::try_parse_from(words).unwrap().command {
            cli::Command::Explain(arguments) => arguments,
            other => panic!("{other:?}"),
        }
    }

    fn asked(line: &str, model: Option<&str>, file: Option<Value>) -> Result<Question, String> {
        Question::of(&arguments(line), model.map(str::to_owned), file).map_err(|fault| fault.to_string())
    }

    #[test]
    fn who_asks_is_left_to_the_gateway_to_say() {
        let line = "chat --user ada --tier gold --header X-A=1 --header x-a=b&c --prompt hi";
        let question = asked(line, Some("org/m"), None).unwrap();
        let query = "model=org%2Fm&message=hi&user=ada&tier=gold&header=x-a%3A1&header=x-a%3Ab%26c";
        assert_eq!(question, Question::Simple { query: query.to_owned(), user_alone: None });
        let request = question.request(Some("secret\n")).unwrap();
        assert_eq!(
            (request.method(), request.headers()["authorization"].to_str().unwrap()),
            (&Method::GET, "Bearer secret")
        );
        // A gateway that is told no users by a proxy goes by the request's own.
        let refused = |param: &str| Answer {
            status: StatusCode::BAD_REQUEST,
            body: Bytes::from(json!({"error": {"message": "…", "param": param}}).to_string()),
        };
        assert_eq!(question.otherwise(&refused("user")), None, "and the tier would be lost");
        let question = asked("chat --user ada", Some("m"), None).unwrap();
        let Some(Question::Whole(whole)) = question.otherwise(&refused("user")) else {
            panic!("{question:?}")
        };
        assert_eq!((&whole["body"]["user"], &whole["body"]["model"]), (&json!("ada"), &json!("m")));
        assert_eq!(question.otherwise(&refused("model")), None);
    }

    #[test]
    fn a_whole_request_is_passed_on() {
        let question = asked("chat --header X-A=1 --header x-a=2 --prompt hi", Some("m"), None).unwrap();
        let expected = json!({"body": {"messages": [{"role": "user", "content": "hi"}], "model": "m"}, "headers": {"x-a": ["1", "2"]}});
        assert_eq!(question, Question::Whole(expected));
        assert_eq!(question.request(None).unwrap().method(), Method::POST);
    }

    #[test]
    fn a_files_model_and_the_routes_must_agree() {
        let file = || Some(json!({"model": "m", "prompt": "x"}));
        for model in [None, Some("m")] {
            let whole = json!({"body": {"model": "m", "prompt": "x"}, "headers": {}});
            assert_eq!(asked("-f request.json", model, file()), Ok(Question::Whole(whole)));
        }
        for (line, model, file, expected) in [
            ("-f r", Some("other"), file(), "asks for the model m, the route answers to other"),
            ("-f r", None, Some(json!({"prompt": "x"})), "names no model"),
            ("-f r", None, Some(json!([1])), "a JSON object"),
            ("-f r --tenant acme", None, file(), "--header NAME=VALUE"),
        ] {
            let fault = asked(line, model, file).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn a_refusal_is_passed_on_with_what_to_do() {
        let answer = |status, body: &str| Answer { status, body: Bytes::from(body.to_owned()) };
        let refused = answer(StatusCode::FORBIDDEN, r#"{"error": {"message": "no token is configured"}}"#);
        let fault = said(&refused, "g", true).unwrap_err().to_string();
        assert_eq!(
            fault,
            "the gateway says: no token is configured; give the file of the gateway's --admin-token-file as --token-file"
        );
        let older = answer(
            StatusCode::NOT_FOUND,
            r#"{"error": {"message": "there is nothing at \"/debug/explain\""}}"#,
        );
        assert!(said(&older, "g", false).unwrap_err().to_string().contains("older than the plugin"));
        let unknown = answer(StatusCode::NOT_FOUND, r#"{"error": {"message": "there is no model x"}}"#);
        assert_eq!(
            said(&unknown, "g", false).unwrap_err().to_string(),
            "the gateway says: there is no model x"
        );
        assert_eq!(said(&answer(StatusCode::OK, r#"{"model": "m"}"#), "g", false).unwrap()["model"], "m");
    }
}
