//! Bodies that are held in memory, counted against one budget: however many requests there are and however large they
//! are, the process stays inside its container's limit.
//!
//! A byte is given back when the last reference to the body is dropped, wherever that is: with the request, in the
//! connection to a pod, or in that to a client who reads slowly. Used by `proxy` for requests and `upstream` for answers.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that bodies may take together.
#[derive(Clone, Debug)]
pub struct HeldBudget(Arc<Semaphore>);

impl HeldBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Room for so many bytes, given back with the permit; `None` when there is none.
    pub fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// An empty body; each of its bytes counts `copies` times.
    pub fn body(&self, copies: usize) -> HeldBody {
        HeldBody { budget: self.clone(), copies, bytes: BytesMut::new(), taken: None }
    }
}

/// A body that grows.
#[derive(Debug)]
pub struct HeldBody {
    budget: HeldBudget,
    copies: usize,
    bytes: BytesMut,
    taken: Option<OwnedSemaphorePermit>,
}

impl HeldBody {
    /// Makes room for as much as a sender says will come, or for the beginning of it: words cost nothing, and are believed up to here.
    pub fn expect(&mut self, bytes: usize) {
        const MOST: usize = 1 << 20;
        self.bytes.reserve(bytes.min(MOST));
    }

    /// Appends bytes; false, and nothing is appended, when the budget is spent.
    #[must_use]
    pub fn push(&mut self, data: &[u8]) -> bool {
        let Ok(count) = u32::try_from(data.len().saturating_mul(self.copies)) else { return false };
        let Ok(more) = Arc::clone(&self.budget.0).try_acquire_many_owned(count) else { return false };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        self.bytes.extend_from_slice(data);
        true
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The whole body. Counts for as long as any part of it lives.
    pub fn freeze(self) -> Bytes {
        struct Owner {
            bytes: BytesMut,
            _taken: Option<OwnedSemaphorePermit>,
        }
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        if self.bytes.is_empty() {
            return Bytes::new();
        }
        Bytes::from_owner(Owner { bytes: self.bytes, _taken: self.taken })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_until_the_last_reference_is_gone() {
        let budget = HeldBudget::new(10);
        let mut first = budget.body(1);
        assert!(first.push(b"123456"));
        let mut second = budget.body(2);
        assert!(second.push(b"12"));
        assert!(!second.push(b"3"), "one byte counts twice, and none is left");
        assert_eq!(second.len(), 2);
        let whole = first.freeze();
        let part = whole.slice(1..2);
        drop(whole);
        assert!(!second.push(b"3"), "a part keeps the whole alive");
        drop(part);
        assert!(second.push(b"345"));
        assert_eq!(second.freeze(), "12345");
        assert_eq!(budget.0.available_permits(), 10);
    }
}
