//! A connection that copies small pieces together before it writes them.
//!
//! Head and body of a message come in pieces of their own. To hand the kernel a list of pieces takes it half a microsecond longer
//! than to hand it one, which is more than to copy a kilobyte. What is larger goes out as it is. Used by `server` and `pool`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that are copied.
const SMALL: usize = 2048;

/// A connection whose small writes are in one piece.
#[derive(Debug)]
pub struct SmallWrites<S>(pub S);

/// Copies the pieces that hold something; `None` when they are one, none, or more than the buffer has room for.
fn together<'a>(pieces: &[IoSlice<'_>], buffer: &'a mut [u8; SMALL]) -> Option<&'a [u8]> {
    let mut length = 0;
    let mut count = 0;
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        let end = length + piece.len();
        buffer.get_mut(length..end)?.copy_from_slice(piece);
        (length, count) = (end, count + 1);
    }
    if count > 1 { buffer.get(..length) } else { None }
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
        let mut buffer = [0; SMALL];
        let inner = Pin::new(&mut self.0);
        match together(bufs, &mut buffer) {
            Some(one) => inner.poll_write(cx, one),
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
        let mut buffer = [0; SMALL];
        let mut copied = |pieces: &[&[u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            together(&pieces, &mut buffer).map(<[u8]>::to_vec)
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
            if let Some(copied) = together(&slices, &mut [0; SMALL]) {
                prop_assert_eq!(copied, pieces.concat());
            }
        }
    }
}
