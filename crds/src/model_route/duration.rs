//! Times in specs: `250ms`, `30s`, `1m30s`, `2h`. One reader for the operator and the gateways. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::validation::rule;

/// What the schema lets through.
const PATTERN: &str = "^([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?([0-9]{1,6}ms)?$";

/// The time that a spec's text stands for; `None` for what the schema would refuse, and for none at all.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis: u64 = 0;
    for (unit, scale) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let of_unit = tail.strip_prefix(unit).filter(|_| unit != "m" || !tail.starts_with("ms"));
        if let Some(tail) = of_unit {
            millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(scale)?)?;
            rest = tail;
        }
    }
    (rest.is_empty() && millis > 0).then(|| Duration::from_millis(millis))
}

/// The rule of a field that holds a time.
pub(super) fn rule_for(field: &str) -> Value {
    rule(
        &format!("self.matches('{PATTERN}') && self.matches('[1-9]')"),
        &format!("{field} must be a time above 0, such as 250ms, 30s or 1m30s"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("1m30s", 90_000), ("2h", 7_200_000), ("1h1m1s1ms", 3_661_001)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "0s", "5", "s", "-1s", "1.5s", "1s1m", "1d", "1s ", "99999999999999999999s"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
