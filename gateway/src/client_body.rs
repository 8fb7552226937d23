//! A request's body as it comes from its client, read in the task that drives the client's connection.
//!
//! Connection and body wake each other: the connection with each piece that it has, the body with each that it takes. As both are one
//! task, that would have it look at everything once more for each request, in vain. So nobody is woken for a piece, since whoever reads
//! the connection looks at the body next, and what the body asks of the connection is held back until it has to wait for more.
//! Used by `server`.

use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The task of a connection, as all that the connection waits for wakes it.
#[derive(Debug, Default)]
pub struct ConnectionTask {
    task: AtomicWaker,
    /// The thread that is reading a body just now; 0 when none is.
    reader: AtomicUsize,
    /// The body has asked the connection for more meanwhile.
    asked: AtomicBool,
}

impl ConnectionTask {
    /// Polls the connection for the task that `cx` is of. `waker` is this one's own.
    pub fn drive<F: Future>(
        &self,
        connection: Pin<&mut F>,
        waker: &Waker,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        self.task.register(cx.waker());
        connection.poll(&mut Context::from_waker(waker))
    }

    /// The connection is no more. What still knows of it keeps nothing of the task alive.
    pub fn ended(&self) {
        drop(self.task.take());
    }

    /// Polls a body; also whether it has asked the connection for more.
    fn read<T>(&self, poll: impl FnOnce() -> T) -> (T, bool) {
        self.reader.store(this_thread(), Ordering::Relaxed);
        let polled = poll();
        self.reader.store(0, Ordering::Relaxed);
        (polled, self.asked.swap(false, Ordering::Relaxed))
    }
}

impl Wake for ConnectionTask {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // What wakes it from other threads has nothing to do with the body, and is not held back.
        if self.reader.load(Ordering::Relaxed) == this_thread() {
            self.asked.store(true, Ordering::Relaxed);
        } else {
            self.task.wake();
        }
    }
}

/// Tells the threads that run now from each other; never 0.
fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| ptr::from_ref(place).addr())
}

/// A request's body.
#[derive(Debug)]
pub struct ClientBody {
    incoming: Incoming,
    connection: Arc<ConnectionTask>,
    /// It has asked the connection for more, which does not know yet.
    asks: bool,
}

impl ClientBody {
    /// A body that comes by this connection.
    pub fn new(incoming: Incoming, connection: Arc<ConnectionTask>) -> Self {
        Self { incoming, connection, asks: false }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let incoming = Pin::new(&mut this.incoming);
        let nobody = &mut Context::from_waker(Waker::noop());
        let (frame, asked) = this.connection.read(|| incoming.poll_frame(nobody));
        this.asks |= asked;
        match &frame {
            Poll::Pending if this.asks => {
                this.asks = false;
                cx.waker().wake_by_ref();
            }
            Poll::Ready(None) => this.asks = false,
            // All of it is here: what it has asked for is of no use any more.
            Poll::Ready(Some(_)) if this.incoming.is_end_stream() => this.asks = false,
            Poll::Pending | Poll::Ready(Some(_)) => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if self.asks {
            self.connection.task.wake();
        }
    }
}

#[cfg(test)]
mod tests;
