//! Downloads from a real HTTP hub: resumed, checked, pinned, refused.
#![allow(clippy::expect_used)] // helpers of tests

mod common;

use std::fs;
use std::sync::{Arc, Mutex};

use common::{Scene, uri, write_model};
use fairlead_fetch::{FetchError, FetchOptions, FetchedModel, Progress, SourceUri, fetch, fetch_adapter};
use fairlead_model::Reason;
use fairlead_test_hub::FaultKind;
use sha2::{Digest, Sha256};

const TINY: &str = "hf://org/tiny";

async fn fetch_tiny(scene: &Scene, revision: &str) -> Result<FetchedModel, FetchError> {
    let source = uri(&format!("{TINY}@{revision}"));
    fetch(&source, &scene.client(), scene.cache.path(), &FetchOptions::default()).await
}

#[tokio::test]
async fn fetches_the_files_in_use_and_nothing_else() {
    let scene = Scene::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = seen.clone();
    let options = FetchOptions {
        progress: Some(Arc::new(move |progress: Progress| listener.lock().expect("is free").push(progress))),
        ..FetchOptions::default()
    };
    let model = fetch(&uri(TINY), &scene.client(), scene.cache.path(), &options).await.expect("is fetched");

    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let (from, to) = (fs::read(scene.model_dir().join(name)), fs::read(scene.cache.path().join(name)));
        assert_eq!(from.expect("is there"), to.expect("was fetched"), "{name}");
    }
    for name in ["README.md", "pytorch_model.bin"] {
        assert!(!scene.cache.path().join(name).exists(), "{name}");
    }
    assert_eq!(model.weights, [scene.cache.path().join("model.safetensors")]);
    assert!(model.inspection.revision.is_some());
    let seen = seen.lock().expect("is free");
    let last = seen.last().expect("progress was told");
    assert_eq!(last.bytes_done, last.bytes_total);
    assert!(last.bytes_total > 1_000_000);
}

#[tokio::test]
async fn a_second_start_fetches_nothing() {
    let scene = Scene::new().await;
    let first = fetch_tiny(&scene, "main").await.expect("is fetched");
    let commit = first.inspection.revision.expect("has a commit");
    scene.hub.log().clear();

    fetch_tiny(&scene, "main").await.expect("is there");
    assert!(scene.hub.log().records().iter().all(|request| request.path.starts_with("/api/")));
    scene.hub.log().clear();
    let again = fetch_tiny(&scene, &commit).await.expect("is there");
    assert_eq!(scene.hub.log().records(), []);
    assert_eq!(again.digest, first.digest);
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_stopped() {
    let scene = Scene::new().await;
    let size = fs::metadata(scene.model_dir().join("model.safetensors")).expect("is there").len();
    scene.hub.faults().strike(FaultKind::Cut { after_bytes: 300_000 }, 2, "model.safetensors");
    fetch_tiny(&scene, "main").await.expect("is fetched");

    let requests = scene.requests_for("model.safetensors");
    assert_eq!(requests.iter().map(|request| request.status).collect::<Vec<_>>(), [200, 206, 206]);
    let sent: u64 = requests.iter().map(|request| request.body_bytes).sum();
    // What the connection held when it was cut is sent again, nothing more.
    assert!(sent < size + 600_000, "{sent} bytes were sent for a file of {size}");
    assert_ne!(requests[1].range.as_deref(), Some("bytes=0-"));
}

#[tokio::test]
async fn a_broken_off_process_goes_on_where_it_stopped() {
    let scene = Scene::new().await;
    scene.hub.faults().strike(FaultKind::Cut { after_bytes: 300_000 }, 1, "model.safetensors");
    scene.hub.faults().strike(FaultKind::Status { status: 503, retry_after: None }, 100, "model.safetensors");
    // One after the other, so that config.json is whole when the weights fail.
    let options = FetchOptions { concurrency: 1, ..FetchOptions::default() };
    let source = uri(TINY);
    let attempt = async || fetch(&source, &scene.client(), scene.cache.path(), &options).await;
    let error = attempt().await.expect_err("the hub is broken");
    assert!(error.is_transient(), "{error}");
    assert!(!scene.cache.path().join("model.safetensors").exists(), "nothing half-made has the final name");

    scene.hub.faults().clear();
    scene.hub.log().clear();
    attempt().await.expect("is fetched");
    let requests = scene.requests_for("model.safetensors");
    assert_eq!(requests.len(), 1);
    assert!(requests[0].range.is_some(), "{requests:?}");
    assert_eq!(scene.requests_for("/config.json"), [], "what was whole is not fetched again");
    let left: Vec<_> = fs::read_dir(scene.cache.path())
        .expect("is there")
        .map(|e| e.expect("is there").file_name())
        .collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".partial")), "{left:?}");
}

