//! One streamed chat request by curl, shown as it comes.
//!
//! Owns: the command line and reading its event stream. Called by the quickstart.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::progress::say;

/// Asks `question` of a model behind the gateway at a port of the loopback and prints the answer as it streams in.
pub async fn ask(port: u16, model: &str, question: &str) -> Result<()> {
    let body = json!({
        "model": model,
        "stream": true,
        "temperature": 0,
        "max_tokens": 96,
        "messages": [{"role": "user", "content": question}],
    })
    .to_string();
    let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
    say(&format!("\n$ curl -N {url} -H 'content-type: application/json' \\\n       -d '{body}'\n"));
    let mut curl = tokio::process::Command::new("curl")
        .args(["--no-buffer", "--silent", "--show-error", "--max-time", "120", "--noproxy", "*", &url])
        .args(["--header", "content-type: application/json", "--data", &body])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("curl cannot be started: is it installed?")?;
    let stream = curl.stdout.take().context("curl has no output")?;
    let mut lines = BufReader::new(stream).lines();
    let (mut answer, mut finished, mut other) = (String::new(), false, String::new());
    while let Some(line) = lines.next_line().await.context("reading the answer")? {
        match event(&line) {
            Event::Text(text) => {
                // To where everything else is shown, so that a log has it in its place; unbuffered.
                eprint!("{text}");
                answer.push_str(&text);
            }
            Event::End => finished = true,
            Event::Nothing => {}
            Event::Other => other.push_str(&line),
        }
    }
    eprintln!();
    let status = curl.wait().await.context("waiting for curl")?;
    if !status.success() || !finished || answer.trim().is_empty() {
        bail!("the gateway did not stream an answer ({status}): {other}");
    }
    Ok(())
}

/// What one line of the stream says.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// A piece of the answer.
    Text(String),
    /// The end of the stream.
    End,
    /// A line without text: a blank, a comment, the role, the usage.
    Nothing,
    /// Not a stream: an error in JSON.
    Other,
}

fn event(line: &str) -> Event {
    if line.is_empty() || line.starts_with(':') {
        return Event::Nothing;
    }
    let Some(data) = line.strip_prefix("data:").map(str::trim) else { return Event::Other };
    if data == "[DONE]" {
        return Event::End;
    }
    match serde_json::from_str::<Value>(data) {
        Ok(chunk) if chunk.get("error").is_some() => Event::Other,
        Ok(chunk) => match chunk["choices"][0]["delta"]["content"].as_str() {
            Some(text) if !text.is_empty() => Event::Text(text.to_owned()),
            _ => Event::Nothing,
        },
        Err(_) => Event::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_end_and_errors_are_told_apart() {
        assert_eq!(event(r#"data: {"choices":[{"delta":{"content":"Hi"}}]}"#), Event::Text("Hi".into()));
        assert_eq!(event(r#"data: {"choices":[{"delta":{"role":"assistant"}}]}"#), Event::Nothing);
        assert_eq!(event("data: [DONE]"), Event::End);
        assert_eq!(event(": keep-alive"), Event::Nothing);
        assert_eq!(event(r#"{"error":{"message":"no such model"}}"#), Event::Other);
        assert_eq!(event(r#"data: {"error":{"message":"gone"}}"#), Event::Other);
    }
}
