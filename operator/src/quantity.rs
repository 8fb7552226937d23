//! Kubernetes quantities as whole numbers of bytes, for the plan and for comparing what the API server has rewritten
//! (`1000m` becomes `1`).

/// The value in thousandths, or `None` when it is no quantity.
pub fn thousandths(text: &str) -> Option<i128> {
    let text = text.trim();
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole = whole.trim_start_matches(['+', '-']);
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    let digits =
        |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok().filter(|it| *it >= 0) };
    // In billionths, so that nothing that a quantity can say is lost.
    let billionths = digits(whole)?
        .checked_mul(1_000_000_000)?
        .checked_add(digits(fraction)?.checked_mul(10_i128.pow(9 - u32::try_from(fraction.len()).ok()?))?)?;
    let scaled = scale(billionths, suffix)?;
    let thousandths = scaled.checked_add(999_999)?.div_euclid(1_000_000);
    Some(if negative { -thousandths } else { thousandths })
}

fn scale(value: i128, suffix: &str) -> Option<i128> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(power) = binary.iter().position(|it| *it == suffix) {
        return value.checked_mul(1024_i128.checked_pow(u32::try_from(power).ok()? + 1)?);
    }
    let decimal = ["", "k", "M", "G", "T", "P", "E"];
    if let Some(power) = decimal.iter().position(|it| *it == suffix) {
        return value.checked_mul(1000_i128.checked_pow(u32::try_from(power).ok()?)?);
    }
    match suffix {
        "m" => Some(value / 1_000),
        "u" => Some(value / 1_000_000),
        "n" => Some(value / 1_000_000_000),
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            value.checked_mul(10_i128.checked_pow(exponent)?)
        }
    }
}

/// A number of bytes, or `None` when it is no quantity, or negative.
pub fn bytes(text: &str) -> Option<u64> {
    u64::try_from(thousandths(text)?.div_euclid(1000)).ok()
}

/// Whether two spellings mean the same.
pub fn same(one: &str, other: &str) -> bool {
    one == other || matches!((thousandths(one), thousandths(other)), (Some(one), Some(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_usual_quantities() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("1Ki", Some(1024)),
            ("1.5Gi", Some(1_610_612_736)),
            ("2G", Some(2_000_000_000)),
            ("80Gi", Some(85_899_345_920)),
            ("1e3", Some(1000)),
            ("1500m", Some(1)),
            (".5Ki", Some(512)),
            ("-1", None),
            ("", None),
            ("Gi", None),
            ("1 Gi", None),
            ("1Gi2", None),
            ("99999999999999999999999999999999999999Ei", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn spellings_of_the_same_quantity() {
        assert!(same("1000m", "1"));
        assert!(same("1024Mi", "1Gi"));
        assert!(same("0.5", "500m"));
        assert!(!same("1G", "1Gi"));
        assert!(!same("true", "false"));
    }
}
