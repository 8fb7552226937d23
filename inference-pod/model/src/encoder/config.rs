//! config.json of an encoder, checked and bounded like a decoder's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::architecture::architecture_name;
use crate::config::{CONFIG_FILE, invalid, limit, stored_dtype};
use crate::dtype::StoredDtype;
use crate::encoder::pipeline::Pipeline;
use crate::error::{ModelError, clip};
use crate::fields::{Fields, read_object};

/// Most sizes that a config.json may name for Matryoshka embeddings.
const MAX_MATRYOSHKA: usize = 64;

/// What transformers adds to the variance where config.json does not say, and always in DistilBERT.
const LAYER_NORM_EPS: f64 = 1e-12;

/// What distinguishes encoders that compute almost the same: names of tensors and fields, how positions count, and the
/// layers of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EncoderFamily {
    /// BERT. Positions count from 0; a second text has another token type.
    Bert,
    /// RoBERTa, and XLM-RoBERTa, which differs from it in its vocabulary. Positions count from `pad_token_id` + 1.
    Roberta,
    /// DistilBERT: no token types, and names of its own.
    DistilBert,
}

/// Architectures that the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // transformers' own names say it all
pub enum EncoderArchitecture {
    BertModel,
    BertForSequenceClassification,
    RobertaModel,
    RobertaForSequenceClassification,
    XLMRobertaModel,
    XLMRobertaForSequenceClassification,
    DistilBertModel,
    DistilBertForSequenceClassification,
}

impl EncoderArchitecture {
    const TABLE: [(Self, &'static str, EncoderFamily, bool); 8] = [
        (Self::BertModel, "BertModel", EncoderFamily::Bert, false),
        (Self::BertForSequenceClassification, "BertForSequenceClassification", EncoderFamily::Bert, true),
        (Self::RobertaModel, "RobertaModel", EncoderFamily::Roberta, false),
        (
            Self::RobertaForSequenceClassification,
            "RobertaForSequenceClassification",
            EncoderFamily::Roberta,
            true,
        ),
        (Self::XLMRobertaModel, "XLMRobertaModel", EncoderFamily::Roberta, false),
        (
            Self::XLMRobertaForSequenceClassification,
            "XLMRobertaForSequenceClassification",
            EncoderFamily::Roberta,
            true,
        ),
        (Self::DistilBertModel, "DistilBertModel", EncoderFamily::DistilBert, false),
        (
            Self::DistilBertForSequenceClassification,
            "DistilBertForSequenceClassification",
            EncoderFamily::DistilBert,
            true,
        ),
    ];

    /// Finds an architecture by its name in config.json.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The name in `architectures` of config.json.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::TABLE.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// Which names and positions it has.
    #[must_use]
    pub fn family(self) -> EncoderFamily {
        Self::TABLE.iter().find(|row| row.0 == self).map_or(EncoderFamily::Bert, |row| row.2)
    }

    /// Whether it scores pairs of texts (a cross-encoder) instead of making vectors.
    #[must_use]
    pub fn is_classifier(self) -> bool {
        Self::TABLE.iter().any(|row| row.0 == self && row.3)
    }

    /// Names of all architectures, for messages.
    #[must_use]
    pub fn supported() -> String {
        Self::TABLE.iter().map(|row| row.1).collect::<Vec<_>>().join(", ")
    }
}

/// The function between the two projections of a layer's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Activation {
    /// GELU by the error function.
    Gelu,
    /// GELU by its approximation with tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x times its sigmoid.
    Silu,
}

impl Activation {
    fn parse(name: &str) -> Result<Self, ModelError> {
        match name {
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            other => {
                let problem = format!(
                    "hidden_act \"{}\" is not supported; supported: gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu",
                    clip(other)
                );
                Err(ModelError::unsupported(CONFIG_FILE, problem))
            }
        }
    }
}

/// What a cross-encoder's raw score goes through, as sentence-transformers' CrossEncoder does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScoreActivation {
    /// 1 / (1 + e^-x): a score from 0 to 1. The default.
    Sigmoid,
    /// The raw score.
    Identity,
}

/// The files of a model's folder that say what an encoder is. All but the first are optional.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncoderFiles<'a> {
    /// config.json.
    pub config: &'a [u8],
    /// modules.json of sentence-transformers.
    pub modules: Option<&'a [u8]>,
    /// 1_Pooling/config.json of sentence-transformers.
    pub pooling: Option<&'a [u8]>,
    /// sentence_bert_config.json of sentence-transformers.
    pub sentence_bert_config: Option<&'a [u8]>,
    /// tokenizer_config.json.
    pub tokenizer_config: Option<&'a [u8]>,
}

