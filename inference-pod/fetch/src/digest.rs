//! `model.digest`: one SHA-256 over all files in use.
//!
//! It is `sha256:` and the hexadecimal SHA-256 of a text with one line for each file in use ([`crate::files`]), sorted by
//! path: the file's hexadecimal SHA-256, two spaces, its path in the model's folder, a line feed. That is the output of
//! `sha256sum` on those files, so a person can compute it too. The same files give the same digest from any source.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::FetchError;

/// The digest of files, given their hexadecimal SHA-256 by path.
#[must_use]
pub fn of_files(files: &BTreeMap<String, String>) -> String {
    let mut hasher = Sha256::new();
    for (path, sha256) in files {
        hasher.update(format!("{sha256}  {path}\n"));
    }
    format!("sha256:{}", hex(&hasher.finalize()))
}

/// Checks the form of a digest.
///
/// # Errors
/// [`FetchError::InvalidSetting`] with the form that is wanted.
pub fn check_form(digest: &str) -> Result<(), FetchError> {
    let is_hex = |text: &str| text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    if digest.strip_prefix("sha256:").is_some_and(is_hex) {
        Ok(())
    } else {
        let form = "must be sha256: and 64 lower-case hexadecimal digits";
        Err(FetchError::InvalidSetting(format!("model.digest: {form}")))
    }
}

/// Compares a digest with the one asked for.
pub(crate) fn compare(expected: Option<&str>, actual: &str) -> Result<(), FetchError> {
    match expected {
        Some(expected) if expected != actual => {
            Err(FetchError::DigestMismatch { expected: expected.to_owned(), actual: actual.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The hexadecimal SHA-256 of a file. Blocking.
pub(crate) fn of_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    hash_reader(&mut File::open(path)?, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

/// Feeds all of `reader` to `hasher` and returns the number of bytes. Blocking.
pub(crate) fn hash_reader(reader: &mut impl Read, hasher: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => {
                hasher.update(buffer.get(..read).unwrap_or_default());
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_sha256sum_of_sha256sum_gives() {
        // printf 'a' > config.json; printf 'b' > model.safetensors; sha256sum config.json model.safetensors | sha256sum
        let files = [
            ("config.json", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"),
            ("model.safetensors", "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"),
        ];
        let files = files.map(|(path, sha256)| (path.to_owned(), sha256.to_owned())).into_iter().collect();
        assert_eq!(
            of_files(&files),
            "sha256:2ec03c7ff898c7ab725c8d58af6d528d62b7f17133ca75e8ec918887bc0ce1c7"
        );
    }

    #[test]
    fn only_the_one_form_is_a_digest() {
        assert!(check_form(&format!("sha256:{}", "0a".repeat(32))).is_ok());
        for wrong in ["", "sha256:", "sha256:00", &format!("sha256:{}", "0A".repeat(32)), &"00".repeat(32)] {
            assert!(check_form(wrong).is_err(), "{wrong}");
        }
    }
}
