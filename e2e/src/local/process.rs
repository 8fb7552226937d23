//! The processes of the cluster: finding them, starting them detached, stopping them.
//!
//! Owns: recognising a process by its command line. There are no pid files: the kernel's own list cannot be stale, and
//! survives a killed predecessor. Must not: touch a process that does not name the cluster's state folder. Called by
//! `up`, `down` and `status`.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{Layout, text};
use super::namespace;
use super::programs::Program;

/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(20);

/// A live process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its command line.
    pub argv: Vec<String>,
}

impl Process {
    /// Whether it is still there; a zombie is not.
    pub fn is_alive(&self) -> bool {
        read(self.pid).is_some_and(|now| now.argv == self.argv)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("stopping process {} ({})", self.pid, self.argv[0]))
            }
        }
    }
}

/// Every live process whose command line names the cluster's state folder, this program itself excepted.
pub fn all(layout: &Layout) -> Vec<Process> {
    let state = text(&layout.state);
    let inside = format!("{state}/");
    let ourselves = std::process::id().cast_signed();
    every_pid()
        .filter(|pid| *pid != ourselves)
        .filter_map(read)
        .filter(|process| process.argv.iter().skip(1).any(|argument| names(argument, &state, &inside)))
        .filter(is_ours)
        .collect()
}

/// The processes among `all` that run this program, whatever their arguments.
pub fn of_program(all: &[Process], program: &Program) -> Vec<Process> {
    all.iter().filter(|process| runs(&process.argv, program)).cloned().collect()
}

/// Starts a program in a session of its own, with its output appended to its log; it outlives this one.
pub fn spawn(program: &Program, log: &Path) -> Result<()> {
    let folder = log.parent().context("a log needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let mut command = Command::new("setsid");
    if program.inside {
        // nsenter, not `ip netns exec`: that mounts a fresh /sys, which hides the cgroups.
        command.arg("nsenter").arg(format!("--net={}", namespace::path().display())).arg("--");
    }
    command
        .args(&program.argv)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone().with_context(|| format!("opening {}", log.display()))?)
        .stderr(file);
    let mut child = command.spawn().with_context(|| format!("starting {}", program.name))?;
    // Reaps the process should it end before we do, so that it is seen to have ended.
    std::thread::Builder::new()
        .name(format!("reap-{}", program.name))
        .spawn(move || child.wait())
        .context("starting a thread")?;
    Ok(())
}

/// Asks processes to end, and ends those that have not after `grace`.
pub fn stop(processes: &[Process], grace: Duration) -> Result<()> {
    for process in processes {
        process.signal(Signal::SIGTERM)?;
    }
    let left = wait_gone(processes, grace);
    for process in &left {
        process.signal(Signal::SIGKILL)?;
    }
    let left = wait_gone(&left, Duration::from_secs(10));
    if let Some(process) = left.first() {
        bail!("process {} ({}) does not end, even when killed", process.pid, process.argv.join(" "));
    }
    Ok(())
}

/// Waits for processes to end; returns those still there at the deadline.
pub fn wait_gone(processes: &[Process], within: Duration) -> Vec<Process> {
    let deadline = Instant::now() + within;
    loop {
        let left: Vec<Process> = processes.iter().filter(|process| process.is_alive()).cloned().collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(POLL);
    }
}

/// Ends every process in the list at once, without asking.
pub fn kill_pids(pids: &[i32]) {
    for pid in pids {
        // A process that ended in the meantime is what we wanted.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

fn every_pid() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// A process as the kernel shows it; none for one that has ended, for a zombie and for a kernel thread.
fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses: the state follows the last one.
    let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let argv = split_argv(&fs::read(format!("/proc/{pid}/cmdline")).ok()?);
    (!argv.is_empty()).then_some(Process { pid, argv })
}

fn split_argv(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\0').split('\0').map(String::from).filter(|word| !word.is_empty()).collect()
}

/// An argument names the folder when it is it, or a path below it, also behind `--flag=`.
fn names(argument: &str, state: &str, inside: &str) -> bool {
    let value = argument.split_once('=').map_or(argument, |(_, value)| value);
    let value = value.strip_prefix("unix://").unwrap_or(value);
    value == state || value.starts_with(inside)
}

/// The executables that the cluster starts, by name; an editor that has a log of the cluster open is not one.
fn is_ours(process: &Process) -> bool {
    let name = file_name(&process.argv[0]);
    ["etcd", "containerd", "containerd-shim-runc-v2", "cluster", "setsid", "nsenter"].contains(&name)
        || process.argv.get(1).is_some_and(|argument| argument == "forward")
}

/// Two command lines run the same program when the executables have the same file name and, for a program of many
/// names, the first argument is the same.
fn runs(argv: &[String], program: &Program) -> bool {
    let same_file =
        argv.first().map(|path| file_name(path)) == program.argv.first().map(|path| file_name(path));
    let by_argument = program.argv.get(1).filter(|argument| !argument.starts_with('-'));
    same_file && by_argument.is_none_or(|argument| argv.get(1) == Some(argument))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Vec<String> {
        line.split(' ').map(String::from).collect()
    }

    #[test]
    fn an_argument_names_the_folder_only_as_a_whole_path_component() {
        let (state, inside) = ("/c/cluster", "/c/cluster/");
        assert!(names("--config=/c/cluster/config/kubelet.yaml", state, inside));
        assert!(names("--state=/c/cluster", state, inside));
        assert!(names("/c/cluster/run/containerd.sock", state, inside));
        assert!(!names("/c/cluster-two/run", state, inside));
        assert!(!names("--note=see /c/cluster/", state, inside));
    }

    #[test]
    fn a_program_of_many_names_is_told_by_its_first_argument() {
        let kubelet =
            Program { name: "kubelet", argv: argv("/t/1/cluster kubelet --config=x"), inside: true };
        assert!(runs(&argv("/t/2/cluster kubelet --config=y"), &kubelet));
        assert!(!runs(&argv("/t/1/cluster kube-proxy --config=x"), &kubelet));
        let etcd = Program { name: "etcd", argv: argv("/usr/bin/etcd --data-dir=x"), inside: true };
        assert!(runs(&argv("/usr/bin/etcd --data-dir=y"), &etcd));
    }

    #[test]
    fn a_stopped_process_is_gone() {
        let mut child =
            Command::new("sleep").arg("600").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Its command line is not there at the very moment that it becomes another program.
        let deadline = Instant::now() + Duration::from_secs(10);
        let process = loop {
            match read(child.id().cast_signed()) {
                Some(process) if process.argv[0] == "sleep" => break process,
                _ => assert!(Instant::now() < deadline, "sleep does not start"),
            }
        };
        stop(std::slice::from_ref(&process), Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
