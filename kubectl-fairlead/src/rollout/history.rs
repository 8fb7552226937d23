//! `rollout history`: every move that is remembered.

use jiff::Timestamp;

use crate::cli::{self, route_name};
use crate::connect::Session;
use crate::fault::Fault;
use crate::output;
use crate::route;
use crate::screen::Screen;

use super::render;
use super::report::Report;

/// Runs it.
///
/// # Errors
/// [`Fault`] where the route cannot be read.
pub async fn run(session: &Session, arguments: &cli::History) -> Result<u8, Fault> {
    let cli::History { route, output } = arguments;
    let now = Timestamp::now();
    let report = Report::of(&route::get(session, route_name(route)).await?, now);
    let screen = Screen::new();
    let text = match output {
        Some(format) => output::text(*format, &report.history)?,
        None if report.history.is_empty() => format!("{} has had no canary", report.route),
        None => render::moments(&report.history, now, screen.width(), screen.paint()).render(screen.width()),
    };
    output::print(&text)?;
    Ok(0)
}
