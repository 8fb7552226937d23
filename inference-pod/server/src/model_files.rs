//! The small files beside a model's weights that the server, not the backend, needs.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use fairlead_engine::grammar::GrammarCompiler;
use fairlead_model::generation::GENERATION_CONFIG_FILE;
use fairlead_model::{GenerationDefaults, ModelConfig, ModelError};

use crate::chat_template::{ChatTemplate, TokenizerConfig};
use crate::tokenizer::TextCodec;

/// What is read before the weights, so that a broken file is found in a second and not after minutes.
pub struct ModelFiles {
    /// Text to tokens and back.
    pub codec: Arc<TextCodec>,
    /// Messages to text, where the model has a template.
    pub template: Option<ChatTemplate>,
    /// Sampling defaults of the model's authors.
    pub defaults: GenerationDefaults,
    /// Tokens that end an answer: those of generation_config.json, config.json and the tokenizer together.
    pub eos_tokens: Vec<u32>,
    /// Makes constraints for answers of a given form, where the vocabulary allows it.
    pub grammars: Option<Arc<GrammarCompiler>>,
}

impl ModelFiles {
    /// Reads them from a model's folder.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] naming the file.
    pub fn load(dir: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        let codec = TextCodec::load(dir, config.vocab_size)?;
        let tokenizer_config = TokenizerConfig::load(dir)?;
        let defaults = match std::fs::read(dir.join(GENERATION_CONFIG_FILE)) {
            Ok(bytes) => GenerationDefaults::parse(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => GenerationDefaults::default(),
            Err(error) => {
                return Err(ModelError::invalid(GENERATION_CONFIG_FILE, format!("cannot be read: {error}")));
            }
        };
        let eos_of_tokenizer = tokenizer_config.eos_token().and_then(|text| codec.token_id(text));
        let eos_tokens: BTreeSet<u32> = defaults
            .eos_token_ids
            .iter()
            .chain(&config.eos_token_ids)
            .copied()
            .chain(eos_of_tokenizer)
            .collect();
        let eos_tokens: Vec<u32> = eos_tokens.into_iter().collect();
        let grammars = GrammarCompiler::new(&codec.vocabulary(), &eos_tokens)
            .inspect_err(|error| {
                tracing::warn!("requests for answers of a given form will be refused: {error}");
            })
            .ok();
        Ok(Self {
            codec: Arc::new(codec),
            template: tokenizer_config.into_template()?,
            defaults,
            eos_tokens,
            grammars: grammars.map(Arc::new),
        })
    }
}
