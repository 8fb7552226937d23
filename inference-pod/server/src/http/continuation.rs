//! What a gateway asks for beside OpenAI's API, so that a stream that breaks off can go on at another pod.
//!
//! The words are those of [`fairlead_openai::continuation`]; chats and completions write by them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fairlead_openai::ApiError;
use fairlead_openai::continuation::{CONTINUES, Continued, IF_REVISION, Note, RESUMABLE, REVISION_MISMATCH};

use crate::http::errors::HttpError;
use crate::state::App;

/// Refuses a request for another revision than this pod's: its answer began with that one.
pub async fn check_revision(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match request.headers().get(IF_REVISION) {
        Some(wanted) if app.revision.as_ref() != Some(wanted) => {
            let message = format!(
                "this pod serves revision {:?}, not {wanted:?}; ask a pod of that one, or leave {IF_REVISION} out",
                app.revision.as_ref().and_then(|revision| revision.to_str().ok()).unwrap_or_default(),
            );
            let error = ApiError::new(412, "invalid_request_error", message).with_code(REVISION_MISMATCH);
            HttpError::from(error).into_response()
        }
        _ => next.run(request).await,
    }
}

/// How a gateway wants a stream told.
#[derive(Clone, Debug, Default)]
pub struct Telling {
    /// Notes are written.
    pub notes: bool,
    /// The answer has begun elsewhere.
    pub continues: Option<Continued>,
}

impl Telling {
    /// What the headers ask for.
    ///
    /// # Errors
    /// 400 for a value that cannot be read.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let continues = match headers.get(CONTINUES) {
            None => None,
            Some(value) => {
                let read = value.to_str().ok().and_then(Continued::parse);
                Some(read.ok_or_else(|| {
                    let message =
                        format!("the header {CONTINUES} must be an answer's id and its time; leave it out");
                    ApiError::invalid(CONTINUES, message)
                })?)
            }
        };
        Ok(Self { notes: headers.contains_key(RESUMABLE), continues })
    }

    /// Name and time of the answer: those it began with, or new ones.
    pub fn name(&self, id: impl FnOnce() -> String, created: impl FnOnce() -> u64) -> (String, u64) {
        self.continues
            .as_ref()
            .map_or_else(|| (id(), created()), |continued| (continued.id.clone(), continued.created))
    }

    /// Says on the answer that notes are there.
    pub fn mark(&self, mut response: Response) -> Response {
        if self.notes {
            response.headers_mut().insert(RESUMABLE, HeaderValue::from_static("true"));
        }
        response
    }

    /// Begins to write notes.
    pub fn notes(&self, id: &str, created: u64, prompt_tokens: u64) -> Notes {
        if !self.notes {
            return Notes(None);
        }
        let answer = Continued { id: id.to_owned(), created };
        Notes(Some(Note::Begun { answer, prompt_tokens }.to_string()))
    }
}

/// Notes for the next event; `None` where nobody wants any.
#[derive(Debug)]
pub struct Notes(Option<String>);

impl Notes {
    /// Notes new tokens.
    pub fn tokens(&mut self, choice: u32, ids: &[u32], ended: bool) {
        if let Some(notes) = &mut self.0
            && (ended || !ids.is_empty())
        {
            notes.push_str(&Note::Tokens { choice, ids: ids.to_vec(), ended }.to_string());
        }
    }

    /// An event with the notes before it.
    pub fn before(&mut self, event: Bytes) -> Bytes {
        match self.0.as_mut().filter(|notes| !notes.is_empty()) {
            None => event,
            Some(notes) => {
                let mut noted = std::mem::take(notes).into_bytes();
                noted.extend_from_slice(&event);
                Bytes::from(noted)
            }
        }
    }

    /// The notes alone, where there is no event to send them with.
    pub fn alone(&mut self) -> Option<Bytes> {
        let notes = self.0.as_mut().filter(|notes| !notes.is_empty())?;
        notes.push('\n');
        Some(Bytes::from(std::mem::take(notes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_before_their_event_and_alone_where_there_is_none() {
        let asked = HeaderMap::from_iter([(
            axum::http::HeaderName::from_static(RESUMABLE),
            HeaderValue::from_static("true"),
        )]);
        let telling = Telling::of(&asked).unwrap();
        let mut notes = telling.notes("chatcmpl-1", 7, 3);
        notes.tokens(0, &[5], false);
        assert_eq!(notes.alone().unwrap(), ": answer chatcmpl-1 7 3\n: tokens 0 5\n\n");
        assert_eq!(notes.alone(), None);
        notes.tokens(0, &[], false);
        assert_eq!(notes.before(Bytes::from_static(b"data: {}\n\n")), "data: {}\n\n");
        notes.tokens(1, &[6, 2], true);
        assert_eq!(notes.before(Bytes::from_static(b"data: {}\n\n")), ": ended 1 6 2\ndata: {}\n\n");
        let mut none = Telling::default().notes("x", 1, 1);
        none.tokens(0, &[5], true);
        assert_eq!(none.alone(), None);
    }

    #[test]
    fn an_answer_keeps_its_name() {
        let with = |text: &'static str| {
            HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(CONTINUES),
                HeaderValue::from_static(text),
            )])
        };
        let telling = Telling::of(&with("cmpl-1 42")).unwrap();
        assert_eq!(telling.name(|| "new".to_owned(), || 1), ("cmpl-1".to_owned(), 42));
        assert_eq!(Telling::default().name(|| "new".to_owned(), || 1), ("new".to_owned(), 1));
        assert_eq!(Telling::of(&with("nonsense")).unwrap_err().status, 400);
    }
}
