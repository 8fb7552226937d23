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

/// What a tensor of a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// Floating-point numbers.
    Number,
    /// 32-bit integers: packed weights, or indices.
    Packed,
}

/// A tensor that an architecture needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Sizes of the dimensions: `[out, in]` of a projection, `[n]` of a norm or bias.
    pub shape: Vec<u64>,
    /// What it holds.
    pub kind: TensorKind,
    /// Parameters of the model that it stands for: its numbers, those packed in it, or none for scales and indices.
    pub parameters: u64,
}

impl TensorSpec {
    /// Numbers of `shape`. Their product cannot overflow: [`ModelConfig`] bounds every size.
    pub(crate) fn new(name: impl Into<String>, shape: &[u32]) -> Self {
        let shape: Vec<u64> = shape.iter().map(|size| u64::from(*size)).collect();
        let parameters = shape.iter().product();
        Self { name: name.into(), shape, kind: TensorKind::Number, parameters }
    }

    pub(crate) fn of_kind(self, kind: TensorKind, parameters: u64) -> Self {
        Self { kind, parameters, ..self }
    }
}

/// A projection of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Name in the checkpoint, less `.weight`.
    pub name: String,
    /// Rows of its matrix.
    pub out: u32,
    /// Columns.
    pub input: u32,
    /// Whether it has a bias.
    pub bias: bool,
}

impl Projection {
    /// Weights, the bias not counted.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        u64::from(self.out) * u64::from(self.input)
    }
}

impl ModelConfig {
    /// Every tensor that the engine loads, in the order in which it uses them.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for a projection whose shape its quantisation cannot pack.
    pub fn tensors(&self) -> Result<Vec<TensorSpec>, ModelError> {
        let hidden = self.hidden_size;
        let mut tensors = vec![TensorSpec::new(EMBEDDING, &[self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            for projection in self.projections(layer) {
                match self.quantization.as_ref().filter(|how| how.covers(&projection.name)) {
                    Some(quantization) => tensors.extend(quantization.tensors(&projection)?),
                    None => {
                        let shape = [projection.out, projection.input];
                        tensors.push(TensorSpec::new(format!("{}.weight", projection.name), &shape));
                    }
                }
                if projection.bias {
                    tensors.push(TensorSpec::new(format!("{}.bias", projection.name), &[projection.out]));
                }
            }
            let mut norm = |part: &str, width: u32| {
                tensors.push(TensorSpec::new(format!("model.layers.{layer}.{part}.weight"), &[width]));
            };
            if self.qk_norm {
                norm("self_attn.q_norm", self.head_dim);
                norm("self_attn.k_norm", self.head_dim);
            }
            norm("input_layernorm", hidden);
            norm("post_attention_layernorm", hidden);
        }
        tensors.push(TensorSpec::new("model.norm.weight", &[hidden]));
        if !self.tie_word_embeddings {
            tensors.push(TensorSpec::new(OUTPUT, &[self.vocab_size, hidden]));
        }
        Ok(tensors)
    }

    /// The projections of a layer.
    #[must_use]
    pub fn projections(&self, layer: u32) -> [Projection; 7] {
        let hidden = self.hidden_size;
        // An inspection that another pod sent has not been through the limits of config.rs.
        let query = self.num_attention_heads.saturating_mul(self.head_dim);
        let key_value = self.num_key_value_heads.saturating_mul(self.head_dim);
        let inner = self.intermediate_size;
        let projection = |part: &str, out: u32, input: u32, bias: bool| Projection {
            name: format!("model.layers.{layer}.{part}"),
            out,
            input,
            bias,
        };
        [
            projection("self_attn.q_proj", query, hidden, self.qkv_bias),
            projection("self_attn.k_proj", key_value, hidden, self.qkv_bias),
            projection("self_attn.v_proj", key_value, hidden, self.qkv_bias),
            projection("self_attn.o_proj", hidden, query, self.output_bias),
            projection("mlp.gate_proj", inner, hidden, self.mlp_bias),
            projection("mlp.up_proj", inner, hidden, self.mlp_bias),
            projection("mlp.down_proj", hidden, inner, self.mlp_bias),
        ]
    }
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
        self.check_tensors(&config.tensors()?, config.architecture.as_str(), config.num_hidden_layers)
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
            let (sound, supported) = match spec.kind {
                TensorKind::Number => (info.dtype.is_loadable(), "BF16, F16, F32 and F64"),
                TensorKind::Packed => {
                    (matches!(info.dtype, StoredDtype::I32 | StoredDtype::U32), "I32 and U32")
                }
            };
            if !sound {
                return Err(ModelError::unsupported(
                    file,
                    format!(
                        "tensor {} is stored as {}; supported are {supported}. A quantised checkpoint must say so in \
                         quantization_config",
                        spec.name, info.dtype
                    ),
                ));
            }
            summary.tensors += 1;
            summary.parameters += spec.parameters;
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
