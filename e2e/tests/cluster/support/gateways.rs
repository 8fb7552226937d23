//! What the gateways, all of them, say of themselves: metrics and logs.

use anyhow::{Context, Result};
use serde_json::Value;

use super::kubectl::{kubectl, list};

const NAMESPACE: &str = "fairlead-system";
const SELECTOR: &str = "app.kubernetes.io/name=fairlead-gateway";

/// The gateways' pods, but those that are told to stop: after an upgrade some still finish their streams.
pub async fn pods() -> Result<Vec<Value>> {
    let all = list(NAMESPACE, "pod", SELECTOR).await?;
    Ok(all.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
}

/// The sum, over all gateways, of a metric's series whose labels hold each of `labels`, such as `backend="v1"`.
pub async fn metric(name: &str, labels: &[&str]) -> Result<f64> {
    let mut sum = 0.0;
    for pod in pods().await? {
        let pod = pod["metadata"]["name"].as_str().context("a pod has a name")?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9000/proxy/metrics");
        let text = kubectl(&["get", "--raw", &path]).await?;
        sum += text.lines().filter_map(|line| series(line, name, labels)).sum::<f64>();
    }
    Ok(sum)
}

/// The value in a line of a metric's text form, when the line is of that metric and has those labels.
fn series(line: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (said, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once("} ")?,
        None => ("", rest.strip_prefix(' ')?),
    };
    labels.iter().all(|label| said.contains(label)).then(|| value.parse().ok())?
}

/// Lines of the gateways' logs that hold `text`.
pub async fn log_lines(text: &str) -> Result<Vec<String>> {
    let logs = kubectl(&["-n", NAMESPACE, "logs", "-l", SELECTOR, "--tail=-1"]).await?;
    Ok(logs.lines().filter(|line| line.contains(text)).map(str::to_owned).collect())
}
