//! `top`: what each backend is doing now, from the metrics of every gateway.

mod metrics;
mod render;
mod window;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::Request;
use http_body_util::Full;

use crate::cli::{self, Connection, Format, route_name};
use crate::connect::Session;
use crate::fault::Fault;
use crate::gateway::Gateway;
use crate::output;
use crate::route::{self, Route};
use crate::screen::Screen;

use metrics::Counters;
use window::{Look, Top, between};

/// While it watches, rates and times are of this time at most.
const WINDOW: Duration = Duration::from_secs(60);

/// Runs it.
///
/// # Errors
/// [`Fault`] where routes or gateways cannot be read.
pub async fn run(connection: &Connection, arguments: cli::Top) -> Result<u8, Fault> {
    let cli::Top { route, all_namespaces, watch, interval, gateway, output } = arguments;
    let source = if gateway.is_empty() {
        let session = Session::open(connection).await?;
        Source::Cluster {
            session,
            route: route.as_deref().map(|name| route_name(name).to_owned()),
            all_namespaces,
        }
    } else {
        let gateways = gateway.iter().map(|url| Gateway::at(url)).collect::<Result<_, _>>()?;
        Source::Named { gateways, route }
    };
    let mut screen = Screen::new();
    let mut looks: VecDeque<(Instant, Look)> = VecDeque::from([(Instant::now(), source.look().await?.0)]);
    loop {
        tokio::time::sleep(interval).await;
        let (look, silent) = source.look().await?;
        let now = Instant::now();
        let routes = source.routes().await?;
        looks.push_back((now, look));
        // The first look of the window is just outside of it.
        while looks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            looks.pop_front();
        }
        let (Some((begin, then)), Some((_, look))) = (looks.front(), looks.back()) else { continue };
        let window = now.duration_since(*begin);
        let top = Top {
            window_seconds: (window.as_secs_f64() * 10.0).round() / 10.0,
            gateways: look.len(),
            silent,
            in_flight: look.values().map(|counters| counters.in_flight).sum(),
            backends: source.chosen(between(then, look, window, routes.as_deref())),
        };
        match output {
            Some(Format::Yaml) if watch => {
                output::print(&format!("---\n{}", output::text(Format::Yaml, &top)?))?;
            }
            Some(format) => output::print(&output::text(format, &top)?)?,
            None => {
                let text = render::text(&top, screen.width(), screen.paint());
                if watch && screen.is_live() { screen.draw(&text)? } else { output::print(&text)? }
            }
        }
        if !watch {
            return Ok(0);
        }
    }
}

/// Where routes and counters come from.
enum Source {
    Cluster {
        session: Session,
        route: Option<String>,
        all_namespaces: bool,
    },
    /// Gateways that run by hand, or whose ports somebody has forwarded: their routes are known from their metrics alone.
    Named {
        gateways: Vec<Gateway>,
        route: Option<String>,
    },
}

impl Source {
    /// What every gateway says, and which say nothing.
    async fn look(&self) -> Result<(Look, Vec<String>), Fault> {
        let found;
        let gateways = match self {
            Self::Cluster { session, .. } => {
                found = Gateway::all(session).await?;
                &found
            }
            Self::Named { gateways, .. } => gateways,
        };
        let answers = join_all(gateways.iter().map(counters)).await;
        let (mut look, mut silent, mut last) = (Look::new(), Vec::new(), None);
        for (gateway, answer) in gateways.iter().zip(answers) {
            match answer {
                Ok(counters) => {
                    look.insert(gateway.name.clone(), counters);
                }
                Err(fault) => {
                    silent.push(fault.to_string());
                    last = Some(fault);
                }
            }
        }
        // One that answers is worth showing; none at all is an error.
        match last.filter(|_| look.is_empty()) {
            Some(fault) => Err(fault),
            None => Ok((look, silent)),
        }
    }

    async fn routes(&self) -> Result<Option<Vec<Route>>, Fault> {
        let Self::Cluster { session, route, all_namespaces } = self else { return Ok(None) };
        Ok(Some(match route {
            Some(name) => vec![route::get(session, name).await?],
            None if *all_namespaces => route::list(session, None).await?,
            None => route::list(session, Some(&session.namespace)).await?,
        }))
    }

    fn chosen(&self, backends: Vec<window::Backend>) -> Vec<window::Backend> {
        let Self::Named { route: Some(wanted), .. } = self else { return backends };
        let is_wanted = |backend: &window::Backend| {
            *wanted == backend.route || *wanted == format!("{}/{}", backend.namespace, backend.route)
        };
        backends.into_iter().filter(is_wanted).collect()
    }
}

async fn counters(gateway: &Gateway) -> Result<Counters, Fault> {
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = http::Uri::from_static("/metrics");
    let answer = gateway.ask(request).await?;
    if !answer.status.is_success() {
        return Err(Fault::new(format!(
            "the gateway {} answers /metrics with {}",
            gateway.name, answer.status
        )));
    }
    Ok(Counters::parse(&String::from_utf8_lossy(&answer.body)))
}
