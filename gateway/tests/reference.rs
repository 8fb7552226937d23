//! docs/reference/gateway.md says what the program says of itself. `FAIRLEAD_WRITE_REFERENCE=1 cargo test -p
//! fairlead-gateway --test reference` writes it anew.

#![allow(clippy::expect_used)]

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use clap::CommandFactory;
use fairlead_crds::model_route::resilience::FallbackOn;
use fairlead_gateway::config::Cli;
use fairlead_gateway::headers;
use fairlead_gateway::metrics::{Api, FailoverResult, HedgeResult, Metrics, Outcome, RetryReason};
use fairlead_gateway::observe::Variant;
use fairlead_gateway::observe::variant::End;
use fairlead_gateway::policy::Why;
use fairlead_gateway::shadow::metrics::{ShadowLabels, ShadowResult};

fn reference() -> String {
    let mut text = "# fairlead-gateway serve\n\nGenerated from the program by its tests; edit `gateway/src/config.rs` and \
        `gateway/src/metrics.rs`.\n\n## Flags\n\nTimes are written `500ms`, `30s`, `10m`; sizes in bytes, or with Ki, Mi \
        or Gi.\n\n| Flag | Environment | Default | Meaning |\n|---|---|---|---|\n"
        .to_owned();
    let command = Cli::command();
    let serve = command.find_subcommand("serve").expect("serve");
    for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
        let flag = arg.get_long().expect("a long flag");
        let value = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        let env = arg.get_env().and_then(|env| env.to_str()).expect("an environment variable");
        let default: Vec<_> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.display())).collect();
        let help = arg.get_long_help().or(arg.get_help()).expect("help").to_string().replace('\n', " ");
        writeln!(text, "| `--{flag} {value}` | `{env}` | {} | {help} |", default.join(" ")).expect("written");
    }
    text.push_str("\n## Metrics\n\nAt `/metrics` of the admin listener.\n\n| Metric | Type | Meaning |\n|---|---|---|\n");
    let metrics = Metrics::default();
    metrics.request_started();
    metrics.request_finished(Api::ChatCompletions, 200, Outcome::Ok, Duration::ZERO, Some(Duration::ZERO));
    metrics.retried(RetryReason::Connect);
    let variant = Variant::new("namespace/route", "backend");
    variant.first_token(metrics.variants(), Duration::ZERO);
    variant.between_tokens(metrics.variants(), 0.0);
    variant.ended(metrics.variants(), End::Answered, Duration::ZERO, Some(1));
    metrics.endpoint_chosen(Why::LeastLoad, 0, 0);
    metrics.failed_over(FailoverResult::Continued);
    metrics.fell_back(FallbackOn::Error);
    metrics.hedged(HedgeResult::Won);
    let shadow = ShadowLabels { route: "ns/name".to_owned(), backend: "v2".to_owned() };
    metrics.shadows.counted(&shadow, ShadowResult::Answered);
    metrics.shadows.latency(&shadow, 1.0);
    metrics.shadows.length(&shadow, 1.0);
    metrics.shadows.similarity(&shadow, 1.0);
    let rendered = metrics.render(Duration::ZERO).expect("metrics");
    let field = |kind: &str, name: &str| {
        let prefix = format!("# {kind} {name} ");
        rendered.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
    };
    for name in rendered.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()) {
        let kind = field("TYPE", name);
        let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let help = field("HELP", name);
        writeln!(text, "| `{shown}` | {kind} | {} |", help.trim_end_matches('.')).expect("written");
    }
    text.push_str("\n## Headers of answers\n\n| Header | Meaning |\n|---|---|\n");
    for (name, meaning) in [
        (headers::REQUEST_ID, "The client's own request id, or a new one"),
        (headers::ROUTE, "Namespace and name of the ModelRoute"),
        (headers::RULE, "The rule that had the request; absent where none held"),
        (
            headers::SPLIT,
            "The split in force for the request, in percent: the rule's, or the route's own with its canary",
        ),
        (
            headers::STICKY,
            "`User`, `Tenant` or `Header`, when the backend was chosen by that and not by chance",
        ),
        (headers::BACKEND, "The backend that answered"),
        (headers::COST, "What a million tokens cost there, where the route says so"),
        (
            headers::DIVERTED_FROM,
            "The backend that the weights had chosen, when it had no endpoint and another one answered",
        ),
        (headers::FALLBACK_FROM, "The backend that could not answer, when a fallback did"),
        (headers::FALLBACK_REASON, "Why it could not: NoEndpoint, Error, Timeout or Overloaded"),
        (headers::ENDPOINT, "Address of the pod that answered"),
        (
            headers::ENDPOINT_CHOICE,
            "What decided on that pod among the backend's: `prefix-match`, `least-load`, …",
        ),
        (headers::REVISION, "Revision of the ModelDeployment that answered, as the pod says"),
    ] {
        writeln!(text, "| `{name}` | {meaning} |").expect("written");
    }
    text
}

#[test]
fn the_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/gateway.md");
    let wanted = reference();
    if std::env::var_os("FAIRLEAD_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, &wanted).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/reference/gateway.md is stale; run FAIRLEAD_WRITE_REFERENCE=1 cargo test -p fairlead-gateway --test reference"
    );
}
