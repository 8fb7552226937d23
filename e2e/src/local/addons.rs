//! Cluster DNS and resource metrics.
//!
//! Owns: their manifests and images. Must not: install Fairlead. Called by `up`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::address_plan::{DNS_SERVICE, DOMAIN};
use super::containerd::{self, PAUSE_IMAGE};
use super::layout::Layout;
use crate::images::oci::{self, ImageSpec, Source};
use crate::tools::{self, Tools};

/// One image made of one static program.
#[derive(Clone, Debug)]
pub struct ProgramImage {
    /// The image's name.
    pub image: String,
    /// The program.
    pub program: PathBuf,
}

/// The image of CoreDNS.
fn coredns_image() -> String {
    format!("localhost/coredns:{}", tools::COREDNS.version)
}

/// The image of metrics-server.
fn metrics_server_image() -> String {
    format!("localhost/metrics-server:{}", tools::METRICS_SERVER.version)
}

/// The images, the sandbox image first: no pod starts without it.
pub fn images(tools: &Tools) -> Vec<ProgramImage> {
    vec![
        ProgramImage { image: PAUSE_IMAGE.into(), program: tools.pause.clone() },
        ProgramImage { image: coredns_image(), program: tools.coredns.clone() },
        ProgramImage { image: metrics_server_image(), program: tools.metrics_server.clone() },
    ]
}

/// The manifests of cluster DNS.
pub fn coredns_manifest() -> String {
    render(include_str!("addons/coredns.yaml"))
}

/// The manifests of resource metrics.
pub fn metrics_server_manifest() -> String {
    render(include_str!("addons/metrics-server.yaml"))
}

fn render(template: &str) -> String {
    template
        .replace("${DOMAIN}", DOMAIN)
        .replace("${DNS_SERVICE}", &DNS_SERVICE.to_string())
        .replace("${COREDNS_IMAGE}", &coredns_image())
        .replace("${METRICS_SERVER_IMAGE}", &metrics_server_image())
}

/// Loads the images that containerd lacks. The archives are kept in the cache.
pub fn load_images(layout: &Layout, archives: &Path, tools: &Tools) -> Result<()> {
    let loaded = containerd::images(layout)?;
    for ProgramImage { image, program } in images(tools) {
        if loaded.iter().any(|(name, _)| *name == image) {
            continue;
        }
        let archive = archive(archives, &program)?;
        if !archive.is_file() {
            let name = program.file_name().context("a program has a file name")?.to_string_lossy();
            let inside = format!("/{name}");
            let spec = ImageSpec {
                name: image.clone(),
                sources: vec![Source::File { from: program.clone(), to: inside.clone(), mode: 0o755 }],
                entrypoint: vec![inside],
                user: String::new(),
            };
            oci::write_archive(&spec, &archive)?;
        }
        containerd::import(layout, &archive).with_context(|| format!("loading {image}"))?;
    }
    Ok(())
}

/// One archive per version of a program: the folder it lies in is named after it.
fn archive(folder: &Path, program: &Path) -> Result<PathBuf> {
    let version =
        program.parent().and_then(Path::file_name).context("a program lies in its version's folder")?;
    let name = program.file_name().context("a program has a file name")?;
    Ok(folder.join(format!("{}-{}.tar", version.to_string_lossy(), name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_and_every_document_parses() {
        for manifest in [coredns_manifest(), metrics_server_manifest()] {
            assert!(!manifest.contains("${"), "{manifest}");
            for document in manifest.split("\n---\n") {
                let value: serde_json::Value = serde_saphyr::from_str(document).unwrap();
                assert!(value["kind"].is_string());
            }
        }
    }
}
