//! Asks every gateway what it has counted of a canary (`GET /rollouts` on its admin port).
//!
//! Gateways are found by the EndpointSlices of their admin Service. One that serves and cannot be read makes a look incomplete, and says
//! so; one that is starting or leaving is asked too, and not waited for.

use std::time::Duration;

use fairlead_rollout::report::Report;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;

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
    let answer = read(http, &url).await;
    (gateway.serves || answer.is_ok()).then(|| (gateway.name.clone(), answer))
}

async fn read(http: &reqwest::Client, url: &str) -> Result<Report, String> {
    let failed = |error: reqwest::Error| {
        let why = if error.is_timeout() { "no answer in time" } else { "the connection failed" };
        format!("cannot be asked for its counts: {why}")
    };
    let mut response = http.get(url).timeout(TIMEOUT).send().await.map_err(failed)?;
    match response.status().as_u16() {
        200 => {}
        404 => return Err("has no /rollouts: it is of an older version".to_owned()),
        code => return Err(format!("answers {code} when asked for its counts")),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err("gives an answer without end when asked for its counts".to_owned());
        }
    }
    serde_json::from_slice(&body)
        .map_err(|_| "tells its counts in another form: it is of another version".to_owned())
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
