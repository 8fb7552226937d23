use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// A runtime of one worker, which tells before it waits.
fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .on_thread_park(worker_waits)
        .build()
        .expect("a runtime")
}

async fn pair() -> (SmallWrites, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
    let (theirs, _) = listener.accept().await.expect("accepted");
    // Writable as far as is known here.
    stream.writable().await.expect("writable");
    (SmallWrites::new(stream), theirs)
}

/// What has come so far.
fn here(stream: &TcpStream) -> Vec<u8> {
    let mut read = vec![0; 64 << 10];
    match stream.try_read(&mut read) {
        Ok(length) => read.truncate(length),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            read.clear();
        }
    }
    read
}

async fn on_worker<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(work).await.expect("no panic")
}

#[test]
fn a_worker_keeps_small_writes_until_it_waits() {
    runtime().block_on(on_worker(async {
        let (mut ours, mut theirs) = pair().await;
        // The worker has waited meanwhile, so it keeps writes from now on.
        ours.write_all(b"he").await.expect("kept");
        ours.write_all(b"llo").await.expect("kept");
        ours.flush().await.expect("nothing is in the way");
        let kept = ours.writer.lock().bytes.clone();
        assert_eq!(kept, b"hello");
        let mut read = [0; 5];
        theirs.read_exact(&mut read).await.expect("sent before the worker waited");
        assert_eq!(&read, b"hello");
        assert_eq!(ours.writer.lock().bytes.capacity(), 0, "nothing is held while there is nothing to write");
    }));
}

#[tokio::test]
async fn a_thread_that_is_not_told_keeps_nothing() {
    let (mut ours, theirs) = pair().await;
    ours.write_all(b"now").await.expect("written");
    theirs.readable().await.expect("readable");
    assert_eq!(here(&theirs), b"now");
    assert!(ours.writer.lock().bytes.is_empty());
}

#[test]
fn what_was_kept_for_long_goes_out_while_the_worker_is_busy() {
    runtime().block_on(on_worker(async {
        let (mut ours, theirs) = pair().await;
        let (mut busy, mut other) = pair().await;
        other.write_all(&[7; 4096]).await.expect("written");
        ours.write_all(b"kept").await.expect("kept");
        std::thread::sleep(2 * LONGEST);
        assert_eq!(ours.writer.lock().bytes, b"kept");
        // Another connection is read; the worker does not wait for it.
        let read = futures::poll!(std::pin::pin!(busy.read_u8()));
        assert!(read.is_ready() || read.is_pending());
        assert!(ours.writer.lock().bytes.is_empty(), "it went out all the same");
        drop(theirs);
    }));
}

#[test]
fn what_is_large_goes_out_at_once_and_in_order() {
    runtime().block_on(on_worker(async {
        let (mut ours, mut theirs) = pair().await;
        let large = vec![b'l'; SMALL + 1];
        ours.write_all(b"small").await.expect("kept");
        assert_eq!(ours.write(&large).await.expect("written"), large.len());
        assert!(ours.writer.lock().bytes.is_empty());
        ours.write_all(b"end").await.expect("kept");
        ours.shutdown().await.expect("all is written first");
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.expect("to the end");
        assert_eq!(read, [b"small", &large[..], b"end"].concat());
    }));
}

#[test]
fn what_was_kept_goes_out_though_the_connection_is_dropped() {
    runtime().block_on(on_worker(async {
        let (mut ours, mut theirs) = pair().await;
        ours.write_all(b"last words").await.expect("kept");
        drop(ours);
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.expect("to the end");
        assert_eq!(read, b"last words");
    }));
}

#[test]
fn a_peer_that_takes_nothing_holds_writes_up_and_loses_none() {
    runtime().block_on(on_worker(async {
        let (mut ours, mut theirs) = pair().await;
        let writing = tokio::spawn(async move {
            let mut sent: Vec<u8> = Vec::new();
            for number in 0_u32..20_000 {
                let piece = [number.to_le_bytes(); 250].concat();
                ours.write_all(&piece).await.expect("kept or written");
                ours.flush().await.expect("flushed");
                sent.extend_from_slice(&piece);
            }
            ours.shutdown().await.expect("all is written first");
            sent
        });
        // 20 MB are more than the kernel keeps for both.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!writing.is_finished(), "it waits");
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.expect("to the end");
        assert!(writing.await.expect("no panic") == read, "every byte, in order");
    }));
}

#[test]
fn what_goes_wrong_later_is_told() {
    runtime().block_on(on_worker(async {
        let (mut ours, theirs) = pair().await;
        // A reset and no mere end: bytes that were sent are not read.
        ours.write_all(b"unread").await.expect("kept");
        theirs.readable().await.expect("readable");
        drop(theirs);
        let failed = async {
            loop {
                ours.write_all(b"more").await?;
                ours.flush().await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let failed: io::Result<()> =
            tokio::time::timeout(Duration::from_secs(20), failed).await.expect("in time");
        let kind = failed.expect_err("nobody is there").kind();
        assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind}");
    }));
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_waits_for_a_connection_is_woken_for_it_whoever_wrote() {
    runtime().block_on(on_worker(async {
        let (mut ours, mut theirs) = pair().await;
        let large = vec![7; 1 << 20];
        let mut sent = 0;
        while let Poll::Ready(written) = futures::poll!(std::pin::pin!(ours.write(&large))) {
            sent += written.expect("written");
        }
        // The kernel takes no more. What follows is written for nobody, as connections to pods are driven.
        let woken = Arc::new(Woken::default());
        {
            let nobody = &mut Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut ours).poll_write(nobody, b"tail").is_ready());
            assert!(Pin::new(&mut ours).poll_flush(nobody).is_ready());
            let waiting = Waker::from(Arc::clone(&woken));
            assert!(Pin::new(&mut ours).poll_flush(&mut Context::from_waker(&waiting)).is_ready());
        }
        flush_list();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1, "the other side takes no more");
        let reading = tokio::spawn(async move {
            let mut read = vec![0; sent + 4];
            theirs.read_exact(&mut read).await.expect("read");
            read.split_off(sent)
        });
        ours.flush().await.expect("the other side takes all");
        assert_eq!(reading.await.expect("no panic"), b"tail");
    }));
}
