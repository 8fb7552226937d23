//! docs/reference/inference.md says what the program says of itself. `FAIRLEAD_WRITE_REFERENCE=1 cargo test -p
//! fairlead-inference --lib --test reference` writes it anew, with the golden metrics that it takes its list from.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use fairlead_inference::config::Cli;
use fairlead_inference::config::fields::{FIELDS, Field, SetBy};
use fairlead_inference_config::{
    AdapterConfig, DiskTierConfig, EngineConfig, InferenceConfig, KvCacheConfig, ModelConfig, Quantization,
    ServerConfig, SpeculationConfig, Task,
};
use serde_json::Value;

const HEAD: &str = "# fairlead-inference

Generated from the program by its tests; edit `inference-pod/server/src/config.rs`, `inference-pod/server/src/config/fields.rs` and
`inference-pod/server/src/metrics`. [Without Kubernetes](../by-hand.md) says how to use it.
";

/// Flags, by the headings of the help.
fn flags(text: &mut String, command: &Command, skipped: &[&str]) {
    let shown = |arg: &&Arg| {
        !matches!(arg.get_id().as_str(), "help" | "version") && !skipped.contains(&arg.get_id().as_str())
    };
    let args: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    for of_one in args.chunk_by(|a, b| a.get_help_heading() == b.get_help_heading()) {
        if let Some(heading) = of_one[0].get_help_heading() {
            write!(text, "\n### {heading}\n").unwrap();
        }
        text.push_str("\n| Flag | Default | Meaning |\n|---|---|---|\n");
        for arg in of_one {
            let flag = arg.get_long().unwrap();
            let value = arg.get_value_names().map_or("", |names| names[0].as_str());
            let (help, told) = told(arg);
            let values: Vec<_> =
                arg.get_default_values().iter().map(|value| value.to_str().unwrap()).collect();
            let default = if values.is_empty() { told } else { format!("`{}`", values.join(" ")) };
            let env =
                arg.get_env().map_or(String::new(), |env| format!(" Also `{}`.", env.to_str().unwrap()));
            writeln!(text, "| `--{flag} {value}` | {default} | {help}.{env} |").unwrap();
        }
    }
}

/// What the help says, and the default that it ends with.
fn told(arg: &Arg) -> (String, String) {
    let help = arg.get_help().unwrap().to_string().replace('\n', " ");
    match help.split_once(" [default: ") {
        Some((help, default)) => {
            (help.to_owned(), default.trim_end_matches("].").trim_end_matches(']').to_owned())
        }
        None => (help.trim_end_matches('.').to_owned(), String::new()),
    }
}

fn fields(text: &mut String, serve: &Command) {
    text.push_str(
        "\n## The configuration file\n\nJSON, `serve --config FILE`; the operator writes one for each ModelDeployment. \
         Fields that are not known are refused.\n\n| Field | Flag | Meaning |\n|---|---|---|\n",
    );
    for Field { name, set_by } in FIELDS {
        let (flag, meaning) = match set_by {
            SetBy::Flag(flag) => {
                let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(flag)).expect(flag);
                (format!("`--{flag}`"), told(arg).0)
            }
            SetBy::File(meaning) => (String::new(), (*meaning).to_owned()),
        };
        writeln!(text, "| `{name}` | {flag} | {meaning} |").unwrap();
    }
}

fn metrics(text: &mut String) {
    text.push_str("\n## Metrics\n\nAt `/metrics`.\n\n| Metric | Type | Meaning |\n|---|---|---|\n");
    // All that the registry holds, as the test of the metrics keeps it: what has labels is not shown before it is used.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/metrics.txt");
    let rendered = std::fs::read_to_string(golden).unwrap();
    let field = |kind: &str, name: &str| {
        let prefix = format!("# {kind} {name} ");
        rendered.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
    };
    for name in rendered.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()) {
        let kind = field("TYPE", name);
        let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        writeln!(text, "| `{shown}` | {kind} | {} |", field("HELP", name).trim_end_matches('.')).unwrap();
    }
}

fn reference() -> String {
    let mut text = HEAD.to_owned();
    let mut command = Cli::command();
    // Only then do the commands have the flags of the log.
    command.build();
    let of = |name| command.find_subcommand(name).unwrap();
    text.push_str(
        "\n## serve\n\n`--model` or `--config` is required. What a flag says goes before the file.\n",
    );
    flags(&mut text, of("serve"), &[]);
    for name in ["fetch", "inspect"] {
        let about = of(name).get_about().unwrap();
        write!(text, "\n## {name}\n\n{about}. The flags of the log are those of `serve`.\n").unwrap();
        flags(&mut text, of(name), &["log_format", "log", "termination_log"]);
    }
    fields(&mut text, of("serve"));
    metrics(&mut text);
    text
}

#[test]
fn the_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/inference.md");
    let wanted = reference();
    if std::env::var_os("FAIRLEAD_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/reference/inference.md is stale; run FAIRLEAD_WRITE_REFERENCE=1 cargo test -p fairlead-inference --lib --test reference"
    );
}

/// Names of all that is not an object, with those around it.
fn leaves(prefix: &str, value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                leaves(&name, value, names);
            }
        }
        Value::Array(items) if items.first().is_some_and(Value::is_object) => {
            leaves(&format!("{prefix}[]"), &items[0], names);
        }
        _ => drop(names.insert(prefix.to_owned())),
    }
}

#[test]
fn every_field_of_the_file_and_no_other_is_told_of() {
    // All is set, so that all is written; nothing is left to `..`, so that a new field is seen here.
    let speculations =
        [SpeculationConfig::prompt_lookup(4), SpeculationConfig::DraftModel { tokens: 4, uri: "d".into() }];
    let mut found = BTreeSet::new();
    for speculation in speculations {
        let config = InferenceConfig {
            task: Task::Embed,
            served_model_names: vec!["m".into()],
            model: ModelConfig {
                uri: "m".into(),
                cache_dir: Some(PathBuf::new()),
                digest: Some(String::new()),
            },
            engine: EngineConfig {
                device: fairlead_inference_config::Device::Cpu,
                dtype: fairlead_inference_config::Dtype::F32,
                quantization: Quantization::Int8,
                max_model_len: Some(1),
                max_sequences: Some(1),
                max_batched_tokens: Some(1),
                block_tokens: Some(16),
                gpu_memory_utilization: Some(0.5),
                kv_cache_bytes: Some(1),
                max_adapters: Some(1),
                threads: Some(1),
            },
            kv_cache: KvCacheConfig {
                prefix_sharing: true,
                host_bytes: Some(1),
                disk: Some(DiskTierConfig { path: PathBuf::new(), bytes: 1 }),
            },
            adapters: vec![AdapterConfig { name: "a".into(), uri: "a".into() }],
            speculation: Some(speculation),
            server: ServerConfig {
                listen: String::new(),
                admin_listen: Some(String::new()),
                max_queued_requests: 1,
                drain_delay_seconds: 1,
                drain_seconds: 1,
                revision: Some(String::new()),
            },
        };
        leaves("", &serde_json::to_value(config).unwrap(), &mut found);
    }
    let told: BTreeSet<String> = FIELDS.iter().map(|field| field.name.to_owned()).collect();
    assert_eq!(found, told);
    // And every flag is some field's, but for the one that names the file.
    let command = Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    for flag in
        serve.get_arguments().filter_map(Arg::get_long).filter(|flag| *flag != "config" && *flag != "adapter")
    {
        let known = FIELDS.iter().any(|field| matches!(field.set_by, SetBy::Flag(known) if known == flag));
        assert!(known, "--{flag}");
    }
}
