//! Shows how far a run is: a bar on a terminal, otherwise a log line for every tenth.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// How far a run is.
#[derive(Debug)]
pub struct Progress {
    all: usize,
    asked: usize,
    errors: usize,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of a run over so many questions.
    pub fn new(all: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(all as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} {eta} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { all, asked: 0, errors: 0, bar }
    }

    /// Another question is done.
    pub fn one_more(&mut self, failed: bool) {
        let tenth = |asked: usize| asked * 10 / self.all.max(1);
        let (asked, errors) = (self.asked + 1, self.errors + usize::from(failed));
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                if failed {
                    bar.set_message(format!("{errors} without an answer"));
                }
            }
            None if tenth(asked) > tenth(self.asked) => {
                tracing::info!(asked, of = self.all, errors, "asking");
            }
            None => {}
        }
        (self.asked, self.errors) = (asked, errors);
    }

    /// All are done.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