#[tokio::test]
async fn a_hub_without_ranges_still_works() {
    let scene = Scene::new().await;
    scene.hub.faults().strike(FaultKind::Cut { after_bytes: 300_000 }, 1, "model.safetensors");
    scene.hub.faults().strike(FaultKind::IgnoreRange, 1, "model.safetensors");
    fetch_tiny(&scene, "main").await.expect("is fetched");
    assert_eq!(scene.requests_for("model.safetensors").len(), 2);
}

#[tokio::test]
async fn a_corrupted_download_is_repeated_and_then_refused() {
    let scene = Scene::new().await;
    scene.hub.faults().strike(FaultKind::Corrupt, 1, "model.safetensors");
    fetch_tiny(&scene, "main").await.expect("the second download is good");

    let scene = Scene::new().await;
    scene.hub.faults().strike(FaultKind::Corrupt, 2, "model.safetensors");
    let error = fetch_tiny(&scene, "main").await.expect_err("never good");
    assert_eq!(error.reason(), Reason::ModelInvalid);
    assert!(error.to_string().contains("SHA-256"), "{error}");
    assert!(!scene.cache.path().join("model.safetensors").exists());
}

#[tokio::test]
async fn a_busy_hub_is_tried_again() {
    let scene = Scene::new().await;
    scene.hub.faults().strike(FaultKind::Status { status: 429, retry_after: Some(0) }, 2, "/api/models");
    scene.hub.faults().strike(FaultKind::Status { status: 503, retry_after: None }, 3, "config.json");
    fetch_tiny(&scene, "main").await.expect("is fetched");

    let scene = Scene::new().await;
    scene.hub.faults().strike(FaultKind::Status { status: 429, retry_after: Some(3600) }, 1, "/api/models");
    let error = fetch_tiny(&scene, "main").await.expect_err("asks for too long a wait");
    let FetchError::Transient { retry_after, .. } = error else { panic!("{error}") };
    assert_eq!(retry_after.map(|after| after.as_secs()), Some(3600));
}

#[tokio::test]
async fn a_branch_is_followed_and_a_commit_is_not() {
    let scene = Scene::new().await;
    let first = fetch_tiny(&scene, "main").await.expect("is fetched");
    let commit = first.inspection.revision.expect("has a commit");
    fs::write(scene.model_dir().join("chat_template.jinja"), "one").expect("is written");
    fs::write(scene.model_dir().join("tokenizer.json"), r#"{"version":"2"}"#).expect("is written");
    scene.hub.log().clear();

    let second = fetch_tiny(&scene, "main").await.expect("is fetched");
    assert_ne!(second.inspection.revision.as_ref(), Some(&commit));
    assert_ne!(second.digest, first.digest);
    assert_eq!(scene.requests_for("model.safetensors"), [], "weights that did not change are kept");
    assert!(scene.cache.path().join("chat_template.jinja").exists());

    let error = fetch_tiny(&scene, &commit).await.expect_err("is gone from the hub");
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("no revision"), "{error}");

    fs::remove_file(scene.model_dir().join("chat_template.jinja")).expect("was there");
    fs::write(scene.cache.path().join("vocab.json"), "not ours").expect("is written");
    fetch_tiny(&scene, "main").await.expect("is fetched");
    assert!(!scene.cache.path().join("chat_template.jinja").exists(), "a stale template would be used");
    assert!(scene.cache.path().join("vocab.json").exists(), "what we did not fetch is not ours to remove");
}

