//! The gateways' admin ports: found as pods and reached through the API server's port-forward, or named by URL.
//!
//! Owns: finding them and one exchange with one of them. Must not: understand what they say. Called by `top` and `explain`.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::client::UpgradeConnectionError;
use kube::{Api, Client, ResourceExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::connect::Session;
use crate::fault::{Call, Fault, Role};

/// What gateways' pods are labelled with.
pub const SELECTOR: &str = "app.kubernetes.io/name=fairlead-gateway";
const ADMIN_PORT: u16 = 9000;
/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Largest answer that is read.
const LARGEST: usize = 64 << 20;

/// One gateway.
#[derive(Clone)]
pub struct Gateway {
    /// The pod's name, or the URL.
    pub name: String,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Pod { client: Client, namespace: String, port: u16 },
    Address(String),
}

impl fmt::Debug for Gateway {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Gateway").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a gateway said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

impl Gateway {
    /// One that is named by the URL of its admin port.
    ///
    /// # Errors
    /// [`Fault`] for what is no such URL.
    pub fn at(url: &str) -> Result<Self, Fault> {
        let wrong =
            || Fault::new(format!("--gateway {url}: write http://HOST:PORT, the gateway's --admin-listen"));
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http") && uri.path().len() <= 1);
        let authority = authority.filter(|authority| authority.port_u16().is_some()).ok_or_else(wrong)?;
        Ok(Self { name: url.trim_end_matches('/').to_owned(), way: Way::Address(authority.to_string()) })
    }

    /// Those that serve in the cluster.
    ///
    /// # Errors
    /// [`Fault`] where they cannot be listed or there are none.
    pub async fn all(session: &Session) -> Result<Vec<Self>, Fault> {
        let namespace = session.system_namespace.as_str();
        let pods: Api<Pod> = Api::namespaced(session.client.clone(), namespace);
        let call = Call { verb: "list", resource: "pods", namespace: Some(namespace), role: Role::Inspector };
        let listed = pods
            .list(&ListParams::default().labels(SELECTOR))
            .await
            .map_err(|error| call.failed(&error))?
            .items;
        let count = listed.len();
        let serving: Vec<Self> = listed
            .into_iter()
            .filter(serves)
            .map(|pod| {
                let way = Way::Pod {
                    client: session.client.clone(),
                    namespace: namespace.to_owned(),
                    port: admin_port(&pod),
                };
                Self { name: pod.name_any(), way }
            })
            .collect();
        match (serving.is_empty(), count) {
            (false, _) => Ok(serving),
            (true, 0) => Err(Fault::new(format!(
                "there is no gateway in namespace {namespace}; name the one that Fairlead is installed in with --system-namespace"
            ))),
            (true, count) => Err(Fault::new(format!(
                "none of the {count} gateways in namespace {namespace} is ready: kubectl -n {namespace} get pods -l {SELECTOR}"
            ))),
        }
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// [`Fault`] where there is no answer in time.
    pub async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Answer, Fault> {
        let answered = timeout(PATIENCE, async {
            match &self.way {
                Way::Address(address) => {
                    let stream = TcpStream::connect(address).await.map_err(|error| self.unreached(&error))?;
                    exchange(stream, request).await.map_err(|error| self.unreached(&error))
                }
                Way::Pod { client, namespace, port } => self.through(client, namespace, *port, request).await,
            }
        });
        answered
            .await
            .unwrap_or_else(|_| Err(self.unreached(&format!("no answer within {} s", PATIENCE.as_secs()))))
    }

    async fn through(
        &self,
        client: &Client,
        namespace: &str,
        port: u16,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, Fault> {
        let call = Call {
            verb: "create",
            resource: "pods/portforward",
            namespace: Some(namespace),
            role: Role::Inspector,
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let mut forwarded = pods.portforward(&self.name, &[port]).await.map_err(|error| match &error {
            kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(StatusCode::FORBIDDEN)) => {
                call.denied(None)
            }
            error => call.failed(error),
        })?;
        let stream =
            forwarded.take_stream(port).ok_or_else(|| self.unreached(&"the port was not forwarded"))?;
        let said = forwarded.take_error(port);
        let answered = exchange(stream, request).await;
        let fault = match answered {
            Ok(answer) => {
                forwarded.abort();
                return Ok(answer);
            }
            Err(error) => error,
        };
        // The kubelet says why on a channel of its own.
        let why = match said {
            Some(said) => timeout(Duration::from_millis(200), said).await.ok().flatten(),
            None => None,
        };
        forwarded.abort();
        Err(self.unreached(&why.unwrap_or_else(|| fault.to_string())))
    }

    fn unreached(&self, why: &dyn fmt::Display) -> Fault {
        Fault::new(format!("the gateway {} does not answer: {why}", self.name))
    }
}

async fn exchange<S>(stream: S, mut request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("gateway"));
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
        Ok(Answer { status, body: body.to_bytes() })
    };
    let answer = answer.await;
    driver.abort();
    answer
}

fn serves(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

fn admin_port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|port| port.name.as_deref() == Some("admin"));
    named.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(ADMIN_PORT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_admin_urls_are_taken() {
        assert_eq!(Gateway::at("http://127.0.0.1:9000/").unwrap().name, "http://127.0.0.1:9000");
        for wrong in ["127.0.0.1:9000", "https://127.0.0.1:9000", "http://host", "http://host:1/metrics", ""]
        {
            assert!(Gateway::at(wrong).unwrap_err().to_string().contains("http://HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn a_pod_that_goes_or_is_not_ready_is_left_out() {
        let pod = |ready: &str, deleted: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "g", "deletionTimestamp": deleted},
                "spec": {"containers": [{"name": "gateway", "ports": [
                    {"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9100}]}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        assert!(serves(&pod("True", None)));
        assert!(!serves(&pod("False", None)));
        assert!(!serves(&pod("True", Some("2026-11-29T06:00:00Z"))));
        assert_eq!((admin_port(&pod("True", None)), admin_port(&Pod::default())), (9100, ADMIN_PORT));
    }
}
