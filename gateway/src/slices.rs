//! EndpointSlices to addresses: which pods of which ModelDeployment can take requests. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_crds::{HTTP_PORT_NAME, MODEL_DEPLOYMENT_LABEL};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;

/// The ready pods in a stable order, by (namespace, ModelDeployment).
pub type ReadyPods = HashMap<(String, String), Vec<ReadyPod>>;

/// A pod that can take requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyPod {
    /// `host:port`.
    pub address: String,
    /// Its name, where the slice gives it.
    pub name: Option<String>,
}

/// A pod as a slice has it.
struct Found {
    address: IpAddr,
    port: u16,
    name: Option<String>,
}

/// Collects the ready pods of all slices that carry the ModelDeployment label.
///
/// A pod of a dual-stack Service appears once in a slice of each family and counts once, by its IPv4 address. While slices
/// are being rearranged a pod may be in two of them, and counts once too.
pub fn ready_pods(slices: &[Arc<EndpointSlice>]) -> ReadyPods {
    let mut pods: HashMap<(String, String), BTreeMap<String, Found>> = HashMap::new();
    for slice in slices {
        let Some(deployment) = slice.labels().get(MODEL_DEPLOYMENT_LABEL) else { continue };
        let key = (slice.namespace().unwrap_or_default(), deployment.clone());
        let Some(port) = http_port(slice) else { continue };
        let pods = pods.entry(key).or_default();
        for endpoint in slice.endpoints.iter().flatten() {
            // The API says that an absent `ready` means ready.
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let address = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
            let (true, Some(address)) = (ready, address) else { continue };
            let name = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            let pod = name.clone().unwrap_or_else(|| address.to_string());
            pods.entry(pod)
                .and_modify(|known| {
                    if known.address.is_ipv6() && address.is_ipv4() {
                        (known.address, known.port) = (address, port);
                    }
                })
                .or_insert(Found { address, port, name });
        }
    }
    pods.into_iter()
        .map(|(key, pods)| {
            let ready = pods.into_values().map(|Found { address, port, name }| ReadyPod {
                address: std::net::SocketAddr::new(address, port).to_string(),
                name,
            });
            (key, ready.collect())
        })
        .collect()
}

fn http_port(slice: &EndpointSlice) -> Option<u16> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let port = ports.iter().find(|port| port.name.as_deref() == Some(HTTP_PORT_NAME))?;
    u16::try_from(port.port?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(value: serde_json::Value) -> Arc<EndpointSlice> {
        Arc::new(serde_json::from_value(value).expect("an EndpointSlice"))
    }

    fn labelled(name: &str, family: &str, endpoints: serde_json::Value) -> Arc<EndpointSlice> {
        slice(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name, "namespace": "ns", "labels": {"fairlead.dev/model-deployment": "llama"}},
            "ports": [{"name": "metrics", "port": 1}, {"name": "http", "port": 8000}],
            "endpoints": endpoints,
        }))
    }

    fn of_llama(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
        let pods = ready_pods(slices).remove(&("ns".to_owned(), "llama".to_owned())).unwrap_or_default();
        pods.into_iter().map(|pod| pod.address).collect()
    }

    #[test]
    fn only_ready_pods_count_and_an_absent_condition_means_ready() {
        let slices = [labelled(
            "a",
            "IPv4",
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"]},
            ]),
        )];
        assert_eq!(of_llama(&slices), ["10.0.0.1:8000", "10.0.0.3:8000"]);
    }

    #[test]
    fn several_slices_join_and_a_pod_in_two_counts_once() {
        let pod = |address: &str, name: &str| json!({"addresses": [address], "targetRef": {"kind": "Pod", "name": name}});
        let slices = [
            labelled("v6", "IPv6", json!([pod("fd00::1", "p1"), pod("fd00::3", "p3")])),
            labelled("v4", "IPv4", json!([pod("10.0.0.1", "p1"), pod("10.0.0.2", "p2")])),
            labelled("again", "IPv4", json!([pod("10.0.0.2", "p2")])),
        ];
        assert_eq!(of_llama(&slices), ["10.0.0.1:8000", "10.0.0.2:8000", "[fd00::3]:8000"]);
    }

    #[test]
    fn slices_of_other_services_or_without_the_port_are_passed_over() {
        let slices = [
            slice(json!({"addressType": "IPv4", "metadata": {"name": "x", "namespace": "ns"},
                "ports": [{"name": "http", "port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]})),
            slice(json!({"addressType": "IPv4",
                "metadata": {"name": "y", "namespace": "ns", "labels": {"fairlead.dev/model-deployment": "llama"}},
                "ports": [{"name": "grpc", "port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]})),
            slice(json!({"addressType": "FQDN",
                "metadata": {"name": "z", "namespace": "ns", "labels": {"fairlead.dev/model-deployment": "llama"}},
                "ports": [{"name": "http", "port": 80}], "endpoints": [{"addresses": ["evil.example"]}]})),
        ];
        assert_eq!(of_llama(&slices), Vec::<String>::new());
    }
}
