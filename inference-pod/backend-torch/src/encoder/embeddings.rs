//! A token's first vector: what it is, where it stands, and which text it belongs to.

use fairlead_model::encoder::{EncoderConfig, EncoderNames};
use tch::{Device, TchError, Tensor};

use crate::encoder::batch::Batch;
use crate::error::LoadError;
use crate::layers::LayerNorm;
use crate::weights::Weights;

pub(super) struct Embeddings {
    /// `[vocabulary, hidden]`
    words: Tensor,
    /// `[positions, hidden]`
    positions: Tensor,
    /// `[types, hidden]`; DistilBERT has none.
    token_types: Option<Tensor>,
    norm: LayerNorm,
}

impl Embeddings {
    pub(super) fn load(
        weights: &mut Weights<'_>,
        names: &EncoderNames,
        config: &EncoderConfig,
    ) -> Result<Self, LoadError> {
        let words = weights.load(&names.words())?;
        let positions = weights.load(&names.positions())?;
        let has_types = config.type_vocab_size > 0;
        let token_types = has_types.then(|| weights.load(&names.token_types())).transpose()?;
        let norm = LayerNorm::load(weights, &names.embedding_norm(), config.layer_norm_eps)?;
        Ok(Self { words, positions, token_types, norm })
    }

    /// `[tokens, hidden]`
    pub(super) fn forward(&self, batch: &Batch, device: Device) -> Result<Tensor, TchError> {
        let on_device = |numbers: &[i64]| Tensor::f_from_slice(numbers)?.f_to_device(device);
        let mut hidden = self.words.f_index_select(0, &on_device(&batch.tokens)?)?;
        if let Some(types) = &self.token_types {
            let types = if batch.token_types.is_empty() {
                types.f_narrow(0, 0, 1)?
            } else {
                types.f_index_select(0, &on_device(&batch.token_types)?)?
            };
            let _ = hidden.f_add_(&types)?;
        }
        let _ = hidden.f_add_(&self.positions.f_index_select(0, &on_device(&batch.positions)?)?)?;
        self.norm.forward(&hidden)
    }
}
