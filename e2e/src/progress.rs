//! What a person sees while something takes long.
//!
//! Owns: the display, a bar on a terminal and plain lines elsewhere. Must not: decide anything. Called by every phase.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a task that is not on a terminal says that it is still running.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// One line about something that happened.
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// A running task; it stops being shown when it is finished or dropped.
pub struct Task {
    title: String,
    started: Instant,
    bar: Option<ProgressBar>,
    ticker: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Task {
    /// Shows `title` until the task is finished; `expected` is how long it takes with nothing cached.
    pub fn start(title: &str, expected: Duration) -> Self {
        let started = Instant::now();
        if std::io::stderr().is_terminal() {
            return Self { title: title.into(), started, bar: Some(bar(title, expected)), ticker: None };
        }
        let about = human(expected);
        say(&format!("{title} (about {about})"));
        let (stop, stopped) = sync_channel::<()>(1);
        let name = title.to_owned();
        let ticker = std::thread::spawn(move || {
            while stopped.recv_timeout(PLAIN_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                say(&format!("  {name}: {} of about {about}", human(started.elapsed())));
            }
        });
        Self { title: title.into(), started, bar: None, ticker: Some((stop, ticker)) }
    }

    /// Ends the task, says how long it took and returns that.
    pub fn finish(mut self) -> Duration {
        let took = self.started.elapsed();
        self.clear();
        say(&format!("{}: done in {}", self.title, human(took)));
        took
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some((stop, ticker)) = self.ticker.take() {
            drop(stop);
            // The ticker only sleeps and prints; were it to fail there would be nothing to do about it.
            let _ = ticker.join();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar(title: &str, expected: Duration) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(format!("{title} (about {})", human(expected)));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A duration as people write it: `0.4 s`, `12 s`, `4 min 50 s`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if seconds < 60.0 {
        format!("{seconds:.0} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(420)), "0.4 s");
        assert_eq!(human(Duration::from_millis(9_960)), "10 s");
        assert_eq!(human(Duration::from_secs(290)), "4 min 50 s");
    }
}