/// An encoder's shape and settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncoderConfig {
    /// First of `architectures`.
    pub architecture: EncoderArchitecture,
    /// Width of a token's vector, and of an embedding.
    pub hidden_size: u32,
    /// Width of the MLP.
    pub intermediate_size: u32,
    /// Transformer layers.
    pub num_hidden_layers: u32,
    /// Heads of attention; divides `hidden_size`.
    pub num_attention_heads: u32,
    /// Rows of the embedding of tokens.
    pub vocab_size: u32,
    /// Rows of the embedding of token types; 0 where the family has none.
    pub type_vocab_size: u32,
    /// Rows of the embedding of positions.
    pub max_position_embeddings: u32,
    /// Token that positions pass over, and before whose number none begins, in the RoBERTa family.
    pub pad_token_id: u32,
    /// Added to the variance in layer norm.
    pub layer_norm_eps: f64,
    /// The MLP's activation.
    pub activation: Activation,
    /// What a score goes through; `None` for a model that makes vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_activation: Option<ScoreActivation>,
    /// Sizes that embeddings may be cut to, where the model was trained for it; empty where it was not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matryoshka_dimensions: Vec<u32>,
    /// Whether any size will do (`is_matryoshka` without a list).
    #[serde(default)]
    pub any_dimension: bool,
    /// Number type the weights were saved in, when config.json says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_dtype: Option<StoredDtype>,
    /// What is done with the tokens' vectors.
    pub pipeline: Pipeline,
}

impl EncoderConfig {
    /// Reads an encoder's files.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for files that are broken or contradict each other; [`ModelError::Unsupported`] for what the
    /// engine does not run, naming it.
    pub fn parse(files: &EncoderFiles<'_>) -> Result<Self, ModelError> {
        let map = read_object(CONFIG_FILE, files.config)?;
        let fields = Fields { file: CONFIG_FILE, prefix: "", map: &map };
        let name = architecture_name(fields)?;
        let architecture = EncoderArchitecture::parse(name).ok_or_else(|| {
            let supported = EncoderArchitecture::supported();
            let problem = format!("architecture \"{}\" is not supported; supported: {supported}", clip(name));
            ModelError::unsupported(CONFIG_FILE, problem)
        })?;
        refuse_variants(&map)?;
        let family = architecture.family();
        let [hidden, inner, layers, heads, activation] = match family {
            EncoderFamily::Bert | EncoderFamily::Roberta => {
                ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
            }
            EncoderFamily::DistilBert => ["dim", "hidden_dim", "n_layers", "n_heads", "activation"],
        };
        let hidden_size = fields.size(hidden, limit::WIDTH)?;
        let num_attention_heads = fields.size(heads, limit::HEADS)?;
        if hidden_size % num_attention_heads != 0 {
            return Err(invalid(format!(
                "{hidden} ({hidden_size}) must be a multiple of {heads} ({num_attention_heads})"
            )));
        }
        let max_position_embeddings = fields.size("max_position_embeddings", limit::POSITIONS)?;
        let vocab_size = fields.size("vocab_size", limit::VOCABULARY)?;
        let pad_token_id = match map.get("pad_token_id") {
            None | Some(Value::Null) => u32::from(family == EncoderFamily::Roberta),
            Some(value) => value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id < vocab_size)
                .ok_or_else(|| {
                    invalid(format!("pad_token_id is {}, which is no token", clip(&value.to_string())))
                })?,
        };
        let mut config = Self {
            architecture,
            hidden_size,
            intermediate_size: fields.size(inner, limit::WIDTH * 4)?,
            num_hidden_layers: fields.size(layers, limit::LAYERS)?,
            num_attention_heads,
            vocab_size,
            type_vocab_size: match family {
                EncoderFamily::DistilBert => 0,
                EncoderFamily::Bert => fields.optional_size("type_vocab_size", 1 << 8)?.unwrap_or(2),
                EncoderFamily::Roberta => fields.optional_size("type_vocab_size", 1 << 8)?.unwrap_or(1),
            },
            max_position_embeddings,
            pad_token_id,
            layer_norm_eps: match family {
                EncoderFamily::DistilBert => LAYER_NORM_EPS,
                _ => fields.optional_number("layer_norm_eps", 0.0, 1.0)?.unwrap_or(LAYER_NORM_EPS),
            },
            activation: Activation::parse(map.get(activation).and_then(Value::as_str).unwrap_or("gelu"))?,
            score_activation: architecture.is_classifier().then(|| score_activation(&map)).transpose()?,
            matryoshka_dimensions: matryoshka(&map, hidden_size)?,
            any_dimension: fields.flag("is_matryoshka")?,
            stored_dtype: stored_dtype(&map),
            pipeline: Pipeline::default(),
        };
        if config.longest() == 0 {
            return Err(invalid(format!(
                "max_position_embeddings ({max_position_embeddings}) leaves no position after pad_token_id ({pad_token_id})"
            )));
        }
        config.pipeline = Pipeline::parse(files, &config)?;
        Ok(config)
    }

    /// Width of one head.
    #[must_use]
    pub fn head_dim(&self) -> u32 {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Number of the first position.
    #[must_use]
    pub fn first_position(&self) -> u32 {
        match self.architecture.family() {
            EncoderFamily::Roberta => self.pad_token_id.saturating_add(1),
            EncoderFamily::Bert | EncoderFamily::DistilBert => 0,
        }
    }

    /// Most tokens that have a position.
    #[must_use]
    pub fn longest(&self) -> u32 {
        self.max_position_embeddings.saturating_sub(self.first_position())
    }

    /// Longest input in tokens where no setting says otherwise: what sentence-transformers cuts texts to.
    #[must_use]
    pub fn max_input_tokens(&self) -> u32 {
        self.pipeline.max_seq_length.map_or(self.longest(), |length| length.min(self.longest()))
    }

    /// Whether an embedding may be cut to `dimensions`.
    #[must_use]
    pub fn may_cut_to(&self, dimensions: u32) -> bool {
        dimensions == self.hidden_size
            || self.matryoshka_dimensions.contains(&dimensions)
            || (self.any_dimension
                && self.matryoshka_dimensions.is_empty()
                && (1..self.hidden_size).contains(&dimensions))
    }
}

