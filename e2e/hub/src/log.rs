//! What the hub was asked and how many bytes of body it sent, the newest requests only.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

const KEPT: usize = 4096;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRecord {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `If-Range` header.
    pub if_range: Option<String>,
    /// Whether the request carried an `Authorization` header.
    pub authorized: bool,
    /// Whether it came to the content host that weights are redirected to.
    pub content_host: bool,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the answer's body that were handed to the connection so far.
    pub body_bytes: u64,
}

struct Entry {
    record: RequestRecord,
    sent: Arc<AtomicU64>,
}

/// The newest requests. Clones share them.
#[derive(Clone, Default)]
pub struct RequestLog(Arc<Mutex<VecDeque<Entry>>>);

impl RequestLog {
    /// Adds a request; the returned counter takes the bytes of its body as they go out.
    pub(crate) fn add(&self, record: RequestRecord) -> Arc<AtomicU64> {
        let sent = Arc::new(AtomicU64::new(record.body_bytes));
        let mut entries = self.lock();
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(Entry { record, sent: sent.clone() });
        sent
    }

    /// All requests still kept, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<RequestRecord> {
        let entries = self.lock();
        let with_bytes = |entry: &Entry| RequestRecord {
            body_bytes: entry.sent.load(Ordering::Relaxed),
            ..entry.record.clone()
        };
        entries.iter().map(with_bytes).collect()
    }

    /// Bytes of all bodies together.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.records().iter().map(|record| record.body_bytes).sum()
    }

    /// Forgets all requests.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
