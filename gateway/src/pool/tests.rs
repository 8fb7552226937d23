use super::*;
use http_body_util::BodyExt;
use std::sync::atomic::AtomicUsize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const CHUNKS: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";

/// A server that gives the same answer to every request, and says when a client has closed its connection.
struct Server {
    uri: Uri,
    connections: Arc<AtomicUsize>,
    closed: mpsc::UnboundedReceiver<()>,
}

impl Server {
    /// After `most` answers it closes a connection.
    async fn new(answer: &'static str, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let uri = format!("http://{}/v1/x?y", listener.local_addr().expect("an address"));
        let (tell, closed) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let tell = tell.clone();
                tokio::spawn(async move {
                    let mut read = Vec::new();
                    for _ in 0..most {
                        while !read.ends_with(b"ask") {
                            if stream.read_buf(&mut read).await.expect("read") == 0 {
                                tell.send(()).ok();
                                return;
                            }
                        }
                        assert!(read.starts_with(b"POST /v1/x?y HTTP/1.1\r\nhost: 127.0.0.1:"), "{read:?}");
                        read.clear();
                        stream.write_all(answer.as_bytes()).await.expect("written");
                    }
                    tell.send(()).ok();
                });
            }
        });
        Self { uri: uri.parse().expect("a URI"), connections, closed }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn pool() -> Pool {
    Pool::new(HttpConnector::new())
}

/// Of a request that has time.
fn times() -> (Instant, Instant) {
    let now = Instant::now();
    (now, now + Duration::from_secs(60))
}

async fn ask(pool: &Pool, server: &Server) -> Result<Response<PodBody>, CallError> {
    let request = Request::post(server.uri.clone()).body(Full::from("ask")).expect("a request");
    tokio::time::timeout(Duration::from_secs(20), pool.call(&mut Some(request), times()))
        .await
        .expect("in time")
}

async fn whole(pool: &Pool, server: &Server) -> Result<Bytes, BodyError> {
    let answer = ask(pool, server).await.expect("an answer");
    tokio::time::timeout(Duration::from_secs(20), answer.into_body().collect())
        .await
        .expect("in time")
        .map(http_body_util::Collected::to_bytes)
}

#[tokio::test]
async fn a_connection_is_used_again_and_again() {
    for answer in [WHOLE, CHUNKS, "HTTP/1.1 204 No Content\r\n\r\n"] {
        let (pool, server) = (pool(), Server::new(answer, usize::MAX).await);
        for _ in 0..5 {
            let read = whole(&pool, &server).await.expect("whole");
            assert_eq!(read, if answer.contains("204") { "" } else { "hi" });
        }
        assert_eq!(server.connections(), 1, "{answer}");
    }
}

#[tokio::test]
async fn requests_at_the_same_time_have_connections_of_their_own() {
    let (pool, server) = (pool(), Server::new(WHOLE, usize::MAX).await);
    let first = ask(&pool, &server).await.expect("an answer");
    let second = ask(&pool, &server).await.expect("an answer");
    for answer in [first, second] {
        answer.into_body().collect().await.expect("whole");
    }
    assert_eq!(server.connections(), 2);
    // Both rest, and either will do.
    whole(&pool, &server).await.expect("whole");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_the_pod_closed_costs_no_request() {
    let (pool, mut server) = (pool(), Server::new(WHOLE, 1).await);
    for expected in 1..=4 {
        whole(&pool, &server).await.expect("whole");
        assert_eq!(server.connections(), expected);
        server.closed.recv().await.expect("closed");
        // It rests until what the kernel knows has reached the reactor, or not at all where that was sooner than the answer's end.
        tokio::time::timeout(Duration::from_secs(20), async {
            while !pool.resting.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                pool.resting.close_outworn(Instant::now());
            }
        })
        .await
        .expect("in time");
    }
}

#[tokio::test]
async fn an_answer_that_is_dropped_closes_its_connection() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi";
    let (pool, mut server) = (pool(), Server::new(head, usize::MAX).await);
    let mut answer = ask(&pool, &server).await.expect("an answer");
    let first = answer.body_mut().frame().await.expect("a frame").expect("a piece");
    assert_eq!(first.into_data().expect("data"), "hi");
    drop(answer);
    tokio::time::timeout(Duration::from_secs(20), server.closed.recv())
        .await
        .expect("in time")
        .expect("closed");
}

