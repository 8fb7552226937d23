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
        HeldBody {
            budget: self.clone(),
            copies,
            expected: 0,
            first: None,
            bytes: BytesMut::new(),
            taken: None,
        }
    }
}

/// Connections are read into buffers of 8 KiB and, where much comes, of up to twice what comes.
const SMALLEST_KEPT: usize = 4 << 10;

/// A body that grows.
#[derive(Debug)]
pub struct HeldBody {
    budget: HeldBudget,
    copies: usize,
    expected: usize,
    /// All that there is, while it is in one piece and may stay where it is.
    first: Option<Bytes>,
    bytes: BytesMut,
    taken: Option<OwnedSemaphorePermit>,
}

impl HeldBody {
    /// Makes room for as much as a sender says will come, or for the beginning of it: words cost nothing, and are believed up to here.
    pub fn expect(&mut self, bytes: usize) {
        const MOST: usize = 1 << 20;
        self.expected = bytes.min(MOST);
    }

    /// Appends bytes; false, and nothing is appended, when the budget is spent.
    #[must_use]
    pub fn push(&mut self, data: &[u8]) -> bool {
        if !self.pay_for(data.len()) {
            return false;
        }
        self.append(data);
        true
    }

    /// As [`Self::push`], and without a copy as long as there is nothing else and the bytes fill a good part of the buffer that they
    /// came in: the whole buffer lives as long as they do.
    #[must_use]
    pub fn keep(&mut self, data: Bytes) -> bool {
        if !self.pay_for(data.len()) {
            return false;
        }
        if self.is_empty() && data.len() >= SMALLEST_KEPT {
            self.first = Some(data);
        } else {
            self.append(&data);
        }
        true
    }

    fn pay_for(&mut self, bytes: usize) -> bool {
        let Ok(count) = u32::try_from(bytes.saturating_mul(self.copies)) else { return false };
        let Ok(more) = Arc::clone(&self.budget.0).try_acquire_many_owned(count) else { return false };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        true
    }

    fn append(&mut self, data: &[u8]) {
        if self.bytes.is_empty() {
            let first = self.first.take().unwrap_or_default();
            self.bytes.reserve(self.expected.max(first.len() + data.len()));
            self.bytes.extend_from_slice(&first);
        }
        self.bytes.extend_from_slice(data);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.first.as_ref().map_or(self.bytes.len(), Bytes::len)
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole body. Counts for as long as any part of it lives.
    pub fn freeze(self) -> Bytes {
        struct Owner {
            bytes: Bytes,
            _taken: Option<OwnedSemaphorePermit>,
        }
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        if self.is_empty() {
            return Bytes::new();
        }
        let bytes = self.first.unwrap_or_else(|| self.bytes.freeze());
        Bytes::from_owner(Owner { bytes, _taken: self.taken })
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

    #[test]
    fn what_comes_in_one_large_piece_is_not_copied_and_counts_all_the_same() {
        let budget = HeldBudget::new(3 * SMALLEST_KEPT);
        let left = || budget.0.available_permits();
        let data = Bytes::from(vec![7; SMALLEST_KEPT]);
        let mut body = budget.body(1);
        assert!(body.keep(data.clone()));
        assert_eq!((body.len(), body.is_empty()), (SMALLEST_KEPT, false));
        let whole = body.freeze();
        assert_eq!((whole.as_ptr(), left()), (data.as_ptr(), 2 * SMALLEST_KEPT));
        drop(whole);
        let mut body = budget.body(1);
        body.expect(8);
        assert!(body.keep(Bytes::new()) && body.keep(data.clone()) && body.keep(Bytes::from_static(b"1234")));
        assert!(!body.keep(vec![0; 2 * SMALLEST_KEPT].into()), "no room");
        assert_eq!(body.len(), SMALLEST_KEPT + 4);
        assert_eq!(body.freeze(), [&data[..], b"1234"].concat());
        let small = data.slice(1..);
        let mut body = budget.body(1);
        assert!(body.keep(small.clone()));
        assert_ne!(body.freeze().as_ptr(), small.as_ptr(), "it would keep a buffer that is much larger");
        assert_eq!(left(), 3 * SMALLEST_KEPT);
    }
}
