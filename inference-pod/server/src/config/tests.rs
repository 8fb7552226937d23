use super::*;

fn parse(arguments: &[&str]) -> Result<InferenceConfig, String> {
    let cli = Cli::try_parse_from(["fairlead-inference", "serve"].iter().chain(arguments))
        .map_err(|error| error.to_string())?;
    match cli.command {
        Command::Serve(arguments) => arguments.into_config().map_err(|error| error.to_string()),
        _ => Err("not serve".to_owned()),
    }
}

#[test]
fn the_command_line_of_the_documentation_works() {
    let config = parse(&[
        "--model",
        "/srv/tiny",
        "--listen",
        "127.0.0.1:8001",
        "--device",
        "cpu",
        "--quantization",
        "int8",
        "--dtype",
        "f32",
    ])
    .unwrap();
    assert_eq!(config.served_model_names, ["tiny"]);
    assert_eq!(config.server.listen, "127.0.0.1:8001");
    assert_eq!((config.engine.device, config.engine.dtype), (Device::Cpu, Dtype::F32));
    assert_eq!(config.engine.quantization, Quantization::Int8);
    assert_eq!(parse(&["--model", "hf://org/name@v1"]).unwrap().served_model_names, ["org/name"]);
}

#[test]
fn the_command_line_goes_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(
        &path,
        r#"{"servedModelNames": ["a"], "model": {"uri": "file:///m"}, "engine": {"maxSequences": 3, "threads": 2}}"#,
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let config = parse(&["--config", path, "--max-sequences", "5", "--drain-seconds", "7"]).unwrap();
    assert_eq!(config.engine.max_sequences, Some(5));
    assert_eq!(config.engine.threads, Some(2));
    assert_eq!(config.server.drain_seconds, 7);
    assert_eq!(config.served_model_names, ["a"]);
}

