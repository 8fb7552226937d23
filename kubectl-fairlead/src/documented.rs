//! For tests: docs/kubectl-fairlead.md shows what the program prints. `FAIRLEAD_WRITE_REFERENCE=1 cargo test -p kubectl-fairlead --lib` writes it
//! anew.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Tests run side by side, and write one file.
static WRITING: Mutex<()> = Mutex::new(());

/// Checks that the page shows this output of this command.
pub fn check(command: &str, output: &str) {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubectl-fairlead.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let line = format!("$ {command}\n");
    let begin = page.find(&line).unwrap_or_else(|| panic!("the page does not show {command}")) + line.len();
    let rest = &page[begin..];
    let end = [rest.find("\n\n$ "), rest.find("\n```")].into_iter().flatten().min().unwrap_or(rest.len());
    let output = output.trim_end();
    if std::env::var_os("FAIRLEAD_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, format!("{}{output}{}", &page[..begin], &rest[end..])).unwrap();
        return;
    }
    assert_eq!(
        &rest[..end],
        output,
        "docs/kubectl-fairlead.md is stale: run FAIRLEAD_WRITE_REFERENCE=1 cargo test -p kubectl-fairlead --lib"
    );
}
