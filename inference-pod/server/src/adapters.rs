//! LoRA adapters by the model names that they answer to: loaded, looked up, unloaded.
//!
//! Owns the names. Files are brought by `fairlead-fetch` and read on a thread of their own; the engine gets what has been
//! read. Called by start-up and by the admin API; request handlers only look names up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fairlead_engine::backend::{AdapterError, AdapterId, AdapterInfo};
use fairlead_engine::engine::EngineHandle;
use fairlead_engine::sequence::AdapterKey;
use fairlead_fetch::{FetchError, Hub, SourceUri, fetch_adapter};
use fairlead_model::Reason;

use crate::load::FatalError;

/// Longest name of an adapter.
const MAX_NAME: usize = 128;

/// An adapter that answers requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedAdapter {
    /// What the engine knows it by.
    pub key: AdapterKey,
    /// Where it came from, as it was given.
    pub source: String,
    /// Rank and size.
    pub info: AdapterInfo,
}

/// Why an adapter is not served, or not unloaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterFailure {
    /// Its name cannot be one.
    #[error("{0}")]
    Name(String),
    /// Another adapter has the name.
    #[error("The lora adapter '{0}' has already been loaded; unload it first, or choose another name")]
    Loaded(String),
    /// There is none of that name.
    #[error("The lora adapter '{0}' cannot be found; GET /v1/lora_adapters lists those that are loaded")]
    Unknown(String),
    /// Its files could not be brought.
    #[error("{}", .0.1)]
    Fetch(Box<(Reason, String)>),
    /// Its files do not serve, or there is no room.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl From<FetchError> for AdapterFailure {
    fn from(error: FetchError) -> Self {
        Self::Fetch(Box::new((error.reason(), error.to_string())))
    }
}

impl AdapterFailure {
    /// The same failure at start-up, where it ends the process.
    #[must_use]
    pub fn fatal(&self, name: &str) -> FatalError {
        let reason = match self {
            Self::Name(_) | Self::Loaded(_) | Self::Unknown(_) => Reason::InvalidSpec,
            Self::Fetch(error) => error.0,
            Self::Adapter(AdapterError::NotFound(_)) => Reason::ModelNotFound,
            Self::Adapter(AdapterError::Invalid(_)) => Reason::ModelInvalid,
            Self::Adapter(AdapterError::NoRoom(_)) => Reason::DoesNotFit,
            Self::Adapter(AdapterError::Dead(_)) => Reason::PodFailed,
        };
        FatalError { reason, message: format!("adapters: {name}: {self}") }
    }
}

enum Slot {
    /// The name is taken; the adapter is not there yet.
    Loading,
    Serving(ServedAdapter),
}

/// All adapters of the process.
pub struct Adapters {
    /// Names of the model itself, which no adapter may have.
    model_names: Vec<String>,
    cache_dir: PathBuf,
    slots: RwLock<BTreeMap<String, Slot>>,
}

impl Adapters {
    /// None yet. Those from a hub are fetched into folders below `cache_dir`.
    #[must_use]
    pub fn new(model_names: Vec<String>, cache_dir: PathBuf) -> Self {
        Self { model_names, cache_dir, slots: RwLock::default() }
    }

    /// The adapter that answers to a name.
    pub fn find(&self, name: &str) -> Option<ServedAdapter> {
        match self.read().get(name) {
            Some(Slot::Serving(adapter)) => Some(adapter.clone()),
            _ => None,
        }
    }

    /// All that answer, by name.
    pub fn all(&self) -> Vec<(String, ServedAdapter)> {
        let slots = self.read();
        let serving = |(name, slot): (&String, &Slot)| match slot {
            Slot::Serving(adapter) => Some((name.clone(), adapter.clone())),
            Slot::Loading => None,
        };
        slots.iter().filter_map(serving).collect()
    }

    /// Names of adapters by what the engine knows them by, with commas between. Those that are gone have none.
    pub fn names_of(&self, ids: &BTreeSet<AdapterId>) -> String {
        let slots = self.read();
        let names = slots.iter().filter_map(|(name, slot)| match slot {
            Slot::Serving(adapter) if ids.contains(&adapter.key.id) => Some(name.as_str()),
            _ => None,
        });
        names.collect::<Vec<_>>().join(",")
    }

