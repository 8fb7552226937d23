//! Why a provider could not be connected to, in words that stay the same as long as the reason does. Pure.

use std::error::Error;
use std::io;

use fairlead_crds::model_route::provider::reach::TroubleKind;
use http::Uri;

use super::errors;
use super::resolver::Unresolved;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of what kind.
    pub kind: TroubleKind,
    /// In words, without addresses that change from time to time.
    pub message: String,
}

impl Failure {
    /// What an error of connecting comes to.
    pub fn of(error: &(dyn Error + 'static), uri: &Uri) -> Self {
        let host = uri.authority().map_or("", |authority| authority.as_str());
        if let Some(why) = errors::untrusted(error) {
            let message = format!("the certificate of {host} is not accepted: {why}");
            return Self { kind: TroubleKind::NotTrusted, message };
        }
        if let Some(tls) = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
            let message = format!("{host} does not agree on TLS: {tls}");
            return Self { kind: TroubleKind::NotTrusted, message };
        }
        if causes(error).any(|cause| cause.is::<Unresolved>()) {
            let name = uri.host().unwrap_or_default();
            let message = format!("the name {name} cannot be resolved");
            return Self { kind: TroubleKind::NotResolved, message };
        }
        let why = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let why = match why {
            Some(io::ErrorKind::ConnectionRefused) => "the connection is refused",
            Some(io::ErrorKind::TimedOut) => "no answer in time",
            Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                "there is no way to it"
            }
            Some(
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe,
            ) => "it breaks the connection off",
            _ => "the connection fails",
        };
        Self { kind: TroubleKind::NotConnected, message: format!("{host} cannot be connected to: {why}") }
    }

    /// No connection within the time that one may take.
    pub fn late(uri: &Uri) -> Self {
        Self::of(&io::Error::from(io::ErrorKind::TimedOut), uri)
    }
}

/// An error and its causes. What an I/O error wraps is not its source, but itself.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use hyper_util::client::legacy::connect::HttpConnector;
    use hyper_util::client::legacy::connect::dns::Name;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_name_that_is_not_known_is_found_in_what_the_connector_says() {
        let unknown = tower::service_fn(|_: Name| async {
            Err::<std::vec::IntoIter<SocketAddr>, _>(Unresolved::from(io::Error::other("no such name")))
        });
        let uri = Uri::from_static("http://h/v1");
        let error =
            HttpConnector::new_with_resolver(unknown).oneshot(uri.clone()).await.expect_err("unknown");
        assert_eq!(Failure::of(&error, &uri).kind, TroubleKind::NotResolved);
    }

    fn of(error: impl Error + 'static) -> (TroubleKind, String) {
        let failure = Failure::of(&error, &Uri::from_static("https://api.example.com:8443/v1"));
        (failure.kind, failure.message)
    }

    #[test]
    fn causes_are_found_wherever_they_are() {
        let wrapped = |error| io::Error::other(io::Error::other(error));
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let (kind, message) = of(wrapped(expired));
        assert_eq!(kind, TroubleKind::NotTrusted);
        assert_eq!(message, "the certificate of api.example.com:8443 is not accepted: it has expired");
        assert_eq!(of(wrapped(rustls::Error::DecryptError)).0, TroubleKind::NotTrusted);
        let unresolved = io::Error::other(Unresolved::from(io::Error::other("no such name")));
        let expected = (TroubleKind::NotResolved, "the name api.example.com cannot be resolved".to_owned());
        assert_eq!(of(unresolved), expected);
        let (kind, message) = of(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(kind == TroubleKind::NotConnected && message.ends_with("is refused"), "{message}");
        assert_eq!(of(io::Error::other("strange")).0, TroubleKind::NotConnected);
    }
}
