//! The life of a serving process: listen, bring the model up, answer, drain.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use fairlead_inference_config::InferenceConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::http::admin::{TOKEN_VARIABLE, admin_router};
use crate::http::router;
use crate::listener::{self, Limits};
use crate::load::{FatalError, bring_up, default_cache_dir};
use crate::startup::Phase;
use crate::state::App;

/// Time for connections to close and the engine's thread to end once nothing is in flight.
const CLOSING: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, then drains. Health and progress are answered from the first moment.
///
/// # Errors
/// [`FatalError`] when the pod cannot become ready.
pub async fn serve(config: InferenceConfig) -> Result<(), FatalError> {
    let mut signals = Signals::new()?;
    let cache_dir = config.model.cache_dir.clone().unwrap_or_else(default_cache_dir);
    let app = App::new(
        config.served_model_names.clone(),
        config.server.revision.as_deref(),
        cache_dir,
        config.task,
    );
    let listen = &config.server.listen;
    let listener = bind("server.listen", listen).await?;
    let admin = match &config.server.admin_listen {
        Some(listen) => {
            let listener = bind("server.adminListen", listen).await?;
            let address =
                listener.local_addr().map_or_else(|_| listen.clone(), |address| address.to_string());
            tracing::info!(%address, "the admin API listens");
            Some(listener)
        }
        None => None,
    };
    let address = listener.local_addr().map_or_else(|_| listen.clone(), |address| address.to_string());
    tracing::info!(%address, models = ?config.served_model_names, "listening");

    let close = CancellationToken::new();
    let serve_http =
        |listener, routes| tokio::spawn(listener::serve(listener, routes, Limits::default(), close.clone()));
    let http = serve_http(listener, router(Arc::clone(&app)));
    if let Some(listener) = admin {
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        if token.is_none() {
            tracing::warn!("{TOKEN_VARIABLE} is not set: whoever reaches the admin API may use it");
        }
        serve_http(listener, admin_router(Arc::clone(&app), token.as_deref()));
    }
    let started = tokio::select! {
        result = bring_up(&app, &config) => Some(result),
        () = signals.next() => None,
    };
    match started {
        Some(Ok(())) => {
            tracing::info!(%address, "ready");
            signals.next().await;
        }
        Some(Err(error)) => {
            app.startup.fail(error.to_string());
            return Err(error);
        }
        None => {
            tracing::info!("told to end while starting");
            return Ok(());
        }
    }

    let (delay, most) = (config.server.drain_delay_seconds, config.server.drain_seconds);
    announce(&app, Duration::from_secs(delay), &mut signals).await;
    drain(&app, Duration::from_secs(most), &mut signals).await;
    close.cancel();
    let closing = async {
        app.drain_engine().await;
        http.await
    };
    if timeout(CLOSING, closing).await.is_err() {
        tracing::warn!("some connections did not close in time");
    }
    app.traces.shutdown().await;
    tracing::info!("ended");
    Ok(())
}

async fn bind(setting: &str, address: &str) -> Result<TcpListener, FatalError> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => "another program listens there; choose another port",
            ErrorKind::PermissionDenied => "choose a port above 1023",
            _ => "it must be HOST:PORT with an address of this machine, such as 127.0.0.1:8000",
        };
        FatalError::pod(format!("{setting}: cannot listen on {address}: {error}; {remedy}"))
    })
}

/// Not ready any more, but still answering: load balancers need a moment to learn of it. A second signal cuts it short.
async fn announce(app: &Arc<App>, delay: Duration, signals: &mut Signals) {
    app.drain.announce();
    app.startup.enter(Phase::Draining);
    if delay.is_zero() {
        return;
    }
    tracing::info!(seconds = delay.as_secs(), "not ready any more, still taking requests");
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = signals.next() => {}
    }
}

/// Lets what is in flight finish; new requests are refused meanwhile. A second signal cuts it short.
async fn drain(app: &Arc<App>, most: Duration, signals: &mut Signals) {
    app.drain.begin();
    let in_flight = app.drain.in_flight();
    tracing::info!(in_flight, seconds = most.as_secs(), "draining");
    tokio::select! {
        result = timeout(most, app.drain.idle()) => {
            if result.is_err() {
                tracing::warn!(in_flight = app.drain.in_flight(), "the drain's time is over; cutting what is left");
            }
        }
        () = signals.next() => tracing::warn!(in_flight = app.drain.in_flight(), "told twice; cutting what is left"),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, FatalError> {
        let listen = |kind| {
            signal(kind).map_err(|error| FatalError::pod(format!("cannot listen for signals: {error}")))
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
