//! What a folder that we fetched into holds, so that a restart neither fetches nor hashes again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::FetchError;

const STATE_FILE: &str = ".fairlead-model.json";

/// Files that were fetched whole and checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    /// `org/name`.
    pub repository: String,
    /// The commit they belong to.
    pub commit: String,
    /// Whether nothing is missing.
    pub complete: bool,
    /// Files by name.
    pub files: BTreeMap<String, FetchedFile>,
}

/// A file that was fetched whole and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FetchedFile {
    /// Bytes.
    pub size: u64,
    /// Hexadecimal SHA-256.
    pub sha256: String,
    /// Entity tag on the hub.
    pub etag: String,
}

impl State {
    /// Reads the state of a folder; a missing or unreadable one is an empty one, the files are then fetched again.
    pub(crate) async fn read(dir: &Path) -> Self {
        let Ok(bytes) = tokio::fs::read(dir.join(STATE_FILE)).await else { return Self::default() };
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Writes the state so that a crash leaves the old or the new one.
    pub(crate) async fn write(&self, dir: &Path) -> Result<(), FetchError> {
        let path = dir.join(STATE_FILE);
        let written = async {
            let draft = dir.join(format!("{STATE_FILE}.new"));
            let mut file = tokio::fs::File::create(&draft).await?;
            tokio::io::AsyncWriteExt::write_all(&mut file, &serde_json::to_vec_pretty(self)?).await?;
            file.sync_all().await?;
            tokio::fs::rename(&draft, &path).await?;
            sync_folder(dir).await
        };
        written.await.map_err(|error: io::Error| FetchError::disk("write", &path, &error))
    }

    /// Whether `name` is there as it was fetched, by its size, and is what the hub has under `etag`.
    pub(crate) async fn holds(&self, dir: &Path, name: &str, etag: &str) -> Option<&FetchedFile> {
        let file = self.files.get(name).filter(|file| file.etag == etag)?;
        is_there(dir, name, file.size).await.then_some(file)
    }

    /// Whether all files are there as they were fetched, by their sizes.
    pub(crate) async fn is_whole(&self, dir: &Path) -> bool {
        if !self.complete || self.files.is_empty() {
            return false;
        }
        for (name, file) in &self.files {
            if !is_there(dir, name, file.size).await {
                return false;
            }
        }
        true
    }

    /// Forgets the files that are not among `in_use` and returns their names.
    pub(crate) fn remove_all_but(&mut self, in_use: &BTreeSet<String>) -> Vec<String> {
        let others: Vec<String> = self.files.keys().filter(|name| !in_use.contains(*name)).cloned().collect();
        self.files.retain(|name, _| in_use.contains(name));
        others
    }

    /// SHA-256 of each file by name, for the digest.
    pub(crate) fn hashes(&self) -> BTreeMap<String, String> {
        self.files.iter().map(|(name, file)| (name.clone(), file.sha256.clone())).collect()
    }
}

async fn is_there(dir: &Path, name: &str, size: u64) -> bool {
    tokio::fs::metadata(dir.join(name))
        .await
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// Makes renames in a folder survive a power cut.
pub(crate) async fn sync_folder(dir: &Path) -> io::Result<()> {
    tokio::fs::File::open(dir).await?.sync_all().await
}
