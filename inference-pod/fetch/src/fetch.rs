//! A whole model to a folder, ready to load: fetched if it comes from a hub, checked in either case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fairlead_model::SafetensorsIndex;
use fairlead_model::index::{INDEX_FILE, MAX_INDEX_BYTES};
use futures::{StreamExt, TryStreamExt, stream};

use crate::digest;
use crate::download::{Wanted, download};
use crate::error::FetchError;
use crate::files::{self, WeightsLayout};
use crate::hub::Hub;
use crate::inspect::{self, Inspection};
use crate::progress::{Meter, Progress, ProgressFn};
use crate::remote_model::{RemoteModel, is_commit};
use crate::source_uri::{Repository, SourceUri};
use crate::state::State;

/// How a model is fetched.
#[derive(Clone)]
pub struct FetchOptions {
    /// Digest that the files must have ([`crate::digest`]).
    pub digest: Option<String>,
    /// Tell a folder's digest even if none is asked for.
    pub tell_digest: bool,
    /// Files that are fetched at once.
    pub concurrency: usize,
    /// Told about progress.
    pub progress: Option<ProgressFn>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { digest: None, tell_digest: false, concurrency: 4, progress: None }
    }
}

/// A model on the disk that has passed every check but loading.
#[derive(Clone, Debug)]
pub struct FetchedModel {
    /// Folder of its files.
    pub dir: PathBuf,
    /// Digest of the files; for a folder only when the options say so, as it means reading everything.
    pub digest: Option<String>,
    /// Weights files, in the order of their names.
    pub weights: Vec<PathBuf>,
    /// config.json and the weights' headers.
    pub inspection: Inspection,
}

/// Brings a model. One from a hub is fetched into `dir`; a folder is used where it is.
///
/// A hub's model is fetched into `dir` itself. What is there already is kept; a fetch that was broken off goes on where it
/// stopped; one that was complete is not repeated, and if its revision is a commit the hub is not even asked.
///
/// # Errors
/// Any [`FetchError`]; see [`FetchError::reason`].
pub async fn fetch(
    source: &SourceUri,
    hub: &Hub,
    dir: &Path,
    options: &FetchOptions,
) -> Result<FetchedModel, FetchError> {
    if let Some(digest) = &options.digest {
        digest::check_form(digest)?;
    }
    match source {
        SourceUri::Hub { repository, revision } => from_hub(hub, repository, revision, dir, options).await,
        SourceUri::Folder { path } => from_folder(path, options).await,
        SourceUri::Claim { .. } | SourceUri::Image { .. } => Err(FetchError::InvalidUri(format!(
            "{source} can be used in a ModelDeployment only, where it is mounted; give this process the folder, as file:///path"
        ))),
    }
}

/// Brings a LoRA adapter, as [`fetch`] brings a model, and returns its folder. What its files hold is looked at when it is
/// loaded: only the model that runs can tell whether they fit.
///
/// # Errors
/// Any [`FetchError`].
pub async fn fetch_adapter(source: &SourceUri, hub: &Hub, dir: &Path) -> Result<PathBuf, FetchError> {
    match source {
        SourceUri::Hub { repository, revision } => {
            let options = FetchOptions::default();
            whole_from_hub(hub, repository, revision, dir, &options, What::Adapter).await?;
            Ok(dir.to_owned())
        }
        SourceUri::Folder { path } => Ok(path.clone()),
        SourceUri::Claim { .. } | SourceUri::Image { .. } => Err(FetchError::InvalidUri(format!(
            "{source} cannot be reached from here; mount it and give this process the folder, as file:///path"
        ))),
    }
}

/// What a repository holds.
#[derive(Clone, Copy)]
enum What {
    Model,
    Adapter,
}

async fn from_folder(path: &Path, options: &FetchOptions) -> Result<FetchedModel, FetchError> {
    let inspection = inspect::folder(path).await?;
    let used = inspect::used_files(path).await?;
    let digest = if options.tell_digest || options.digest.is_some() {
        let (folder, names) = (path.to_owned(), used.all.clone());
        let hashed = tokio::task::spawn_blocking(move || hash_files(&folder, &names));
        let hashes = hashed.await.map_err(|error| FetchError::Disk(error.to_string()))??;
        let actual = digest::of_files(&hashes);
        digest::compare(options.digest.as_deref(), &actual)?;
        Some(actual)
    } else {
        None
    };
    let weights = used.weights.iter().map(|name| path.join(name)).collect();
    Ok(FetchedModel { dir: path.to_owned(), digest, weights, inspection })
}

fn hash_files(folder: &Path, names: &[String]) -> Result<BTreeMap<String, String>, FetchError> {
    let hash = |name: &String| {
        let path = folder.join(name);
        let sha256 = digest::of_file(&path).map_err(|error| FetchError::disk("read", &path, &error))?;
        Ok((name.clone(), sha256))
    };
    names.iter().map(hash).collect()
}

async fn from_hub(
    hub: &Hub,
    repository: &Repository,
    revision: &str,
    dir: &Path,
    options: &FetchOptions,
) -> Result<FetchedModel, FetchError> {
    let (state, _lock) = whole_from_hub(hub, repository, revision, dir, options, What::Model).await?;
    finish(dir, &state, options).await
}

