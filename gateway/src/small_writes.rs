//! A connection that copies small pieces together before it writes them.
//!
//! Head and body of a message come in pieces of their own. To hand the kernel a list of pieces takes it half a microsecond longer
//! than to hand it one, which is more than to copy a kilobyte. What is larger goes out as it is. Used by `server` and `pool`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use arrayvec::ArrayVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that are copied.
const SMALL: usize = 2048;

/// A connection whose small writes are in one piece.
#[derive(Debug)]
pub struct SmallWrites<S>(pub S);

/// The pieces as one; `None` when only one holds something, or none, or when they are too large.
fn together(pieces: &[IoSlice<'_>]) -> Option<ArrayVec<u8, SMALL>> {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    if length > SMALL || pieces.iter().filter(|piece| !piece.is_empty()).count() < 2 {
        return None;
    }
    let mut one = ArrayVec::new();
    for piece in pieces {
        one.try_extend_from_slice(piece).ok()?;
    }
    Some(one)
}

impl<S: AsyncRead + Unpin> AsyncRead for SmallWrites<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SmallWrites<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = Pin::new(&mut self.0);
        match together(bufs) {
            Some(one) => inner.poll_write(cx, &one),
            None => inner.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_pieces_are_copied_and_large_ones_are_not() {
        let copied = |pieces: &[&[u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            together(&pieces).map(|one| one.to_vec())
        };
        assert_eq!(copied(&[b"head", b"", b"body"]), Some(b"headbody".to_vec()));
        // Nothing to put together.
        assert_eq!(copied(&[]), None);
        assert_eq!(copied(&[b"one", b""]), None);
        let (most, more) = (vec![7; SMALL - 1], vec![7; SMALL]);
        assert_eq!(copied(&[b"x", &most]).map(|copy| copy.len()), Some(SMALL));
        assert_eq!(copied(&[b"x", &more]), None);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_moved(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..900), 0..6)) {
            let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            if let Some(copied) = together(&slices) {
                prop_assert_eq!(copied.to_vec(), pieces.concat());
            }
        }
    }
}
