//! How libtorch's threads wait for one another.
//!
//! A step is some hundreds of parallel loops with a barrier behind each. By default the threads of GNU's OpenMP wait at a barrier in a
//! loop of 300,000 turns before they sleep. With a core for each thread that is right. Where a neighbour wants a core too (another pod
//! of the node is enough), the thread that is waited for does not run because the waiting ones do, and a step takes whole time
//! slices for each barrier. docs/benchmarks/README.md has the measurement.
//!
//! The library reads its settings when it is loaded, before `main`, so the process starts itself once more with them.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The library's setting: turns of the loop.
const VARIABLE: &str = "GOMP_SPINCOUNT";
/// Some microseconds: longer than threads that all run differ, much shorter than a time slice.
const TURNS: &str = "1000";
/// Another setting of the same, which whoever sets it means.
const POLICY: &str = "OMP_WAIT_POLICY";

/// Starts this program anew with the setting, unless somebody has set it already. Must be called before any thread is started.
pub fn wait_briefly() {
    if [VARIABLE, POLICY].iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, TURNS).exec(),
        Err(error) => error,
    };
    tracing::warn!(%error, "{VARIABLE} could not be set; beside busy neighbours steps will take long");
}
