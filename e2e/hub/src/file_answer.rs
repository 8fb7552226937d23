//! A file or a range of it as an HTTP answer, with the faults that a test asked for.

use std::io::SeekFrom;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{self, HeaderName};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, Stream};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::faults::FaultKind;
use crate::repository::RepositoryFile;
use crate::serve::{Refusal, insert, refuse_if_asked};

const CHUNK_BYTES: u64 = 64 << 10;

/// Answers a GET or HEAD of `file`.
pub(crate) async fn serve_file(
    file: &RepositoryFile,
    request: &Parts,
    fault: Option<FaultKind>,
) -> Result<Response, Refusal> {
    refuse_if_asked(fault.as_ref())?;
    let etag = format!("\"{}\"", file.etag());
    let header = |name: HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
    let range_applies =
        header(header::IF_RANGE).is_none_or(|value| value == etag) && fault != Some(FaultKind::IgnoreRange);
    let range = header(header::RANGE).filter(|_| range_applies);
    let (status, begin, end) = match range.map(|range| parse_range(range, file.size)) {
        None => (StatusCode::OK, 0, file.size),
        Some(Some((begin, end))) => (StatusCode::PARTIAL_CONTENT, begin, end),
        Some(None) => {
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            insert(response.headers_mut(), "content-range", &format!("bytes */{}", file.size));
            return Ok(response);
        }
    };
    let body = if request.method == Method::HEAD {
        Body::empty()
    } else {
        let mut opened = tokio::fs::File::open(&file.on_disk).await?;
        opened.seek(SeekFrom::Start(begin)).await?;
        Body::from_stream(file_stream(opened, end - begin, fault))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    insert(headers, "etag", &etag);
    insert(headers, "accept-ranges", "bytes");
    insert(headers, "content-length", &(end - begin).to_string());
    insert(headers, "content-type", "application/octet-stream");
    if status == StatusCode::PARTIAL_CONTENT {
        insert(headers, "content-range", &format!("bytes {begin}-{}/{}", end - 1, file.size));
    }
    Ok(response)
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n` as a half-open interval; `None` when no byte of it exists.
fn parse_range(range: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (begin, end) = match (first.trim(), last.trim()) {
        ("", suffix) => (size.saturating_sub(suffix.parse().ok()?), size),
        (begin, "") => (begin.parse().ok()?, size),
        (begin, last) => (begin.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?.min(size)),
    };
    (begin < end).then_some((begin, end))
}

fn file_stream(
    file: tokio::fs::File,
    length: u64,
    fault: Option<FaultKind>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    struct Progress {
        file: tokio::fs::File,
        left: u64,
        sent: u64,
        fault: Option<FaultKind>,
    }
    stream::try_unfold(Progress { file, left: length, sent: 0, fault }, async |mut at| {
        let mut wanted = at.left.min(CHUNK_BYTES);
        match at.fault {
            Some(FaultKind::Cut { after_bytes }) if at.sent >= after_bytes => {
                // The server flushes what it has only when the body has nothing for it at the moment.
                tokio::task::yield_now().await;
                return Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "cut as asked for"));
            }
            Some(FaultKind::Cut { after_bytes }) => wanted = wanted.min(after_bytes - at.sent),
            Some(FaultKind::Slow { bytes_per_second }) => {
                wanted = wanted.min((bytes_per_second / 10).max(1));
                if at.sent > 0 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            _ => {}
        }
        if wanted == 0 {
            return Ok(None);
        }
        let mut buffer = vec![0; usize::try_from(wanted).unwrap_or_default()];
        let read = at.file.read(&mut buffer).await?;
        if read == 0 {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file shrank"));
        }
        buffer.truncate(read);
        if at.sent == 0
            && at.fault == Some(FaultKind::Corrupt)
            && let Some(byte) = buffer.first_mut()
        {
            *byte ^= 0xff;
        }
        at.sent += read as u64;
        at.left -= read as u64;
        Ok(Some((Bytes::from(buffer), at)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_half_open_and_clamped() {
        assert_eq!(parse_range("bytes=0-7", 100), Some((0, 8)));
        assert_eq!(parse_range("bytes=90-", 100), Some((90, 100)));
        assert_eq!(parse_range("bytes=90-200", 100), Some((90, 100)));
        assert_eq!(parse_range("bytes=-10", 100), Some((90, 100)));
        assert_eq!(parse_range("bytes=100-", 100), None);
        assert_eq!(parse_range("items=0-7", 100), None);
    }
}
