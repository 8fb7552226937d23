//! The addresses of the local cluster.
//!
//! Owns: every address and port, each once. Pure. Called by the modules that write arguments and configuration files.
//! The ranges are those set aside for documentation and benchmarks, so they collide with nobody's network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};

/// The name of the network namespace that holds the cluster.
pub const NAMESPACE: &str = "fairlead";
/// The bridge that carries the node's address.
pub const NODE_INTERFACE: &str = "node0";
/// The only node's name.
pub const NODE_NAME: &str = "node1";
/// The only node's address.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The range that pods get their addresses from.
pub const POD_RANGE: &str = "198.18.0.0/24";
/// The range that Services get their addresses from.
pub const SERVICE_RANGE: &str = "198.19.0.0/16";
/// The address of the `kubernetes` Service: the first of the range.
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// The address of the cluster's DNS.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);
/// The cluster's DNS domain.
pub const DOMAIN: &str = "cluster.local";
/// The API server's port on the node.
pub const API_PORT: u16 = 6443;
/// The environment variable that chooses the host's port.
pub const HOST_PORT_VARIABLE: &str = "FAIRLEAD_API_PORT";
/// The port on the host's loopback that leads to the API server.
pub const DEFAULT_HOST_PORT: u16 = 16443;

/// The API server as the cluster's own programs reach it.
pub fn api_address() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(NODE_ADDRESS), API_PORT)
}

/// The API server as the host reaches it, through the forwarder.
pub fn host_address() -> Result<SocketAddr> {
    let port = match std::env::var(HOST_PORT_VARIABLE) {
        Ok(text) if !text.is_empty() => {
            text.parse().with_context(|| format!("{HOST_PORT_VARIABLE} is {text:?}: give a port number"))?
        }
        _ => DEFAULT_HOST_PORT,
    };
    Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
}
