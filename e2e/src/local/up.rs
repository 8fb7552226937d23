//! Starting the cluster, or what is missing of it.
//!
//! Owns: the order and the waiting. Must not: know arguments, addresses or file texts. What runs and is as it should be
//! is left alone, so `up` after a crash restarts what crashed, with its state.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::{Api, Client};

use super::address_plan::{NODE_NAME, api_address, host_address};
use super::certificates::CLUSTER_AUTHORITY;
use super::configs::{self, ConfigFile};
use super::layout::{Layout, text};
use super::process::{self, Process};
use super::programs::{Executables, Program, programs};
use super::{addons, certificates, cgroups, containerd, kubeconfig, namespace, owner, preflight, sysctl};
use crate::cluster;
use crate::paths::Paths;
use crate::progress::{human, say};
use crate::shell;
use crate::tools::Tools;

const ETCD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2379);
/// How long any one thing may take to become ready; slow machines need most of it.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// How often, and how far apart, a process is looked for before it is said to have ended.
const LOOKS: usize = 5;
const LOOK_INTERVAL: Duration = Duration::from_millis(30);
const STOP_GRACE: Duration = Duration::from_secs(8);

/// A started cluster.
pub struct Started {
    /// A client of it.
    pub client: Client,
    /// From the first step to the node being Ready.
    pub node_ready: Duration,
}

/// Brings the cluster up until its node is Ready and its DNS answers.
pub async fn up(paths: &Paths, tools: &Tools) -> Result<Started> {
    let begin = Instant::now();
    let layout = Layout::new(paths);
    owner::check(&layout)?;
    if !namespace::exists() {
        preflight::check()?;
    }
    let host = host_address()?;
    prepare(&layout)?;
    let programs = programs(&layout, &executables(tools)?, host);
    let starter = Starter { layout: &layout, programs: &programs, changed: write_configs(&layout, host)? };
    starter.ensure(&["etcd", "containerd", "forwarder"])?;
    starter.wait("etcd to accept connections", "etcd", || namespace::accepts(ETCD)).await?;
    starter.ensure(&["kube-apiserver"])?;
    let images = load_images(&layout, paths, tools);
    starter.wait("containerd to answer", "containerd", || Ok(containerd::is_ready(&layout))).await?;
    let client = cluster::client(&layout.kubeconfig()).await?;
    await_api(&starter, &client).await?;
    say(&format!("API server ready after {}", human(begin.elapsed())));
    starter.ensure(&["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"])?;
    apply(&layout, tools, addons::coredns_manifest()).await.context("installing cluster DNS")?;
    await_node(&starter, &client).await?;
    let node_ready = begin.elapsed();
    say(&format!("node {NODE_NAME} Ready after {}", human(node_ready)));
    apply(&layout, tools, addons::metrics_server_manifest()).await.context("installing metrics-server")?;
    images.await.context("loading the cluster's images failed")??;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
    cluster::await_condition(&deployments, "coredns", cluster::deployment_available, PATIENCE).await?;
    say(&format!("cluster DNS ready after {}", human(begin.elapsed())));
    Ok(Started { client, node_ready })
}

/// Waits for resource metrics, which need two rounds of measurement, so about 20 s.
pub async fn await_metrics(client: &Client) -> Result<()> {
    let services: Api<APIService> = Api::all(client.clone());
    cluster::await_condition(&services, "v1beta1.metrics.k8s.io", cluster::api_service_available, PATIENCE)
        .await
}

fn prepare(layout: &Layout) -> Result<()> {
    for folder in [&layout.state, &layout.logs, &layout.run(), &layout.pod_logs()] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    if layout.state.to_str().is_none_or(|path| path.contains(['"', '\\', '\n', ' ', '=', ','])) {
        bail!(
            "FAIRLEAD_CACHE is {}: choose a path without blanks and special characters",
            layout.state.display()
        );
    }
    owner::note(layout)?;
    sysctl::save(layout)?;
    namespace::ensure()?;
    cgroups::ensure()?;
    certificates::ensure(layout)
}

fn executables(tools: &Tools) -> Result<Executables> {
    let system = |name: &str| shell::which(name).with_context(|| format!("{name} is not installed"));
    // After a rebuild the kernel calls the running file deleted; the new one has taken its place.
    let ourselves = std::env::current_exe().context("finding this program")?;
    let ourselves = text(&ourselves).trim_end_matches(" (deleted)").into();
    Ok(Executables {
        kubernetes: tools.kubernetes.clone(),
        etcd: system("etcd")?,
        containerd: system("containerd")?,
        ourselves,
    })
}

