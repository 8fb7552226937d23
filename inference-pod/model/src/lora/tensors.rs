//! The matrices of an adapter, and whether they are those that its adapter_config.json and the model ask for.

use std::collections::BTreeMap;

use super::{ADAPTER_WEIGHTS_FILE, LoraConfig, Projection};
use crate::config::ModelConfig;
use crate::error::{ModelError, clip};
use crate::safetensors_header::{SafetensorsHeader, TensorInfo};

/// What PEFT puts in front of a module's name.
const PREFIX: &str = "base_model.model.";

/// Both matrices of one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Layer of the model.
    pub layer: u32,
    /// Projection of the layer.
    pub projection: Projection,
    /// Rows of `a` and columns of `b`.
    pub rank: u32,
    /// What `B(A x)` is multiplied with.
    pub scale: f64,
    /// `A`, `[rank, in]`.
    pub a: TensorInfo,
    /// `B`, `[out, rank]`.
    pub b: TensorInfo,
}

/// All matrices of an adapter, as they lie in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTensors {
    /// By layer, and in it in the order of [`Projection::ALL`].
    pub modules: Vec<LoraModule>,
    /// The largest rank.
    pub rank: u32,
    /// Numbers in all matrices.
    pub parameters: u64,
}

impl LoraConfig {
    /// Checks the matrices in a file's header against this configuration and the model.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for a matrix that is missing, misshapen or belongs to no module that this adapter has;
    /// [`ModelError::Unsupported`] for one that changes anything but the projections of attention and MLP.
    pub fn check(&self, header: &SafetensorsHeader, model: &ModelConfig) -> Result<LoraTensors, ModelError> {
        let mut halves: BTreeMap<(u32, Projection), [Option<&TensorInfo>; 2]> = BTreeMap::new();
        for (name, info) in &header.tensors {
            let (layer, projection, half) = self.place(name, model)?;
            if !info.dtype.is_loadable() {
                return Err(ModelError::unsupported(
                    ADAPTER_WEIGHTS_FILE,
                    format!(
                        "tensor {} is stored as {}; supported are BF16, F16, F32 and F64",
                        clip(name),
                        info.dtype
                    ),
                ));
            }
            halves.entry((layer, projection)).or_default()[half] = Some(info);
        }
        if halves.is_empty() {
            return Err(invalid("holds no matrices"));
        }
        self.check_nothing_is_missing(&halves, model)?;
        let mut tensors = LoraTensors { modules: Vec::with_capacity(halves.len()), rank: 0, parameters: 0 };
        for ((layer, projection), [a, b]) in halves {
            let module = projection.module(layer);
            let rank = self.rank(&module);
            let (out, input) = projection.sizes(model);
            let a = shaped(&module, "lora_A", a, [rank, input])?;
            let b = shaped(&module, "lora_B", b, [out, rank])?;
            tensors.rank = tensors.rank.max(rank);
            tensors.parameters += a.elements() + b.elements();
            let scale = self.scale(&module);
            tensors.modules.push(LoraModule { layer, projection, rank, scale, a, b });
        }
        Ok(tensors)
    }

    /// Which module a tensor belongs to, and whether it is its `A` (0) or its `B` (1).
    fn place(&self, name: &str, model: &ModelConfig) -> Result<(u32, Projection, usize), ModelError> {
        let unsupported = |problem: &str| {
            ModelError::unsupported(ADAPTER_WEIGHTS_FILE, format!("tensor {} {problem}", clip(name)))
        };
        if ["embed_tokens", "lm_head", "lora_embedding_"].iter().any(|part| name.contains(part)) {
            return Err(unsupported(
                "changes the embedding or the output, which is not supported; train the adapter on the projections of \
                 attention and MLP only",
            ));
        }
        let (module, half) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| {
                let half = |suffix: &str, half: usize| rest.strip_suffix(suffix).map(|module| (module, half));
                half(".lora_A.weight", 0).or_else(|| half(".lora_B.weight", 1))
            })
            .ok_or_else(|| {
                unsupported("is no matrix of a plain LoRA adapter (…lora_A.weight or …lora_B.weight)")
            })?;
        let (layer, projection) = Projection::parse_module(module)
            .filter(|(layer, _)| *layer < model.num_hidden_layers)
            .ok_or_else(|| {
                invalid(format!(
                    "tensor {} belongs to no projection of this model ({} layers); the adapter was made for another one",
                    clip(name),
                    model.num_hidden_layers
                ))
            })?;
        if !self.targets.contains(module) {
            return Err(invalid(format!(
                "holds a matrix of {module}, which is not among target_modules; the files do not belong together"
            )));
        }
        Ok((layer, projection, half))
    }

    fn check_nothing_is_missing<T>(
        &self,
        found: &BTreeMap<(u32, Projection), T>,
        model: &ModelConfig,
    ) -> Result<(), ModelError> {
        if self.is_partial || !self.targets.is_exact() {
            return Ok(());
        }
        for layer in 0..model.num_hidden_layers {
            for projection in Projection::ALL {
                let module = projection.module(layer);
                if self.targets.contains(&module) && !found.contains_key(&(layer, projection)) {
                    return Err(invalid(format!(
                        "holds no matrices of {module}, which target_modules names; the adapter was made for another \
                         model, or a part of it was left out"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn shaped(
    module: &str,
    half: &str,
    info: Option<&TensorInfo>,
    shape: [u32; 2],
) -> Result<TensorInfo, ModelError> {
    let info = info.ok_or_else(|| invalid(format!("tensor {PREFIX}{module}.{half}.weight is missing")))?;
    if info.shape != shape.map(u64::from) {
        return Err(invalid(format!(
            "tensor {PREFIX}{module}.{half}.weight has shape {:?}; this model and the rank in adapter_config.json make it \
             {shape:?}",
            info.shape
        )));
    }
    Ok(info.clone())
}

fn invalid(problem: impl Into<String>) -> ModelError {
    ModelError::invalid(ADAPTER_WEIGHTS_FILE, problem)
}
