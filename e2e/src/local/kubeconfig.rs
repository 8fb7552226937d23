//! The text of a kubeconfig.
//!
//! Owns: its shape. Pure. Called by `up` for the host's file and for each program's own.

use std::net::SocketAddr;

use anyhow::Result;
use k8s_openapi::ByteString;

/// The name of the cluster, its user and its context.
pub const CONTEXT: &str = "fairlead-local";

/// A kubeconfig that needs no other file: the certificates are inside.
pub fn render(server: SocketAddr, authority: &str, certificate: &str, key: &str) -> Result<String> {
    let [authority, certificate, key] = [base64(authority)?, base64(certificate)?, base64(key)?];
    Ok(format!(
        "apiVersion: v1
kind: Config
clusters:
- name: {CONTEXT}
  cluster:
    server: https://{server}
    certificate-authority-data: {authority}
users:
- name: {CONTEXT}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: {CONTEXT}
  context: {{cluster: {CONTEXT}, user: {CONTEXT}}}
current-context: {CONTEXT}
"
    ))
}

/// Base64, by the encoding that the Kubernetes types already have.
fn base64(text: &str) -> Result<String> {
    let value = serde_json::to_value(ByteString(text.as_bytes().to_vec()))?;
    Ok(value.as_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_library_reads_it() {
        let text = render("127.0.0.1:16443".parse().unwrap(), "a", "b", "c").unwrap();
        let parsed = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(parsed.current_context.as_deref(), Some(CONTEXT));
        let cluster = parsed.clusters[0].cluster.clone().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:16443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("YQ=="));
    }
}
