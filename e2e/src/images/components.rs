//! Which images there are and what they are made of.
//!
//! Owns: the list, the inputs' fingerprint, the build context. Must not: run anything. Called by `images`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::models;
use super::oci::{sha256, sha256_of};
use super::{LOCAL_REGISTRY, TAG};

/// What an image is built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foundation {
    /// The Debian base.
    Debian,
    /// The Debian base with libtorch.
    Libtorch,
    /// An image of data alone.
    Nothing,
}

/// One image.
#[derive(Clone, Debug)]
pub struct Component {
    /// Its name without registry and tag.
    pub name: &'static str,
    /// The file that describes it, in images/.
    pub containerfile: &'static str,
    /// What it is built on.
    pub foundation: Foundation,
    /// The files and folders of its build context.
    pub inputs: Vec<Input>,
}

/// A file or folder of a build context.
#[derive(Clone, Debug)]
pub struct Input {
    /// Where it is.
    pub from: PathBuf,
    /// What it is called in the context.
    pub name: &'static str,
}

/// The images made of our programs in the folder `programs`.
pub fn components(programs: &Path) -> Vec<Component> {
    let component = |name, containerfile, foundation, inputs: &[&'static str]| Component {
        name,
        containerfile,
        foundation,
        inputs: inputs.iter().map(|name| Input { from: programs.join(name), name }).collect(),
    };
    vec![
        component("fairlead-operator", "Containerfile.operator", Foundation::Debian, &["fairlead-operator"]),
        component("fairlead-gateway", "Containerfile.gateway", Foundation::Debian, &["fairlead-gateway"]),
        component(
            "fairlead-inference",
            "Containerfile.inference",
            Foundation::Libtorch,
            &["fairlead-inference", "fairlead-model-copy"],
        ),
        component("fairlead-rag", "Containerfile.rag", Foundation::Debian, &["fairlead-rag"]),
    ]
}

/// The image of the test hub with the models in `folder`, which it serves.
pub fn test_hub(programs: &Path, folder: &Path) -> Component {
    let program = "fairlead-test-hub";
    Component {
        name: program,
        containerfile: "Containerfile.test-hub",
        foundation: Foundation::Debian,
        inputs: vec![
            Input { from: programs.join(program), name: program },
            Input { from: folder.to_path_buf(), name: "models" },
        ],
    }
}

/// The image of the server without a model, which stands in for the engine where tests need speed or faults.
pub fn test_worker(programs: &Path) -> Component {
    let program = "fairlead-test-worker";
    Component {
        name: program,
        containerfile: "Containerfile.test-worker",
        foundation: Foundation::Debian,
        inputs: vec![Input { from: programs.join(program), name: program }],
    }
}

/// The images of the models that the examples use: those in the checkout at `root`, and the embedding model in `embedding`.
pub fn example_models(root: &Path, embedding: &Path) -> Vec<Component> {
    let mut all: Vec<_> =
        models::GENERATIVE.iter().map(|name| model(name, models::generative(root, name))).collect();
    all.push(model(models::EMBEDDING, embedding.to_path_buf()));
    all
}

/// The image of a model and nothing else.
fn model(name: &'static str, folder: PathBuf) -> Component {
    Component {
        name,
        containerfile: "Containerfile.model",
        foundation: Foundation::Nothing,
        inputs: vec![Input { from: folder, name: "models" }],
    }
}

impl Component {
    /// Its full name on this machine.
    pub fn image(&self) -> String {
        format!("{LOCAL_REGISTRY}/{}:{TAG}", self.name)
    }

    /// What changes when the image must be built again: the inputs' contents, the description and the base.
    pub fn fingerprint(&self, containerfile: &Path, base: Option<&str>) -> Result<String> {
        // The modes that `stage` gives are part of every image.
        let mut lines = vec![format!("base {}", base.unwrap_or("none")), "modes 644 755".to_owned()];
        lines.push(format!("description {}", sha256_of(containerfile)?));
        for input in &self.inputs {
            for file in files(&input.from)? {
                lines.push(format!("{} {}", input.place(&file).display(), sha256_of(&file)?));
            }
        }
        Ok(sha256(lines.join("\n").as_bytes()))
    }

