//! One file from a hub to the disk: resumed where it stopped, checked, and put in place whole or not at all.
//!
//! Bytes go to a hidden `.partial` file whose name holds the file's entity tag, so that a part of one version is never
//! continued with another. The last step is a rename.

use std::io;
use std::path::{Path, PathBuf};

use fairlead_model::ModelError;
use reqwest::StatusCode;
use sha2::{Digest, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;

use crate::digest::{hash_reader, hex};
use crate::error::FetchError;
use crate::hub::{FileAnswer, Hub, with_causes};
use crate::hub_answer::content_range;
use crate::progress::Meter;
use crate::remote_model::{RemoteModel, is_sha256};
use crate::state::{FetchedFile, sync_folder};

/// A file whose size and version are known.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub name: String,
    pub size: u64,
    pub etag: String,
    pub sha256: Option<String>,
}

impl Wanted {
    /// Learns from the hub what its list did not say.
    pub(crate) async fn learn(hub: &Hub, model: &RemoteModel, name: &str) -> Result<Self, FetchError> {
        let file = model.files.iter().find(|file| file.name == name);
        if let Some(file) = file
            && let (Some(size), Some(etag)) = (file.size, &file.etag)
        {
            return Ok(Self { name: name.to_owned(), size, etag: etag.clone(), sha256: file.sha256.clone() });
        }
        let answer = hub.head(model, name).await?;
        let (Some(size), Some(etag)) = (answer.size, answer.etag) else {
            return Err(FetchError::transient(format!(
                "{} tells neither size nor ETag of {name}",
                hub.name()
            )));
        };
        let sha256 = is_sha256(&etag).then(|| etag.clone());
        Ok(Self { name: name.to_owned(), size, etag, sha256 })
    }
}

/// Fetches `wanted` into `dir` and returns its name and what was fetched.
pub(crate) async fn download(
    hub: &Hub,
    model: &RemoteModel,
    wanted: &Wanted,
    dir: &Path,
    meter: &Meter,
) -> Result<(String, FetchedFile), FetchError> {
    // A second try from nothing heals a partial file that was damaged on the disk, or one bad transfer.
    for last in [false, true] {
        let mut partial = Partial::open(dir, wanted).await?;
        meter.add(partial.written);
        receive(hub, model, wanted, &mut partial, meter).await?;
        match partial.finish(dir, wanted).await? {
            Finished::Whole(sha256) => {
                let file = FetchedFile { size: wanted.size, sha256, etag: wanted.etag.clone() };
                return Ok((wanted.name.clone(), file));
            }
            Finished::Corrupt(actual) if last => {
                let expected = wanted.sha256.as_deref().unwrap_or_default();
                let problem = format!(
                    "has SHA-256 {actual} after two downloads, the hub says {expected}; the hub or a proxy before it is broken"
                );
                return Err(ModelError::invalid(&wanted.name, problem).into());
            }
            Finished::Corrupt(actual) => {
                tracing::warn!(file = wanted.name, actual, "checksum mismatch, fetching the file again");
                meter.take_back(wanted.size);
            }
        }
    }
    Err(FetchError::transient(format!("{} could not be fetched", wanted.name)))
}

/// Brings `partial` to its full length; attempts that bring bytes do not count as failures.
async fn receive(
    hub: &Hub,
    model: &RemoteModel,
    wanted: &Wanted,
    partial: &mut Partial,
    meter: &Meter,
) -> Result<(), FetchError> {
    let mut failures = 0;
    while partial.written < wanted.size {
        let before = partial.written;
        match receive_once(hub, model, wanted, partial, meter).await {
            Ok(()) => {}
            Err(error) => {
                failures = if partial.written > before { 1 } else { failures + 1 };
                partial.flush().await?;
                hub.retry.pause(error, failures).await?;
            }
        }
    }
    Ok(())
}

