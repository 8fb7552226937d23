//! A connection whose small writes go out together with those of other connections, when the thread has nothing else to do.
//!
//! To send a message wakes whoever waits for it, and to wake a process on another core takes the kernel several microseconds, as
//! much as all that the gateway does with a request; once for several messages is enough. So a worker keeps small writes until it
//! is about to wait for more work, or until it reads or writes when the first of them has waited for [`LONGEST`]; what is larger
//! goes out at once. Under little load a worker has nothing else to do after each write, and nothing is late.
//!
//! Head and body of a message come in pieces of their own. They are copied together, because to hand the kernel a list of pieces
//! takes it half a microsecond longer than to hand it one.
//!
//! Threads keep writes only when the runtime tells them before they wait ([`worker_waits`]); on all others everything goes out at
//! once. Used by `server` and `pool`.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Most bytes of one connection that are kept.
const SMALL: usize = 2048;
/// Most connections whose writes a thread keeps.
const MOST: usize = 64;
/// How long a write is kept by a thread that has other work, if none of that takes longer by itself.
const LONGEST: Duration = Duration::from_micros(500);

/// A connection whose small writes go out together with others'.
#[derive(Debug)]
pub struct SmallWrites {
    reader: OwnedReadHalf,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Writer(Mutex<Kept>);

/// What is to be written.
#[derive(Debug)]
struct Kept {
    stream: OwnedWriteHalf,
    bytes: Vec<u8>,
    /// A thread has it in its list.
    is_listed: bool,
    /// The other side takes no more just now.
    is_blocked: bool,
    /// What went wrong when nobody was there to be told.
    error: Option<io::Error>,
    /// Who goes on when it is blocked.
    task: Option<Waker>,
}

impl SmallWrites {
    /// Takes a connection over.
    pub fn new(stream: TcpStream) -> Self {
        let (reader, stream) = stream.into_split();
        let kept =
            Kept { stream, bytes: Vec::new(), is_listed: false, is_blocked: false, error: None, task: None };
        Self { reader, writer: Arc::new(Writer(Mutex::new(kept))) }
    }

    /// Keeps these pieces, or writes them where they are large or this thread keeps nothing.
    fn keep_or_write(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut kept = self.writer.lock();
        if let Some(error) = kept.error.take() {
            return Poll::Ready(Err(error));
        }
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if kept.is_blocked || kept.bytes.len() + length > SMALL {
            ready!(kept.poll_drain(cx))?;
        }
        if length > SMALL {
            return Pin::new(&mut kept.stream).poll_write_vectored(cx, pieces);
        }
        kept.bytes.reserve_exact(length);
        for piece in pieces {
            kept.bytes.extend_from_slice(piece);
        }
        kept.note_task(cx);
        if kept.is_listed {
            return Poll::Ready(Ok(length));
        }
        kept.is_listed = true;
        drop(kept);
        if let Err(writer) = keep(Arc::clone(&self.writer)) {
            writer.flush();
        }
        Poll::Ready(Ok(length))
    }
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what it can. The connection's task goes on with the rest, and is told what went wrong.
    fn flush(&self) {
        let mut kept = self.lock();
        kept.is_listed = false;
        while !kept.bytes.is_empty() {
            match kept.stream.try_write(&kept.bytes) {
                Ok(written) => kept.wrote(written),
                Err(error) => {
                    match error.kind() {
                        io::ErrorKind::Interrupted => continue,
                        io::ErrorKind::WouldBlock => kept.is_blocked = true,
                        _ => {
                            kept.bytes = Vec::new();
                            kept.error = Some(error);
                        }
                    }
                    let task = kept.task.take();
                    drop(kept);
                    if let Some(task) = task {
                        task.wake();
                    }
                    return;
                }
            }
        }
    }
}

impl Kept {
    fn wrote(&mut self, bytes: usize) {
        if bytes == self.bytes.len() {
            // An idle connection holds no memory for what it may write.
            self.bytes = Vec::new();
        } else {
            self.bytes.drain(..bytes);
        }
    }

    /// Who goes on when the other side does not take all that is kept.
    fn note_task(&mut self, cx: &Context<'_>) {
        if self.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    /// Writes all that is kept; waits where the other side takes no more.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        while !self.bytes.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.bytes)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => self.wrote(written),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.is_blocked = false;
        Poll::Ready(Ok(()))
    }
}

/// What this thread keeps.
struct List {
    writers: Vec<Arc<Writer>>,
    /// When the first of them came.
    since: Option<Instant>,
    /// The runtime tells this thread before it waits.
    is_told: bool,
}

impl Drop for List {
    fn drop(&mut self) {
        for writer in self.writers.drain(..) {
            writer.flush();
        }
    }
}

thread_local! {
    static LIST: RefCell<List> =
        const { RefCell::new(List { writers: Vec::new(), since: None, is_told: false }) };
}

/// Puts a writer into this thread's list, which goes out when it is full or old. The writer comes back where there is none.
fn keep(writer: Arc<Writer>) -> Result<(), Arc<Writer>> {
    LIST.with_borrow_mut(|list| {
        if !list.is_told {
            return Err(writer);
        }
        list.writers.push(writer);
        list.since.get_or_insert_with(Instant::now);
        Ok(())
    })?;
    flush_old();
    Ok(())
}

/// Writes what this thread keeps if it is enough, or has been kept for long.
fn flush_old() {
    let is_due = LIST.with_borrow(|list| {
        list.writers.len() >= MOST || list.since.is_some_and(|since| since.elapsed() >= LONGEST)
    });
    if is_due {
        flush_list();
    }
}

fn flush_list() {
    // Nothing of it is borrowed while it is written, which wakes tasks.
    let mut writers = LIST.with_borrow_mut(|list| {
        list.since = None;
        std::mem::take(&mut list.writers)
    });
    for writer in writers.drain(..) {
        writer.flush();
    }
    // Its memory is used again.
    LIST.with_borrow_mut(|list| {
        if list.writers.is_empty() {
            list.writers = writers;
        }
    });
}

/// This thread is about to wait for work, and will say so each time: it writes what it keeps, and keeps writes from now on. For
/// [`tokio::runtime::Builder::on_thread_park`] and nothing else.
pub fn worker_waits() {
    LIST.with_borrow_mut(|list| list.is_told = true);
    flush_list();
}

impl AsyncRead for SmallWrites {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A thread that has nothing to do but to read, and no end of that, writes too.
        flush_old();
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for SmallWrites {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.keep_or_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.keep_or_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is kept goes out by itself; only what the other side does not take is waited for.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut kept = self.writer.lock();
        if kept.is_blocked || kept.error.is_some() {
            return kept.poll_drain(cx);
        }
        if !kept.bytes.is_empty() {
            // Connections to pods are driven for nobody first: who wrote need not be who waits.
            kept.note_task(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut kept = self.writer.lock();
        ready!(kept.poll_drain(cx))?;
        Pin::new(&mut kept.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
