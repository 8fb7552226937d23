//! Shares as people read them. Pure; used by the operator for status and by the gateways for answers.

/// A weight in percent of the total, with at most two decimals.
pub fn percent(weight: u32, total: u64) -> String {
    let total = total.max(1);
    let hundredths = (u64::from(weight) * 10_000 + total / 2) / total;
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A split in one line: `v1=80 v2=20`. Those without a weight are left out; empty when there is none.
pub fn line<'a>(shares: impl Iterator<Item = (&'a str, u32)> + Clone) -> String {
    let total: u64 = shares.clone().map(|(_, weight)| u64::from(weight)).sum();
    let shares = shares.filter(|(_, weight)| *weight > 0);
    let parts: Vec<String> =
        shares.map(|(name, weight)| format!("{name}={}", percent(weight, total))).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_in_one_line() {
        assert_eq!(line([("a", 285), ("b", 95), ("off", 0), ("c", 20)].into_iter()), "a=71.25 b=23.75 c=5");
        assert_eq!(line([("a", 1), ("b", 1), ("c", 1)].into_iter()), "a=33.33 b=33.33 c=33.33");
        assert_eq!(line([("a", 0)].into_iter()), "");
        assert_eq!(line([("a", u32::MAX), ("b", u32::MAX)].into_iter()), "a=50 b=50");
    }
}
