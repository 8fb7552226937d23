//! Colours, where there are any.

use console::Style;

/// Whether to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Text as it is.
    pub const PLAIN: Self = Self { on: false };

    /// With colours, or without.
    pub fn new(on: bool) -> Self {
        Self { on }
    }

    fn with(self, style: Style, text: &str) -> String {
        if self.on { style.force_styling(true).apply_to(text).to_string() } else { text.to_owned() }
    }

    /// What is good.
    pub fn good(self, text: &str) -> String {
        self.with(Style::new().green(), text)
    }

    /// What deserves a look.
    pub fn wary(self, text: &str) -> String {
        self.with(Style::new().yellow(), text)
    }

    /// What is bad.
    pub fn bad(self, text: &str) -> String {
        self.with(Style::new().red(), text)
    }

    /// What matters.
    pub fn strong(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    /// What matters less.
    pub fn faint(self, text: &str) -> String {
        self.with(Style::new().dim(), text)
    }

    /// A rollout's phase.
    pub fn phase(self, phase: &str) -> String {
        match phase {
            "Promoted" => self.good(phase),
            "Paused" | "Pending" => self.wary(phase),
            "RolledBack" => self.bad(phase),
            _ => self.strong(phase),
        }
    }

    /// A gate's verdict.
    pub fn verdict(self, verdict: &str) -> String {
        match verdict {
            "Pass" => self.good(verdict),
            "Fail" => self.bad(verdict),
            _ => self.wary(verdict),
        }
    }
}
