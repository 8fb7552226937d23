//! Asks one question of an OpenAI-compatible server, and tells apart what may help to ask again, what is the question's own
//! fault, and what would be the same for every question.

use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};

use crate::cli::EvaluateArgs;
use crate::failure::Failure;

/// The longest answer that is read, in bytes.
const LARGEST_ANSWER: usize = 16 << 20;
/// Longest wait before the second attempt; it doubles from there.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Longest wait between two attempts, also where the server asks for more.
const LONGEST_DELAY: Duration = Duration::from_secs(20);

/// Asks questions.
#[derive(Debug)]
pub struct Asker {
    client: reqwest::Client,
    url: Url,
    key: Option<String>,
    settings: Value,
    retries: u32,
}

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text; `None` where the model refused without one.
    pub text: Option<String>,
    /// Whether the server itself says that the model refused.
    pub refused: bool,
    /// Why it ended.
    pub finish_reason: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    pub completion_tokens: Option<u64>,
    /// `x-fairlead-revision`.
    pub revision: Option<String>,
    /// From the request to the whole answer.
    pub seconds: f64,
}

/// How asking one question ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// With an answer.
    Answered(Answer),
    /// Without one, after every attempt. `busy`: because of the server, not of the question.
    Unanswered {
        /// The last attempt's error.
        error: String,
        /// Whether another question may fare no better.
        busy: bool,
    },
    /// In a way that every question would end.
    Hopeless(String),
}

/// How one attempt ended.
enum Attempt {
    Answered(Answer),
    Again { error: String, after: Option<Duration> },
    Refused(String),
    Hopeless(String),
}

impl Asker {
    /// From the command line.
    ///
    /// # Errors
    /// [`Failure::Wrong`] for a key that can't be read or a URL that can't be asked.
    pub fn new(arguments: &EvaluateArgs) -> Result<Self, Failure> {
        let key = match (&arguments.api_key_file, &arguments.api_key) {
            (Some(file), _) => Some(std::fs::read_to_string(file).map_err(|error| {
                Failure::wrong(format!("--api-key-file {}: can't be read: {error}", file.display()))
            })?),
            (None, key) => key.clone(),
        };
        let client = reqwest::Client::builder()
            .user_agent(concat!("fairlead-rag/", env!("CARGO_PKG_VERSION")))
            .timeout(arguments.request_timeout)
            // A key goes to the server that was named and nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Failure::again(format!("an HTTP client can't be made: {error}")))?;
        let mut settings = json!({
            "model": arguments.model, "temperature": arguments.temperature, "max_tokens": arguments.max_tokens,
            "seed": arguments.seed, "stream": false,
        });
        if let Some(priority) = arguments.priority {
            settings["priority"] = json!(priority);
        }
        Ok(Self {
            client,
            url: chat_url(&arguments.base_url)?,
            key: key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()),
            settings,
            retries: arguments.retries,
        })
    }

    /// Asks until there is an answer or no attempt is left. Returns how often it asked.
    pub async fn ask(&self, messages: &[Value]) -> (Asked, u32) {
        let mut body = self.settings.clone();
        body["messages"] = messages.into();
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.attempt(&body).await {
                Attempt::Answered(answer) => return (Asked::Answered(answer), attempts),
                Attempt::Refused(error) => return (Asked::Unanswered { error, busy: false }, attempts),
                Attempt::Hopeless(error) => return (Asked::Hopeless(error), attempts),
                Attempt::Again { error, .. } if attempts > self.retries => {
                    return (Asked::Unanswered { error, busy: true }, attempts);
                }
                Attempt::Again { error, after } => {
                    let delay = delay(attempts, after, rand::random());
                    tracing::debug!(error, ?delay, "asking again");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    async fn attempt(&self, body: &Value) -> Attempt {
        let begun = Instant::now();
        let mut request = self.client.post(self.url.clone()).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Attempt::Again { error: in_words(&error), after: None },
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = match text(answer).await {
            Ok(text) => text,
            Err(error) => return Attempt::Again { error, after: None },
        };
        if !status.is_success() {
            return self.failed(status, &headers, &text);
        }
        match read(&text) {
            Ok(answer) => Attempt::Answered(Answer {
                revision: header(&headers, "x-fairlead-revision"),
                seconds: begun.elapsed().as_secs_f64(),
                ..answer
            }),
            Err(error) => Attempt::Refused(error),
        }
    }

    fn failed(&self, status: StatusCode, headers: &HeaderMap, text: &str) -> Attempt {
        let said = said(text);
        let error = format!("{status}: {said}").trim_end_matches([':', ' ']).to_owned();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Attempt::Hopeless(format!(
                "{} wants another key ({error}); give one with --api-key-file",
                self.url
            )),
            StatusCode::NOT_FOUND => Attempt::Hopeless(format!(
                "{} does not know the model {} ({error}); correct --model or --base-url",
                self.url, self.settings["model"]
            )),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::CONFLICT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS => Attempt::Again { error, after: retry_after(headers) },
            _ if status.is_server_error() => Attempt::Again { error, after: retry_after(headers) },
            _ if status.is_redirection() => {
                Attempt::Hopeless(format!("{} is elsewhere ({error}); correct --base-url", self.url))
            }
            _ => Attempt::Refused(error),
        }
    }
}

/// `/v1/chat/completions` below the base URL.
fn chat_url(base: &Url) -> Result<Url, Failure> {
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        return Err(Failure::wrong(format!("--base-url {base}: must begin with http:// or https://")));
    }
    let mut url = base.clone();
    let path = base.path().trim_end_matches('/');
    let below = if path.ends_with("/v1") { "/chat/completions" } else { "/v1/chat/completions" };
    url.set_path(&format!("{path}{below}"));
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

async fn text(mut answer: reqwest::Response) -> Result<String, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| in_words(&error))? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(format!("the answer is longer than {LARGEST_ANSWER} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).map_err(|_| "the answer is not UTF-8".to_owned())
}

/// An error with what it was caused by, without the URL.
fn in_words(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time; see --request-timeout".to_owned();
    }
    let mut words = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        words = error.to_string();
        cause = error.source();
    }
    let what = if error.is_connect() { "can't connect" } else { "the answer broke off" };
    format!("{what}: {words}").trim_end_matches([':', ' ']).to_owned()
}

