//! A provider that can be called: its address, the gateway's key for it, and connections whose certificates are checked.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::credentials::Hidden;

/// Connections whose certificates are checked.
pub type TlsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What makes a target another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Base URL.
    pub url: String,
    /// The provider's name for the model.
    pub model: String,
    /// The key.
    pub key: Option<Hidden>,
    /// Certificate authorities in place of the system's.
    pub ca: Option<Hidden>,
}

/// A provider that can be called.
pub struct Target {
    inputs: Inputs,
    client: TlsClient,
    headers: HeaderMap,
}

impl Target {
    /// A target.
    ///
    /// # Errors
    /// What is wrong with the key or the certificates, and the remedy; neither is shown.
    pub fn new(inputs: Inputs) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("fairlead-gateway/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(key) = &inputs.key {
            let key = key.reveal().trim_ascii();
            let mut value =
                HeaderValue::from_bytes(&[b"Bearer ", key].concat()).ok().filter(|_| !key.is_empty()).ok_or(
                    "the key is empty or has characters that a header cannot have; store it as one line",
                )?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = match &inputs.ca {
            Some(ca) => client(roots_of(ca.reveal())?)?,
            None => system_client()?,
        };
        Ok(Self { inputs, client, headers })
    }

    /// What it was made of.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The provider's name for the model.
    pub fn model(&self) -> &str {
        &self.inputs.model
    }

    /// Connections to it.
    pub fn client(&self) -> &TlsClient {
        &self.client
    }

    /// The headers of a request: of the client's only what it wants to be answered with.
    pub fn headers(&self, client: &HeaderMap) -> HeaderMap {
        let mut headers = self.headers.clone();
        if let Some(accept) = client.get(ACCEPT) {
            headers.insert(ACCEPT, accept.clone());
        }
        headers
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("url", &self.inputs.url)
            .field("model", &self.inputs.model)
            .finish_non_exhaustive()
    }
}

/// One for all that the system's roots are enough for.
fn system_client() -> Result<TlsClient, String> {
    static SYSTEM: OnceLock<Result<TlsClient, String>> = OnceLock::new();
    SYSTEM
        .get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
                return Err(format!(
                    "the system's certificate authorities cannot be read ({why}); install ca-certificates, or set a CA"
                ));
            }
            client(roots)
        })
        .clone()
}

fn roots_of(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let wrong = |why: String| {
        format!("the certificate authorities cannot be read ({why}); store certificates in PEM")
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("there is no certificate".to_owned())) } else { Ok(roots) }
}

fn client(roots: RootCertStore) -> Result<TlsClient, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(Duration::from_secs(5)));
    http.set_keepalive(Some(Duration::from_secs(15)));
    let https =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(https))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(key: &[u8], ca: Option<&[u8]>) -> Inputs {
        let hidden = |bytes: &[u8]| Hidden::new(bytes);
        Inputs {
            url: "https://h/v1".to_owned(),
            model: "m".to_owned(),
            key: Some(hidden(key)),
            ca: Some(ca.map_or_else(|| hidden(b""), hidden)),
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_showing_it() {
        for (key, ca) in [(&b"sk-secret"[..], &b"no PEM: sk-secret"[..]), (b"sk\nsecret", b""), (b" ", b"")] {
            let error = Target::new(inputs(key, Some(ca))).expect_err("wrong");
            assert!(error.contains("store") && !error.contains("secret"), "{error}");
        }
    }
}