#[tokio::test]
async fn a_tag_is_a_revision_of_its_own() {
    let scene = Scene::new().await;
    write_model(&scene.root.path().join("org/tiny@v2"), 128, 7);
    let main = fetch_tiny(&scene, "main").await.expect("is fetched");
    let tag = fetch_tiny(&scene, "v2").await.expect("is fetched");
    assert_ne!(main.digest, tag.digest);
    let weights = fs::read(scene.root.path().join("org/tiny@v2/model.safetensors")).expect("is there");
    assert_eq!(fs::read(&tag.weights[0]).expect("was fetched"), weights);
}

#[tokio::test]
async fn a_hub_that_is_away_does_not_stop_a_restart() {
    let scene = Scene::new().await;
    let first = fetch_tiny(&scene, "main").await.expect("is fetched");
    scene.hub.faults().strike(FaultKind::Status { status: 503, retry_after: None }, 1000, "");
    let again = fetch_tiny(&scene, "main").await.expect("is there");
    assert_eq!(again.digest, first.digest);
}

#[tokio::test]
async fn the_digest_is_the_same_from_a_hub_and_a_folder_and_is_enforced() {
    let scene = Scene::new().await;
    let digest = fetch_tiny(&scene, "main").await.expect("is fetched").digest.expect("has one");
    let folder = uri(&format!("file://{}", scene.model_dir().display()));
    let asking = |digest: &str| FetchOptions { digest: Some(digest.to_owned()), ..FetchOptions::default() };

    let cache = scene.cache.path();
    let local = fetch(&folder, &scene.client(), cache, &asking(&digest)).await.expect("has that digest");
    assert_eq!(local.digest.as_deref(), Some(digest.as_str()));
    assert_eq!(local.dir, scene.model_dir());
    let telling = FetchOptions { tell_digest: true, ..FetchOptions::default() };
    for (options, wanted) in [(telling, Some(digest.clone())), (FetchOptions::default(), None)] {
        let told = fetch(&folder, &scene.client(), cache, &options).await.expect("is sound");
        assert_eq!(told.digest, wanted, "only when asked: it means reading all");
    }

    let other = format!("sha256:{}", "0".repeat(64));
    for source in [&folder, &uri(TINY)] {
        let error =
            fetch(source, &scene.client(), cache, &asking(&other)).await.expect_err("has another digest");
        assert!(matches!(error, FetchError::DigestMismatch { .. }), "{error}");
        assert!(error.to_string().contains(&digest), "{error}");
        let error = fetch(source, &scene.client(), cache, &asking("md5:0")).await.expect_err("is no digest");
        assert_eq!(error.reason(), Reason::InvalidSpec);
    }
}

#[tokio::test]
async fn a_private_hub_wants_a_token() {
    let scene = Scene::with(|options| options.token = Some("secret".to_owned())).await;
    let cache = scene.cache.path();
    let fetch_as = async |token| {
        fetch(&uri(TINY), &scene.client_with_token(token), cache, &FetchOptions::default()).await
    };
    let error = fetch_as(None).await.expect_err("is private");
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("model.secretRef"), "{error}");
    let error = fetch_as(Some("wrong")).await.expect_err("is private");
    assert!(error.to_string().contains("refuses the token"), "{error}");
    assert!(!error.to_string().contains("wrong"), "the token is not shown: {error}");
    fetch_as(Some("secret")).await.expect("is fetched");
}

