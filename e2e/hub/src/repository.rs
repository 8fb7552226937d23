//! Models on disk, as repositories: `ROOT/org/name/` is the branch `main`, `ROOT/org/name@tag/` another revision.
//!
//! A revision's commit is a hash of its files, so it changes when they do and is the same on every machine.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

/// Models below one folder.
pub struct Repositories {
    root: PathBuf,
    hashes: Mutex<HashMap<PathBuf, (u64, SystemTime, String)>>,
}

/// A file of a revision.
#[derive(Clone, Debug)]
pub struct RepositoryFile {
    /// Path in the repository.
    pub path: String,
    /// Where it lies.
    pub on_disk: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Hexadecimal SHA-256.
    pub sha256: String,
}

impl RepositoryFile {
    /// Whether a real hub would keep this file in LFS.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.path.ends_with(".safetensors") || self.path.ends_with(".bin")
    }

    /// The entity tag without its quotes: the SHA-256 of a large file, 40 digits of it otherwise, as hubs use Git's names.
    #[must_use]
    pub fn etag(&self) -> &str {
        if self.is_large() { &self.sha256 } else { self.sha256.get(..40).unwrap_or(&self.sha256) }
    }
}

/// A revision of a repository.
#[derive(Clone, Debug)]
pub struct Revision {
    /// 40 hexadecimal digits.
    pub commit: String,
    /// Files, sorted by path.
    pub files: Vec<RepositoryFile>,
}

/// Why there is no such revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no such repository.
    Repository,
    /// The repository has no such revision.
    Revision,
}

impl Repositories {
    /// Serves the models below `root`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, hashes: Mutex::default() }
    }

    /// Looks up a revision by branch, tag or commit. The outer error is the disk's. Blocking.
    ///
    /// # Errors
    /// Any IO error but absence.
    pub fn revision(&self, org: &str, name: &str, revision: &str) -> io::Result<Result<Revision, Missing>> {
        if ![org, name].iter().all(|part| is_plain(part)) || name.contains('@') {
            return Ok(Err(Missing::Repository));
        }
        let mut folders = Vec::new();
        match fs::read_dir(self.root.join(org)) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry?;
                    let file_name = entry.file_name();
                    let Some(folder) = file_name.to_str() else { continue };
                    let (repository, tag) = folder.split_once('@').unwrap_or((folder, "main"));
                    if repository == name && entry.path().is_dir() {
                        folders.push((tag.to_owned(), entry.path()));
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if folders.is_empty() {
            return Ok(Err(Missing::Repository));
        }
        folders.sort();
        if let Some((_, folder)) = folders.iter().find(|(tag, _)| tag == revision) {
            return self.read(folder).map(Ok);
        }
        for (_, folder) in &folders {
            let found = self.read(folder)?;
            if found.commit == revision {
                return Ok(Ok(found));
            }
        }
        Ok(Err(Missing::Revision))
    }

    fn read(&self, folder: &Path) -> io::Result<Revision> {
        let mut files = Vec::new();
        self.walk(folder, "", &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut hasher = Sha256::new();
        for file in &files {
            hasher.update(format!("{} {}\n", file.sha256, file.path));
        }
        let mut commit = hex(&hasher.finalize());
        commit.truncate(40);
        Ok(Revision { commit, files })
    }

    fn walk(&self, folder: &Path, prefix: &str, files: &mut Vec<RepositoryFile>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let path = format!("{prefix}{name}");
            let metadata = fs::metadata(entry.path())?;
            if metadata.is_dir() {
                self.walk(&entry.path(), &format!("{path}/"), files)?;
            } else {
                let sha256 = self.sha256(&entry.path(), metadata.len(), metadata.modified()?)?;
                files.push(RepositoryFile { path, on_disk: entry.path(), size: metadata.len(), sha256 });
            }
        }
        Ok(())
    }

    fn sha256(&self, path: &Path, size: u64, modified: SystemTime) -> io::Result<String> {
        let known = |hashes: &HashMap<PathBuf, (u64, SystemTime, String)>| {
            let (known_size, known_modified, hash) = hashes.get(path)?;
            (*known_size == size && *known_modified == modified).then(|| hash.clone())
        };
        if let Some(hash) = known(&self.hashes.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(hash);
        }
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hasher.update(buffer.get(..read).unwrap_or_default()),
            }
        }
        let hash = hex(&hasher.finalize());
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        hashes.insert(path.to_owned(), (size, modified, hash.clone()));
        Ok(hash)
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', '\0'])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
