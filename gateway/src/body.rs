//! The body of every answer: whole, or relayed from a pod as it comes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::relay::Relay;

/// The body of an answer.
#[derive(Debug)]
pub enum GatewayBody {
    /// All of it is here.
    Whole(Full<Bytes>),
    /// It passes through from a pod.
    Relayed(Box<Relay>),
}

/// An answer that is not a stream of events broke off; the connection is cut, so that the client sees it is incomplete.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BrokenAnswer(pub String);

impl GatewayBody {
    /// A body that is all here.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Full::new(bytes.into()))
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        match self.get_mut() {
            Self::Whole(full) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Self::Relayed(relay) => relay.poll_data(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(full) => full.is_end_stream(),
            Self::Relayed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(full) => full.size_hint(),
            Self::Relayed(_) => SizeHint::default(),
        }
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, text: impl Into<Bytes>) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::whole(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error in OpenAI's shape.
pub fn error(error: &fairlead_openai::ApiError) -> Response<GatewayBody> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, error.to_json());
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
