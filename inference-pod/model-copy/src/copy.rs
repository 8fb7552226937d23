//! Copying a folder so that a crash leaves nothing half-made under its final name, and a second run does only the rest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Links to folders can make circles; no model is this deep.
const MAX_DEPTH: usize = 8;

const BUFFER_BYTES: usize = 4 << 20;

/// A progress line each time so many bytes of one file are copied.
const REPORT_EVERY: u64 = 1 << 30;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Files copied.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Files that were there already.
    pub kept: u64,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no such folder, or nothing in it.
    NotFound,
    /// The folder holds something that must not be copied.
    Invalid,
    /// The disk failed.
    Io,
}

/// Why a folder could not be copied.
#[derive(Debug)]
pub struct Failure {
    /// What kind of failure it was.
    pub kind: Kind,
    /// What failed and what to do.
    pub message: String,
}

impl Failure {
    fn new(kind: Kind, message: String) -> Self {
        Self { kind, message }
    }

    fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; the volume is full: give it more space"
            }
            io::ErrorKind::PermissionDenied => {
                "; it must be readable by every user in the image, or by user 65532"
            }
            io::ErrorKind::ReadOnlyFilesystem => "; the target must be a writable volume",
            _ => "",
        };
        Self::new(Kind::Io, format!("cannot {doing} {}: {error}{remedy}", path.display()))
    }
}

