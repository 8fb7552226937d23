//! Which hosts of providers may be called (`--provider-hosts`). Pure.
//!
//! An entry is a host, with its port where that is not 443, or `*.` and a domain: every host below it. Called by `config`, which reads
//! entries, and by `snapshot`.

/// An entry as it was written.
///
/// # Errors
/// What is wrong with it, and the remedy.
pub fn parse(entry: &str) -> Result<String, String> {
    let domain = entry.strip_prefix("*.").unwrap_or(entry);
    if domain.is_empty() || domain.starts_with('.') || domain.contains(odd) {
        return Err(format!(
            "{entry:?} is not a host; write one such as api.example.com or h.example.com:8443, or *.example.com for all below it"
        ));
    }
    Ok(entry.to_owned())
}

/// Whether an entry allows a host, which has a port where its URL has one.
pub fn allows(entry: &str, host: &str) -> bool {
    // Where a URL's reader would see the host end earlier, its end says nothing: evil.org#.example.com is evil.org.
    if host.contains(odd) {
        return false;
    }
    let host = without_default_port(host);
    let entry = without_default_port(entry);
    match entry.strip_prefix('*') {
        // With the dot, so that evil-example.com is not below example.com; and with something before it.
        Some(below) => host.len() > below.len() && ends_with(host, below),
        None => host.eq_ignore_ascii_case(entry),
    }
}

/// What no host has.
fn odd(c: char) -> bool {
    !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']'))
}

fn without_default_port(host: &str) -> &str {
    host.strip_suffix(":443").unwrap_or(host)
}

fn ends_with(host: &str, end: &str) -> bool {
    let start = host.len().checked_sub(end.len());
    start.and_then(|start| host.get(start..)).is_some_and(|tail| tail.eq_ignore_ascii_case(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_allowed_by_name_or_by_what_they_are_below() {
        for (entry, host) in [
            ("api.example.com", "api.example.com"),
            ("api.example.com", "API.example.com:443"),
            ("api.example.com:443", "api.example.com"),
            ("h:8443", "h:8443"),
            ("*.example.com", "a.example.com"),
            ("*.example.com", "a.b.Example.com:443"),
            ("*.example.com:8443", "a.example.com:8443"),
        ] {
            assert!(parse(entry).is_ok() && allows(entry, host), "{entry} {host}");
        }
        for (entry, host) in [
            ("api.example.com", "example.com"),
            ("api.example.com", "api.example.com:8443"),
            ("*.example.com", "example.com"),
            ("*.example.com", ".example.com"),
            ("*.example.com", "evil-example.com"),
            ("*.example.com", "a.example.com.evil.org"),
            ("*.example.com", "a.example.com:8443"),
            ("*.example.com", ""),
            ("*.example.com", "evil.org#.example.com"),
            ("*.example.com", "evil.org?.example.com"),
            ("*.example.com", "evil.org\\.example.com"),
            ("*.example.com", "evil.org@a.example.com"),
            ("*.example.com", "evil.org%2f.example.com"),
        ] {
            assert!(!allows(entry, host), "{entry} {host}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for entry in ["", "*", "*.", "*..com", "a.*.com", "https://h", "a b", "u@h"] {
            assert!(parse(entry).expect_err(entry).contains("*.example.com"), "{entry}");
        }
    }
}
