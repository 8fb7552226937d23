//! Request bodies: read as they come, within a size, a time, and a share of memory that all of them have together.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use fairlead_openai::ApiError;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Largest request body that is read.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// How long a client may take to send it.
const BODY_TIME: Duration = Duration::from_secs(60);

/// What a body's bytes are counted in.
const UNIT: usize = 1 << 10;

/// Memory for the bodies that have come and are not read into requests yet.
#[derive(Clone)]
pub struct BodyMemory(Arc<Semaphore>);

impl BodyMemory {
    /// For so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / UNIT).min(Semaphore::MAX_PERMITS))))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.0).try_acquire_many_owned(units).map_err(|_| {
            ApiError::overloaded("large requests fill the memory that there is for them; try again later", 1)
        })
    }

    /// Reads a body.
    ///
    /// # Errors
    /// 408 where it comes too slowly, 413 where it is too large, 429 where others take the memory.
    pub async fn read(&self, body: Body) -> Result<RequestBody, ApiError> {
        self.read_within(body, BODY_TIME).await
    }

    async fn read_within(&self, body: Body, time: Duration) -> Result<RequestBody, ApiError> {
        timeout(time, self.collect(body)).await.unwrap_or_else(|_| {
            let seconds = time.as_secs_f32();
            let message = format!("the request body did not arrive in {seconds} seconds; send it faster");
            Err(ApiError::new(408, "invalid_request_error", message).with_code("request_timeout"))
        })
    }

    async fn collect(&self, mut body: Body) -> Result<RequestBody, ApiError> {
        let mut bytes = Vec::new();
        let mut share: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ApiError::bad_request(format!("the request body could not be read ({error}); send it again"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > MAX_BODY_BYTES {
                return Err(ApiError::too_large(MAX_BODY_BYTES));
            }
            let more = self.take(data.len())?;
            match &mut share {
                Some(share) => share.merge(more),
                None => share = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(RequestBody { bytes, _share: share })
    }
}

/// A body, and its share of the memory while it is there.
pub struct RequestBody {
    bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

impl Deref for RequestBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::stream;

    use super::*;

    fn pieces(sizes: &[usize]) -> Body {
        let pieces: Vec<_> =
            sizes.iter().map(|size| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; *size]))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error =
            BodyMemory::new(1 << 20).read_within(never, Duration::from_millis(5)).await.err().unwrap();
        assert_eq!(error.status, 408);
        assert!(error.message.contains("0.005 seconds"), "{}", error.message);
    }

    #[tokio::test]
    async fn bodies_share_the_memory_until_they_are_read() {
        let memory = BodyMemory::new(8 << 10);
        let first = memory.read(pieces(&[3000, 3000])).await.unwrap();
        assert_eq!(first.len(), 6000);
        let refused = memory.read(pieces(&[1000, 2000])).await.err().unwrap();
        assert_eq!((refused.status, refused.retry_after), (429, Some(1)));
        // A small one still finds a place, and what was refused holds none.
        assert_eq!(memory.read(pieces(&[100])).await.unwrap().len(), 100);
        drop(first);
        assert_eq!(memory.read(pieces(&[1000, 2000])).await.unwrap().len(), 3000);
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_as_soon_as_that_is_known() {
        let memory = BodyMemory::new(MAX_BODY_BYTES + (1 << 20));
        let error = memory.read(pieces(&[MAX_BODY_BYTES, 1])).await.err().unwrap();
        assert_eq!(error.status, 413);
        assert_eq!(memory.read(pieces(&[MAX_BODY_BYTES])).await.unwrap().len(), MAX_BODY_BYTES);
    }
}
