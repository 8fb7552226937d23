//! Asks every gateway what it has counted of a canary (`GET /rollouts` on its admin port), and whether it can call its providers
//! (`GET /providers`).
//!
//! Gateways are found by the EndpointSlices of their admin Service. One that serves and cannot be read makes a look incomplete, and says
//! so; one that is starting or leaving is asked too, and not waited for.

use std::time::Duration;

use fairlead_rollout::report::Report;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use super::reach::Said;

/// Name of the admin port in the slices.
const PORT: &str = "admin";
/// Gateways that are asked at the same time.
const AT_ONCE: usize = 16;
/// Longer answers are none of a gateway's.
const LONGEST: usize = 8 << 20;
/// How long a gateway may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Its pod, or its address where that has no name.
    pub name: String,
    /// Host and port of its admin listener.
    pub address: String,
    /// Whether it takes requests, so that a look without it is not complete.
    pub serves: bool,
}

/// The gateways of an admin Service's slices, in the order of their names.
pub fn of_slices<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Vec<Gateway> {
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let Some(port) = ports.filter(|port| port.name.as_deref() == Some(PORT)).find_map(|port| port.port)
        else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(address) = endpoint.addresses.first() else { continue };
            let conditions = endpoint.conditions.as_ref();
            // `ready` is always true here, as the Service publishes pods that are not: they have counted, too.
            let serving = conditions.and_then(|it| it.serving.or(it.ready)).unwrap_or(true);
            let leaving = conditions.and_then(|it| it.terminating).unwrap_or(false);
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            found.push(Gateway {
                name: pod.unwrap_or_else(|| address.clone()),
                address: format!("{host}:{port}"),
                serves: serving && !leaving,
            });
        }
    }
    found.sort();
    found.dedup_by(|one, other| one.address == other.address);
    found
}

/// What each gateway says of a route. Those that need not be waited for and do not answer are left out.
pub async fn ask(
    http: &reqwest::Client,
    gateways: &[Gateway],
    uid: &str,
) -> Vec<(String, Result<Report, String>)> {
    let of = gateways.len();
    let mut asked = Vec::with_capacity(of);
    for (part, gateway) in gateways.iter().enumerate() {
        let url = format!("http://{}/rollouts?uid={uid}&part={part}&of={of}", gateway.address);
        asked.push(ask_one(http, gateway, url));
    }
    futures::stream::iter(asked).buffered(AT_ONCE).filter_map(std::future::ready).collect().await
}

async fn ask_one(
    http: &reqwest::Client,
    gateway: &Gateway,
    url: String,
) -> Option<(String, Result<Report, String>)> {
    let answer = read(http, &url).await.map_err(|unread| unread.of_counts());
    (gateway.serves || answer.is_ok()).then(|| (gateway.name.clone(), answer))
}

/// What each gateway that serves says of the providers of all its routes.
pub async fn ask_of_providers(http: &reqwest::Client, gateways: &[Gateway]) -> Vec<(String, Said)> {
    let asked = gateways.iter().filter(|gateway| gateway.serves).map(|gateway| async move {
        let url = format!("http://{}/providers", gateway.address);
        let said = match read(http, &url).await {
            Ok(report) => Said::Report(report),
            Err(Unread::Status(404)) => Said::Nothing,
            Err(unread) => {
                let gateway = gateway.name.as_str();
                tracing::debug!(gateway, ?unread, "a gateway cannot be asked of its providers");
                Said::Unread
            }
        };
        (gateway.name.clone(), said)
    });
    let asked: Vec<_> = asked.collect();
    futures::stream::iter(asked).buffered(AT_ONCE).collect().await
}

/// Why there is no answer.
#[derive(Debug)]
enum Unread {
    Connection { late: bool },
    Status(u16),
    TooLong,
    OtherForm,
}

impl Unread {
    /// For who asked for counts.
    fn of_counts(&self) -> String {
        match self {
            Self::Connection { late } => {
                let why = if *late { "no answer in time" } else { "the connection failed" };
                format!("cannot be asked for its counts: {why}")
            }
            Self::Status(404) => "has no /rollouts: it is of an older version".to_owned(),
            Self::Status(code) => format!("answers {code} when asked for its counts"),
            Self::TooLong => "gives an answer without end when asked for its counts".to_owned(),
            Self::OtherForm => "tells its counts in another form: it is of another version".to_owned(),
        }
    }
}

async fn read<T: DeserializeOwned>(http: &reqwest::Client, url: &str) -> Result<T, Unread> {
    let failed = |error: reqwest::Error| Unread::Connection { late: error.is_timeout() };
    let mut response = http.get(url).timeout(TIMEOUT).send().await.map_err(failed)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(Unread::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err(Unread::TooLong);
        }
    }
    serde_json::from_slice(&body).map_err(|_| Unread::OtherForm)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(endpoints: &serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 9000}],
        }))
        .unwrap()
    }

    #[test]
    fn every_pod_is_asked_and_those_that_serve_are_waited_for() {
        let endpoints = json!([
            {"addresses": ["10.0.0.2"], "targetRef": {"name": "b"}, "conditions": {"ready": true, "serving": true}},
            {"addresses": ["10.0.0.1"], "targetRef": {"name": "a"}, "conditions": {"ready": true, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.3"], "targetRef": {"name": "c"}, "conditions": {"ready": true, "serving": false}},
            {"addresses": ["fd00::1"]},
        ]);
        let found = of_slices([&slice(&endpoints), &slice(&endpoints)]);
        let told: Vec<_> =
            found.iter().map(|it| (it.name.as_str(), it.address.as_str(), it.serves)).collect();
        assert_eq!(
            told,
            [
                ("a", "10.0.0.1:9000", false),
                ("b", "10.0.0.2:9000", true),
                ("c", "10.0.0.3:9000", false),
                ("fd00::1", "[fd00::1]:9000", true),
            ]
        );
        let mut other = slice(&endpoints);
        other.ports = None;
        assert_eq!(of_slices([&other]), []);
    }
}
