//! A Service's port on the loopback of this machine.
//!
//! Owns: a `kubectl port-forward` process for as long as the value lives. Called by the quickstart and the tests.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::local::layout::text;
use crate::paths::Paths;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running port-forward; it ends when this is dropped.
pub struct PortForward {
    port: u16,
    _child: Child,
}

impl PortForward {
    /// Forwards a free port of the loopback to one ready pod of a Service.
    pub async fn to_service(paths: &Paths, namespace: &str, service: &str, port: u16) -> Result<Self> {
        Self::start(paths, namespace, &format!("service/{service}"), port).await
    }

    /// Forwards a free port of the loopback to a pod.
    pub async fn to_pod(paths: &Paths, namespace: &str, pod: &str, port: u16) -> Result<Self> {
        Self::start(paths, namespace, &format!("pod/{pod}"), port).await
    }

    async fn start(paths: &Paths, namespace: &str, target: &str, port: u16) -> Result<Self> {
        let mut child = Command::new(paths.bin().join("kubectl"))
            .args(["--kubeconfig", &text(&paths.kubeconfig()), "--namespace", namespace])
            .args(["port-forward", "--address=127.0.0.1", target, &format!(":{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting kubectl")?;
        let output = child.stdout.take().context("kubectl has no output")?;
        let mut lines = BufReader::new(output).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .with_context(|| format!("forwarding a port to {namespace}/{target} takes too long"))??;
        match line.as_deref().and_then(local_port) {
            Some(local) => {
                // kubectl prints a line for every connection: read them, or it would stand still when the pipe is full.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                if let Some(mut errors) = child.stderr.take() {
                    tokio::spawn(async move {
                        let mut ignored = [0; 1024];
                        while errors.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
                    });
                }
                Ok(Self { port: local, _child: child })
            }
            None => {
                let mut said = String::new();
                if let Some(mut errors) = child.stderr.take() {
                    errors.read_to_string(&mut said).await.context("reading what kubectl said")?;
                }
                bail!("no port is forwarded to {namespace}/{target}: {}", said.trim())
            }
        }
    }

    /// The port on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The loopback address as the beginning of a URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// `Forwarding from 127.0.0.1:40123 -> 8080`
fn local_port(line: &str) -> Option<u16> {
    let address = line.strip_prefix("Forwarding from ")?.split(' ').next()?;
    address.rsplit(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_what_kubectl_says() {
        assert_eq!(local_port("Forwarding from 127.0.0.1:40123 -> 8080"), Some(40123));
        assert_eq!(local_port("error: no such service"), None);
    }
}