#[tokio::test]
async fn what_breaks_off_is_an_error_and_does_not_rest() {
    // The pod closes after one answer, which says that it is longer.
    let (pool, server) = (pool(), Server::new("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", 1).await);
    assert!(matches!(whole(&pool, &server).await, Err(BodyError::Broken(_))));
    let server = Server::new("HTTP/1.1 200 OK\r\n", 1).await;
    assert!(matches!(ask(&pool, &server).await, Err(CallError::Broken(_))));
    let server = Server::new("this is no HTTP\r\n\r\n", 1).await;
    assert!(matches!(ask(&pool, &server).await, Err(CallError::Broken(_))));
    assert!(pool.resting.lock().is_empty());
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let request = Request::post(format!("http://{nobody}/")).body(Full::from("ask")).expect("a request");
    assert!(matches!(pool.call(&mut Some(request), times()).await, Err(CallError::Connect(_))));
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let (pool, server) = (pool(), Server::new("HTTP/1.1 200 OK\r\n\r\nhi", 1).await);
    assert_eq!(whole(&pool, &server).await.expect("whole"), "hi");
    assert_eq!(whole(&pool, &server).await.expect("whole"), "hi");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn who_has_rested_for_long_is_closed() {
    let (pool, mut server) = (pool(), Server::new(WHOLE, usize::MAX).await);
    whole(&pool, &server).await.expect("whole");
    let now = Instant::now();
    assert_eq!(pool.resting.close_outworn(now), 0);
    whole(&pool, &server).await.expect("whole");
    assert_eq!(server.connections(), 1, "one that is well is put back");
    assert_eq!(pool.resting.close_outworn(now + LONGEST_REST * 2), 1);
    assert!(pool.resting.lock().is_empty(), "nothing is kept of a pod without connections");
    tokio::time::timeout(Duration::from_secs(20), server.closed.recv())
        .await
        .expect("in time")
        .expect("closed");
}

#[tokio::test]
async fn a_request_that_meets_the_end_of_its_connection_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let pool = pool();
    let request = Request::post(format!("http://{address}/")).body(Full::from("ask")).expect("a request");
    let pod = async {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut read = Vec::new();
        while !read.ends_with(b"ask") {
            stream.read_buf(&mut read).await.expect("read");
        }
        stream.write_all(WHOLE.as_bytes()).await.expect("written");
        stream
    };
    let mut request = Some(request);
    let (answer, stream) = tokio::join!(pool.call(&mut request, times()), pod);
    answer.expect("an answer").into_body().collect().await.expect("whole");
    let (_, rested) = pool.resting.lock().drain().next().expect("a pod");
    let (_, mut line) = rested.into_iter().next().expect("a line that rests");
    drop(stream);
    // The end of a later connection is read, so that of the line has reached the reactor too.
    let mut later = TcpStream::connect(address).await.expect("connected");
    drop(listener.accept().await.expect("accepted"));
    assert_eq!(later.read(&mut [0]).await.expect("read"), 0);
    let request = Request::post("/").body(Full::from("ask")).expect("a request");
    let (_, deadline) = times();
    let unanswered = line.ask(request, deadline).await.expect_err("no answer");
    assert!(unanswered.unsent.is_some(), "{:?}", unanswered.error);
}

#[tokio::test]
async fn a_connection_that_still_sends_its_request_does_not_rest() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let pool = pool();
    // More than the kernel takes of what nobody reads.
    let body = Bytes::from(vec![b'x'; 64 << 20]);
    let request = Request::post(format!("http://{address}/")).body(Full::from(body)).expect("a request");
    let pod = async {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut read = Vec::new();
        while !read.windows(4).any(|end| end == b"\r\n\r\n") {
            stream.read_buf(&mut read).await.expect("read");
        }
        stream.write_all(WHOLE.as_bytes()).await.expect("written");
        stream
    };
    let mut request = Some(request);
    let (answer, _stream) = tokio::join!(pool.call(&mut request, times()), pod);
    answer.expect("an answer").into_body().collect().await.expect("whole");
    assert!(pool.resting.lock().is_empty(), "it would hold the request until somebody looks at it");
}

#[test]
fn hosts_are_named_as_clients_do() {
    for (authority, host) in [("h:80", "h"), ("h:8000", "h:8000"), ("h", "h"), ("[fd00::1]:80", "[fd00::1]")]
    {
        assert_eq!(host_of(&authority.parse().expect("an authority")), host);
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_given_up_with_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let uri = format!("http://{}/v1/x?y", listener.local_addr().expect("an address"));
    let pool = pool();
    let request = || Some(Request::post(&uri).body(Full::from("ask")).expect("a request"));
    let late = |times| {
        let (pool, mut request) = (pool.clone(), request());
        async move { pool.call(&mut request, times).await.map(|_| ()) }
    };
    let now = Instant::now();
    let ((), first) = tokio::join!(
        async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.expect("closed by the gateway");
            assert!(read.ends_with(b"ask"));
        },
        late((now, now + Duration::from_millis(30))),
    );
    assert!(matches!(first, Err(CallError::Late)), "{first:?}");
}

#[tokio::test]
async fn on_a_connection_that_has_rested_a_request_has_the_time_that_is_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let uri = format!("http://{}/v1/x?y", listener.local_addr().expect("an address"));
    let pool = pool();
    let answer = |pool: Pool, time: Duration| {
        let mut request = Some(Request::post(&uri).body(Full::from("ask")).expect("a request"));
        async move {
            let now = Instant::now();
            pool.call(&mut request, (now, now + time)).await?.into_body().collect().await.expect("whole");
            Ok::<(), CallError>(())
        }
    };
    let pod = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut read = Vec::new();
        for (wait, answer) in [(0, WHOLE), (1_200, WHOLE), (0, "")] {
            while !read.ends_with(b"ask") {
                stream.read_buf(&mut read).await.expect("read");
            }
            read.clear();
            tokio::time::sleep(Duration::from_millis(wait)).await;
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
        assert_eq!(stream.read_buf(&mut read).await.expect("closed"), 0);
    };
    let client = async {
        answer(pool.clone(), Duration::from_secs(1)).await.expect("it is there at once");
        let later = tokio::spawn(answer(pool.clone(), Duration::from_secs(60)));
        later.await.expect("no panic").expect("it is there long after the first one's time");
        answer(pool.clone(), Duration::from_millis(30)).await
    };
    let ((), last) = tokio::join!(pod, client);
    assert!(matches!(last, Err(CallError::Late)), "{last:?}");
}
