//! Who a request comes from, as far as the gateway is told by somebody it trusts.
//!
//! Until there are tenants of our own, an authenticating proxy in front says so in headers that the gateway's flags name. A name
//! that no flag gives is nobody's identity. Pods see none of these headers. Pure.

use fairlead_openai::ApiError;
use http::header::{HeaderMap, HeaderName};

/// The headers that say who a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedHeaders {
    /// Names the tenant.
    pub tenant: Option<HeaderName>,
    /// Names the tenant's tier.
    pub tier: Option<HeaderName>,
    /// Names the user.
    pub user: Option<HeaderName>,
}

/// Who a request comes from; `None` is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The tenant.
    pub tenant: Option<String>,
    /// The tenant's tier.
    pub tier: Option<String>,
    /// The user.
    pub user: Option<String>,
}

impl TrustedHeaders {
    /// Reads who a request comes from.
    ///
    /// # Errors
    /// 400 for a header that comes twice or cannot be read: a proxy that adds its word to a client's instead of replacing it
    /// would otherwise let the client choose.
    pub fn read(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        Ok(Identity {
            tenant: one(headers, self.tenant.as_ref())?,
            tier: one(headers, self.tier.as_ref())?,
            user: one(headers, self.user.as_ref())?,
        })
    }

    /// Whose request it is to whatever keeps a user's requests together: who the trusted header says, or, while none is trusted, whom
    /// the body `named`. A client cannot change its place by naming itself anew where somebody vouches for its name.
    pub fn user_to_stick_to<'a>(&self, headers: &'a HeaderMap, named: Option<&'a str>) -> Option<&'a str> {
        match &self.user {
            Some(name) => headers.get(name)?.to_str().ok().map(str::trim).filter(|user| !user.is_empty()),
            None => named,
        }
    }

    /// Whether it is one of them. Pods are told none.
    pub fn contains(&self, name: &HeaderName) -> bool {
        [&self.tenant, &self.tier, &self.user].into_iter().flatten().any(|trusted| trusted == name)
    }
}

fn one(headers: &HeaderMap, name: Option<&HeaderName>) -> Result<Option<String>, ApiError> {
    const LONGEST: usize = 256;
    let Some(name) = name else { return Ok(None) };
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse = |why: &str| {
        let message = format!(
            "the header {name}, which says who sends this, {why}; the proxy in front must set it, once"
        );
        ApiError::bad_request(message)
    };
    if values.next().is_some() {
        return Err(refuse("comes twice"));
    }
    let text = value.to_str().map_err(|_| refuse("is not plain text"))?.trim();
    if text.len() > LONGEST {
        return Err(refuse("is longer than 256 characters"));
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// Reads the name of a trusted header from the command line.
pub fn parse_trusted(text: &str) -> Result<HeaderName, String> {
    let taken = [
        "host",
        "connection",
        "content-length",
        "content-type",
        "transfer-encoding",
        "authorization",
        "x-request-id",
    ];
    match HeaderName::try_from(text) {
        Ok(name) if !taken.contains(&name.as_str()) => Ok(name),
        _ => Err(format!(
            "{text:?} cannot say who sends a request; name a header that the proxy in front sets, such as x-fairlead-tenant"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn trusted() -> TrustedHeaders {
        let name = |text: &'static str| Some(HeaderName::from_static(text));
        TrustedHeaders { tenant: name("x-tenant"), tier: name("x-tier"), user: None }
    }

    #[test]
    fn only_what_is_trusted_is_known() {
        let sent = headers(&[("x-tenant", "acme"), ("x-user", "ada"), ("x-tier", " ")]);
        let identity = trusted().read(&sent).expect("read");
        assert_eq!(identity, Identity { tenant: Some("acme".to_owned()), tier: None, user: None });
        assert_eq!(TrustedHeaders::default().read(&sent).expect("read"), Identity::default());
    }

    #[test]
    fn who_names_itself_counts_only_while_nobody_vouches_for_names() {
        let sent = headers(&[("x-user", " ada ")]);
        assert_eq!(trusted().user_to_stick_to(&sent, Some("eve")), Some("eve"), "no header names users");
        let vouched = TrustedHeaders { user: Some(HeaderName::from_static("x-user")), ..trusted() };
        assert_eq!(vouched.user_to_stick_to(&sent, Some("eve")), Some("ada"));
        assert_eq!(vouched.user_to_stick_to(&HeaderMap::new(), Some("eve")), None);
    }

    #[test]
    fn a_second_voice_is_refused() {
        let error =
            trusted().read(&headers(&[("x-tenant", "acme"), ("x-tenant", "other")])).expect_err("refused");
        assert_eq!(error.status, 400);
        assert!(error.to_string().contains("x-tenant") && error.to_string().contains("twice"), "{error}");
        let mut odd = HeaderMap::new();
        odd.insert("x-tenant", HeaderValue::from_bytes(b"caf\xe9").expect("a value"));
        assert_eq!(trusted().read(&odd).expect_err("refused").status, 400);
    }

    #[test]
    fn a_header_with_another_meaning_cannot_be_trusted() {
        assert_eq!(parse_trusted("X-Tenant").expect("a name").as_str(), "x-tenant");
        for bad in ["", "a b", "Authorization", "host"] {
            assert!(parse_trusted(bad).expect_err(bad).contains("x-fairlead-tenant"), "{bad}");
        }
    }
}
