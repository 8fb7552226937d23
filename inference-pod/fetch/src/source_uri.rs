//! `model.uri`: where a model comes from.

use std::fmt;
use std::path::PathBuf;

use crate::error::FetchError;

/// A repository on a hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    /// User or organisation.
    pub org: String,
    /// Name below it.
    pub name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceUri {
    /// `hf://org/name@revision`: a hub.
    Hub {
        /// The repository.
        repository: Repository,
        /// Branch, tag or commit; `main` when the URI has none.
        revision: String,
    },
    /// `pvc://claim/path`: a folder in a PersistentVolumeClaim.
    Claim {
        /// The claim's name.
        claim: String,
        /// Folder in it, relative, empty for its root.
        path: String,
    },
    /// `oci://image#folder`: a folder in a container image.
    Image {
        /// The image's reference.
        image: String,
        /// Absolute folder in it.
        folder: String,
    },
    /// `file:///path`: a folder that this process sees.
    Folder {
        /// Absolute path; relative only from [`SourceUri::parse_or_folder`].
        path: PathBuf,
    },
}

/// Folder of a model in an image whose URI names none.
pub const DEFAULT_IMAGE_FOLDER: &str = "/models";

impl SourceUri {
    /// Reads a URI.
    ///
    /// # Errors
    /// [`FetchError::InvalidUri`] with the form that is wanted.
    pub fn parse(uri: &str) -> Result<Self, FetchError> {
        let invalid = |problem: &str| FetchError::InvalidUri(format!("\"{uri}\" {problem}"));
        if uri.len() > 1024 || uri.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(invalid("must be at most 1024 characters with no space in it"));
        }
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Err(invalid(
                "must start with hf://, pvc://, oci:// or file://; for example hf://org/name@revision",
            ));
        };
        match scheme {
            "hf" => {
                let (repository, revision) = rest.split_once('@').unwrap_or((rest, "main"));
                let form = "must read hf://org/name or hf://org/name@revision";
                let (org, name) = repository.split_once('/').ok_or_else(|| invalid(form))?;
                if ![org, name].iter().all(|part| is_name(part)) || !is_revision(revision) {
                    return Err(invalid(form));
                }
                let repository = Repository { org: org.to_owned(), name: name.to_owned() };
                Ok(Self::Hub { repository, revision: revision.to_owned() })
            }
            "pvc" => {
                let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
                if !is_name(claim) || !is_contained(path) {
                    return Err(invalid(
                        "must read pvc://claim or pvc://claim/path, the path with no .. in it",
                    ));
                }
                Ok(Self::Claim { claim: claim.to_owned(), path: path.trim_matches('/').to_owned() })
            }
            "oci" => {
                let (image, folder) = rest.split_once('#').unwrap_or((rest, DEFAULT_IMAGE_FOLDER));
                if image.is_empty() || image.starts_with('/') || folder.is_empty() || !is_contained(folder) {
                    return Err(invalid(
                        "must read oci://image or oci://image#/folder, the folder with no .. in it",
                    ));
                }
                Ok(Self::Image { image: image.to_owned(), folder: format!("/{}", folder.trim_matches('/')) })
            }
            "file" => {
                if !rest.starts_with('/') {
                    return Err(invalid("must read file:///absolute/path"));
                }
                Ok(Self::Folder { path: PathBuf::from(rest) })
            }
            _ => Err(invalid("has an unknown scheme; known are hf://, pvc://, oci:// and file://")),
        }
    }

    /// Reads a URI, or a plain path as a folder, as command lines take them.
    ///
    /// # Errors
    /// [`FetchError::InvalidUri`] with the form that is wanted.
    pub fn parse_or_folder(text: &str) -> Result<Self, FetchError> {
        if text.is_empty() {
            return Err(FetchError::InvalidUri(
                "is empty; give a folder or a URI such as hf://org/name".to_owned(),
            ));
        }
        if text.contains("://") { Self::parse(text) } else { Ok(Self::Folder { path: PathBuf::from(text) }) }
    }

    /// A folder name for this source, to keep several models below one cache folder.
    #[must_use]
    pub fn cache_name(&self) -> String {
        let text = self.to_string();
        let (_, rest) = text.split_once("://").unwrap_or(("", &text));
        rest.chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                    c.to_string()
                } else {
                    "--".to_owned()
                }
            })
            .collect::<String>()
            .trim_matches(['-', '.'])
            .to_owned()
    }
}

impl fmt::Display for SourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repository, revision } => write!(f, "hf://{repository}@{revision}"),
            Self::Claim { claim, path } if path.is_empty() => write!(f, "pvc://{claim}"),
            Self::Claim { claim, path } => write!(f, "pvc://{claim}/{path}"),
            Self::Image { image, folder } => write!(f, "oci://{image}#{folder}"),
            Self::Folder { path } => write!(f, "file://{}", path.display()),
        }
    }
}

fn is_name(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 253
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn is_revision(revision: &str) -> bool {
    !revision.is_empty() && revision.split('/').all(is_name)
}

fn is_contained(path: &str) -> bool {
    path.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_scheme_and_writes_it_back() {
        for (uri, canonical) in [
            ("hf://org/name", "hf://org/name@main"),
            ("hf://org/name-1.5@refs/pr/3", "hf://org/name-1.5@refs/pr/3"),
            ("pvc://claim", "pvc://claim"),
            ("pvc://claim/a/b/", "pvc://claim/a/b"),
            ("oci://registry:5000/a/b:v1", "oci://registry:5000/a/b:v1#/models"),
            ("oci://a@sha256:00#weights", "oci://a@sha256:00#/weights"),
            ("file:///srv/model", "file:///srv/model"),
        ] {
            let source = SourceUri::parse(uri).expect("is well formed");
            assert_eq!(source.to_string(), canonical);
            assert_eq!(SourceUri::parse(canonical).expect("is well formed"), source);
        }
    }

    #[test]
    fn refuses_what_it_cannot_use_and_says_the_form() {
        for uri in [
            "",
            "org/name",
            "s3://bucket/x",
            "hf://name",
            "hf://org/",
            "hf://org/name@",
            "hf://org/a/b",
            "hf://../name",
            "hf://org/na me",
            "pvc://",
            "pvc://claim/../x",
            "oci://",
            "oci://image#",
            "oci://image#/a/../..",
            "file://x",
        ] {
            let error = SourceUri::parse(uri).expect_err(uri);
            assert!(matches!(error, FetchError::InvalidUri(_)), "{uri}: {error}");
        }
        assert!(SourceUri::parse("s3://b/x").expect_err("unknown").to_string().contains("known are hf://"));
    }

    #[test]
    fn a_plain_path_is_a_folder_on_a_command_line() {
        let source = SourceUri::parse_or_folder("models/tiny").expect("is a path");
        assert_eq!(source, SourceUri::Folder { path: PathBuf::from("models/tiny") });
        assert_eq!(SourceUri::parse("hf://a/b@v1").expect("is well formed").cache_name(), "a--b--v1");
    }
}
