//! Lets this crate's tests and examples find libtorch at run time. Every package that links a program says it for itself.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // fairlead-torch-shim, which this crate needs, checks that it is there and of the right release.
    if let Some(folder) = env::var_os("LIBTORCH").map(PathBuf::from) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.join("lib").display());
    }
}