#[test]
fn wrong_settings_are_named() {
    let neither = parse(&[]).unwrap_err();
    assert!(neither.contains("--model") && neither.contains("--config"), "{neither}");
    assert!(parse(&["--model", "m", "--dtype", "f8"]).unwrap_err().contains("--dtype"));
    assert!(
        parse(&["--model", "m", "--max-queued-requests", "0"]).unwrap_err().contains("maxQueuedRequests")
    );
    for share in ["0", "1.5", "-1", "NaN"] {
        let share = format!("--gpu-memory-utilization={share}");
        assert!(parse(&["--model", "m", &share]).unwrap_err().contains("gpuMemoryUtilization"));
    }
    assert_eq!(
        parse(&["--model", "m", "--gpu-memory-utilization", "0.5"]).unwrap().engine.gpu_memory_utilization,
        Some(0.5)
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, r#"{"servedModelNames": [], "model": {"uri": "x"}, "engin": {}}"#).unwrap();
    let error = parse(&["--config", path.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("engin") && error.contains("line 1"), "{error}");
    assert!(parse(&["--config", "/nowhere/x.json"]).unwrap_err().contains("/nowhere/x.json"));
}

#[test]
fn by_hand_only_this_machine_is_served_and_in_a_cluster_all_are() {
    assert_eq!(parse(&["--model", "m"]).unwrap().server.listen, "127.0.0.1:8000");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    // As the operator writes it, and with nothing said of the server.
    let server = serde_json::to_string(&ServerConfig::default()).unwrap();
    for rest in [format!(r#", "server": {server}"#), String::new()] {
        let text = format!(r#"{{"servedModelNames": ["a"], "model": {{"uri": "file:///m"}}{rest}}}"#);
        std::fs::write(&path, text).unwrap();
        assert_eq!(parse(&["--config", path.to_str().unwrap()]).unwrap().server.listen, "0.0.0.0:8000");
    }
}

#[test]
fn settings_out_of_range_are_refused_from_flags_and_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    for (flag, field, value, wanted) in [
        ("--speculative-tokens", "speculation.tokens", "0", "1 to 32"),
        ("--speculative-tokens", "speculation.tokens", "33", "1 to 32"),
        ("--max-batched-tokens", "engine.maxBatchedTokens", "0", "1 to 16777216"),
        ("--max-sequences", "engine.maxSequences", "0", "1 to 65536"),
        ("--max-sequences", "engine.maxSequences", "1000000000", "1 to 65536"),
        ("--max-model-len", "engine.maxModelLen", "0", "1 to 16777216"),
        ("--threads", "engine.threads", "0", "1 to 1024"),
        ("--block-tokens", "engine.blockTokens", "24", "16, 32 or 64"),
        ("--max-queued-requests", "server.maxQueuedRequests", "0", "1 to 1000000"),
        ("--gpu-memory-utilization", "engine.gpuMemoryUtilization", "1.5", "above 0 and at most 1"),
    ] {
        let wanted = format!("{field} ({flag}) is {value}; it must be {wanted}");
        assert_eq!(parse(&["--model", "m", flag, value]).unwrap_err(), wanted);
        let (part, name) = field.split_once('.').unwrap();
        let text = match part {
            "speculation" => format!(r#""method": "draftModel", "uri": "d", "{name}": {value}"#),
            "server" => format!(r#""listen": "0.0.0.0:8000", "drainSeconds": 1, "{name}": {value}"#),
            _ => format!(r#""{name}": {value}"#),
        };
        let text = format!(r#"{{"servedModelNames": ["a"], "model": {{"uri": "m"}}, "{part}": {{{text}}}}}"#);
        std::fs::write(&path, text).unwrap();
        assert_eq!(parse(&["--config", path.to_str().unwrap()]).unwrap_err(), wanted);
    }
    for (flags, field) in [
        (["--listen", "foo"], "server.listen (--listen) is foo; it must be HOST:PORT"),
        (["--listen", "127.0.0.1:80000"], "server.listen (--listen)"),
        (["--admin-listen", ":8000"], "server.adminListen (--admin-listen)"),
    ] {
        let error = parse(&[&["--model", "m"], &flags[..]].concat()).unwrap_err();
        assert!(error.starts_with(field), "{error}");
    }
    for listen in ["localhost:0", "[::1]:8000"] {
        parse(&["--model", "m", "--listen", listen]).unwrap();
    }
}

#[test]
fn the_help_tells_the_defaults_that_are_used() {
    use clap::CommandFactory;
    use fairlead_inference_config::{BatchLimits, DEFAULT_GPU_MEMORY_UTILIZATION};

    let server = ServerConfig::default();
    let of = |pick: fn(BatchLimits) -> u32| {
        let both = |task| (pick(BatchLimits::on_gpu(task)), pick(BatchLimits::on_cpu(task)));
        let ((gpu, cpu), (encoder, encoder_on_cpu)) = (both(Task::Generate), both(Task::Embed));
        format!("{gpu}, on a CPU {cpu}; encoders {encoder}, on a CPU {encoder_on_cpu}")
    };
    let command = Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    for (flag, default) in [
        ("listen", format!("{LISTEN_BY_HAND}; with --config {}", server.listen)),
        ("max-queued-requests", server.max_queued_requests.to_string()),
        ("drain-delay-seconds", server.drain_delay_seconds.to_string()),
        ("drain-seconds", server.drain_seconds.to_string()),
        ("prefix-sharing", KvCacheConfig::default().prefix_sharing.to_string()),
        ("gpu-memory-utilization", format!("{DEFAULT_GPU_MEMORY_UTILIZATION:.2}")),
        ("max-sequences", of(|limits| limits.sequences)),
        ("max-batched-tokens", of(|limits| limits.tokens)),
    ] {
        let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(flag)).unwrap();
        let help = arg.get_help().unwrap().to_string();
        assert!(help.contains(&format!("[default: {default}]")), "--{flag}: {help}");
    }
    // Whatever can be left out says what is then.
    for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
        let (flag, help) = (arg.get_long().unwrap(), arg.get_help().unwrap().to_string());
        let told = help.contains("[default: ")
            || ["model", "config", "digest", "adapter", "disk-tier-bytes"].contains(&flag);
        assert!(told, "--{flag}: {help}");
    }
}
