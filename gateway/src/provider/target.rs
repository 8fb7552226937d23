//! A provider that can be called: its address, the gateway's key for it, connections whose certificates are checked, and what is known of
//! its health.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tower::ServiceExt;

use super::credentials::Hidden;
use super::failure::Failure;
use super::health::Health;
use super::resolver::Resolver;

type Connector = HttpsConnector<HttpConnector<Resolver>>;

/// How long a connection may take in a look, with the handshake.
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// Connections whose certificates are checked.
#[derive(Clone)]
struct Connections {
    client: Client<Connector, Full<Bytes>>,
    connector: Connector,
}

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
    connections: Connections,
    headers: HeaderMap,
    health: Health,
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
        let connections = match &inputs.ca {
            Some(ca) => connections(roots_of(ca.reveal())?)?,
            None => system_connections()?,
        };
        Ok(Self { inputs, connections, headers, health: Health::default() })
    }

    /// What it was made of.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The provider's name for the model.
    pub fn model(&self) -> &str {
        &self.inputs.model
    }

    /// Whether it can be called, as far as that is known.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Calls it, and notes what that tells of its health.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let answer = self.connections.client.request(request).await;
        match &answer {
            Ok(response) => self.health.answered(response.status(), Timestamp::now),
            Err(error) if error.is_connect() => self.not_connected(|uri| Failure::of(error, uri)),
            Err(_) => {}
        }
        answer
    }

    /// Looks whether it can be connected to, and notes that. Nothing is sent.
    pub async fn look(&self) {
        let Ok(uri) = self.inputs.url.parse::<Uri>() else { return };
        let connecting = self.connections.connector.clone().oneshot(uri);
        match tokio::time::timeout(LONGEST_LOOK, connecting).await {
            Ok(Ok(_)) => self.health.connected(),
            Ok(Err(error)) => self.not_connected(|uri| Failure::of(&*error, uri)),
            Err(_) => self.not_connected(Failure::late),
        }
    }

    fn not_connected(&self, failure: impl FnOnce(&Uri) -> Failure) {
        // What is none was refused when the snapshot was built.
        if let Ok(uri) = self.inputs.url.parse::<Uri>() {
            self.health.not_connected(&failure(&uri), Timestamp::now());
        }
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
fn system_connections() -> Result<Connections, String> {
    static SYSTEM: OnceLock<Result<Connections, String>> = OnceLock::new();
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
            connections(roots)
        })
        .clone()
}

fn roots_of(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let wrong = |why: String| {
        format!("the certificate authorities cannot be read ({why}); store certificates in PEM")
    };
    let mut left_out = None;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        if let Err(error) = roots.add(certificate) {
            left_out = Some(error.to_string());
        }
    }
    // A bundle of many may have one that is too old to be understood.
    match left_out {
        Some(why) if roots.is_empty() => Err(wrong(why)),
        None if roots.is_empty() => Err(wrong("there is no certificate".to_owned())),
        Some(why) => {
            tracing::warn!(why, "a certificate authority of a provider is left out");
            Ok(roots)
        }
        None => Ok(roots),
    }
}

fn connections(roots: RootCertStore) -> Result<Connections, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new_with_resolver(Resolver::default());
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(Duration::from_secs(5)));
    http.set_keepalive(Some(Duration::from_secs(15)));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(http);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(connector.clone());
    Ok(Connections { client, connector })
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
