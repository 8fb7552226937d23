//! The process: binds the listeners, starts the source of routes, and leaves in good order when told to.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::config::ServeConfig;
use crate::metrics::Metrics;
use crate::provider::check;
use crate::proxy::Gateway;
use crate::routing::Routing;
use crate::server::{self, Limits};
use crate::sources::{kubernetes, manifests};
use crate::token::AdminToken;

/// Runs the gateway until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: an address is taken, a manifest is wrong, no Kubernetes API is configured.
pub async fn run(config: ServeConfig) -> anyhow::Result<()> {
    anyhow::ensure!(
        config.max_held_bytes / 2 >= config.max_request_bytes,
        "--max-held-bytes {} does not hold one request of --max-request-bytes {}, which counts twice; raise it",
        config.max_held_bytes,
        config.max_request_bytes
    );
    let metrics = Arc::new(Metrics::default());
    let routing = Arc::new(Routing::new(Arc::clone(&metrics)));
    let stop_source = CancellationToken::new();
    let (stop_admin, stop_api, abort) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    raise_file_limit();
    let mut signals = Signals::new().context("signals cannot be received")?;

    let api_listener = bind(config.listen, "--listen").await?;
    let admin_listener = bind(config.admin_listen, "--admin-listen").await?;
    let source = match &config.manifests {
        Some(dir) => {
            let source = manifests::Manifests::load(dir, Arc::clone(&routing), Arc::clone(&metrics))?;
            tokio::spawn(source.follow(stop_source.clone()))
        }
        None => {
            let client = kubernetes::client().await?;
            let (namespace, hosts) = (config.namespace.clone(), config.provider_hosts.clone());
            let (routing, metrics) = (Arc::clone(&routing), Arc::clone(&metrics));
            tokio::spawn(kubernetes::follow(client, namespace, hosts, routing, metrics, stop_source.clone()))
        }
    };
    let mut source = source;
    // Its end would be no reason to end: without it, requests are served all the same.
    let looks = tokio::spawn(check::follow(Arc::clone(&routing), stop_source.clone()));
    tracing::info!(
        api = %api_listener.local_addr()?,
        admin = %admin_listener.local_addr()?,
        "listening"
    );

    let limits = Limits {
        connections: config.max_connections,
        header_read_timeout: config.header_read_timeout,
        write_stall_timeout: config.write_stall_timeout,
    };
    let gateway = Arc::new(Gateway::new(&config, Arc::clone(&routing), Arc::clone(&metrics)));
    let api = {
        let gateway = Arc::clone(&gateway);
        move |request| Arc::clone(&gateway).handle(request)
    };
    let mut api = tokio::spawn(server::serve(
        api_listener,
        limits,
        Some(Arc::clone(&metrics)),
        api,
        stop_api.clone(),
        abort.clone(),
    ));
    let admin = Arc::new(admin::Admin {
        routing: Arc::clone(&routing),
        metrics: Arc::clone(&metrics),
        gateway,
        token: AdminToken::new(config.admin_token_file.clone()),
        instance: uuid::Uuid::new_v4().to_string(),
        max_question: config.max_request_bytes,
    });
    let admin = move |request| {
        let admin = Arc::clone(&admin);
        async move { admin::handle(request, &admin).await }
    };
    let admin_limits = Limits { connections: 64, ..limits };
    let mut admin = tokio::spawn(server::serve(
        admin_listener,
        admin_limits,
        None,
        admin,
        stop_admin.clone(),
        abort.clone(),
    ));

    let delay = tokio::select! {
        told = signals.next() => if told == Told::Terminate { config.drain_delay } else { Duration::ZERO },
        ended = &mut source => anyhow::bail!("the source of routes ended by itself ({ended:?}); this is a bug"),
        ended = &mut api => anyhow::bail!("the API listener ended by itself ({ended:?}); this is a bug"),
        ended = &mut admin => anyhow::bail!("the admin listener ended by itself ({ended:?}); this is a bug"),
    };

    // Not ready any more, but still serving: load balancers need a moment to learn of it.
    routing.start_draining();
    tracing::info!(delay_s = delay.as_secs(), "draining: not ready any more, still taking requests");
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        _ = signals.next() => {}
    }
    stop_api.cancel();
    tracing::info!(deadline_s = config.drain_seconds, "taking no more requests, running ones may finish");
    tokio::select! {
        _ = &mut api => tracing::info!("drained"),
        () = tokio::time::sleep(Duration::from_secs(config.drain_seconds)) => {
            tracing::warn!("the drain deadline has passed; requests that still run are cut off");
        }
        _ = signals.next() => tracing::warn!("told a second time; requests that still run are cut off"),
    }
    abort.cancel();
    stop_admin.cancel();
    stop_source.cancel();
    let _ = looks.await;
    Ok(())
}

/// Two descriptors a request do not go far with the 1024 that many container runtimes hand out; the hard limit is theirs
/// to set, the soft one ours to raise.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
}

async fn bind(address: std::net::SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("{flag} {address} cannot be listened on; choose a free address of this machine")
    })
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// SIGTERM: leave as a pod should.
    Terminate,
    /// SIGINT: somebody pressed Ctrl-C; no load balancer has to learn of it.
    Interrupt,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Terminate,
            _ = self.interrupt.recv() => Told::Interrupt,
        }
    }
}
