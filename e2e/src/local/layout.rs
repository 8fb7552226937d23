//! The files and folders of the local cluster.
//!
//! Owns: their names. Pure. Called by the modules that write or read them.

use std::path::{Path, PathBuf};

use crate::paths::Paths;

/// The cluster's folders below the cache.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The cluster's state; removed by `down`.
    pub state: PathBuf,
    /// Logs of the programs; kept by `down`.
    pub logs: PathBuf,
}

impl Layout {
    /// The layout below these paths.
    pub fn new(paths: &Paths) -> Self {
        Self { state: paths.cluster(), logs: paths.logs().join("cluster") }
    }

    /// Certificates and keys.
    pub fn pki(&self, file: &str) -> PathBuf {
        self.state.join("pki").join(file)
    }

    /// Configuration files and the programs' own kubeconfigs.
    pub fn config(&self, file: &str) -> PathBuf {
        self.state.join("config").join(file)
    }

    /// The folder of CNI configuration files.
    pub fn cni_configs(&self) -> PathBuf {
        self.state.join("config/cni")
    }

    /// Sockets and what does not survive a restart of the machine.
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.run().join("containerd.sock")
    }

    /// The kubelet's own folder.
    pub fn kubelet(&self) -> PathBuf {
        self.state.join("kubelet")
    }

    /// Logs of the containers; kept by `down`.
    pub fn pod_logs(&self) -> PathBuf {
        self.logs.join("pods")
    }

    /// The log of one program.
    pub fn log(&self, program: &str) -> PathBuf {
        self.logs.join(format!("{program}.log"))
    }

    /// What the machine was like before the cluster.
    pub fn saved(&self) -> PathBuf {
        self.state.join("saved.json")
    }

    /// The kubeconfig for the host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }
}

/// A path as text for a command line; the cache's path is checked to be UTF-8 by the configuration files it is in.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
