//! The terminal, or what stands in its place.

use std::io::{self, Write};

use console::Term;

use crate::fault::Fault;
use crate::render::Paint;

/// Columns that are used where there is no terminal: lines of files and pipes may be long.
const UNBOUNDED: usize = 200;

/// Where text goes.
pub struct Screen {
    term: Term,
    drawn: usize,
    live: bool,
}

impl Screen {
    /// The standard output.
    pub fn new() -> Self {
        let term = Term::stdout();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let live = term.is_term() && !dumb;
        Self { term, drawn: 0, live }
    }

    /// Whether text can be drawn over.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.term
            .size_checked()
            .filter(|_| self.live)
            .map_or(UNBOUNDED, |(_, columns)| usize::from(columns).max(1))
    }

    /// Colours on a terminal, unless NO_COLOR says no (<https://no-color.org>).
    pub fn paint(&self) -> Paint {
        Paint::new(self.live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    /// Draws over what was drawn last. On a terminal that is less high than the text its end is cut: what scrolled away cannot be
    /// drawn over.
    ///
    /// # Errors
    /// [`Fault`] where the output cannot be written.
    pub fn draw(&mut self, text: &str) -> Result<(), Fault> {
        let rows = self
            .term
            .size_checked()
            .map_or(usize::MAX, |(rows, _)| usize::from(rows).saturating_sub(1).max(1));
        let width = self.width();
        let lines: Vec<_> =
            text.lines().take(rows).map(|line| console::truncate_str(line, width, "")).collect();
        let mut frame = String::new();
        if self.drawn > 0 {
            frame = format!("\x1b[{}A", self.drawn);
        }
        for line in &lines {
            frame.push_str("\r\x1b[K");
            frame.push_str(line);
            frame.push('\n');
        }
        frame.push_str("\x1b[J");
        self.drawn = lines.len();
        let mut out = io::stdout().lock();
        out.write_all(frame.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Fault::new(format!("the output could not be written: {error}")))
    }
}
