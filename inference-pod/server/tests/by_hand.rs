//! The program by hand: what it takes, what it prints, and how it says what is wrong to whoever types flags.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use std::path::Path;
use std::process::{Command, Output};

use pod::{Pod, make_model, run_to_failure};

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fairlead-inference")).args(arguments).output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn fetch_prints_a_folders_digest_and_leaves_the_folder_as_it_is() {
    let model = make_model();
    let folder = model.path().to_str().unwrap();
    let before = names(model.path());
    let mut digests = Vec::new();
    for log in ["off", "trace"] {
        let output = program(&["fetch", "--model", folder, "--log", log]);
        assert!(output.status.success(), "{output:?}");
        digests.push(String::from_utf8(output.stdout).unwrap());
    }
    assert_eq!(digests[0], digests[1]);
    let digest = digests[0].strip_suffix('\n').unwrap();
    let hexadecimal = digest.strip_prefix("sha256:").unwrap();
    assert!(hexadecimal.len() == 64 && hexadecimal.chars().all(|c| c.is_ascii_hexdigit()), "{digest}");
    // It is what spec.model.digest wants.
    assert!(program(&["fetch", "--model", folder, "--digest", digest]).status.success());
    let other = format!("sha256:{}", "0".repeat(64));
    let output = program(&["fetch", "--model", folder, "--digest", &other]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("model.digest (--digest): "), "{output:?}");
    assert_eq!(names(model.path()), before);

    let output = program(&["fetch", "--model", "hf://org/name"]);
    assert!(
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--dir"),
        "{output:?}"
    );
}

#[test]
fn serve_without_a_model_asks_for_one() {
    let output = program(&["serve"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("--model") && error.contains("--config"), "{error}");
}

#[test]
fn errors_name_the_flag() {
    let model = make_model();
    for (arguments, wanted) in [
        (
            &["--kv-cache-bytes", "20000"][..],
            "DoesNotFit: engine.kvCacheBytes (--kv-cache-bytes): 20000 bytes",
        ),
        (&["--max-model-len", "1000000"], "InvalidSpec: engine.maxModelLen (--max-model-len): is 1000000"),
        (&["--host-tier-bytes", "10"], "InvalidSpec: kvCache.hostBytes (--host-tier-bytes): is 10 bytes"),
        (
            &["--max-sequences", "0"],
            "InvalidSpec: engine.maxSequences (--max-sequences) is 0; it must be 1 to 65536",
        ),
    ] {
        let (code, reason) = run_to_failure(model.path(), arguments);
        assert_eq!(code, Some(1));
        assert!(reason.starts_with(wanted), "{reason}");
    }
    let output = program(&["serve", "--model", "/nowhere", "--listen", "127.0.0.1:0", "--log", "off"]);
    let missing = String::from_utf8_lossy(&output.stderr);
    assert!(missing.ends_with("correct the path in model.uri (--model)\n"), "{missing}");
    let (_, absurd) = run_to_failure(model.path(), &["--host-tier-bytes", "900000000000000000"]);
    assert!(absurd.contains("; lower it to ") && !absurd.contains("lower it to 0"), "{absurd}");
}

#[test]
fn what_is_wrong_with_the_draft_model_names_the_draft_model() {
    let model = make_model();
    let fails = |draft: &Path| {
        let draft = draft.to_str().unwrap();
        run_to_failure(model.path(), &["--speculative-tokens", "4", "--draft-model", draft]).1
    };
    let named = "speculation.uri (--draft-model): the draft model";
    let missing = fails(Path::new("/nowhere"));
    assert!(
        missing.starts_with(&format!("ModelNotFound: {named}: there is no folder /nowhere")),
        "{missing}"
    );
    assert!(missing.contains("correct the path in speculation.uri"), "{missing}");

    let unknown = make_model();
    let config = unknown.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("LlamaForCausalLM", "OtherForCausalLM")).unwrap();
    let unsupported = fails(unknown.path());
    assert!(unsupported.starts_with(&format!("UnsupportedArchitecture: {named}: ")), "{unsupported}");

    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend-torch/tests/encoders/bert_mean");
    let encoder = fails(&encoder);
    assert!(encoder.starts_with(&format!("InvalidSpec: {named} is a ")), "{encoder}");
    for reason in [missing, unsupported, encoder] {
        assert!(!reason.contains("model.uri") && !reason.contains("task"), "{reason}");
    }
}

/// Blocks of the cache, as the pod tells them.
async fn blocks(arguments: &[&str]) -> u64 {
    let pod = Pod::start(arguments).await;
    let text = pod.client.get(format!("{}/metrics", pod.url)).send().await.unwrap().text().await.unwrap();
    let (_, rest) = text.split_once("num_gpu_blocks=\"").unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_is_as_large_as_it_was_set_unless_nothing_could_use_it() {
    let set = ["--kv-cache-bytes", "50000000", "--max-sequences", "2", "--max-model-len", "64"];
    let kept = blocks(&set).await;
    let of_all = 2 * 64 / 16 + 1;
    assert!(kept > 10 * of_all, "{kept}");
    assert_eq!(blocks(&[&set[..], &["--prefix-sharing", "false"]].concat()).await, of_all);
    // Nobody said how large: what both sequences take at full length.
    assert_eq!(blocks(&set[2..]).await, of_all);
}
