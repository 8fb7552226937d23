//! Where things are: the cache, the cluster's state, the checkout.
//!
//! Owns: the folder layout outside the checkout. Must not: create or delete anything. Called by every other module.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The environment variable that moves the cache.
pub const CACHE_VARIABLE: &str = "FAIRLEAD_CACHE";

/// The folders this crate works in.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Finished programs, images and the cluster's state; never inside the checkout.
    pub cache: PathBuf,
    /// The checkout: the folder with Cargo.toml, charts/ and e2e/.
    pub root: PathBuf,
}

impl Paths {
    /// Finds the cache (`FAIRLEAD_CACHE`, or `fairlead` in the user's cache folder) and the checkout (the nearest
    /// parent of the working directory that holds e2e/cluster/go.mod).
    pub fn find() -> Result<Self> {
        let cache = cache_folder()
            .context("neither FAIRLEAD_CACHE, XDG_CACHE_HOME nor HOME is set: set FAIRLEAD_CACHE")?;
        if !cache.is_absolute() {
            bail!("FAIRLEAD_CACHE is {}: give an absolute path", cache.display());
        }
        let here = std::env::current_dir().context("reading the working directory")?;
        let root = here
            .ancestors()
            .find(|folder| folder.join("e2e/cluster/go.mod").is_file())
            .map(Path::to_path_buf)
            .with_context(|| {
                format!("{} is not inside a checkout of Fairlead: cd into one", here.display())
            })?;
        Ok(Self { cache, root })
    }

    /// Finished programs, each in a folder named after its version.
    pub fn tools(&self) -> PathBuf {
        self.cache.join("tools")
    }

    /// Links to the programs that people call: kubectl and helm.
    pub fn bin(&self) -> PathBuf {
        self.cache.join("bin")
    }

    /// The local cluster's state; `down` removes it.
    pub fn cluster(&self) -> PathBuf {
        self.cache.join("cluster")
    }

    /// The logs of the cluster's programs; they outlive the cluster.
    pub fn logs(&self) -> PathBuf {
        self.cache.join("logs")
    }

    /// Built images, as OCI blobs, and what they were built from.
    pub fn images(&self) -> PathBuf {
        self.cache.join("images")
    }

    /// The kubeconfig of the local cluster, valid on the host.
    pub fn local_kubeconfig(&self) -> PathBuf {
        self.cluster().join("kubeconfig")
    }

    /// The kubeconfig to use: `KUBECONFIG` when it is set, otherwise the local cluster's.
    pub fn kubeconfig(&self) -> PathBuf {
        foreign_kubeconfig().unwrap_or_else(|| self.local_kubeconfig())
    }
}

/// The value of `KUBECONFIG` when it names another cluster than ours: the person's own, which this crate must not start or
/// stop.
pub fn foreign_kubeconfig() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()).map(PathBuf::from)?;
    let ours =
        cache_folder().is_some_and(|cache| named == Paths { cache, root: PathBuf::new() }.local_kubeconfig());
    (!ours).then_some(named)
}

/// `FAIRLEAD_CACHE`, or `fairlead` in the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let set = std::env::var_os(CACHE_VARIABLE).filter(|folder| !folder.is_empty());
    set.map(PathBuf::from).or_else(user_cache)
}

fn user_cache() -> Option<PathBuf> {
    let xdg = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    xdg.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .map(|folder| folder.join("fairlead"))
}
