//! Faults that a test asks for: each applies to the next few requests and is then used up.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum FaultKind {
    /// The connection is cut after so many bytes of the body.
    #[serde(rename_all = "camelCase")]
    Cut {
        /// Bytes that are still sent.
        after_bytes: u64,
    },
    /// The request is answered with this status, say 429 or 503.
    #[serde(rename_all = "camelCase")]
    Status {
        /// The HTTP status.
        status: u16,
        /// Seconds in the `Retry-After` header.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// The body trickles.
    #[serde(rename_all = "camelCase")]
    Slow {
        /// Bytes sent each second.
        bytes_per_second: u64,
    },
    /// The first byte of the body is changed, as a broken disk or proxy would.
    Corrupt,
    /// The `Range` header is ignored and the whole file is sent.
    IgnoreRange,
}

/// A fault and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub what: FaultKind,
    /// How many requests it strikes.
    pub count: u32,
    /// Only requests whose path contains this are struck; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_contains: Option<String>,
}

/// Faults that are still to come. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>);

impl Faults {
    /// Adds a fault behind those still to come.
    pub fn add(&self, fault: Fault) {
        self.lock().push(fault);
    }

    /// Adds `what` for the next `count` requests whose path contains `path`.
    pub fn strike(&self, what: FaultKind, count: u32, path: &str) {
        self.add(Fault { what, count, path_contains: Some(path.to_owned()) });
    }

    /// Forgets all faults.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Takes the fault that strikes a request for the file `path`, if one does.
    #[must_use]
    pub fn take(&self, path: &str) -> Option<FaultKind> {
        self.take_where(path, |_| true)
    }

    /// Takes the fault that strikes an API request for `path`: those have no body to cut or to slow.
    #[must_use]
    pub fn take_status(&self, path: &str) -> Option<FaultKind> {
        self.take_where(path, |what| matches!(what, FaultKind::Status { .. }))
    }

    fn take_where(&self, path: &str, applies: impl Fn(&FaultKind) -> bool) -> Option<FaultKind> {
        let mut faults = self.lock();
        let index = faults.iter().position(|fault| {
            applies(&fault.what) && fault.path_contains.as_deref().is_none_or(|part| path.contains(part))
        })?;
        let fault = faults.get_mut(index)?;
        fault.count -= 1;
        let what = fault.what.clone();
        faults.retain(|fault| fault.count > 0);
        Some(what)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_path_as_often_as_asked() {
        let faults = Faults::default();
        faults.strike(FaultKind::Corrupt, 2, "model");
        assert_eq!(faults.take("/config.json"), None);
        assert_eq!(faults.take("/model"), Some(FaultKind::Corrupt));
        assert_eq!(faults.take("/model"), Some(FaultKind::Corrupt));
        assert_eq!(faults.take("/model"), None);
    }

    #[test]
    fn a_fault_is_written_flat() {
        let json = r#"{"kind":"status","status":429,"retryAfter":1,"count":3}"#;
        let fault: Fault = serde_json::from_str(json).expect("is a fault");
        assert_eq!(fault.what, FaultKind::Status { status: 429, retry_after: Some(1) });
    }
}
