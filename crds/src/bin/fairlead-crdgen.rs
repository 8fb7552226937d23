//! Writes the generated files: the CRD chart's templates and the API reference.
//!
//! `fairlead-crdgen [ROOT]` writes into the repository at ROOT (default: the current folder).

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    match write(&root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairlead-crdgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(root: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    for (path, contents) in fairlead_crds::schema::generated_files()? {
        let path = root.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, contents).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