/// Writes the configuration files and kubeconfigs; returns the programs that must be restarted for them.
fn write_configs(layout: &Layout, host: SocketAddr) -> Result<Vec<&'static str>> {
    let read = |file: String| {
        let path = layout.pki(&file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let config = |server, identity: &str| {
        let [authority, certificate, key] = [CLUSTER_AUTHORITY, identity, identity];
        kubeconfig::render(
            server,
            &read(format!("{authority}.crt"))?,
            &read(format!("{certificate}.crt"))?,
            &read(format!("{key}.key"))?,
        )
    };
    let mut files = configs::files(layout);
    for (program, identity) in [
        ("kube-controller-manager", "controller-manager"),
        ("kube-scheduler", "scheduler"),
        ("kubelet", "kubelet"),
        ("kube-proxy", "kube-proxy"),
    ] {
        let path = layout.config(&format!("{identity}.kubeconfig"));
        files.push(ConfigFile { program, path, text: config(api_address(), identity)? });
    }
    files.push(ConfigFile { program: "", path: layout.kubeconfig(), text: config(host, "admin")? });
    configs::write_changed(&files)
}

/// Starts programs and watches over them while something is awaited.
struct Starter<'a> {
    layout: &'a Layout,
    programs: &'a [Program],
    changed: Vec<&'static str>,
}

impl Starter<'_> {
    /// Starts those of the named programs that do not run as they should, in the given order.
    fn ensure(&self, names: &[&str]) -> Result<()> {
        let all = process::all(self.layout);
        for name in names {
            let program = self.program(name)?;
            let running = process::of_program(&all, program);
            let current = running.len() == 1 && is_current(&running, program) && !self.changed.contains(name);
            if current {
                continue;
            }
            process::stop(&running, STOP_GRACE)?;
            process::spawn(program, &self.layout.log(program.name))?;
        }
        Ok(())
    }

    fn program(&self, name: &str) -> Result<&Program> {
        self.programs
            .iter()
            .find(|program| program.name == name)
            .with_context(|| format!("no program is called {name}"))
    }

    /// Polls until `ready`, and fails as soon as the program that is waited for has ended.
    async fn wait(&self, what: &str, program: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if ready()? {
                return Ok(());
            }
            self.check(what, program, deadline)?;
            tokio::time::sleep(POLL).await;
        }
    }

    fn check(&self, what: &str, name: &str, deadline: Instant) -> Result<()> {
        let program = self.program(name)?;
        let log = self.layout.log(name);
        if self.has_ended(program) {
            bail!(
                "{name} ended while waiting for {what}; its log {} ends with:\n{}",
                log.display(),
                shell::tail_of(&log, 12)
            );
        }
        if Instant::now() >= deadline {
            bail!("gave up waiting for {what} after {}; see {}", human(PATIENCE), log.display());
        }
        Ok(())
    }

    /// A process has no command line at the very moment that it becomes another program, which it does twice as it is
    /// started; so one look is not enough.
    fn has_ended(&self, program: &Program) -> bool {
        let missing =
            || !process::all(self.layout).iter().any(|process| process.argv.ends_with(&program.argv));
        missing()
            && (0..LOOKS).all(|_| {
                std::thread::sleep(LOOK_INTERVAL);
                missing()
            })
    }
}

fn is_current(running: &[Process], program: &Program) -> bool {
    running.iter().all(|process| process.argv == program.argv)
}

/// Loads the addons' images in the background: the API server starts meanwhile.
fn load_images(layout: &Layout, paths: &Paths, tools: &Tools) -> tokio::task::JoinHandle<Result<()>> {
    let (layout, archives, tools) = (layout.clone(), paths.images().join("addons"), tools.clone());
    tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + PATIENCE;
        while !containerd::is_ready(&layout) {
            if Instant::now() >= deadline {
                bail!("containerd does not answer; see {}", layout.log("containerd").display());
            }
            std::thread::sleep(POLL);
        }
        addons::load_images(&layout, &archives, &tools)
    })
}

async fn await_api(starter: &Starter<'_>, client: &Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if cluster::is_ready(client).await {
            return Ok(());
        }
        for program in ["forwarder", "kube-apiserver"] {
            starter.check("the API server to be ready", program, deadline)?;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn await_node(starter: &Starter<'_>, client: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let deadline = Instant::now() + PATIENCE;
    loop {
        if nodes.get_opt(NODE_NAME).await?.as_ref().is_some_and(cluster::node_ready) {
            return Ok(());
        }
        starter.check("the node to be Ready", "kubelet", deadline)?;
        tokio::time::sleep(POLL).await;
    }
}

/// Applies a manifest, again and again while a new API server still makes the things it refers to.
async fn apply(layout: &Layout, tools: &Tools, manifest: String) -> Result<()> {
    let (kubectl, kubeconfig) = (tools.kubernetes.clone(), layout.kubeconfig());
    let task = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + PATIENCE / 4;
        loop {
            match apply_once(&kubectl, &kubeconfig, &manifest) {
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(POLL * 5),
                Ok(()) => return Ok(()),
            }
        }
    });
    task.await.map_err(|error| anyhow!("the task that applies a manifest failed: {error}"))?
}

fn apply_once(kubectl: &Path, kubeconfig: &Path, manifest: &str) -> Result<()> {
    let mut command = shell::command(kubectl, &["kubectl", "--kubeconfig", &text(kubeconfig)]);
    command.args([
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=fairlead-e2e",
        "--filename=-",
    ]);
    shell::output_with_input(&mut command, manifest).map(drop)
}
