//! The cluster's programs and their command lines.
//!
//! Owns: what runs, with which arguments, inside or outside the namespace. Pure. Called by `up` to start them and by
//! `down` and `status` to recognise them: a process belongs to the cluster when its command line names the state folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::address_plan::{NODE_ADDRESS, NODE_NAME, SERVICE_RANGE, api_address};
use super::layout::{Layout, text};
use super::namespace;

/// Where the executables are.
#[derive(Clone, Debug)]
pub struct Executables {
    /// The Kubernetes programs in one, chosen by the first argument.
    pub kubernetes: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// containerd.
    pub containerd: PathBuf,
    /// This very program, which also is the forwarder.
    pub ourselves: PathBuf,
}

/// One long-running program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name, also that of its log.
    pub name: &'static str,
    /// The executable and its arguments.
    pub argv: Vec<String>,
    /// Whether it runs inside the cluster's network namespace from the start.
    pub inside: bool,
}

/// The programs in the order they are started.
pub fn programs(layout: &Layout, executables: &Executables, host: SocketAddr) -> Vec<Program> {
    let kubernetes = |name: &'static str, arguments: Vec<String>| Program {
        name,
        argv: [text(&executables.kubernetes), name.to_owned()].into_iter().chain(arguments).collect(),
        inside: true,
    };
    vec![
        Program { name: "etcd", argv: etcd(layout, &executables.etcd), inside: true },
        Program {
            name: "containerd",
            argv: vec![
                text(&executables.containerd),
                "--config".into(),
                text(&layout.config("containerd.toml")),
            ],
            inside: true,
        },
        Program { name: "forwarder", argv: forwarder(layout, &executables.ourselves, host), inside: false },
        kubernetes("kube-apiserver", api_server(layout)),
        kubernetes("kube-controller-manager", controller_manager(layout)),
        kubernetes("kube-scheduler", scheduler(layout)),
        kubernetes("kubelet", kubelet(layout)),
        kubernetes(
            "kube-proxy",
            vec![
                flag("config", &layout.config("kube-proxy.yaml")),
                flag_text("hostname-override", NODE_NAME),
            ],
        ),
    ]
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

fn flag_text(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn etcd(layout: &Layout, executable: &Path) -> Vec<String> {
    let mut argv = vec![text(executable), flag("data-dir", &layout.state.join("etcd"))];
    argv.extend(
        [
            "--name=n1",
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=n1=http://127.0.0.1:2380",
        ]
        .map(String::from),
    );
    argv
}

fn forwarder(layout: &Layout, executable: &Path, host: SocketAddr) -> Vec<String> {
    vec![
        text(executable),
        "forward".into(),
        flag_text("listen", host),
        flag_text("to", api_address()),
        flag("namespace", &namespace::path()),
        flag("state", &layout.state),
    ]
}

fn api_server(layout: &Layout) -> Vec<String> {
    let pki = |name: &str, file: &str| flag(name, &layout.pki(file));
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        "--bind-address=0.0.0.0".into(),
        flag_text("secure-port", api_address().port()),
        flag_text("advertise-address", NODE_ADDRESS),
        flag_text("service-cluster-ip-range", SERVICE_RANGE),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--anonymous-auth=false".into(),
        pki("client-ca-file", "ca.crt"),
        pki("tls-cert-file", "apiserver.crt"),
        pki("tls-private-key-file", "apiserver.key"),
        pki("kubelet-client-certificate", "apiserver-kubelet.crt"),
        pki("kubelet-client-key", "apiserver-kubelet.key"),
        pki("kubelet-certificate-authority", "ca.crt"),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        pki("service-account-key-file", "service-accounts.pub"),
        pki("service-account-signing-key-file", "service-accounts.key"),
        pki("requestheader-client-ca-file", "front-proxy-ca.crt"),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        pki("proxy-client-cert-file", "front-proxy-client.crt"),
        pki("proxy-client-key-file", "front-proxy-client.key"),
        "--enable-aggregator-routing=true".into(),
    ]
}

fn kubeconfigs(layout: &Layout, name: &str) -> Vec<String> {
    let file = layout.config(&format!("{name}.kubeconfig"));
    ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
        .map(|argument| flag(argument, &file))
        .to_vec()
}

fn controller_manager(layout: &Layout) -> Vec<String> {
    let mut argv = kubeconfigs(layout, "controller-manager");
    argv.extend([
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--use-service-account-credentials=true".into(),
        flag("service-account-private-key-file", &layout.pki("service-accounts.key")),
        flag("root-ca-file", &layout.pki("ca.crt")),
        flag("cluster-signing-cert-file", &layout.pki("ca.crt")),
        flag("cluster-signing-key-file", &layout.pki("ca.key")),
        "--controllers=*,bootstrapsigner,tokencleaner".into(),
        "--allocate-node-cidrs=false".into(),
        flag_text("service-cluster-ip-range", SERVICE_RANGE),
        "--node-monitor-grace-period=40s".into(),
    ]);
    argv
}

fn scheduler(layout: &Layout) -> Vec<String> {
    let mut argv = kubeconfigs(layout, "scheduler");
    argv.extend(["--bind-address=127.0.0.1".into(), "--leader-elect=false".into()]);
    argv
}

fn kubelet(layout: &Layout) -> Vec<String> {
    vec![
        flag("config", &layout.config("kubelet.yaml")),
        flag("kubeconfig", &layout.config("kubelet.kubeconfig")),
        flag("root-dir", &layout.kubelet()),
        flag("cert-dir", &layout.kubelet().join("pki")),
        flag_text("hostname-override", NODE_NAME),
        flag_text("node-ip", NODE_ADDRESS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Program> {
        let layout = Layout { state: "/cache/cluster".into(), logs: "/cache/logs".into() };
        let executables = Executables {
            kubernetes: "/cache/tools/cluster".into(),
            etcd: "/usr/bin/etcd".into(),
            containerd: "/usr/bin/containerd".into(),
            ourselves: "/bin/fairlead-e2e".into(),
        };
        programs(&layout, &executables, "127.0.0.1:16443".parse().unwrap())
    }

    #[test]
    fn every_command_line_names_the_state_folder_by_which_its_process_is_recognised() {
        for program in all() {
            let named =
                program.argv.iter().skip(1).any(|argument| {
                    argument.contains("/cache/cluster/") || argument.ends_with("/cache/cluster")
                });
            assert!(named, "{}", program.name);
        }
    }

    #[test]
    fn only_the_forwarder_starts_outside_the_namespace() {
        let outside: Vec<_> =
            all().into_iter().filter(|program| !program.inside).map(|program| program.name).collect();
        assert_eq!(outside, ["forwarder"]);
    }
}
