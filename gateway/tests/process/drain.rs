//! Leaving: not ready at once, still taking requests for a moment, never cutting a stream that ends in time.

use futures::StreamExt;
use nix::sys::signal::Signal;

use crate::harness::{Gateway, eventually, route, within};
use crate::worker::Worker;

#[tokio::test]
async fn a_drain_finishes_streams_and_takes_requests_until_balancers_know() {
    let mut worker = Worker::start().await;
    let manifests = route("chat", &[("v1", 1, &[&worker.url()])]);
    let mut gateway = Gateway::start(&manifests, &["--drain-delay", "1h"]).await;
    let (response, sending) = tokio::join!(gateway.chat("chat", true), async {
        let sending = worker.call().await.stream();
        sending.send("data: 1\n\n").await;
        sending
    });
    let mut stream = response.bytes_stream();
    within("a chunk", stream.next()).await.expect("a chunk").expect("no error");

    assert_eq!(gateway.admin("/readyz").await.0, 200);
    gateway.signal(Signal::SIGTERM);
    eventually("it is not ready any more", || async {
        let (status, text) = gateway.admin("/readyz").await;
        status == 503 && text.contains("draining")
    })
    .await;
    assert_eq!(gateway.admin("/healthz").await.0, 200);
    let late = gateway.client.get(gateway.url("/v1/models")).send().await.expect("still taken");
    assert_eq!(late.status(), 200);
    assert_eq!(late.headers()["connection"], "close");

    // A second signal ends the wait for balancers, so that the test need not sit it out.
    gateway.signal(Signal::SIGTERM);
    // A client without a connection of its own: the listener must be closed for it.
    eventually("nothing more is taken", || async {
        let fresh = reqwest::Client::builder().no_proxy().build().expect("a client");
        fresh.get(gateway.url("/v1/models")).send().await.is_err()
    })
    .await;
    assert!(gateway.child.try_wait().expect("status").is_none(), "the stream is not over");
    sending.send("data: 2\n\n").await;
    let chunk = within("a chunk", stream.next()).await.expect("a chunk").expect("no error");
    assert_eq!(chunk, "data: 2\n\n");
    sending.send("data: [DONE]\n\n").await;
    drop(sending);
    let last = within("a chunk", stream.next()).await.expect("a chunk").expect("no error");
    assert_eq!(last, "data: [DONE]\n\n");
    assert!(within("the end", stream.next()).await.is_none());
    drop(stream);
    let status = within("it ends", gateway.child.wait()).await.expect("status");
    assert!(status.success());
}

#[tokio::test]
async fn the_deadline_ends_a_stream_that_does_not_end() {
    let mut worker = Worker::start().await;
    let manifests = route("chat", &[("v1", 1, &[&worker.url()])]);
    let mut gateway = Gateway::start(&manifests, &["--drain-delay", "0s", "--drain-seconds", "0"]).await;
    let (_response, sending) = tokio::join!(gateway.chat("chat", true), async {
        let sending = worker.call().await.stream();
        sending.send("data: 1\n\n").await;
        sending
    });
    gateway.signal(Signal::SIGTERM);
    let status = within("it ends", gateway.child.wait()).await.expect("status");
    assert!(status.success());
    sending.abandoned().await;
}

#[tokio::test]
async fn ctrl_c_without_traffic_ends_at_once() {
    let mut gateway =
        Gateway::start(&route("chat", &[("v1", 1, &["http://127.0.0.1:1"])]), &["--drain-delay", "1h"]).await;
    gateway.signal(Signal::SIGINT);
    assert!(within("it ends", gateway.child.wait()).await.expect("status").success());
}