/// Reads an answer as leniently as it goes: servers differ in what they add.
fn read(text: &str) -> Result<Answer, String> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| format!("the answer is not JSON: {error}"))?;
    let choice = &value["choices"][0];
    let message = &choice["message"];
    let finish_reason = choice["finish_reason"].as_str().map(str::to_owned);
    let content = message["content"].as_str().map(str::to_owned);
    let refusal = message["refusal"].as_str().map(str::to_owned);
    if message.is_null() {
        return Err("the answer has no choices[0].message".to_owned());
    }
    let refused = refusal.is_some() || finish_reason.as_deref() == Some("content_filter");
    let tokens = |name: &str| value["usage"][name].as_u64();
    Ok(Answer {
        text: content.or(refusal),
        refused,
        finish_reason,
        prompt_tokens: tokens("prompt_tokens"),
        completion_tokens: tokens("completion_tokens"),
        ..Answer::default()
    })
}

/// The message of an error in OpenAI's form, or the beginning of whatever it is.
fn said(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let message = value["error"]["message"].as_str().or_else(|| value["message"].as_str()).unwrap_or(text);
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().filter(|value| value.len() <= 63).map(str::to_owned)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The wait after the `attempts`-th attempt. `random` is from 0 to 1.
fn delay(attempts: u32, asked: Option<Duration>, random: f64) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let jittered = doubled.min(LONGEST_DELAY).mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
    asked.map_or(jittered, |asked| jittered.max(asked.min(LONGEST_DELAY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_end_with_v1() {
        for (base, url) in [
            ("http://h:1", "http://h:1/v1/chat/completions"),
            ("http://h:1/", "http://h:1/v1/chat/completions"),
            ("https://h/v1", "https://h/v1/chat/completions"),
            ("https://h/api/v1/?x=1#y", "https://h/api/v1/chat/completions"),
        ] {
            assert_eq!(chat_url(&base.parse().unwrap()).unwrap().as_str(), url);
        }
        let error = chat_url(&"ftp://h".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("--base-url") && error.contains("https://"), "{error}");
    }

    #[test]
    fn waits_double_and_heed_the_server_within_reason() {
        let seconds =
            |attempts, asked: Option<u64>| delay(attempts, asked.map(Duration::from_secs), 1.0).as_secs_f64();
        assert_eq!([seconds(1, None), seconds(2, None), seconds(5, None)], [0.5, 1.0, 8.0]);
        assert_eq!(seconds(100, None), 20.0);
        assert_eq!([seconds(1, Some(3)), seconds(1, Some(3600))], [3.0, 20.0]);
        assert_eq!(delay(1, None, 0.0).as_secs_f64(), 0.25);
    }

    #[test]
    fn answers_are_read_leniently() {
        let refused = read(r#"{"choices": [{"message": {"content": null, "refusal": "No."}}]}"#).unwrap();
        assert_eq!((refused.text.as_deref(), refused.refused), (Some("No."), true));
        let filtered =
            read(r#"{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}"#)
                .unwrap();
        assert!(filtered.refused);
        assert!(read("{}").unwrap_err().contains("choices[0].message"));
        assert!(read("<html>").unwrap_err().contains("not JSON"));
        assert_eq!(said(r#"{"error": {"message": "too  long"}}"#), "too long");
        assert_eq!(said("bad\ngateway"), "bad gateway");
    }
}
