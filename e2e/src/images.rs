//! Images without a registry.
//!
//! Owns: building them and getting them into a cluster. Must not: know what the programs in them do. Called by the
//! binary's `images`, by the quickstart and, for single programs, by the local cluster.

pub mod base;
pub mod buildah;
pub mod components;
pub mod hub_models;
pub mod libtorch;
pub mod load;
pub mod models;
pub mod oci;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::buildah::Buildah;
use self::components::{Component, Foundation, components};
use crate::local::layout::Layout;
use crate::local::lock;
use crate::paths::{Paths, foreign_kubeconfig};
use crate::progress::{human, say};

/// The environment variable that names the registry for a cluster that is not ours.
pub const REGISTRY_VARIABLE: &str = "IMAGE_REGISTRY";
/// The registry of images that come from none.
pub const LOCAL_REGISTRY: &str = "localhost";
/// The tag of what was built here.
pub const TAG: &str = "dev";

/// Where built images go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The local cluster's containerd.
    Local,
    /// A registry that the cluster in use pulls from.
    Registry(String),
}

impl Target {
    /// The local cluster, or the registry in `IMAGE_REGISTRY` when `KUBECONFIG` is set.
    pub fn find() -> Result<Self> {
        if foreign_kubeconfig().is_none() {
            return Ok(Self::Local);
        }
        match std::env::var(REGISTRY_VARIABLE) {
            Ok(registry) if !registry.is_empty() => {
                Ok(Self::Registry(registry.trim_end_matches('/').to_owned()))
            }
            _ => bail!(
                "KUBECONFIG is set, and {REGISTRY_VARIABLE} is not: set {REGISTRY_VARIABLE} to a registry that the \
                 cluster pulls from, such as registry.example.com/team"
            ),
        }
    }

    /// The registry part of the images' names, as the charts are told.
    pub fn registry(&self) -> &str {
        match self {
            Self::Local => LOCAL_REGISTRY,
            Self::Registry(registry) => registry,
        }
    }
}

impl Target {
    /// A manifest that names our images where they are on this machine, made to name them where the cluster finds them.
    pub fn localized(&self, manifest: &str) -> String {
        manifest.replace(&format!("{LOCAL_REGISTRY}/fairlead-"), &format!("{}/fairlead-", self.registry()))
    }
}

/// Builds every image from the programs in `programs` and gets them into the cluster.
pub fn build_and_load(paths: &Paths, programs: &Path) -> Result<()> {
    let target = Target::find()?;
    let _lock = lock::acquire(&paths.cache.join("images.lock"))?;
    let begin = Instant::now();
    let workshop = Workshop::open(paths)?;
    let components = components(programs);
    for component in &components {
        let base = match component.foundation {
            Foundation::Debian => Some(workshop.base()?),
            Foundation::Libtorch => Some(workshop.libtorch()?),
            Foundation::Nothing => None,
        };
        workshop.deliver(component, base.as_deref(), &target)?;
    }
    say(&format!("images are in place after {}", human(begin.elapsed())));
    Ok(())
}

/// Builds the images of the models that the examples use and gets them into the cluster.
pub fn build_and_load_models(paths: &Paths) -> Result<()> {
    let target = Target::find()?;
    let _lock = lock::acquire(&paths.cache.join("images.lock"))?;
    let workshop = Workshop::open(paths)?;
    for component in components::example_models(&paths.root, &models::embedding(paths)?) {
        workshop.deliver(&component, None, &target)?;
    }
    Ok(())
}

/// Builds the images that only tests use, the hub with good and broken models and the worker without any, and gets them into the
/// cluster.
pub fn build_and_load_test_images(paths: &Paths, programs: &Path) -> Result<()> {
    let target = Target::find()?;
    let _lock = lock::acquire(&paths.cache.join("images.lock"))?;
    let models = hub_models::lay_out(&paths.root, &paths.cache.join("hub"))?;
    let workshop = Workshop::open(paths)?;
    let base = workshop.base()?;
    workshop.deliver(&components::test_hub(programs, &models), Some(&base), &target)?;
    workshop.deliver(&components::test_worker(programs), Some(&base), &target)
}

/// What building needs, found once.
struct Workshop {
    buildah: Buildah,
    images: PathBuf,
    containerfiles: PathBuf,
    layout: Layout,
}

impl Workshop {
    fn open(paths: &Paths) -> Result<Self> {
        let images = paths.images();
        fs::create_dir_all(&images).with_context(|| format!("creating {}", images.display()))?;
        Ok(Self {
            buildah: Buildah::open(&images)?,
            containerfiles: paths.root.join("images"),
            layout: Layout::new(paths),
            images,
        })
    }

    fn base(&self) -> Result<String> {
        base::ensure(&self.buildah, &self.images)
    }

    fn libtorch(&self) -> Result<String> {
        libtorch::ensure(&self.buildah, &self.images, &self.containerfiles, &self.base()?)
    }

    /// Builds an image unless its inputs are those it was last built from, and sends it where it is needed unless it is
    /// there.
    fn deliver(&self, component: &Component, base: Option<&str>, target: &Target) -> Result<()> {
        let begin = Instant::now();
        let image = component.image();
        let containerfile = self.containerfiles.join(component.containerfile);
        let fingerprint = component.fingerprint(&containerfile, base)?;
        let record = self.images.join(format!("{}.built", component.name));
        let built = fs::read_to_string(&record).is_ok_and(|known| known == fingerprint)
            && self.buildah.has(&image)
            && load::entry(&self.images, &image).is_ok();
        if !built {
            let context = component.stage(&self.images.join("context"))?;
            self.buildah.build(&containerfile, &context, &image, base)?;
            fs::remove_dir_all(&context).with_context(|| format!("removing {}", context.display()))?;
            self.buildah.export(&image, &load::folder(&self.images))?;
            self.buildah.prune()?;
            load::prune(&self.images)?;
            fs::write(&record, &fingerprint).with_context(|| format!("writing {}", record.display()))?;
        }
        let sent = match target {
            Target::Local => load::into_containerd(&self.layout, &self.images, &image)?,
            Target::Registry(registry) => {
                self.buildah.push(&image, &format!("{registry}/{}:{TAG}", component.name))?;
                true
            }
        };
        let did = match (built, sent) {
            (true, false) => "unchanged",
            (true, true) => "unchanged, sent to the cluster",
            (false, _) => "built and sent to the cluster",
        };
        say(&format!("{image}: {did} ({})", human(begin.elapsed())));
        Ok(())
    }
}

/// How long building the Debian base takes.
const BASE_EXPECTED: Duration = Duration::from_secs(40);
/// How long building the libtorch base takes.
const LIBTORCH_EXPECTED: Duration = Duration::from_secs(30);
