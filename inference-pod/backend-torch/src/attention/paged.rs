//! The seam between the layers and the way attention reads the paged cache.

use fairlead_model::AttentionKind;
use tch::{Device, Kind, TchError, Tensor};

use crate::kv_cache::LayerCache;
use crate::step::StepLayout;

/// Heads of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadShape {
    /// Query heads.
    pub(crate) heads: i64,
    /// Key and value heads; divides `heads`.
    pub(crate) kv_heads: i64,
    /// Width of a head.
    pub(crate) head_dim: i64,
}

/// Attention of a whole step. Split in two: what depends on the step alone is prepared once and serves every layer.
pub(crate) trait PagedAttention {
    /// What is prepared for a step.
    type Plan;

    /// Prepares a step.
    fn plan(&self, layout: &StepLayout, kind: Kind, device: Device) -> Result<Self::Plan, TchError>;

    /// One layer's attention, over all that came before or over the model's window of it, as `kind` says. The step's own
    /// keys and values are in `cache` already.
    ///
    /// `queries` is `[tokens, heads, head_dim]`, `keys` and `values` are `[tokens, kv_heads, head_dim]`; the answer is
    /// `[tokens, heads * head_dim]`.
    fn attend(
        &self,
        plan: &Self::Plan,
        kind: AttentionKind,
        cache: &LayerCache,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, TchError>;
}