    /// Brings an adapter from a folder or a hub and serves it as `name`.
    ///
    /// # Errors
    /// [`AdapterFailure`]; nothing has changed then.
    pub async fn load(
        &self,
        engine: &EngineHandle,
        name: &str,
        source: &str,
    ) -> Result<ServedAdapter, AdapterFailure> {
        let reserved = self.reserve(name)?;
        let folder = self.bring(source).await?;
        let reader = engine
            .adapter_reader()
            .ok_or_else(|| AdapterError::Invalid("this model takes no LoRA adapters".to_owned()))?;
        let read = tokio::task::spawn_blocking(move || reader.read(&folder));
        let read =
            read.await.map_err(|error| AdapterError::Invalid(format!("reading it failed: {error}")))??;
        let info = read.info;
        let key = engine.load_adapter(read).await?;
        let adapter = ServedAdapter { key, source: source.to_owned(), info };
        reserved.fill(adapter.clone());
        tracing::info!(name, source, rank = info.rank, bytes = info.bytes, "adapter is served");
        Ok(adapter)
    }

    /// Takes the name back at once; returns when the requests that had begun are done and the memory is free. Goes on where
    /// the caller does not wait for it.
    ///
    /// # Errors
    /// [`AdapterFailure::Unknown`], or that the engine has stopped.
    pub async fn unload(&self, engine: &EngineHandle, name: &str) -> Result<(), AdapterFailure> {
        let id = {
            let mut slots = self.write();
            match slots.get(name) {
                Some(Slot::Serving(adapter)) => {
                    let id = adapter.key.id;
                    slots.remove(name);
                    id
                }
                _ => return Err(AdapterFailure::Unknown(name.to_owned())),
            }
        };
        let engine = engine.clone();
        let freeing = tokio::spawn(async move { engine.unload_adapter(id).await });
        let freed = freeing.await.map_err(|error| AdapterError::Dead(error.to_string()))?;
        freed?;
        tracing::info!(name, "adapter is unloaded");
        Ok(())
    }

    fn reserve<'a>(&'a self, name: &'a str) -> Result<Reserved<'a>, AdapterFailure> {
        check_name(name, &self.model_names)?;
        let mut slots = self.write();
        if slots.contains_key(name) {
            return Err(AdapterFailure::Loaded(name.to_owned()));
        }
        slots.insert(name.to_owned(), Slot::Loading);
        Ok(Reserved { adapters: self, name })
    }

    async fn bring(&self, source: &str) -> Result<PathBuf, FetchError> {
        let source = SourceUri::parse_or_folder(source)?;
        let dir = self.cache_dir.join("adapters").join(source.cache_name());
        fetch_adapter(&source, &Hub::from_env()?, &dir).await
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Slot>> {
        // Every change is one statement, so a panic elsewhere does not spoil it.
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is being loaded; free again when dropped unfilled.
struct Reserved<'a> {
    adapters: &'a Adapters,
    name: &'a str,
}

impl Reserved<'_> {
    fn fill(self, adapter: ServedAdapter) {
        self.adapters.write().insert(self.name.to_owned(), Slot::Serving(adapter));
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut slots = self.adapters.write();
        if matches!(slots.get(self.name), Some(Slot::Loading)) {
            slots.remove(self.name);
        }
    }
}

/// Names become label values with commas between them and parts of paths, and stand beside the model's own.
fn check_name(name: &str, model_names: &[String]) -> Result<(), AdapterFailure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err(AdapterFailure::Name(format!(
            "lora_name must have 1 to {MAX_NAME} letters, digits and . _ - / : and nothing else"
        )));
    }
    if model_names.iter().any(|model| model == name) {
        return Err(AdapterFailure::Name(format!(
            "lora_name: {name} is the model's own name; choose another one"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_confuse_are_refused() {
        let models = ["tiny".to_owned()];
        for name in ["french", "org/french:v1.2", "a-b_c", &"x".repeat(128)] {
            assert_eq!(check_name(name, &models), Ok(()), "{name}");
        }
        for name in ["", "tiny", "a,b", "a b", "a\"", "é", "a\n", &"x".repeat(129)] {
            assert!(matches!(check_name(name, &models), Err(AdapterFailure::Name(_))), "{name}");
        }
    }

    #[test]
    fn a_name_is_taken_once_and_free_again_when_loading_fails() {
        let adapters = Adapters::new(vec!["tiny".to_owned()], PathBuf::new());
        let reserved = adapters.reserve("french").unwrap();
        assert!(matches!(adapters.reserve("french"), Err(AdapterFailure::Loaded(_))));
        assert_eq!(adapters.find("french"), None);
        drop(reserved);
        let adapter = ServedAdapter {
            key: AdapterKey { id: 3, digest: [0; 32] },
            source: "/a".to_owned(),
            info: AdapterInfo { rank: 1, bytes: 2 },
        };
        adapters.reserve("french").unwrap().fill(adapter.clone());
        assert_eq!(adapters.find("french"), Some(adapter));
        assert_eq!(adapters.names_of(&BTreeSet::from([3, 4])), "french");
    }
}