/// Brings all files of a repository that are in use. The folder stays locked while the second value lives.
async fn whole_from_hub(
    hub: &Hub,
    repository: &Repository,
    revision: &str,
    dir: &Path,
    options: &FetchOptions,
    what: What,
) -> Result<(State, Option<std::fs::File>), FetchError> {
    tokio::fs::create_dir_all(dir).await.map_err(|error| FetchError::disk("create", dir, &error))?;
    let lock = lock(dir).await?;
    let state = State::read(dir).await;
    let whole = state.repository == repository.to_string() && state.is_whole(dir).await;

    if whole && is_commit(revision) && state.commit == revision {
        return Ok((state, lock));
    }
    let looked_up = if whole {
        hub.resolve_once(repository, revision).await
    } else {
        hub.resolve(repository, revision).await
    };
    let model = match looked_up {
        Ok(model) => model,
        Err(error) if whole && error.is_transient() => {
            tracing::warn!(%error, commit = state.commit, "the hub is away, using what was fetched before");
            return Ok((state, lock));
        }
        Err(error) => return Err(error),
    };
    if whole && state.commit == model.commit {
        return Ok((state, lock));
    }
    Ok((bring(hub, &model, state, dir, options, what).await?, lock))
}

/// Names of the files of a model that are in use.
async fn files_of_model(
    hub: &Hub,
    model: &RemoteModel,
    place: &str,
    names: &[String],
) -> Result<BTreeSet<String>, FetchError> {
    let layout = files::layout(place, names)?;
    let index = match layout {
        WeightsLayout::Single => None,
        WeightsLayout::Sharded => {
            let bytes = hub.read_small(model, INDEX_FILE, MAX_INDEX_BYTES as u64).await?;
            Some(SafetensorsIndex::parse(&bytes)?)
        }
    };
    let weights = files::weights(place, names, index.as_ref())?;
    Ok(files::small(names, layout).into_iter().chain(weights).collect())
}

/// Fetches all files of `model` that `state` does not hold.
async fn bring(
    hub: &Hub,
    model: &RemoteModel,
    mut state: State,
    dir: &Path,
    options: &FetchOptions,
    what: What,
) -> Result<State, FetchError> {
    let names: Vec<String> = model.files.iter().map(|file| file.name.clone()).collect();
    let place = format!("{}@{} on {}", model.repository, model.commit, hub.name());
    let in_use = match what {
        What::Model => files_of_model(hub, model, &place, &names).await?,
        What::Adapter => files::adapter(&place, &names)?,
    };

    let concurrency = options.concurrency.max(1);
    // Futures are made before their stream: a closure inside it would keep the whole from being `Send`.
    let questions: Vec<_> = in_use.iter().map(|name| Wanted::learn(hub, model, name)).collect();
    let wanted: Vec<Wanted> = stream::iter(questions).buffered(concurrency).try_collect().await?;
    let total = wanted.iter().map(|wanted| wanted.size).sum();
    tracing::info!(%place, files = wanted.len(), bytes = total, "fetching");
    let meter = Meter::new(total, options.progress.clone());

    let mut missing = Vec::new();
    for wanted in wanted {
        match state.holds(dir, &wanted.name, &wanted.etag).await {
            Some(file) => meter.add(file.size),
            None => missing.push(wanted),
        }
    }
    // Files of an earlier revision stay in the state until this one is whole, so that none is forgotten by a crash.
    state = State {
        repository: model.repository.to_string(),
        commit: model.commit.clone(),
        complete: false,
        files: state.files,
    };
    state.write(dir).await?;

    let downloads: Vec<_> = missing.iter().map(|wanted| download(hub, model, wanted, dir, &meter)).collect();
    let mut downloads = stream::iter(downloads).buffer_unordered(concurrency);
    while let Some((name, file)) = downloads.try_next().await? {
        tracing::info!(file = name, bytes = file.size, sha256 = file.sha256, "fetched");
        state.files.insert(name, file);
        state.write(dir).await?;
    }
    drop(downloads);
    // A stale chat template of an earlier revision would be used, and stale shards take space.
    for name in state.remove_all_but(&in_use) {
        let path = dir.join(name);
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FetchError::disk("remove", &path, &error));
            }
            _ => {}
        }
    }
    state.complete = true;
    state.write(dir).await?;
    Ok(state)
}

async fn finish(dir: &Path, state: &State, options: &FetchOptions) -> Result<FetchedModel, FetchError> {
    let actual = digest::of_files(&state.hashes());
    digest::compare(options.digest.as_deref(), &actual)?;
    let bytes = state.files.values().map(|file| file.size).sum();
    if let Some(progress) = &options.progress {
        progress(Progress { bytes_done: bytes, bytes_total: bytes });
    }
    let mut inspection = inspect::folder(dir).await?;
    inspection.revision = Some(state.commit.clone());
    let used = inspect::used_files(dir).await?;
    let weights = used.weights.iter().map(|name| dir.join(name)).collect();
    Ok(FetchedModel { dir: dir.to_owned(), digest: Some(actual), weights, inspection })
}

/// Keeps two processes from fetching into one folder. Released when dropped, and by the kernel when the process dies.
async fn lock(dir: &Path) -> Result<Option<std::fs::File>, FetchError> {
    let path = dir.join(".fairlead-lock");
    let locked = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || {
            let file = std::fs::File::options().create(true).truncate(false).write(true).open(path)?;
            match file.lock() {
                Ok(()) => Ok(Some(file)),
                // Some network file systems have no locks; then there is one pod per folder by construction.
                Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(None),
                Err(error) => Err(error),
            }
        })
    };
    let locked = locked.await.map_err(|error| FetchError::Disk(error.to_string()))?;
    locked.map_err(|error| FetchError::disk("lock", &path, &error))
}
