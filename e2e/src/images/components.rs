//! Which images there are and what they are made of.
//!
//! Owns: the list, the inputs' fingerprint, the build context. Must not: run anything. Called by `images`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
    pub inputs: Vec<PathBuf>,
}

/// The images made of our programs in the folder `programs`.
pub fn components(programs: &Path) -> Vec<Component> {
    let component = |name, containerfile, foundation, inputs: &[&str]| Component {
        name,
        containerfile,
        foundation,
        inputs: inputs.iter().map(|input| programs.join(input)).collect(),
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
    ]
}

/// The image of the test hub with the models it serves: the folder is called `models`.
pub fn test_hub(programs: &Path, folder: &Path) -> Component {
    Component {
        name: "fairlead-test-hub",
        containerfile: "Containerfile.test-hub",
        foundation: Foundation::Debian,
        inputs: vec![programs.join("fairlead-test-hub"), folder.to_path_buf()],
    }
}

/// The image of the demo model: the folder is called `models`.
pub fn demo_model(folder: &Path) -> Component {
    Component {
        name: "fairlead-demo-model",
        containerfile: "Containerfile.model",
        foundation: Foundation::Nothing,
        inputs: vec![folder.to_path_buf()],
    }
}

impl Component {
    /// Its full name on this machine.
    pub fn image(&self) -> String {
        format!("{LOCAL_REGISTRY}/{}:{TAG}", self.name)
    }

    /// What changes when the image must be built again: the inputs' contents, the description and the base.
    pub fn fingerprint(&self, containerfile: &Path, base: Option<&str>) -> Result<String> {
        let mut lines = vec![format!("base {}", base.unwrap_or("none"))];
        for input in std::iter::once(containerfile).chain(self.inputs.iter().map(PathBuf::as_path)) {
            for file in files(input)? {
                let name = file.strip_prefix(input.parent().unwrap_or(input)).unwrap_or(&file).display();
                lines.push(format!("{name} {}", sha256_of(&file)?));
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
            let parent = input.parent().unwrap_or(input);
            for file in files(input)? {
                let target = context.join(file.strip_prefix(parent).unwrap_or(&file));
                let folder = target.parent().context("a staged file lies in a folder")?;
                fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
                fs::copy(&file, &target).with_context(|| format!("copying {}", file.display()))?;
            }
        }
        Ok(context)
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
        let component = demo_model(&models);
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
        let models = folder.path().join("models");
        fs::create_dir_all(models.join("deep")).unwrap();
        fs::write(models.join("deep/a"), "a").unwrap();
        let context = demo_model(&models).stage(&folder.path().join("contexts")).unwrap();
        assert_eq!(fs::read_to_string(context.join("models/deep/a")).unwrap(), "a");
    }
}
