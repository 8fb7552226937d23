use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// What a handler does with a body.
#[derive(Clone, Copy)]
enum Reads {
    Everything,
    OnePiece,
    Nothing,
}

/// A connection with a server that answers with how many bytes it has read; how often it was polled, and how often its handlers were.
struct Server {
    client: DuplexStream,
    polls: Arc<AtomicUsize>,
    handler_polls: Arc<AtomicUsize>,
}

async fn read(mut body: ClientBody, reads: Reads) -> usize {
    let pieces = match reads {
        Reads::Everything => usize::MAX,
        Reads::OnePiece => 1,
        Reads::Nothing => 0,
    };
    let mut length = 0;
    for _ in 0..pieces {
        let Some(frame) = body.frame().await else { break };
        length += frame.expect("a frame").data_ref().map_or(0, Bytes::len);
    }
    length
}

fn serve(reads: Reads) -> Server {
    let (client, server) = duplex(64 * 1024);
    let (polls, handler_polls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, handlers) = (Arc::clone(&polls), Arc::clone(&handler_polls));
    tokio::spawn(async move {
        let task = Arc::new(ConnectionTask::default());
        let waker = Waker::from(Arc::clone(&task));
        let service = service_fn(|request: Request<Incoming>| {
            let body = ClientBody::new(request.into_body(), Arc::clone(&task));
            let handlers = Arc::clone(&handlers);
            async move {
                let mut read = pin!(read(body, reads));
                let length = poll_fn(|cx| {
                    handlers.fetch_add(1, Ordering::SeqCst);
                    read.as_mut().poll(cx)
                })
                .await;
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(length.to_string())))
            }
        });
        let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(server), service));
        let ended = poll_fn(|cx| {
            counted.fetch_add(1, Ordering::SeqCst);
            task.drive(connection.as_mut(), &waker, cx)
        })
        .await;
        task.ended();
        // Of a body that was not read the rest may be missing when the client goes.
        drop(ended);
    });
    Server { client, polls, handler_polls }
}

impl Server {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).await.expect("written");
    }

    /// The next answer's body.
    async fn answer(&mut self) -> String {
        let mut read = Vec::new();
        let whole = async {
            while !read.ends_with(b"\r\n\r\n") {
                read.push(self.client.read_u8().await.expect("a byte"));
            }
            let head = String::from_utf8_lossy(&read).to_lowercase();
            let (_, rest) = head.split_once("content-length: ").expect("a length");
            let length: usize = rest.lines().next().expect("a line").parse().expect("a number");
            let mut body = vec![0; length];
            self.client.read_exact(&mut body).await.expect("a body");
            String::from_utf8(body).expect("text")
        };
        tokio::time::timeout(Duration::from_secs(20), whole).await.expect("in time")
    }
}

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n")
}

#[tokio::test]
async fn a_request_that_is_all_there_is_looked_at_once() {
    let mut server = serve(Reads::Everything);
    for requests in 1..=5 {
        server.send(post(4) + "body").await;
        assert_eq!(server.answer().await, "4");
        assert_eq!(server.handler_polls.load(Ordering::SeqCst), requests);
        // Once when the connection was opened, unless the first request was there by then.
        let polls = server.polls.load(Ordering::SeqCst);
        assert!(polls <= requests + 1, "{polls} looks at {requests} requests");
    }
}

#[tokio::test]
async fn what_comes_in_pieces_comes_whole() {
    let mut server = serve(Reads::Everything);
    let length = 3 << 20;
    server.send(post(length)).await;
    for piece in vec![b'x'; length].chunks(100_000) {
        server.send(piece).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(server.answer().await, length.to_string());
    let chunked = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    for piece in [chunked, "2\r\nab\r\n", "3\r", "\ncde\r\n", "0\r\n\r\n"] {
        server.send(piece).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.answer().await, "5");
}

#[tokio::test]
async fn who_waits_to_be_asked_for_the_body_is_asked() {
    let mut server = serve(Reads::Everything);
    server.send("POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
    let mut told = [0; 25];
    let read = server.client.read_exact(&mut told);
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time").expect("read");
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    server.send("body").await;
    assert_eq!(server.answer().await, "4");
}

#[tokio::test]
async fn a_body_that_is_not_read_to_its_end_keeps_no_answer_back() {
    for reads in [Reads::Nothing, Reads::OnePiece] {
        let mut server = serve(reads);
        server.send(post(20_000) + &"x".repeat(10_000)).await;
        let read: usize = server.answer().await.parse().expect("a number");
        assert!(read <= 10_000, "{read}");
        // What comes late is read and forgotten, or meets a closed connection.
        let _ = server.client.write_all("x".repeat(10_000).as_bytes()).await;
        let _ = server.client.write_all((post(4) + "body").as_bytes()).await;
    }
}

#[test]
fn only_what_the_body_wakes_on_its_own_thread_is_held_back() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let woken = Arc::new(Count(AtomicUsize::new(0)));
    let task = Arc::new(ConnectionTask::default());
    let waker = Waker::from(Arc::clone(&task));
    let register = || task.task.register(&Waker::from(Arc::clone(&woken)));
    register();
    let ((), asked) = task.read(|| waker.wake_by_ref());
    assert!(asked && woken.0.load(Ordering::SeqCst) == 0);
    let ((), asked) = task.read(|| {
        std::thread::scope(|scope| scope.spawn(|| waker.wake_by_ref()).join().expect("joined"));
    });
    assert!(!asked && woken.0.load(Ordering::SeqCst) == 1);
    register();
    waker.wake_by_ref();
    assert_eq!(woken.0.load(Ordering::SeqCst), 2);
}
