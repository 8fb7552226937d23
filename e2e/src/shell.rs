//! Running other programs and saying well what went wrong with them.
//!
//! Owns: the error text of a failed command. Must not: interpret what a command printed. Called by most modules.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How many of a failed command's last lines its error shows.
const SHOWN_LINES: usize = 20;

/// A command of this program and its arguments.
pub fn command(program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a command to its end and returns what it printed; a failure carries its last lines.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{shown}` cannot be started: is {} installed?", program_of(command)))?;
    check(&shown, result)
}

/// Like [`output`], with `input` on the command's standard input.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    let shown = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{shown}` cannot be started: is {} installed?", program_of(command)))?;
    let mut pipe = child.stdin.take().context("the command has no standard input")?;
    let text = input.to_owned();
    // A thread of its own: a command that prints before it has read everything would block us otherwise.
    let writer = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
    let result = child.wait_with_output().with_context(|| format!("waiting for `{shown}`"))?;
    // A command that fails early closes its input; its own error says more than the broken pipe.
    let _ = writer.join();
    check(&shown, result)
}

/// Whether a command ends well; what it prints is thrown away.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Where `program` is on the PATH (and in the sbin folders, which a person's PATH often lacks).
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/go/bin", "/usr/local/go/bin"]
                .map(PathBuf::from),
        )
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The last `lines` lines of a file; empty when it cannot be read.
pub fn tail_of(file: &Path, lines: usize) -> String {
    std::fs::read(file).map(|bytes| tail(&String::from_utf8_lossy(&bytes), lines)).unwrap_or_default()
}

fn check(shown: &str, result: Output) -> Result<String> {
    if !result.status.success() {
        let mut said = String::from_utf8_lossy(&result.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&result.stderr));
        bail!("`{shown}` failed ({}):\n{}", result.status, tail(&said, SHOWN_LINES));
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let mut words = vec![program_of(command)];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    let line = words.join(" ");
    if line.len() > 200 { format!("{}…", line.chars().take(200).collect::<String>()) } else { line }
}

fn program_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_what_the_command_said() {
        let error = output(&mut command("sh", &["-c", "echo spoken; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("spoken"), "{error}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(output_with_input(&mut Command::new("cat"), "text").unwrap(), "text");
    }

    #[test]
    fn the_tail_of_a_text_is_its_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
