//! Costs as people write them: decimals in strings, so that no reader rounds them. Exact, in millionths. Pure.

use std::fmt;

/// What an API server holds a cost against.
pub const PATTERN: &str = "^[0-9]{1,9}([.][0-9]{1,6})?$";
/// Longest cost.
pub const MAX_LENGTH: u32 = 16;

/// What a million tokens cost, in millionths of whatever currency a route counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost(u64);

impl std::str::FromStr for Cost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a cost; write a decimal with at most 9 digits before and 6 behind the point, such as 0.15"
            )
        };
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(whole, 9) || !digits(part, 6) {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let part: u64 = format!("{part:0<6}").parse().map_err(|_| wrong())?;
        Ok(Self(whole * 1_000_000 + part))
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_exact_and_read_back() {
        for (text, millionths) in [("0", 0), ("0.15", 150_000), ("600", 600_000_000), ("0.000001", 1)] {
            let cost: Cost = text.parse().unwrap();
            assert_eq!((cost, cost.to_string().as_str()), (Cost(millionths), text));
        }
        assert_eq!("2.50".parse(), "2.5".parse::<Cost>());
        let all = ["0.1", "0.15", "1", "9", "10"].map(|text| text.parse::<Cost>().unwrap());
        assert!(all.is_sorted());
        for bad in ["", ".", ".5", "1.", "-1", "+1", "1e3", "1,5", "0.0000001", "1234567890", "1.2.3", "free"]
        {
            let error = bad.parse::<Cost>().unwrap_err();
            assert!(error.contains("such as 0.15"), "{bad}: {error}");
        }
    }
}
