//! Image archives written by hand.
//!
//! Owns: the OCI image layout of a one-layer image made of files. Must not: run programs. Called by the local cluster for
//! its own programs and for the models of the examples: for a static program, an image is a tar and three JSON
//! files. The same input gives the same bytes, so that digests tell whether anything changed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What a layer is made of.
#[derive(Clone, Debug)]
pub enum Source {
    /// One file.
    File {
        /// The file on this machine.
        from: PathBuf,
        /// Its absolute path in the image.
        to: String,
        /// Its permissions.
        mode: u32,
    },
    /// A folder and all below it, readable by everyone.
    Folder {
        /// The folder on this machine.
        from: PathBuf,
        /// Its absolute path in the image.
        to: String,
    },
}

/// An image to write.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// Its full name, with registry and tag.
    pub name: String,
    /// What is in it.
    pub sources: Vec<Source>,
    /// The program it runs; empty for an image of data.
    pub entrypoint: Vec<String>,
    /// The user it runs as; empty for root.
    pub user: String,
}

/// Writes the image as an OCI layout in a tar, whole or not at all.
pub fn write_archive(spec: &ImageSpec, archive: &Path) -> Result<()> {
    let folder = archive.parent().context("an archive needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let process = std::process::id();
    let layer = archive.with_extension(format!("layer.{process}"));
    let draft = archive.with_extension(format!("draft.{process}"));
    let written = write_layer(spec, &layer).and_then(|digest| write_layout(spec, &layer, &digest, &draft));
    // Gone already where writing it failed.
    let _ = fs::remove_file(&layer);
    if let Err(error) = written {
        let _ = fs::remove_file(&draft);
        return Err(error).with_context(|| format!("writing the image {}", spec.name));
    }
    fs::rename(&draft, archive).with_context(|| format!("writing {}", archive.display()))
}

/// Writes the layer and returns its SHA-256.
fn write_layer(spec: &ImageSpec, path: &Path) -> Result<String> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut builder = Builder::new(Hashing { inner: BufWriter::new(file), hash: Sha256::new() });
    for source in &spec.sources {
        match source {
            Source::File { from, to, mode } => append_file(&mut builder, from, to, *mode)?,
            Source::Folder { from, to } => append_folder(&mut builder, from, to)?,
        }
    }
    let mut hashing = builder.into_inner()?;
    hashing.inner.flush()?;
    Ok(hex(&hashing.hash.finalize()))
}

fn append_folder<W: Write>(builder: &mut Builder<W>, from: &Path, to: &str) -> Result<()> {
    let mut header = header(EntryType::Directory, 0, 0o755);
    builder.append_data(&mut header, format!("{}/", inside(to)), io::empty())?;
    let mut entries: Vec<PathBuf> = fs::read_dir(from)
        .with_context(|| format!("reading {}", from.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = format!("{to}/{name}");
        if path.is_dir() {
            append_folder(builder, &path, &to)?;
        } else {
            append_file(builder, &path, &to, 0o644)?;
        }
    }
    Ok(())
}

fn append_file<W: Write>(builder: &mut Builder<W>, from: &Path, to: &str, mode: u32) -> Result<()> {
    let file = File::open(from).with_context(|| format!("reading {}", from.display()))?;
    let mut header = header(EntryType::Regular, file.metadata()?.len(), mode);
    builder.append_data(&mut header, inside(to), file).with_context(|| format!("adding {}", from.display()))
}

/// Neither owner nor time of this machine gets into an image.
fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn inside(path: &str) -> &str {
    path.trim_start_matches('/')
}

fn write_layout(spec: &ImageSpec, layer: &Path, digest: &str, archive: &Path) -> Result<()> {
    let config = serde_json::to_vec(&config(spec, digest))?;
    let size = fs::metadata(layer).with_context(|| format!("reading {}", layer.display()))?.len();
    let manifest = serde_json::to_vec(&manifest(&config, digest, size))?;
    let file = File::create(archive).with_context(|| format!("creating {}", archive.display()))?;
    let mut builder = Builder::new(BufWriter::new(file));
    let reference =
        IndexEntry { name: spec.name.clone(), digest: sha256(&manifest), size: manifest.len() as u64 };
    append_bytes(&mut builder, "oci-layout", LAYOUT_MARK)?;
    append_bytes(&mut builder, "index.json", &index(&reference)?)?;
    append_bytes(&mut builder, &blob(&reference.digest), &manifest)?;
    append_bytes(&mut builder, &blob(&sha256(&config)), &config)?;
    append_file(&mut builder, layer, &blob(digest), 0o644)?;
    builder.into_inner()?.flush()?;
    Ok(())
}

/// The file that says that a folder or a tar is an OCI layout.
pub const LAYOUT_MARK: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The media type of an OCI manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What an index says about one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The full name.
    pub name: String,
    /// The manifest's SHA-256, without a prefix.
    pub digest: String,
    /// The manifest's size in bytes.
    pub size: u64,
}

/// The index of a layout with one image.
pub fn index(entry: &IndexEntry) -> Result<Vec<u8>> {
    let value = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": MANIFEST_TYPE,
            "digest": format!("sha256:{}", entry.digest),
            "size": entry.size,
            "annotations": {"io.containerd.image.name": entry.name, "org.opencontainers.image.ref.name": entry.name},
        }],
    });
    Ok(serde_json::to_vec(&value)?)
}

/// The name of a blob in a layout.
pub fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

/// Adds a small file to a layout's tar.
pub fn append_bytes<W: Write>(builder: &mut Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, bytes.len() as u64, 0o644);
    builder.append_data(&mut header, name, bytes).with_context(|| format!("adding {name}"))
}

/// Adds a file from the disk to a layout's tar.
pub fn append_blob<W: Write>(builder: &mut Builder<W>, digest: &str, from: &Path) -> Result<()> {
    append_file(builder, from, &blob(digest), 0o644)
}

fn config(spec: &ImageSpec, layer: &str) -> Value {
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": spec.entrypoint, "User": spec.user, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    })
}

fn manifest(config: &[u8], layer: &str, size: u64) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", sha256(config)),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{layer}"),
            "size": size,
        }],
    })
}

/// This machine's architecture by the name that images use.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A writer that hashes what passes.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(folder: &Path) -> ImageSpec {
        fs::create_dir_all(folder.join("model/deep")).unwrap();
        fs::write(folder.join("model/deep/b"), "b").unwrap();
        fs::write(folder.join("model/a"), "a").unwrap();
        let from = folder.join("model");
        let file = Source::File { from: folder.join("model/a"), to: "/program".into(), mode: 0o755 };
        ImageSpec {
            name: "localhost/x:1".into(),
            sources: vec![Source::Folder { from, to: "/models".into() }, file],
            entrypoint: vec!["/program".into()],
            user: "65532".into(),
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let spec = spec(folder.path());
        write_archive(&spec, &folder.path().join("one.tar")).unwrap();
        write_archive(&spec, &folder.path().join("two.tar")).unwrap();
        assert_eq!(
            fs::read(folder.path().join("one.tar")).unwrap(),
            fs::read(folder.path().join("two.tar")).unwrap()
        );
    }

    #[test]
    fn every_blob_has_the_digest_it_is_named_by() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("image.tar");
        write_archive(&spec(folder.path()), &archive).unwrap();
        let mut blobs = 0;
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(digest) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(sha256(&bytes), digest);
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3);
    }
}
