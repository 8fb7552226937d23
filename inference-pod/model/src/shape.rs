//! What kind of model a folder holds, and what it can be used for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, architecture_name};
use crate::config::{CONFIG_FILE, ModelConfig};
use crate::encoder::{EncoderArchitecture, EncoderConfig, EncoderFiles};
use crate::error::{ModelError, clip};
use crate::fields::{Fields, read_object};
use crate::tensors::{Checkpoint, WeightsSummary};

/// What a model is used for. The names are those of `task` in settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Continues text.
    Generate,
    /// Turns text into vectors.
    Embed,
    /// Scores documents against a query.
    Rerank,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generate => "Generate",
            Self::Embed => "Embed",
            Self::Rerank => "Rerank",
        })
    }
}

/// A model's configuration, of whichever kind it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModelShape {
    /// A model that continues text.
    Decoder(Box<ModelConfig>),
    /// A model that makes vectors or scores.
    Encoder(Box<EncoderConfig>),
}

impl From<ModelConfig> for ModelShape {
    fn from(config: ModelConfig) -> Self {
        Self::Decoder(Box::new(config))
    }
}

impl ModelShape {
    /// Whether config.json is an encoder's, which has more files to read: see [`EncoderFiles`].
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for bytes that are not a config.json; [`ModelError::Unsupported`] for an architecture that the
    /// engine does not have.
    pub fn is_encoder(config: &[u8]) -> Result<bool, ModelError> {
        let map = read_object(CONFIG_FILE, config)?;
        let name = architecture_name(Fields { file: CONFIG_FILE, prefix: "", map: &map })?;
        if EncoderArchitecture::parse(name).is_some() {
            return Ok(true);
        }
        if Architecture::parse(name).is_some() {
            return Ok(false);
        }
        let problem = format!(
            "architecture \"{}\" is not supported; supported: {}, and for embeddings and reranking {}",
            clip(name),
            Architecture::supported(),
            EncoderArchitecture::supported()
        );
        Err(ModelError::unsupported(CONFIG_FILE, problem))
    }

    /// Reads a model's files.
    ///
    /// # Errors
    /// See [`ModelConfig::parse`] and [`EncoderConfig::parse`].
    pub fn parse(files: &EncoderFiles<'_>) -> Result<Self, ModelError> {
        if Self::is_encoder(files.config)? {
            return Ok(Self::Encoder(Box::new(EncoderConfig::parse(files)?)));
        }
        Ok(ModelConfig::parse(files.config)?.into())
    }

    /// The name in `architectures` of config.json.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Decoder(config) => config.architecture.as_str(),
            Self::Encoder(config) => config.architecture.as_str(),
        }
    }

    /// Checks a checkpoint against this configuration.
    ///
    /// # Errors
    /// See [`Checkpoint::check`].
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<WeightsSummary, ModelError> {
        match self {
            Self::Decoder(config) => checkpoint.check(config),
            Self::Encoder(config) => config.check(checkpoint),
        }
    }

    /// What the model can be used for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        match self {
            Self::Decoder(_) => Purpose::Generate,
            Self::Encoder(config) if config.architecture.is_classifier() => Purpose::Rerank,
            Self::Encoder(_) => Purpose::Embed,
        }
    }

    /// The configuration of a model that continues text.
    ///
    /// # Errors
    /// [`ModelError::InvalidSetting`] for any other model, with the `task` that it is for.
    pub fn decoder(&self) -> Result<&ModelConfig, ModelError> {
        match self {
            Self::Decoder(config) => Ok(config),
            Self::Encoder(_) => Err(self.wrong_task(Purpose::Generate)),
        }
    }

    /// The configuration of a model for `purpose`, [`Purpose::Embed`] or [`Purpose::Rerank`].
    ///
    /// # Errors
    /// [`ModelError::InvalidSetting`] for any other model, with the `task` that it is for.
    pub fn encoder(&self, purpose: Purpose) -> Result<&EncoderConfig, ModelError> {
        match self {
            Self::Encoder(config) if self.purpose() == purpose => Ok(config),
            _ => Err(self.wrong_task(purpose)),
        }
    }

    fn wrong_task(&self, wanted: Purpose) -> ModelError {
        let (architecture, purpose) = (self.architecture(), self.purpose());
        let does = match purpose {
            Purpose::Generate => "continues text",
            Purpose::Embed => "makes embeddings",
            Purpose::Rerank => "scores pairs of texts",
        };
        let problem = format!(
            "is {wanted}, but the model is a {architecture}, which {does}: set task to {purpose}, or name another model"
        );
        ModelError::InvalidSetting { field: "task", problem }
    }
}