#[tokio::test]
async fn a_redirect_is_followed_without_the_token() {
    let scene = Scene::with(|options| {
        options.token = Some("secret".to_owned());
        options.redirect_weights = true;
    })
    .await;
    scene.hub.faults().strike(FaultKind::Cut { after_bytes: 300_000 }, 1, "/content/");
    let client = scene.client_with_token(Some("secret"));
    fetch(&uri(TINY), &client, scene.cache.path(), &FetchOptions::default()).await.expect("is fetched");
    let (content, hub): (Vec<_>, Vec<_>) =
        scene.hub.log().records().into_iter().partition(|request| request.content_host);
    assert_eq!(content.iter().map(|request| request.status).collect::<Vec<_>>(), [200, 206]);
    assert!(content.iter().all(|request| !request.authorized), "{content:?}");
    assert!(hub.iter().all(|request| request.authorized), "{hub:?}");
}

#[tokio::test]
async fn sharded_weights_are_fetched_by_their_index() {
    let scene = Scene::new().await;
    common::shard_model(&scene.model_dir(), 3);
    fs::write(scene.model_dir().join("consolidated.safetensors"), "not in use").expect("is written");
    let model = fetch_tiny(&scene, "main").await.expect("is fetched");
    assert_eq!(model.weights.len(), 2);
    assert!(!scene.cache.path().join("consolidated.safetensors").exists());

    fs::remove_file(scene.model_dir().join("model-00002-of-00002.safetensors")).expect("was there");
    let error = fetch_tiny(&scene, "main").await.expect_err("a shard is missing");
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("model-00002-of-00002.safetensors"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let scene = Scene::new().await;
    let fetch_from = async |text: &str| {
        fetch(&uri(text), &scene.client(), scene.cache.path(), &FetchOptions::default())
            .await
            .expect_err("is not there")
    };
    let error = fetch_from("hf://org/absent").await;
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("org/absent"), "{error}");
    assert!(fetch_from("hf://org/tiny@v9").await.to_string().contains("no revision v9"));
    assert_eq!(fetch_from("file:///absent/folder").await.reason(), Reason::ModelNotFound);
    assert_eq!(fetch_from("pvc://claim/x").await.reason(), Reason::InvalidSpec);

    fs::remove_file(scene.model_dir().join("tokenizer.json")).expect("was there");
    let error = fetch_from(TINY).await;
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[tokio::test]
async fn a_hub_that_cannot_be_reached_is_a_passing_failure() {
    let scene = Scene::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("has an address");
    drop(listener);
    let client = fairlead_fetch::Hub::new(&format!("http://{address}"), None)
        .expect("is a URL")
        .with_retry(fairlead_fetch::RetryPolicy::once());
    let options = FetchOptions::default();
    let error = fetch(&uri(TINY), &client, scene.cache.path(), &options).await.expect_err("nobody listens");
    assert!(error.is_transient());
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_disk_that_refuses_is_told() {
    let scene = Scene::new().await;
    let file = scene.cache.path().join("file");
    fs::write(&file, "").expect("is written");
    let options = FetchOptions::default();
    let error = fetch(&uri(TINY), &scene.client(), &file, &options).await.expect_err("is a file");
    assert!(matches!(error, FetchError::Disk(_)), "{error}");
    assert!(error.to_string().contains("a file is where a folder is needed"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_told() {
    let scene = Scene::new().await;
    let weights = fs::read(scene.model_dir().join("model.safetensors")).expect("is there");
    // The partial file's name is made from the entity tag, which for weights is their SHA-256.
    let etag = hex(&Sha256::digest(&weights));
    let partial = format!(".model.safetensors.{}.partial", &hex(&Sha256::digest(etag.as_bytes()))[..16]);
    std::os::unix::fs::symlink("/dev/full", scene.cache.path().join(&partial)).expect("is linked");
    let error = fetch_tiny(&scene, "main").await.expect_err("has no room");
    assert!(error.to_string().contains("the volume is full"), "{error}");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(!scene.cache.path().join("model.safetensors").exists());

    fs::remove_file(scene.cache.path().join(&partial)).expect("is there");
    fetch_tiny(&scene, "main").await.expect("room was made");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_mirror_that_lists_names_only_still_works() {
    let scene = Scene::with(|options| options.plain_lists = true).await;
    scene.hub.faults().strike(FaultKind::Cut { after_bytes: 300_000 }, 1, "model.safetensors");
    fetch_tiny(&scene, "main").await.expect("is fetched");
    let weights = scene.requests_for("model.safetensors");
    let asked: Vec<_> = weights.iter().map(|request| (request.method.as_str(), request.status)).collect();
    assert_eq!(asked, [("HEAD", 200), ("GET", 200), ("GET", 206)]);

    scene.hub.faults().strike(FaultKind::Corrupt, 2, "model.safetensors");
    let other = tempfile::tempdir().expect("a folder");
    let error = fetch(&uri(TINY), &scene.client(), other.path(), &FetchOptions::default())
        .await
        .expect_err("corrupt");
    assert!(error.to_string().contains("SHA-256"), "the linked entity tag is checked: {error}");
}

#[tokio::test]
async fn weights_that_were_uploaded_cut_are_refused_after_the_fetch() {
    let scene = Scene::new().await;
    let file =
        fs::File::options().write(true).open(scene.model_dir().join("model.safetensors")).expect("is there");
    file.set_len(200_000).expect("is cut");
    let error = fetch_tiny(&scene, "main").await.expect_err("is cut");
    assert_eq!(error.reason(), Reason::ModelInvalid);
    assert!(error.to_string().contains("truncated"), "{error}");
    write_model(&scene.model_dir(), 128, 1);
    fetch_tiny(&scene, "main").await.expect("was uploaded again");
}

#[tokio::test]
async fn two_fetches_into_one_folder_do_not_disturb_each_other() {
    let scene = Scene::new().await;
    let (a, b) = tokio::join!(fetch_tiny(&scene, "main"), fetch_tiny(&scene, "main"));
    assert_eq!(a.expect("is fetched").digest, b.expect("is fetched").digest);
    assert_eq!(scene.requests_for("model.safetensors").len(), 1);
}

#[test]
fn a_fetch_can_be_spawned() {
    fn is_send<T: Send>(_: T) {}
    fn check(source: &SourceUri, hub: &fairlead_fetch::Hub, dir: &std::path::Path, options: &FetchOptions) {
        is_send(fetch(source, hub, dir, options));
        is_send(fairlead_fetch::inspect(source, hub));
    }
    let _ = check;
}

#[tokio::test]
async fn an_adapter_is_fetched_without_a_model_around_it() {
    let scene = Scene::new().await;
    let dir = scene.root.path().join("org/adapter");
    fs::create_dir_all(&dir).unwrap();
    let files =
        [("adapter_config.json", "{}"), ("adapter_model.safetensors", "weights"), ("training.bin", "no")];
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    let target = scene.cache.path().join("adapter");
    let fetched = fetch_adapter(&uri("hf://org/adapter"), &scene.client(), &target).await.unwrap();
    assert_eq!(fetched, target);
    assert_eq!(fs::read_to_string(target.join("adapter_model.safetensors")).unwrap(), "weights");
    assert!(!target.join("training.bin").exists());
    // A model is no adapter.
    let error = fetch_adapter(&uri("hf://org/tiny"), &scene.client(), &scene.cache.path().join("x")).await;
    assert!(error.unwrap_err().to_string().contains("adapter_config.json"));
    // A folder is used where it is.
    let folder = SourceUri::Folder { path: dir.clone() };
    assert_eq!(fetch_adapter(&folder, &scene.client(), &target).await.unwrap(), dir);
}
