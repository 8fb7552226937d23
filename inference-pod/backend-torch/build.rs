//! Checks that the libtorch at hand is the one tch was made for, and lets this crate's tests find it at run time.
//!
//! torch-sys checks nothing when LIBTORCH is set, and a wrong version shows up as C++ errors or, worse, as wrong numbers.

use std::path::{Path, PathBuf};
use std::process::exit;
use std::{env, fs};

/// The PyTorch release that tch 0.24 is made for.
const TORCH_VERSION: &str = "2.11.0";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    match libtorch() {
        // Reaches the tests of this package only: every package that links a program needs the same line.
        Ok(folder) => println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.join("lib").display()),
        Err(problem) => {
            eprintln!("error: {problem}");
            exit(1);
        }
    }
}

/// The folder of libtorch, once it is known to be the right one.
fn libtorch() -> Result<PathBuf, String> {
    let folder = env::var_os("LIBTORCH").map(PathBuf::from).ok_or_else(|| {
        format!(
            "LIBTORCH is not set. It must name the torch folder of PyTorch {TORCH_VERSION}; `. scripts/env.sh` sets it and \
             `make build` installs it"
        )
    })?;
    let version_file = folder.join("version.py");
    println!("cargo:rerun-if-changed={}", version_file.display());
    let version = read_version(&version_file)?;
    // A local suffix (+cu130, +cpu) names the variant, not the release.
    if version.split('+').next() != Some(TORCH_VERSION) {
        return Err(format!(
            "{} is PyTorch {version}, but tch 0.24 is made for {TORCH_VERSION}: point LIBTORCH at that release",
            folder.display()
        ));
    }
    Ok(folder)
}

fn read_version(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| {
        format!(
            "{} cannot be read ({error}): LIBTORCH must name the torch folder of a PyTorch wheel",
            path.display()
        )
    })?;
    text.lines()
        .find_map(|line| line.strip_prefix("__version__ = "))
        .map(|value| value.trim().trim_matches(['\'', '"']).to_owned())
        .ok_or_else(|| format!("{} names no __version__", path.display()))
}
