//! A revision of a repository as a hub lists it: its commit and its files.

use fairlead_model::encoder::pipeline::POOLING_FILE;
use serde::Deserialize;

use crate::source_uri::Repository;

/// A revision of a repository, fixed to a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteModel {
    /// The repository.
    pub repository: Repository,
    /// The commit that the revision stood for when it was looked up.
    pub commit: String,
    /// Files in the repository's root, and `1_Pooling/config.json`.
    pub files: Vec<RemoteFile>,
}

/// A file on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub name: String,
    /// Bytes, when the hub's list says.
    pub size: Option<u64>,
    /// Hexadecimal SHA-256, known for large files only.
    pub sha256: Option<String>,
    /// Entity tag without quotes, when the hub's list says.
    pub etag: Option<String>,
}

/// The answer of the models API, as much as is used of it.
#[derive(Deserialize)]
pub(crate) struct Listing {
    pub sha: String,
    #[serde(default)]
    pub siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sibling {
    pub rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl From<Sibling> for RemoteFile {
    fn from(sibling: Sibling) -> Self {
        let Sibling { rfilename, size, blob_id, lfs } = sibling;
        match lfs.filter(|lfs| is_sha256(&lfs.sha256)) {
            Some(Lfs { sha256, size }) => {
                Self { name: rfilename, size: Some(size), etag: Some(sha256.clone()), sha256: Some(sha256) }
            }
            None => Self { name: rfilename, size, sha256: None, etag: blob_id },
        }
    }
}

pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// Whether a revision is a commit, which never comes to stand for something else.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// Names come from outside and become paths: only plain ones are taken, and the one file in a folder that is in use.
pub(crate) fn is_plain_name(name: &str) -> bool {
    if name == POOLING_FILE {
        return true;
    }
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_are_not_taken() {
        for name in ["", "../x", "a/b", "1_Pooling/../config.json", "/etc/passwd", ".git", "a\\b", "a\nb"] {
            assert!(!is_plain_name(name), "{name}");
        }
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
        assert!(is_plain_name("1_Pooling/config.json"));
    }

    #[test]
    fn a_large_file_is_known_by_its_sha256() {
        let sha256 = "ab".repeat(32);
        let json = format!(
            r#"{{"rfilename":"m","size":1,"blobId":"c0","lfs":{{"sha256":"{sha256}","size":9,"pointerSize":1}}}}"#
        );
        let file = RemoteFile::from(serde_json::from_str::<Sibling>(&json).expect("is an entry"));
        assert_eq!(
            (file.size, file.sha256.as_ref(), file.etag.as_ref()),
            (Some(9), Some(&sha256), Some(&sha256))
        );
        let small: Sibling =
            serde_json::from_str(r#"{"rfilename":"c","size":5,"blobId":"c0"}"#).expect("is an entry");
        assert_eq!(RemoteFile::from(small).etag.as_deref(), Some("c0"));
    }
}
