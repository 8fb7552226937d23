//! From a folder of blobs into containerd.
//!
//! Owns: leaving out the layers that containerd has. Must not: build. Called by `images`. An archive for `ctr images import`
//! may lack blobs that are in containerd's store already: so a rebuilt program costs its own layer and not libtorch's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tar::Builder;

use super::oci::{self, IndexEntry, LAYOUT_MARK};
use crate::local::containerd;
use crate::local::layout::Layout;

/// The OCI layout that all images are exported to, so that they share their layers.
pub fn folder(images: &Path) -> PathBuf {
    images.join("layout")
}

/// What the layout's index says about an image.
pub fn entry(images: &Path, image: &str) -> Result<IndexEntry> {
    let index = read_json(&folder(images).join("index.json"))?;
    find(&index, image).with_context(|| format!("{image} has not been built"))
}

fn find(index: &Value, image: &str) -> Option<IndexEntry> {
    let manifests = index["manifests"].as_array()?;
    let manifest = manifests.iter().find(|manifest| {
        manifest["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(image)
    })?;
    let digest = manifest["digest"].as_str()?.strip_prefix("sha256:")?.to_owned();
    Some(IndexEntry { name: image.to_owned(), digest, size: manifest["size"].as_u64()? })
}

/// Imports an image unless containerd has this very one; says whether it did.
pub fn into_containerd(layout: &Layout, images: &Path, image: &str) -> Result<bool> {
    if !containerd::is_ready(layout) {
        bail!("the local cluster is not up: run `make cluster-up`, or set KUBECONFIG");
    }
    let entry = entry(images, image)?;
    let loaded = containerd::images(layout)?;
    if loaded.iter().any(|(name, digest)| name == image && digest.ends_with(&entry.digest)) {
        return Ok(false);
    }
    let present = containerd::blobs(layout)?;
    let archive = images.join(format!("import.{}.tar", std::process::id()));
    let imported =
        write_archive(images, &entry, &present, &archive).and_then(|()| containerd::import(layout, &archive));
    // Gone already where writing it failed.
    let _ = fs::remove_file(&archive);
    imported.map(|()| true).with_context(|| format!("loading {image}"))
}

fn write_archive(
    images: &Path,
    entry: &IndexEntry,
    present: &BTreeSet<String>,
    archive: &Path,
) -> Result<()> {
    let folder = folder(images);
    let manifest = read_json(&folder.join(oci::blob(&entry.digest)))?;
    let file = File::create(archive).with_context(|| format!("creating {}", archive.display()))?;
    let mut builder = Builder::new(BufWriter::new(file));
    oci::append_bytes(&mut builder, "oci-layout", LAYOUT_MARK)?;
    oci::append_bytes(&mut builder, "index.json", &oci::index(entry)?)?;
    // The manifest goes along in any case: an import starts from it.
    oci::append_blob(&mut builder, &entry.digest, &folder.join(oci::blob(&entry.digest)))?;
    for digest in
        children(&manifest).into_iter().filter(|digest| !present.contains(&format!("sha256:{digest}")))
    {
        oci::append_blob(&mut builder, &digest, &folder.join(oci::blob(&digest)))?;
    }
    builder.into_inner()?.flush()?;
    Ok(())
}

/// The digests of a manifest's configuration and layers, each once.
fn children(manifest: &Value) -> BTreeSet<String> {
    let layers = manifest["layers"].as_array().into_iter().flatten();
    std::iter::once(&manifest["config"])
        .chain(layers)
        .filter_map(|child| child["digest"].as_str()?.strip_prefix("sha256:"))
        .map(String::from)
        .collect()
}

/// Removes the blobs of the layout that no image in its index refers to: those of earlier builds.
pub fn prune(images: &Path) -> Result<()> {
    let folder = folder(images);
    let index = read_json(&folder.join("index.json"))?;
    let mut used = BTreeSet::new();
    for manifest in index["manifests"].as_array().into_iter().flatten() {
        let Some(digest) = manifest["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"))
        else {
            continue;
        };
        used.extend(children(&read_json(&folder.join(oci::blob(digest)))?));
        used.insert(digest.to_owned());
    }
    let blobs = folder.join("blobs/sha256");
    for blob in fs::read_dir(&blobs).with_context(|| format!("reading {}", blobs.display()))?.flatten() {
        if !used.contains(blob.file_name().to_string_lossy().as_ref()) {
            fs::remove_file(blob.path()).with_context(|| format!("removing {}", blob.path().display()))?;
        }
    }
    Ok(())
}

/// The digest of an image's configuration, by which the kubelet reports what a container runs.
pub fn config_digest(images: &Path, image: &str) -> Result<String> {
    let entry = entry(images, image)?;
    let manifest = read_json(&folder(images).join(oci::blob(&entry.digest)))?;
    let digest =
        manifest["config"]["digest"].as_str().context("the image's manifest names no configuration")?;
    Ok(digest.to_owned())
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_is_found_by_its_full_name() {
        let index = json!({"manifests": [
            {"digest": "sha256:aa", "size": 1, "annotations": {"org.opencontainers.image.ref.name": "localhost/a:dev"}},
            {"digest": "sha256:bb", "size": 2, "annotations": {"org.opencontainers.image.ref.name": "localhost/b:dev"}},
        ]});
        assert_eq!(find(&index, "localhost/b:dev").unwrap().digest, "bb");
        assert!(find(&index, "localhost/c:dev").is_none());
    }

    #[test]
    fn only_blobs_of_named_images_are_kept() {
        let images = tempfile::tempdir().unwrap();
        let layout = folder(images.path());
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(layout.join("index.json"), json!({"manifests": [{"digest": "sha256:mm"}]}).to_string())
            .unwrap();
        fs::write(blobs.join("mm"), json!({"config": {"digest": "sha256:cc"}, "layers": []}).to_string())
            .unwrap();
        for name in ["cc", "old"] {
            fs::write(blobs.join(name), name).unwrap();
        }
        prune(images.path()).unwrap();
        assert!(blobs.join("mm").exists() && blobs.join("cc").exists() && !blobs.join("old").exists());
    }

    #[test]
    fn layers_that_are_there_are_left_out() {
        let images = tempfile::tempdir().unwrap();
        let blobs = folder(images.path()).join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let manifest = json!({"config": {"digest": "sha256:cc"}, "layers": [{"digest": "sha256:aa"}, {"digest": "sha256:bb"}]});
        for (name, text) in [("mm", manifest.to_string()), ("bb", "new".into()), ("cc", "{}".into())] {
            fs::write(blobs.join(name), text).unwrap();
        }
        let entry = IndexEntry { name: "x".into(), digest: "mm".into(), size: 1 };
        let archive = images.path().join("out.tar");
        let present = BTreeSet::from(["sha256:aa".to_owned()]);
        write_archive(images.path(), &entry, &present, &archive).unwrap();
        let mut names = Vec::new();
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().display().to_string());
        }
        assert_eq!(
            names,
            ["oci-layout", "index.json", "blobs/sha256/mm", "blobs/sha256/bb", "blobs/sha256/cc"]
        );
    }
}
