//! The settings of speculation, and a draft model's part in the start: fetched, checked against the model it guesses for, and
//! given its share of the memory.

use std::path::{Path, PathBuf};

use fairlead_backend_torch::TorchBackend;
use fairlead_engine::proposer::Proposer;
use fairlead_engine::speculation::{DraftedBackend, NGramProposer, NGramSettings, spare_blocks};
use fairlead_fetch::{FetchError, FetchOptions, FetchedModel, Hub, Inspection, SourceUri, fetch};
use fairlead_inference_config::{InferenceConfig, SpeculationConfig};
use fairlead_model::plan::kv_bytes_per_token;
use fairlead_model::{DraftInputs, Plan, Reason};

use crate::load::{FatalError, default_cache_dir};
use crate::tokenizer::TOKENIZER_FILE;

/// The setting that names the draft model.
const FIELD: &str = "speculation.uri";

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

/// The two models' caches, which have the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedCache {
    /// Bytes of the cache of the model that is served.
    pub target_bytes: u64,
    /// Bytes of the cache of the one that guesses.
    pub draft_bytes: u64,
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
        let cache_dir = config.model.cache_dir.clone().unwrap_or_else(default_cache_dir);
        let fetched = fetch_draft(uri, &cache_dir).await.map_err(|error| of_draft_model(error.into()))?;
        let Inspection { config: shape, .. } = &fetched.inspection;
        if shape.decoder().is_err() {
            return Err(invalid(format!(
                "the draft model is a {}, which does not continue text; take a draft model of the model's family",
                shape.architecture()
            )));
        }
        check_vocabulary(target, &fetched)?;
        Ok(Some(Self { fetched, tokens: *tokens as usize }))
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.fetched.dir
    }

    /// What the plan counts of it.
    ///
    /// # Errors
    /// [`FatalError`] where it is no decoder.
    pub fn plan_inputs(&self) -> Result<DraftInputs<'_>, FatalError> {
        let Inspection { config, weights, .. } = &self.fetched.inspection;
        let tokens = u32::try_from(self.tokens).unwrap_or(u32::MAX);
        Ok(DraftInputs { config: config.decoder()?, weights, tokens })
    }

    /// Bytes of one of its blocks.
    fn block_bytes(&self, plan: &Plan) -> Result<u64, FatalError> {
        let config = self.fetched.inspection.config.decoder()?;
        Ok(kv_bytes_per_token(config, plan.dtype) * u64::from(plan.block_tokens))
    }

    /// Bytes of its spare blocks, for tokens that are only guessed. They come on top of the cache that is parted.
    ///
    /// # Errors
    /// [`FatalError`] where it is no decoder.
    pub fn spare_bytes(&self, plan: &Plan) -> Result<u64, FatalError> {
        Ok(u64::from(spare_blocks(self.tokens, plan.block_tokens)) * self.block_bytes(plan)?)
    }

    /// Parts the cache between both models: the same blocks for both, and the draft model's spare ones, which the plan counts
    /// among the activations.
    ///
    /// # Errors
    /// [`FatalError`] where it is no decoder.
    pub fn share_cache(&self, plan: &Plan, kv_cache_bytes: u64) -> Result<SharedCache, FatalError> {
        let both = plan.kv_bytes_per_token * u64::from(plan.block_tokens);
        let (blocks, theirs) = (kv_cache_bytes / both.max(1), self.block_bytes(plan)?);
        Ok(SharedCache {
            target_bytes: blocks * (both - theirs),
            draft_bytes: blocks * theirs + self.spare_bytes(plan)?,
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

async fn fetch_draft(uri: &str, cache_dir: &Path) -> Result<FetchedModel, FetchError> {
    let source = SourceUri::parse_or_folder(uri)?;
    fetch(&source, &Hub::from_env()?, &cache_dir.join(source.cache_name()), &FetchOptions::default()).await
}

/// An error that says which of the two models it is about: what fetches and loads speaks of the one that is served.
pub fn of_draft_model(error: FatalError) -> FatalError {
    let message = error.message.strip_prefix("model.uri: ").unwrap_or(&error.message);
    let message = format!("{FIELD}: the draft model: {}", message.replace("model.uri", FIELD));
    FatalError { message, ..error }
}

fn invalid(problem: String) -> FatalError {
    FatalError { reason: Reason::InvalidSpec, message: format!("{FIELD}: {problem}") }
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

#[cfg(test)]
mod tests {
    use fairlead_model::plan::draft_spare_blocks;

    use super::*;

    #[test]
    fn the_plan_counts_the_blocks_that_the_engine_takes() {
        for tokens in [1, 2, 4, 8, 15, 16, 17, 31, 63, 64, 100] {
            for block_tokens in fairlead_model::plan::BLOCK_SIZES {
                let engine = spare_blocks(tokens as usize, block_tokens);
                assert_eq!(draft_spare_blocks(tokens, block_tokens), engine, "{tokens} {block_tokens}");
            }
        }
    }
}
