//! The programs that the cluster needs and this machine may lack.
//!
//! Owns: which versions, where they are kept, how they are got. Must not: run them. Called by the binary's `tools` and,
//! where something is missing, by `up`.

pub mod debian;
pub mod golang;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::local::lock;
use crate::paths::Paths;
use crate::progress::say;

/// A Go program installed by its module path at a pinned version.
#[derive(Clone, Copy, Debug)]
pub struct GoProgram {
    /// The program's name.
    pub name: &'static str,
    /// The path to install.
    pub path: &'static str,
    /// The version.
    pub version: &'static str,
    /// How long it takes on two cores with nothing cached.
    pub expected: Duration,
}

/// Cluster DNS.
pub const COREDNS: GoProgram = GoProgram {
    name: "coredns",
    path: "github.com/coredns/coredns",
    version: "v1.15.0",
    expected: Duration::from_secs(130),
};
/// Resource metrics.
pub const METRICS_SERVER: GoProgram = GoProgram {
    name: "metrics-server",
    path: "sigs.k8s.io/metrics-server/cmd/metrics-server",
    version: "v0.9.0",
    expected: Duration::from_secs(115),
};
/// The package manager that the charts are for.
pub const HELM: GoProgram = GoProgram {
    name: "helm",
    path: "helm.sh/helm/v4/cmd/helm",
    version: "v4.3.1",
    expected: Duration::from_secs(115),
};

/// Where the finished programs are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Every Kubernetes program in one.
    pub kubernetes: PathBuf,
    /// The sandbox's program.
    pub pause: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
    /// metrics-server.
    pub metrics_server: PathBuf,
    /// Helm.
    pub helm: PathBuf,
}

/// Installs and builds what is missing, and links kubectl and helm into the cache's bin folder.
pub fn ensure(paths: &Paths) -> Result<Tools> {
    let _lock = lock::acquire(&paths.cache.join("tools.lock"))?;
    debian::ensure(debian::Need::Cluster)?;
    client_tools(paths, true)
}

/// The same for what a cluster that is not ours needs: helm, kubectl and what builds images.
pub fn ensure_clients(paths: &Paths) -> Result<Tools> {
    let _lock = lock::acquire(&paths.cache.join("tools.lock"))?;
    debian::ensure(debian::Need::Images)?;
    client_tools(paths, false)
}

fn client_tools(paths: &Paths, server: bool) -> Result<Tools> {
    let folder = paths.tools();
    let (kubernetes, pause) = golang::kubernetes(&paths.root, &folder)?;
    let helm = golang::install(&folder, &HELM)?;
    let missing = PathBuf::new();
    let (coredns, metrics_server) = if server {
        (golang::install(&folder, &COREDNS)?, golang::install(&folder, &METRICS_SERVER)?)
    } else {
        (missing.clone(), missing)
    };
    link(&kubernetes, &paths.bin().join("kubectl"))?;
    link(&helm, &paths.bin().join("helm"))?;
    Ok(Tools { kubernetes, pause, coredns, metrics_server, helm })
}

/// Says where everything is.
pub fn report(paths: &Paths, tools: &Tools) {
    let Tools { kubernetes, pause, coredns, metrics_server, helm } = tools;
    for path in [kubernetes, pause, coredns, metrics_server, helm] {
        say(&format!("  {}", path.display()));
    }
    say(&format!("tools are ready; kubectl and helm are in {}", paths.bin().display()));
}

/// Points a link at a program, replacing what was there in one step.
fn link(program: &Path, link: &Path) -> Result<()> {
    if std::fs::read_link(link).is_ok_and(|target| target == program) {
        return Ok(());
    }
    let folder = link.parent().context("a link needs a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let draft = link.with_extension("draft");
    // Left by a killed run, if at all.
    let _ = std::fs::remove_file(&draft);
    std::os::unix::fs::symlink(program, &draft).with_context(|| format!("linking {}", link.display()))?;
    std::fs::rename(&draft, link).with_context(|| format!("linking {}", link.display()))
}