/// Copies the files of `source`, with its subfolders, into `target`. Links are followed as long as they stay inside
/// `source`. `tell` gets progress as lines of text.
pub fn copy_folder(source: &Path, target: &Path, tell: &mut dyn FnMut(&str)) -> Result<Done, Failure> {
    let root = match fs::canonicalize(source) {
        Ok(root) if root.is_dir() => root,
        Ok(_) => {
            let message = format!("{} is a file, the model's folder is wanted", source.display());
            return Err(Failure::new(Kind::NotFound, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_such_folder(source)),
        Err(error) => return Err(Failure::io("open", source, &error)),
    };
    fs::create_dir_all(target).map_err(|error| Failure::io("create", target, &error))?;
    let target = fs::canonicalize(target).map_err(|error| Failure::io("open", target, &error))?;
    if target.starts_with(&root) {
        let message = format!("the target {} lies inside the source {}", target.display(), root.display());
        return Err(Failure::new(Kind::Invalid, message));
    }
    let mut copier = Copier { root: &root, done: Done::default(), buffer: vec![0; BUFFER_BYTES], tell };
    copier.folder(&root, &target, 0)?;
    if copier.done.copied + copier.done.kept == 0 {
        let message = format!(
            "{} holds no file; put the model's files there when building the image",
            source.display()
        );
        return Err(Failure::new(Kind::NotFound, message));
    }
    Ok(copier.done)
}

/// Says how far the path exists and what is there instead.
fn no_such_folder(source: &Path) -> Failure {
    let parent = source.ancestors().skip(1).find(|parent| parent.is_dir()).unwrap_or(Path::new("/"));
    let mut names: Vec<String> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.truncate(20);
    let folders = if names.is_empty() { "no folder".to_owned() } else { names.join(", ") };
    let message = format!(
        "there is no folder {} in this image; {} holds {folders}. Name the model's folder behind # in model.uri: \
         oci://image#/folder",
        source.display(),
        parent.display()
    );
    Failure::new(Kind::NotFound, message)
}

struct Copier<'a> {
    root: &'a Path,
    done: Done,
    buffer: Vec<u8>,
    tell: &'a mut dyn FnMut(&str),
}

impl Copier<'_> {
    fn folder(&mut self, from: &Path, to: &Path, depth: usize) -> Result<(), Failure> {
        if depth > MAX_DEPTH {
            let message =
                format!("{} is more than {MAX_DEPTH} folders deep; is it a circle of links?", from.display());
            return Err(Failure::new(Kind::Invalid, message));
        }
        let mut entries: Vec<PathBuf> = fs::read_dir(from)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(|error| Failure::io("read", from, &error))?;
        entries.sort();
        for path in entries {
            let Some(name) = path.file_name() else { continue };
            let real = fs::canonicalize(&path).map_err(|error| Failure::io("open", &path, &error))?;
            if !real.starts_with(self.root) {
                let message =
                    format!("{} links to {}, outside the model's folder", path.display(), real.display());
                return Err(Failure::new(Kind::Invalid, message));
            }
            let metadata = fs::metadata(&real).map_err(|error| Failure::io("open", &path, &error))?;
            let target = to.join(name);
            if metadata.is_dir() {
                fs::create_dir_all(&target).map_err(|error| Failure::io("create", &target, &error))?;
                self.folder(&real, &target, depth + 1)?;
            } else if metadata.is_file() {
                self.file(&real, &metadata, &target)?;
            } else {
                let message = format!("{} is neither a file nor a folder", path.display());
                return Err(Failure::new(Kind::Invalid, message));
            }
        }
        File::open(to).and_then(|folder| folder.sync_all()).map_err(|error| Failure::io("write", to, &error))
    }

    fn file(&mut self, from: &Path, metadata: &fs::Metadata, to: &Path) -> Result<(), Failure> {
        let modified = metadata.modified().map_err(|error| Failure::io("read", from, &error))?;
        let is_copy = |there: fs::Metadata| {
            there.is_file()
                && there.len() == metadata.len()
                && there.modified().is_ok_and(|other| other == modified)
        };
        if fs::metadata(to).is_ok_and(is_copy) {
            self.done.kept += 1;
            return Ok(());
        }
        let mut draft_name = std::ffi::OsString::from(".");
        draft_name.push(to.file_name().unwrap_or_default());
        draft_name.push(".partial");
        let draft = to.with_file_name(draft_name);

        let mut source = File::open(from).map_err(|error| Failure::io("open", from, &error))?;
        let mut copy = File::create(&draft).map_err(|error| Failure::io("create", &draft, &error))?;
        let mut copied = 0;
        loop {
            let read = match source.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::io("read", from, &error)),
            };
            let bytes = self.buffer.get(..read).unwrap_or_default();
            copy.write_all(bytes).map_err(|error| Failure::io("write", &draft, &error))?;
            let before = copied;
            copied += read as u64;
            if before / REPORT_EVERY != copied / REPORT_EVERY {
                (self.tell)(&format!("{}: {copied} of {} bytes", to.display(), metadata.len()));
            }
        }
        if copied != metadata.len() {
            let message = format!("{} changed while it was copied", from.display());
            return Err(Failure::new(Kind::Io, message));
        }
        copy.set_modified(modified)
            .and_then(|()| copy.sync_all())
            .and_then(|()| fs::rename(&draft, to))
            .map_err(|error| Failure::io("write", to, &error))?;
        (self.tell)(&format!("{}: {copied} bytes", to.display()));
        self.done.copied += 1;
        self.done.copied_bytes += copied;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    struct Scene {
        base: TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let scene = Self { base: tempfile::tempdir().expect("a folder") };
            fs::create_dir_all(scene.source().join("sub")).expect("a folder");
            fs::write(scene.source().join("config.json"), "{}").expect("is written");
            fs::write(scene.source().join("sub/model.safetensors"), "weights").expect("is written");
            scene
        }

        fn source(&self) -> PathBuf {
            self.base.path().join("models")
        }

        fn target(&self) -> PathBuf {
            self.base.path().join("target/model")
        }

        fn copy(&self) -> Result<Done, Failure> {
            copy_folder(&self.source(), &self.target(), &mut |_| {})
        }

        fn copied(&self, name: &str) -> String {
            fs::read_to_string(self.target().join(name)).expect("was copied")
        }
    }

    #[test]
    fn copies_files_and_folders_and_keeps_them_on_a_second_run() {
        let scene = Scene::new();
        assert_eq!(scene.copy().expect("is copied"), Done { copied: 2, copied_bytes: 9, kept: 0 });
        assert_eq!(scene.copied("sub/model.safetensors"), "weights");
        assert_eq!(scene.copy().expect("is there"), Done { copied: 0, copied_bytes: 0, kept: 2 });
    }

    #[test]
    fn replaces_what_a_broken_run_or_another_image_left() {
        let scene = Scene::new();
        fs::create_dir_all(scene.target()).expect("a folder");
        fs::write(scene.target().join(".config.json.partial"), "left over").expect("is written");
        fs::write(scene.target().join("config.json"), "[]").expect("is written");
        let stale = File::options().write(true).open(scene.target().join("config.json")).expect("is there");
        stale.set_modified(std::time::UNIX_EPOCH).expect("takes a time");
        assert_eq!(scene.copy().expect("is copied").copied, 2);
        assert_eq!(scene.copied("config.json"), "{}", "same size, another time: another file");
        assert!(!scene.target().join(".config.json.partial").exists());
    }

    #[test]
    fn follows_links_inside_and_refuses_those_that_lead_out() {
        let scene = Scene::new();
        fs::create_dir_all(scene.source().join("blobs")).expect("a folder");
        fs::write(scene.source().join("blobs/abc"), "shared").expect("is written");
        symlink("blobs/abc", scene.source().join("tokenizer.json")).expect("is linked");
        scene.copy().expect("is copied");
        assert_eq!(scene.copied("tokenizer.json"), "shared");

        fs::write(scene.base.path().join("outside"), "secret").expect("is written");
        symlink("../outside", scene.source().join("way-out")).expect("is linked");
        let failure = scene.copy().expect_err("leads out");
        assert_eq!(failure.kind, Kind::Invalid);
        assert!(failure.message.contains("way-out"), "{}", failure.message);
        assert!(!scene.target().join("way-out").exists());
    }

    #[test]
    fn a_circle_of_links_ends() {
        let scene = Scene::new();
        symlink(".", scene.source().join("again")).expect("is linked");
        let failure = scene.copy().expect_err("has no end");
        assert!(failure.message.contains("circle"), "{}", failure.message);
    }

    #[test]
    fn a_missing_source_tells_what_is_there() {
        let scene = Scene::new();
        let wanted = scene.base.path().join("weights/llama");
        let failure = copy_folder(&wanted, &scene.target(), &mut |_| {}).expect_err("is not there");
        assert_eq!(failure.kind, Kind::NotFound);
        assert!(failure.message.contains("holds models"), "{}", failure.message);

        let empty = scene.base.path().join("empty");
        fs::create_dir(&empty).expect("a folder");
        let failure = copy_folder(&empty, &scene.target(), &mut |_| {}).expect_err("is empty");
        assert_eq!(failure.kind, Kind::NotFound);
    }

    #[test]
    fn wrong_targets_are_refused() {
        let scene = Scene::new();
        let inside =
            copy_folder(&scene.source(), &scene.source().join("copy"), &mut |_| {}).expect_err("lies inside");
        assert!(inside.message.contains("inside the source"), "{}", inside.message);
        let file = scene.base.path().join("file");
        fs::write(&file, "").expect("is written");
        let on_file = copy_folder(&scene.source(), &file, &mut |_| {}).expect_err("is a file");
        assert_eq!(on_file.kind, Kind::Io);
    }
}
