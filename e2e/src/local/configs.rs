//! The configuration files of the cluster's programs.
//!
//! Owns: their text (pure) and writing them only when they change. Called by `up`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::address_plan::{DNS_SERVICE, DOMAIN, POD_RANGE};
use super::containerd::PAUSE_IMAGE;
use super::layout::Layout;

/// The cgroup below which all pods live, apart from those of any other kubelet on the machine.
pub const CGROUP: &str = "fairlead";
/// The name of the pods' network; CNI's records of it carry this name.
pub const POD_NETWORK: &str = "fairlead-pods";
/// The folder of the CNI plugins in Debian's package.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// One configuration file and the program that must be restarted when it changes.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// The program that reads it.
    pub program: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// Every configuration file but the kubeconfigs.
pub fn files(layout: &Layout) -> Vec<ConfigFile> {
    let file = |program, path, text| ConfigFile { program, path, text };
    vec![
        file("containerd", layout.config("containerd.toml"), containerd(layout)),
        file("containerd", layout.cni_configs().join("10-bridge.conflist"), cni(layout)),
        file("kubelet", layout.config("kubelet.yaml"), kubelet(layout)),
        file(
            "kubelet",
            layout.config("resolv.conf"),
            "# The cluster has no way out: there is nobody to ask.\n".into(),
        ),
        file("kube-proxy", layout.config("kube-proxy.yaml"), kube_proxy(layout)),
    ]
}

/// Writes what differs; returns the programs whose configuration changed.
pub fn write_changed(files: &[ConfigFile]) -> Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    for file in files {
        if fs::read_to_string(&file.path).is_ok_and(|text| text == file.text) {
            continue;
        }
        write_private(&file.path, &file.text)?;
        changed.push(file.program);
    }
    Ok(changed)
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .with_context(|| format!("writing {}", draft.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", draft.display()))?;
    fs::rename(&draft, path).with_context(|| format!("writing {}", path.display()))
}

fn containerd(layout: &Layout) -> String {
    let root = layout.state.join("containerd");
    let (root, run, socket) = (root.display(), layout.run(), layout.containerd_socket());
    let (run, socket, cni) = (run.display(), socket.display(), layout.cni_configs());
    let cni = cni.display();
    format!(
        r#"version = 2
root = "{root}"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
# Raising a score back needs CAP_SYS_RESOURCE, which virtual machines and containers often lack.
restrict_oom_score_adj = true
disable_apparmor = true
sandbox_image = "{PAUSE_IMAGE}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{run}/runc"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{cni}"
"#
    )
}

fn cni(layout: &Layout) -> String {
    let data = layout.state.join("cni");
    let config = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": POD_NETWORK,
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": data,
                    "ranges": [[{"subnet": POD_RANGE}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    });
    format!("{config:#}\n")
}

fn kubelet(layout: &Layout) -> String {
    let (ca, cert, key) =
        (layout.pki("ca.crt"), layout.pki("kubelet-serving.crt"), layout.pki("kubelet-serving.key"));
    let (ca, cert, key) = (ca.display(), cert.display(), key.display());
    let (resolv, socket, pod_logs) =
        (layout.config("resolv.conf"), layout.containerd_socket(), layout.pod_logs());
    let (resolv, socket, pod_logs) = (resolv.display(), socket.display(), pod_logs.display());
    let plugins = layout.kubelet().join("volume-plugins");
    let plugins = plugins.display();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {ca}}}
authorization: {{mode: Webhook}}
tlsCertFile: {cert}
tlsPrivateKeyFile: {key}
cgroupDriver: cgroupfs
cgroupRoot: /{CGROUP}
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
hairpinMode: none
makeIPTablesUtilChains: false
resolvConf: {resolv}
clusterDomain: {DOMAIN}
clusterDNS: [{DNS_SERVICE}]
maxPods: 60
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}}
nodeStatusUpdateFrequency: 4s
containerRuntimeEndpoint: unix://{socket}
podLogsDir: {pod_logs}
volumePluginDir: {plugins}
shutdownGracePeriod: 0s
"
    )
}

fn kube_proxy(layout: &Layout) -> String {
    let kubeconfig = layout.config("kube-proxy.kubeconfig");
    let kubeconfig = kubeconfig.display();
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: {POD_RANGE}
clientConnection: {{kubeconfig: {kubeconfig}}}
# The table's size is the host's and cannot be written inside a namespace.
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
iptables: {{minSyncPeriod: 0s}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(folder: &Path) -> Layout {
        Layout { state: folder.join("state"), logs: folder.join("logs") }
    }

    #[test]
    fn unchanged_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&layout(folder.path()));
        assert_eq!(write_changed(&files).unwrap().len(), files.len());
        assert!(write_changed(&files).unwrap().is_empty());
        let mut edited = files;
        edited[0].text.push('#');
        assert_eq!(write_changed(&edited).unwrap(), vec!["containerd"]);
    }

    #[test]
    fn every_yaml_and_json_file_parses() {
        for file in files(&layout(Path::new("/cache"))) {
            let name = file.path.display().to_string();
            if name.ends_with(".yaml") || name.ends_with(".conflist") {
                let value: serde_json::Value = serde_saphyr::from_str(&file.text).unwrap();
                assert!(value.is_object(), "{name}");
            }
        }
    }
}
