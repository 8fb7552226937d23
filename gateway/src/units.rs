//! Values with units on the command line: `1500ms`, `2s`, `5m`, `16Mi`.

use std::time::Duration;

/// Parses a time such as `500ms`, `30s`, `10m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let remedy =
        || format!("{text:?} is not a time; write a whole number with a unit, such as 500ms, 30s, 10m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(remedy)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| remedy())?;
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(remedy()),
    };
    number.checked_mul(scale).map(Duration::from_millis).ok_or_else(remedy)
}

/// Parses a size in bytes, plain or with the unit Ki, Mi or Gi.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let remedy = || {
        format!(
            "{text:?} is not a size; write a whole number of bytes, or one with Ki, Mi or Gi, such as 16Mi"
        )
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().map_err(|_| remedy())?;
    let shift = match unit {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => return Err(remedy()),
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(remedy)
}

/// The same, or 0.
pub fn parse_bytes_or_none(text: &str) -> Result<usize, String> {
    if text == "0" { Ok(0) } else { parse_bytes(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "10", "s", "-1s", "1.5s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("1024"), Ok(1024));
        assert_eq!(parse_bytes("16Mi"), Ok(16 << 20));
        assert_eq!((parse_bytes_or_none("0"), parse_bytes_or_none("2Ki")), (Ok(0), Ok(2048)));
        for bad in ["", "0", "Mi", "1MB", "-1", "99999999999999999999Gi"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