/// Refuses what changes the arithmetic and is not done.
fn refuse_variants(map: &Map<String, Value>) -> Result<(), ModelError> {
    let refuse = |problem: String| Err(ModelError::unsupported(CONFIG_FILE, problem));
    if let Some(kind) = map.get("position_embedding_type").and_then(Value::as_str)
        && kind != "absolute"
    {
        let problem =
            format!("position_embedding_type \"{}\" is not supported; supported: absolute", clip(kind));
        return refuse(problem);
    }
    if map.get("quantization_config").is_some_and(|value| !value.is_null()) {
        return refuse(
            "quantization_config is not supported for encoders; use the model's unquantised checkpoint"
                .to_owned(),
        );
    }
    for flag in ["is_decoder", "add_cross_attention"] {
        if map.get(flag).and_then(Value::as_bool) == Some(true) {
            return refuse(format!("{flag} is true; only encoders are run under this architecture"));
        }
    }
    Ok(())
}

/// One score, and the activation that sentence-transformers takes for it.
fn score_activation(map: &Map<String, Value>) -> Result<ScoreActivation, ModelError> {
    let labels = match (map.get("num_labels").and_then(Value::as_u64), map.get("id2label")) {
        (Some(labels), _) => labels,
        (None, Some(Value::Object(labels))) => labels.len() as u64,
        // transformers' own default.
        (None, _) => 2,
    };
    if labels != 1 {
        return Err(ModelError::unsupported(
            CONFIG_FILE,
            format!(
                "the classifier has {labels} labels; a reranker has one (num_labels, or id2label with one entry)"
            ),
        ));
    }
    let named = map.get("sentence_transformers").and_then(|section| section.get("activation_fn"));
    let older = map.get("sbert_ce_default_activation_function");
    match named.or(older).and_then(Value::as_str) {
        None => Ok(ScoreActivation::Sigmoid),
        Some(name) => match name.rsplit('.').next() {
            Some("Sigmoid") => Ok(ScoreActivation::Sigmoid),
            Some("Identity") => Ok(ScoreActivation::Identity),
            _ => Err(ModelError::unsupported(
                CONFIG_FILE,
                format!("activation_fn \"{}\" is not supported; supported: Sigmoid, Identity", clip(name)),
            )),
        },
    }
}

fn matryoshka(map: &Map<String, Value>, hidden_size: u32) -> Result<Vec<u32>, ModelError> {
    let sizes = match map.get("matryoshka_dimensions") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(sizes)) if sizes.len() <= MAX_MATRYOSHKA => sizes,
        Some(_) => {
            return Err(invalid(format!(
                "matryoshka_dimensions must be a list of at most {MAX_MATRYOSHKA} sizes"
            )));
        }
    };
    sizes
        .iter()
        .map(|size| {
            size.as_u64()
                .and_then(|size| u32::try_from(size).ok())
                .filter(|size| (1..=hidden_size).contains(size))
                .ok_or_else(|| {
                    invalid(format!(
                        "matryoshka_dimensions holds {}, sizes are from 1 to hidden_size ({hidden_size})",
                        clip(&size.to_string())
                    ))
                })
        })
        .collect()
}