async fn receive_once(
    hub: &Hub,
    model: &RemoteModel,
    wanted: &Wanted,
    partial: &mut Partial,
    meter: &Meter,
) -> Result<(), FetchError> {
    let resume = partial.written > 0;
    let range = resume.then(|| format!("bytes={}-", partial.written));
    // A content host has entity tags of its own: there, the hub's linked tag is compared below instead.
    let if_range = (resume && wanted.sha256.is_none()).then(|| format!("\"{}\"", wanted.etag));
    let FileAnswer { mut response, etag, size } =
        hub.open(model, &wanted.name, range.as_deref(), if_range.as_deref()).await?;
    if resume {
        let continues = response.status() == StatusCode::PARTIAL_CONTENT
            && content_range(response.headers()) == Some((partial.written, wanted.size))
            && etag.is_none_or(|etag| etag == wanted.etag);
        if !continues {
            tracing::info!(file = wanted.name, "the hub does not continue this file, starting it again");
            meter.take_back(partial.written);
            partial.restart().await?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::transient(format!(
                    "{} does not continue {}",
                    hub.name(),
                    wanted.name
                )));
            }
        }
    }
    if size.is_some_and(|size| size != wanted.size) {
        let problem =
            format!("is {} bytes on the hub's list, {} when fetched", wanted.size, size.unwrap_or_default());
        return Err(ModelError::invalid(&wanted.name, problem).into());
    }
    loop {
        let chunk = response.chunk().await.map_err(|error| {
            let at = partial.written;
            FetchError::transient(format!(
                "{} was cut off at byte {at}: {}",
                wanted.name,
                with_causes(&error)
            ))
        })?;
        let Some(chunk) = chunk else { break };
        if partial.written + chunk.len() as u64 > wanted.size {
            let problem = format!("is longer than the {} bytes the hub promised", wanted.size);
            return Err(ModelError::invalid(&wanted.name, problem).into());
        }
        partial.write(&chunk).await?;
        meter.add(chunk.len() as u64);
    }
    if partial.written < wanted.size {
        return Err(FetchError::transient(format!(
            "{} ended early, at byte {}",
            wanted.name, partial.written
        )));
    }
    Ok(())
}

/// How the last check of a file went.
enum Finished {
    /// In place; its SHA-256.
    Whole(String),
    /// Removed again; the SHA-256 it had.
    Corrupt(String),
}

/// A file on its way.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    written: u64,
}

impl Partial {
    /// Opens what is there of `wanted` and hashes it; parts of other versions are removed.
    async fn open(dir: &Path, wanted: &Wanted) -> Result<Self, FetchError> {
        let mut version = hex(&Sha256::digest(wanted.etag.as_bytes()));
        version.truncate(16);
        // A file in a folder has its part beside those of all others.
        let prefix = format!(".{}.", wanted.name.replace('/', "--"));
        let name = format!("{prefix}{version}.partial");
        let path = dir.join(&name);
        let opened = async {
            let mut entries = fs::read_dir(dir).await?;
            while let Some(entry) = entries.next_entry().await? {
                let other = entry.file_name();
                let other = other.to_string_lossy();
                if other.starts_with(&prefix) && other.ends_with(".partial") && other != name {
                    fs::remove_file(entry.path()).await?;
                }
            }
            let file = OpenOptions::new().create(true).append(true).open(&path).await?;
            let mut written = file.metadata().await?.len();
            if written > wanted.size {
                file.set_len(0).await?;
                written = 0;
            }
            let hasher = if written > 0 { hash_blocking(path.clone()).await? } else { Sha256::new() };
            Ok(Self { path: path.clone(), file, hasher, written })
        };
        opened.await.map_err(|error: io::Error| FetchError::disk("open", &path, &error))
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let written = self.file.write_all(bytes).await;
        written.map_err(|error| FetchError::disk("write", &self.path, &error))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), FetchError> {
        self.file.flush().await.map_err(|error| FetchError::disk("write", &self.path, &error))
    }

    async fn restart(&mut self) -> Result<(), FetchError> {
        self.flush().await?;
        self.file.set_len(0).await.map_err(|error| FetchError::disk("truncate", &self.path, &error))?;
        self.hasher = Sha256::new();
        self.written = 0;
        Ok(())
    }

    /// Checks the file and puts it in place, or removes it.
    async fn finish(mut self, dir: &Path, wanted: &Wanted) -> Result<Finished, FetchError> {
        self.flush().await?;
        let sha256 = hex(&self.hasher.finalize_reset());
        if wanted.sha256.as_ref().is_some_and(|expected| *expected != sha256) {
            fs::remove_file(&self.path)
                .await
                .map_err(|error| FetchError::disk("remove", &self.path, &error))?;
            return Ok(Finished::Corrupt(sha256));
        }
        let target = dir.join(&wanted.name);
        let placed = async {
            self.file.sync_all().await?;
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).await?;
            }
            fs::rename(&self.path, &target).await?;
            sync_folder(dir).await
        };
        placed.await.map_err(|error| FetchError::disk("write", &target, &error))?;
        Ok(Finished::Whole(sha256))
    }
}

async fn hash_blocking(path: PathBuf) -> io::Result<Sha256> {
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        hash_reader(&mut std::fs::File::open(path)?, &mut hasher)?;
        Ok(hasher)
    });
    hashed.await.map_err(io::Error::other)?
}
