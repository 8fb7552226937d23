//! One HTTP/1.1 listener: accepts, limits, serves, and leaves without cutting anybody off. Used for the API and for /metrics.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::GatewayBody;
use crate::client_body::{ClientBody, ConnectionTask};
use crate::metrics::Metrics;
use crate::small_writes::SmallWrites;
use crate::stall::StallGuard;

/// What a listener allows its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections; more wait in the kernel's queue.
    pub connections: u32,
    /// How long a request's headers, and the pause before them, may take.
    pub header_read_timeout: Duration,
    /// How long a client may take no bytes.
    pub write_stall_timeout: Duration,
}

/// Serves until `stop`: then nothing more is accepted, idle connections are closed, and running requests finish unless
/// `abort` comes first. Returns when the last connection is closed.
pub async fn serve<H, F>(
    listener: TcpListener,
    limits: Limits,
    metrics: Option<Arc<Metrics>>,
    handler: H,
    stop: CancellationToken,
    abort: CancellationToken,
) where
    H: Fn(Request<ClientBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<GatewayBody>> + Send + 'static,
{
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(limits.connections as usize));
    loop {
        let accepted = async {
            // Never closed, so this waits for a place and nothing else.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => match accepted {
                Some((place, Ok((stream, _)))) => (place, stream),
                Some((_, Err(error))) => {
                    // Out of file descriptors, or the client has gone already: neither is a reason to stop.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                None => break,
            },
            () = stop.cancelled() => break,
        };
        // Children, because each connection looks at its token whenever it is woken, and looking locks.
        let (stop, abort) = (stop.child_token(), abort.child_token());
        let (handler, metrics) = (handler.clone(), metrics.clone());
        connections.spawn(async move {
            let _place = place;
            if let Some(metrics) = &metrics {
                metrics.connection(true);
            }
            connection(stream, limits, handler, stop, abort).await;
            if let Some(metrics) = &metrics {
                metrics.connection(false);
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection<H, F>(
    stream: TcpStream,
    limits: Limits,
    handler: H,
    stop: CancellationToken,
    abort: CancellationToken,
) where
    H: Fn(Request<ClientBody>) -> F,
    F: Future<Output = Response<GatewayBody>>,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let io = TokioIo::new(StallGuard::new(SmallWrites::new(stream), limits.write_stall_timeout));
    let task = Arc::new(ConnectionTask::default());
    let waker = Waker::from(Arc::clone(&task));
    let service = service_fn(|request: Request<Incoming>| {
        // In a box: it is large, and hyper and what stands between hand it on from one to the other.
        let answer = Box::pin(handler(request.map(|body| ClientBody::new(body, Arc::clone(&task)))));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = poll_fn(|cx| task.drive(connection.as_mut(), &waker, cx)) => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = poll_fn(|cx| task.drive(connection.as_mut(), &waker, cx)) => ended,
                () = abort.cancelled() => Ok(()),
            }
        }
    };
    task.ended();
    if let Err(error) = ended {
        // Clients come and go as they please; that is worth a line only to who looks for it.
        tracing::debug!(%error, "a connection ended with an error");
    }
}
