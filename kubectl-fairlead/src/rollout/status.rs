//! `rollout status`: once, or until the rollout has ended.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::cli::{self, Format, route_name};
use crate::connect::Session;
use crate::fault::Fault;
use crate::output;
use crate::route::{self, Route};
use crate::screen::Screen;

use super::render;
use super::report::{Report, Standing};

/// How often a terminal is drawn again while nothing changes, for the clocks on it.
const TICK: Duration = Duration::from_secs(1);

/// Runs it.
///
/// # Errors
/// [`Fault`] where the route cannot be read or the time is over.
pub async fn run(session: &Session, arguments: cli::Status) -> Result<u8, Fault> {
    let cli::Status { route, watch, timeout, output } = arguments;
    let name = route_name(&route).to_owned();
    let mut show = Show { screen: Screen::new(), output, last: None };
    let first = route::get(session, &name).await?;
    if !watch {
        let report = Report::of(&first, Timestamp::now());
        show.once(&report)?;
        return Ok(exit_code(&report));
    }
    follow(session, &name, timeout, &mut show).await
}

async fn follow(
    session: &Session,
    name: &str,
    timeout: Option<Duration>,
    show: &mut Show,
) -> Result<u8, Fault> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut changes = pin!(route::watch(session, name));
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut latest: Option<Route> = None;
    loop {
        let over = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(Some(route))) => latest = Some(route),
                Some(Ok(None)) => return Err(Fault::new(format!("the ModelRoute {name} was deleted in the meantime"))),
                Some(Err(fault)) => return Err(fault),
                None => return Err(Fault::new(format!("the watch of the ModelRoute {name} ended; try again"))),
            },
            _ = tick.tick() => if !show.screen.is_live() { continue },
            () = over => return Err(over_words(latest.as_ref(), name, timeout.unwrap_or_default())),
        }
        let Some(route) = &latest else { continue };
        let report = Report::of(route, Timestamp::now());
        show.again(&report)?;
        // A spec that the operator has not seen yet has no end that counts.
        let seen = route.status.observed_generation.is_none_or(|seen| seen >= route.metadata.generation);
        if seen && report.standing() != Standing::UnderWay {
            return Ok(exit_code(&report));
        }
    }
}

fn over_words(latest: Option<&Route>, name: &str, timeout: Duration) -> Fault {
    let state = latest.map(|route| render::line(&Report::of(route, Timestamp::now()))).unwrap_or_default();
    Fault::new(format!(
        "{name} has not ended after {}. It is: {state}",
        crate::render::units::span(timeout.as_secs())
    ))
}

/// As `kubectl rollout status`: 1 for a rollout that failed.
fn exit_code(report: &Report) -> u8 {
    u8::from(report.standing() == Standing::Failed)
}

struct Show {
    screen: Screen,
    output: Option<Format>,
    /// What was printed last.
    last: Option<String>,
}

impl Show {
    fn once(&self, report: &Report) -> Result<(), Fault> {
        let text = match self.output {
            Some(format) => output::text(format, report)?,
            None => render::full(report, Timestamp::now(), self.screen.width(), self.screen.paint()),
        };
        output::print(&text)
    }

    fn again(&mut self, report: &Report) -> Result<(), Fault> {
        if self.output.is_none() && self.screen.is_live() {
            let text = render::full(report, Timestamp::now(), self.screen.width(), self.screen.paint());
            return self.screen.draw(&text);
        }
        // The clocks in it are no news.
        let line = render::line(report);
        if self.last.as_ref() == Some(&line) {
            return Ok(());
        }
        match self.output {
            Some(Format::Yaml) => output::print(&format!("---\n{}", output::text(Format::Yaml, report)?))?,
            Some(format) => output::print(&output::text(format, report)?)?,
            None => output::print(&line)?,
        }
        self.last = Some(line);
        Ok(())
    }
}