    /// Copies the inputs to a folder of their own, so that a builder reads these and nothing else.
    pub fn stage(&self, contexts: &Path) -> Result<PathBuf> {
        let context = contexts.join(self.name);
        if context.exists() {
            fs::remove_dir_all(&context).with_context(|| format!("removing {}", context.display()))?;
        }
        for input in &self.inputs {
            for file in files(&input.from)? {
                let target = context.join(input.place(&file));
                let folder = target.parent().context("a staged file lies in a folder")?;
                fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
                fs::copy(&file, &target).with_context(|| format!("copying {}", file.display()))?;
                // An image's programs run as somebody else than whoever made its files.
                let mode = fs::metadata(&file).with_context(|| format!("reading {}", file.display()))?.mode();
                let readable = Permissions::from_mode(if mode & 0o100 == 0 { 0o644 } else { 0o755 });
                fs::set_permissions(&target, readable)
                    .with_context(|| format!("making {} readable", target.display()))?;
            }
        }
        Ok(context)
    }
}

impl Input {
    /// Where in the context one of its files belongs.
    fn place(&self, file: &Path) -> PathBuf {
        match file.strip_prefix(&self.from) {
            Ok(rest) if rest != Path::new("") => Path::new(self.name).join(rest),
            _ => PathBuf::from(self.name),
        }
    }
}

/// A file, or all files below a folder, in a fixed order.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        if !path.is_file() {
            anyhow::bail!(
                "{} is missing: run `make build` first, or name another folder with --bin-dir",
                path.display()
            );
        }
        return Ok(vec![path.to_path_buf()]);
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .with_context(|| format!("reading {}", path.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    let mut all = Vec::new();
    for entry in entries {
        all.extend(files(&entry)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_each_input_and_with_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let containerfile = folder.path().join("Containerfile");
        fs::write(&containerfile, "FROM scratch").unwrap();
        let models = folder.path().join("models");
        fs::create_dir(&models).unwrap();
        fs::write(models.join("config.json"), "{}").unwrap();
        let component = model("fairlead-model", models.clone());
        let first = component.fingerprint(&containerfile, None).unwrap();
        assert_eq!(component.fingerprint(&containerfile, None).unwrap(), first);
        assert_ne!(component.fingerprint(&containerfile, Some("base")).unwrap(), first);
        fs::write(models.join("config.json"), "{ }").unwrap();
        assert_ne!(component.fingerprint(&containerfile, None).unwrap(), first);
    }

    #[test]
    fn a_missing_program_says_what_to_do() {
        let component = &components(Path::new("/nowhere"))[0];
        let error = component.stage(Path::new("/tmp")).unwrap_err().to_string();
        assert!(error.contains("make build"), "{error}");
    }

    #[test]
    fn a_context_holds_the_inputs_under_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own-name");
        fs::create_dir_all(own.join("deep")).unwrap();
        fs::write(own.join("deep/a"), "a").unwrap();
        fs::write(folder.path().join("fairlead-test-hub"), "program").unwrap();
        fs::set_permissions(own.join("deep/a"), Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(folder.path().join("fairlead-test-hub"), Permissions::from_mode(0o700)).unwrap();
        let context = test_hub(folder.path(), &own).stage(&folder.path().join("contexts")).unwrap();
        assert_eq!(fs::read_to_string(context.join("models/deep/a")).unwrap(), "a");
        assert_eq!(fs::read_to_string(context.join("fairlead-test-hub")).unwrap(), "program");
        let modes = ["models/deep/a", "fairlead-test-hub"]
            .map(|name| fs::metadata(context.join(name)).unwrap().mode() & 0o777);
        assert_eq!(modes, [0o644, 0o755], "whatever they were");
    }
}
