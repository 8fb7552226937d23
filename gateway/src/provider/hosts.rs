//! Which hosts of providers may be called (`--provider-hosts`). Pure.
//!
//! An entry is a host, with its port where that is not 443, or `*.` and a domain: every host below it. Called by `config`, which reads
//! entries, and by `snapshot`.

use std::net::Ipv6Addr;

/// An entry as it was written.
///
/// # Errors
/// What is wrong with it, and the remedy.
pub fn parse(entry: &str) -> Result<String, String> {
    let domain = entry.strip_prefix("*.").unwrap_or(entry);
    let is_wild = domain.len() < entry.len();
    if domain.starts_with('.')
        || host_and_port(domain).is_none_or(|(host, _)| is_wild && host.starts_with('['))
    {
        return Err(format!(
            "{entry:?} is not a host; write one such as api.example.com or h.example.com:8443, or *.example.com for all below it"
        ));
    }
    Ok(entry.to_owned())
}

/// Whether an entry allows a host, which has a port where its URL has one.
pub fn allows(entry: &str, host: &str) -> bool {
    // As whoever connects reads it, who must not find another host in it: evil.org#.example.com and evil.org:.example.com are evil.org.
    let Some((host, port)) = host_and_port(host) else { return false };
    let Some((entry, allowed)) = host_and_port(entry.strip_prefix('*').unwrap_or(entry)) else {
        return false;
    };
    let named = if entry.starts_with('.') {
        // With the dot, so that evil-example.com is not below example.com; and with something before it.
        host.len() > entry.len() && !host.starts_with('[') && ends_with(host, entry)
    } else {
        host.eq_ignore_ascii_case(entry)
    };
    named && port == allowed
}

/// The two parts of an authority without a user; `None` for what is none, to the last character.
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    if text.contains(odd) {
        return None;
    }
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an address of IPv6 stand in brackets.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, 443),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .map_or(!host.contains(['[', ']', ':']), |address| address.parse::<Ipv6Addr>().is_ok());
    (bare && !host.is_empty()).then_some((host, port))
}

/// What no host has.
fn odd(c: char) -> bool {
    !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']'))
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
            ("[::1]:8443", "[::1]:8443"),
            ("[::1]", "[::1]:443"),
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
            ("*.example.com", "evil.org:.example.com"),
            ("*.example.com", "evil.org:x.example.com"),
            ("*.example.com", "evil.org:80:443.example.com"),
            ("*.example.com", "[::1].example.com"),
            ("*.example.com", "[::1]:.example.com"),
            ("*.example.com", "a.example.com:"),
            ("*.example.com", "a.example.com:65536"),
            ("api.example.com", "api.example.com:"),
        ] {
            assert!(!allows(entry, host), "{entry} {host}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for entry in
            ["", "*", "*.", "*..com", "a.*.com", "https://h", "a b", "u@h", "h:", "h:x", "::1", "*.[::1]"]
        {
            assert!(parse(entry).expect_err(entry).contains("*.example.com"), "{entry}");
        }
    }
}
