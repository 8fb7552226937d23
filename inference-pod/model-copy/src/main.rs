//! `fairlead-model-copy SRC DST`: copies a model out of a container image that may have no shell.
//!
//! The operator runs it as an init container of the model's own image, so it must run anywhere: it is linked statically and
//! uses the standard library only. Build it with
//! `cargo rustc -p fairlead-model-copy --release -- -C target-feature=+crt-static`.
//!
//! Exit status: 0 when everything is there, 1 when something went wrong, 2 for a wrong command line. What went wrong is also
//! written to the container's termination message.

mod copy;

use std::path::Path;
use std::process::ExitCode;

use copy::{Failure, Kind};

const USAGE: &str = "usage: fairlead-model-copy SRC DST
Copies the files of the folder SRC into the folder DST, with its subfolders. Files that DST has already, with the same size
and time, are kept; a file gets its name only when it is whole.";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (source, target) = match arguments.as_slice() {
        [flag] if flag == "--help" || flag == "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [flag] if flag == "--version" => {
            println!("fairlead-model-copy {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        [source, target] => (Path::new(source), Path::new(target)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match copy::copy_folder(source, target, &mut |line| println!("{line}")) {
        Ok(done) => {
            println!(
                "copied {} files ({} bytes), {} were there already",
                done.copied, done.copied_bytes, done.kept
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            report(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Prints `<Reason>: <message>` and leaves it for the operator, as the inference pod does.
fn report(failure: &Failure) {
    let reason = match failure.kind {
        Kind::NotFound => "ModelNotFound",
        Kind::Invalid => "ModelInvalid",
        Kind::Io => "PodFailed",
    };
    let line = format!("{reason}: {}", failure.message);
    eprintln!("{line}");
    let log = std::env::var_os("FAIRLEAD_TERMINATION_LOG").unwrap_or_else(|| "/dev/termination-log".into());
    if Path::new(&log).exists()
        && let Err(error) = std::fs::write(&log, &line)
    {
        eprintln!("cannot write {}: {error}", log.display());
    }
}
