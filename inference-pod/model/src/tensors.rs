//! Which tensors an architecture needs, and whether a checkpoint has them in the right shapes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::dtype::StoredDtype;
use crate::error::{ModelError, clip};
use crate::index::{INDEX_FILE, SafetensorsIndex};
use crate::safetensors_header::{SafetensorsHeader, TensorInfo};

/// Name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output projection; absent where it is tied to the embedding.
pub const OUTPUT: &str = "lm_head.weight";

/// A tensor that an architecture needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Sizes of the dimensions: `[out, in]` of a projection, `[n]` of a norm or bias.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    pub(crate) fn new(name: impl Into<String>, shape: &[u32]) -> Self {
        Self { name: name.into(), shape: shape.iter().map(|size| u64::from(*size)).collect() }
    }

    /// Numbers in the tensor. Cannot overflow: [`ModelConfig`] bounds every size.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl ModelConfig {
    /// Every tensor that the engine loads, in the order in which it uses them.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        decoder_tensors(self)
    }
}

fn decoder_tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let hidden = config.hidden_size;
    let query = config.num_attention_heads * config.head_dim;
    let key_value = config.num_key_value_heads * config.head_dim;
    let inner = config.intermediate_size;

    let mut tensors = vec![TensorSpec::new(EMBEDDING, &[config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        let mut projection = |part: &str, out: u32, input: u32, bias: bool| {
            let name = format!("model.layers.{layer}.{part}");
            tensors.push(TensorSpec::new(format!("{name}.weight"), &[out, input]));
            if bias {
                tensors.push(TensorSpec::new(format!("{name}.bias"), &[out]));
            }
        };
        projection("self_attn.q_proj", query, hidden, config.qkv_bias);
        projection("self_attn.k_proj", key_value, hidden, config.qkv_bias);
        projection("self_attn.v_proj", key_value, hidden, config.qkv_bias);
        projection("self_attn.o_proj", hidden, query, config.output_bias);
        projection("mlp.gate_proj", inner, hidden, config.mlp_bias);
        projection("mlp.up_proj", inner, hidden, config.mlp_bias);
        projection("mlp.down_proj", hidden, inner, config.mlp_bias);
        if config.qk_norm {
            for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
                tensors
                    .push(TensorSpec::new(format!("model.layers.{layer}.{norm}.weight"), &[config.head_dim]));
            }
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push(TensorSpec::new(format!("model.layers.{layer}.{norm}.weight"), &[hidden]));
        }
    }
    tensors.push(TensorSpec::new("model.norm.weight", &[hidden]));
    if !config.tie_word_embeddings {
        tensors.push(TensorSpec::new(OUTPUT, &[config.vocab_size, hidden]));
    }
    tensors
}

/// Tensors of a model's weights files, together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    tensors: BTreeMap<String, (String, TensorInfo)>,
}

impl Checkpoint {
    /// Puts the headers of all weights files together; the index, where there is one, must agree with them.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for a tensor in two files, or one that is not in the file its index names.
    pub fn new(
        headers: impl IntoIterator<Item = (String, SafetensorsHeader)>,
        index: Option<&SafetensorsIndex>,
    ) -> Result<Self, ModelError> {
        let mut tensors: BTreeMap<String, (String, TensorInfo)> = BTreeMap::new();
        for (file, header) in headers {
            for (name, info) in header.tensors {
                if let Some((other, _)) = tensors.get(&name) {
                    let problem = format!("holds tensor {}, and so does {other}", clip(&name));
                    return Err(ModelError::invalid(file, problem));
                }
                tensors.insert(name, (file.clone(), info));
            }
        }
        for (name, shard) in index.iter().flat_map(|index| &index.weight_map) {
            if tensors.get(name).is_none_or(|(file, _)| file != shard) {
                let problem = format!("says that tensor {} is in {}, but it is not", clip(name), clip(shard));
                return Err(ModelError::invalid(INDEX_FILE, problem));
            }
        }
        Ok(Self { tensors })
    }

    /// The file that holds a tensor, and where in it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&str, &TensorInfo)> {
        self.tensors.get(name).map(|(file, info)| (file.as_str(), info))
    }

    /// Checks that every tensor of the model is there, in the right shape and a number type the engine can load, and counts
    /// them. Tensors that the model does not use (a saved copy of a tied output, old rotary tables) are left out.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for a tensor that is missing or misshapen, [`ModelError::Unsupported`] for a number type that
    /// is not loaded.
    pub fn check(&self, config: &ModelConfig) -> Result<WeightsSummary, ModelError> {
        self.check_tensors(&config.tensors(), config.architecture.as_str(), config.num_hidden_layers)
    }

    /// The same for the tensors of any architecture, which is named in errors.
    ///
    /// # Errors
    /// See [`Checkpoint::check`].
    pub fn check_tensors(
        &self,
        tensors: &[TensorSpec],
        architecture: &str,
        layers: u32,
    ) -> Result<WeightsSummary, ModelError> {
        let mut summary = WeightsSummary::default();
        for spec in tensors {
            let Some((file, info)) = self.get(&spec.name) else {
                return Err(ModelError::invalid(
                    "weights",
                    format!(
                        "tensor {} is missing; {architecture} with {layers} layers needs it. The weights do not belong to this \
                         config.json, or a shard was left out",
                        spec.name
                    ),
                ));
            };
            if info.shape != spec.shape {
                return Err(ModelError::invalid(
                    file,
                    format!(
                        "tensor {} has shape {:?}, config.json makes it {:?}; the weights do not belong to this config.json",
                        spec.name, info.shape, spec.shape
                    ),
                ));
            }
            if !info.dtype.is_loadable() {
                return Err(ModelError::unsupported(
                    file,
                    format!(
                        "tensor {} is stored as {}; supported are BF16, F16, F32 and F64: use the unquantised checkpoint",
                        spec.name, info.dtype
                    ),
                ));
            }
            summary.tensors += 1;
            summary.parameters += spec.elements();
            *summary.stored_bytes.entry(info.dtype).or_default() += info.bytes();
        }
        Ok(summary)
    }
}

/// What the weights of a model amount to; only the tensors the engine loads are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightsSummary {
    /// Parameters, counted from the tensors' shapes; a tied output counts once.
    pub parameters: u64,
    /// Tensors.
    pub tensors: u64,
    /// Bytes in the files, by the number type they are stored in.
    pub stored_bytes: BTreeMap<StoredDtype, u64>,
}
