//! Numbers with units, short enough for a table.

/// `45s`, `5m48s`, `2h05m`.
pub fn span(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// Seconds of a latency: `850us`, `12ms`, `1.24s`, `75s`.
pub fn latency(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "never".to_owned(),
        s if s < 0.001 => format!("{:.0}us", s * 1e6),
        s if s < 0.01 => format!("{:.1}ms", s * 1e3),
        s if s < 1.0 => format!("{:.0}ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2}s"),
        s => format!("{s:.0}s"),
    }
}

/// A share of one in percent: `0.25 %`, `12.5 %`, `100 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", short(share * 100.0))
}

/// At most two decimals, and no more than needed.
pub fn short(value: f64) -> String {
    if !value.is_finite() {
        return if value > 0.0 {
            "∞".to_owned()
        } else if value < 0.0 {
            "-∞".to_owned()
        } else {
            "?".to_owned()
        };
    }
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 59, 348, 7500].map(span), ["0s", "59s", "5m48s", "2h05m"]);
        assert_eq!(
            [0.00085, 0.0042, 0.12, 1.236, 75.0, f64::INFINITY].map(latency),
            ["850us", "4.2ms", "120ms", "1.24s", "75s", "never"]
        );
        assert_eq!([0.0025, 0.125, 1.0].map(percent), ["0.25 %", "12.5 %", "100 %"]);
        assert_eq!([f64::INFINITY, f64::NAN, -0.5].map(short), ["∞", "?", "-0.5"]);
    }
}
