//! The cluster's certificates.
//!
//! Owns: who is certified, by which authority, for which names. Must not: renew: they outlive any local cluster. Called
//! by `up` before the first program starts.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::address_plan::{DOMAIN, KUBERNETES_SERVICE, NODE_ADDRESS, NODE_NAME};
use super::layout::Layout;

/// The authority that the API server, the kubelet and all clients are certified by.
pub const CLUSTER_AUTHORITY: &str = "ca";
/// The authority of the API server's aggregation proxy.
pub const FRONT_PROXY_AUTHORITY: &str = "front-proxy-ca";
const LIFETIME: Duration = Duration::days(3650);

/// What one certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The file name without its ending.
    pub file: &'static str,
    /// The authority's file name.
    pub authority: &'static str,
    /// Common name: the Kubernetes user.
    pub user: String,
    /// Organization: the Kubernetes group.
    pub group: Option<&'static str>,
    /// Names and addresses of a server; none for a client.
    pub server_names: Vec<String>,
}

impl Identity {
    fn client(file: &'static str, user: &str, group: Option<&'static str>) -> Self {
        Self { file, authority: CLUSTER_AUTHORITY, user: user.into(), group, server_names: Vec::new() }
    }

    fn server(file: &'static str, user: &str, names: Vec<String>) -> Self {
        Self { file, authority: CLUSTER_AUTHORITY, user: user.into(), group: None, server_names: names }
    }
}

/// Every certificate of the cluster.
pub fn identities() -> Vec<Identity> {
    let mut api_names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
            .map(String::from)
            .to_vec();
    api_names.push(format!("kubernetes.default.svc.{DOMAIN}"));
    api_names.extend(["127.0.0.1".to_owned(), NODE_ADDRESS.to_string(), KUBERNETES_SERVICE.to_string()]);
    vec![
        Identity::server("apiserver", "kube-apiserver", api_names),
        Identity::client("apiserver-kubelet", "kube-apiserver-kubelet", Some("system:masters")),
        Identity::client("admin", "kubernetes-admin", Some("system:masters")),
        Identity::client("controller-manager", "system:kube-controller-manager", None),
        Identity::client("scheduler", "system:kube-scheduler", None),
        Identity::client("kube-proxy", "system:kube-proxy", None),
        Identity::client("kubelet", &format!("system:node:{NODE_NAME}"), Some("system:nodes")),
        Identity::server("kubelet-serving", NODE_NAME, vec![NODE_NAME.into(), NODE_ADDRESS.to_string()]),
        Identity {
            authority: FRONT_PROXY_AUTHORITY,
            ..Identity::client("front-proxy-client", "front-proxy-client", None)
        },
    ]
}

/// Makes every certificate, unless all are there. They are written to a folder beside their place that is then renamed,
/// so a killed run leaves either a whole set or none.
pub fn ensure(layout: &Layout) -> Result<()> {
    let folder = layout.state.join("pki");
    if folder.is_dir() {
        return Ok(());
    }
    let draft = layout.state.join("pki.draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).with_context(|| format!("removing {}", draft.display()))?;
    }
    fs::create_dir_all(&draft).with_context(|| format!("creating {}", draft.display()))?;
    write_all(&draft).context("making the cluster's certificates")?;
    fs::rename(&draft, &folder).with_context(|| format!("renaming {} to its place", draft.display()))
}

fn write_all(folder: &Path) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let cluster = authority("kubernetes-ca", now)?;
    let front_proxy = authority("front-proxy-ca", now)?;
    for (file, issuer) in [(CLUSTER_AUTHORITY, &cluster), (FRONT_PROXY_AUTHORITY, &front_proxy)] {
        write(folder, &format!("{file}.crt"), &issuer.pem())?;
        write(folder, &format!("{file}.key"), &issuer.key().serialize_pem())?;
    }
    for identity in identities() {
        let key = KeyPair::generate()?;
        let issuer = if identity.authority == FRONT_PROXY_AUTHORITY { &front_proxy } else { &cluster };
        let certificate = params(&identity, now)?.signed_by(&key, issuer)?;
        write(folder, &format!("{}.crt", identity.file), &certificate.pem())?;
        write(folder, &format!("{}.key", identity.file), &key.serialize_pem())?;
    }
    let accounts = KeyPair::generate()?;
    write(folder, "service-accounts.key", &accounts.serialize_pem())?;
    write(folder, "service-accounts.pub", &accounts.public_key_pem())
}

fn authority(name: &str, now: OffsetDateTime) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = distinguished_name(name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = (now - Duration::hours(1), now + LIFETIME);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn params(identity: &Identity, now: OffsetDateTime) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(identity.server_names.clone())?;
    params.distinguished_name = distinguished_name(&identity.user, identity.group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let server = !identity.server_names.is_empty();
    params.extended_key_usages =
        vec![if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (now - Duration::hours(1), now + LIFETIME);
    Ok(params)
}

fn distinguished_name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn write(folder: &Path, file: &str, text: &str) -> Result<()> {
    super::configs::write_private(&folder.join(file), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_the_node_and_the_service_reach_the_api_server_by_a_certified_name() {
        let all = identities();
        let api = all.iter().find(|identity| identity.file == "apiserver").unwrap();
        for name in ["127.0.0.1", "192.0.2.10", "198.19.0.1", "kubernetes.default.svc.cluster.local"] {
            assert!(api.server_names.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn a_complete_set_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { state: folder.path().join("state"), logs: folder.path().join("logs") };
        ensure(&layout).unwrap();
        let first = fs::read_to_string(layout.pki("admin.crt")).unwrap();
        for identity in identities() {
            assert!(layout.pki(&format!("{}.key", identity.file)).is_file(), "{}", identity.file);
        }
        ensure(&layout).unwrap();
        assert_eq!(fs::read_to_string(layout.pki("admin.crt")).unwrap(), first);
    }
}
