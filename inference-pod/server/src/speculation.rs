//! The settings of speculation, and a draft model's part in the start: fetched, checked against the model it guesses for, and
//! given its share of the memory.

use std::path::{Path, PathBuf};

use fairlead_backend_torch::{LoadOptions, TorchBackend};
use fairlead_engine::proposer::Proposer;
use fairlead_engine::speculation::{DraftedBackend, NGramProposer, NGramSettings, spare_blocks};
use fairlead_fetch::{FetchOptions, FetchedModel, Hub, Inspection, SourceUri, fetch};
use fairlead_inference_config::{InferenceConfig, SpeculationConfig};
use fairlead_model::plan::kv_bytes_per_token;
use fairlead_model::{Plan, Reason};

use crate::load::{FatalError, default_cache_dir};
use crate::tokenizer::TOKENIZER_FILE;

/// What guesses from a sequence's own tokens, where the settings ask for that.
pub fn proposer(settings: Option<&SpeculationConfig>, max_sequences: usize) -> Option<Box<dyn Proposer>> {
    match settings {
        Some(&SpeculationConfig::NGram { tokens, longest, shortest }) => {
            let settings = NGramSettings {
                tokens: tokens as usize,
                longest: longest as usize,
                shortest: shortest as usize,
            };
            Some(Box::new(NGramProposer::new(settings, max_sequences)))
        }
        Some(SpeculationConfig::DraftModel { .. }) | None => None,
    }
}

/// A draft model on disk that goes with the model to be served.
pub struct DraftModel {
    fetched: FetchedModel,
    tokens: usize,
}

/// How the two models are loaded, so that their caches have the same blocks.
pub struct SharedOptions {
    /// The model that is served.
    pub target: LoadOptions,
    /// The one that guesses.
    pub draft: LoadOptions,
}

impl DraftModel {
    /// Fetches the draft model that the configuration names, and checks that it has `target`'s vocabulary.
    ///
    /// # Errors
    /// [`FatalError`] naming the setting.
    pub async fn fetch(config: &InferenceConfig, target: &FetchedModel) -> Result<Option<Self>, FatalError> {
        let Some(SpeculationConfig::DraftModel { tokens, uri }) = &config.speculation else {
            return Ok(None);
        };
        let source = SourceUri::parse_or_folder(uri)?;
        let folder =
            config.model.cache_dir.clone().unwrap_or_else(default_cache_dir).join(source.cache_name());
        let fetched = fetch(&source, &Hub::from_env()?, &folder, &FetchOptions::default()).await?;
        check_vocabulary(target, &fetched)?;
        Ok(Some(Self { fetched, tokens: *tokens as usize }))
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.fetched.dir
    }

    /// What is known of it before it is loaded.
    pub fn inspection(&self) -> &Inspection {
        &self.fetched.inspection
    }

    /// Parts the memory of the cache between both models: the same blocks for both, and the draft model's spare ones.
    ///
    /// # Errors
    /// [`FatalError`] where the draft model cannot read as far as the other, or not even one sequence fits.
    pub fn share_cache(
        &self,
        options: &LoadOptions,
        plan: &Plan,
        target: &Inspection,
    ) -> Result<SharedOptions, FatalError> {
        let draft = self.fetched.inspection.config.decoder()?;
        if draft.max_position_embeddings < plan.max_model_len {
            return Err(invalid(format!(
                "the draft model reads {} tokens at most, fewer than engine.maxModelLen, {}; lower that, or take another draft \
                 model",
                draft.max_position_embeddings, plan.max_model_len
            )));
        }
        let block_tokens = u64::from(options.block_tokens);
        let ours = kv_bytes_per_token(target.config.decoder()?, plan.dtype) * block_tokens;
        let theirs = kv_bytes_per_token(draft, plan.dtype) * block_tokens;
        let spare = u64::from(spare_blocks(self.tokens, options.block_tokens)) * theirs;
        let blocks = options.kv_cache_bytes.saturating_sub(spare) / (ours + theirs).max(1);
        let least = u64::from(plan.max_model_len.div_ceil(options.block_tokens)) + 1;
        if blocks < least {
            return Err(FatalError {
                reason: Reason::DoesNotFit,
                message: format!(
                    "engine.kvCacheBytes: {} bytes do not hold one sequence of {} tokens for the model and its draft model, which \
                     takes {}; raise it, or lower engine.maxModelLen",
                    options.kv_cache_bytes,
                    plan.max_model_len,
                    least * (ours + theirs) + spare
                ),
            });
        }
        Ok(SharedOptions {
            target: LoadOptions { kv_cache_bytes: blocks * ours, ..*options },
            draft: LoadOptions { kv_cache_bytes: blocks * theirs + spare, ..*options },
        })
    }

    /// Makes one backend of both models.
    ///
    /// # Errors
    /// [`FatalError`] if their caches do not go together, which [`DraftModel::share_cache`] has seen to.
    pub fn join(
        &self,
        target: TorchBackend,
        draft: TorchBackend,
    ) -> Result<DraftedBackend<TorchBackend, TorchBackend>, FatalError> {
        DraftedBackend::new(target, draft, self.tokens).map_err(|error| FatalError::pod(error.to_string()))
    }
}

fn invalid(problem: String) -> FatalError {
    FatalError { reason: Reason::InvalidSpec, message: format!("speculation.uri: {problem}") }
}

/// Guesses are numbers of tokens, so both models must mean the same by them.
fn check_vocabulary(target: &FetchedModel, draft: &FetchedModel) -> Result<(), FatalError> {
    let vocabulary = |model: &FetchedModel| model.inspection.config.decoder().map(|config| config.vocab_size);
    let (ours, theirs) = (vocabulary(target)?, vocabulary(draft)?);
    if ours != theirs {
        return Err(invalid(format!(
            "the draft model has {theirs} tokens, the model {ours}; take a draft model of the same family"
        )));
    }
    if tokenizer_digest(&target.dir)? != tokenizer_digest(&draft.dir)? {
        return Err(invalid(format!(
            "the draft model's {TOKENIZER_FILE} is not the model's; take a draft model of the same family"
        )));
    }
    Ok(())
}

fn tokenizer_digest(folder: &Path) -> Result<blake3::Hash, FatalError> {
    let path: PathBuf = folder.join(TOKENIZER_FILE);
    let bytes = std::fs::read(&path)
        .map_err(|error| invalid(format!("{}: cannot be read: {error}", path.display())))?;
    Ok(blake3::hash(&bytes))
}
