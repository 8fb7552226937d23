//! Paged attention with libtorch's operators: gather the blocks, then scaled dot-product attention.
//!
//! Query heads that share a key and value head are never given copies of it. In a decode they become the query rows of
//! their shared head; in a prefill the shared head is expanded by a stride of zero.

use tch::{Device, Kind, TchError, Tensor};

use super::{HeadShape, PagedAttention};
use crate::kv_cache::LayerCache;
use crate::step::{DecodeGroup, PrefillSpan, StepLayout};

/// Attention on any device that libtorch knows.
pub(crate) struct LibtorchAttention {
    shape: HeadShape,
    block_tokens: i64,
}

/// Index tensors and masks of one step.
pub(crate) struct LibtorchPlan {
    decodes: Vec<DecodePlan>,
    prefills: Vec<PrefillPlan>,
}

struct DecodePlan {
    first_row: i64,
    sequences: i64,
    /// `[sequences * blocks]`
    table: Tensor,
    /// `[sequences, 1, 1, blocks * block_tokens]`: 0 where a token may be seen, else minus infinity.
    mask: Tensor,
}

struct PrefillPlan {
    first_row: i64,
    tokens: i64,
    /// Absent when the span is its sequence's beginning: then it attends to itself only, and needs no gathering.
    cached: Option<CachedContext>,
}

struct CachedContext {
    /// `[blocks]`
    table: Tensor,
    /// `[tokens, blocks * block_tokens]`, as in a decode.
    mask: Tensor,
}

impl LibtorchAttention {
    pub(crate) fn new(shape: HeadShape, block_tokens: u32) -> Self {
        Self { shape, block_tokens: i64::from(block_tokens) }
    }

    fn decode_plan(&self, group: &DecodeGroup, kind: Kind, device: Device) -> Result<DecodePlan, TchError> {
        let lengths = Tensor::f_from_slice(&group.lengths)?.f_to_device(device)?;
        let columns = group.blocks as i64 * self.block_tokens;
        let mask = visible_below(&lengths, columns, kind, device)?;
        Ok(DecodePlan {
            first_row: group.rows.start as i64,
            sequences: group.rows.len() as i64,
            table: Tensor::f_from_slice(&group.table)?.f_to_device(device)?,
            mask: mask.f_view([-1, 1, 1, columns])?,
        })
    }

    fn prefill_plan(&self, span: &PrefillSpan, kind: Kind, device: Device) -> Result<PrefillPlan, TchError> {
        let (first_row, tokens) = (span.rows.start as i64, span.rows.len() as i64);
        if span.cached == 0 {
            return Ok(PrefillPlan { first_row, tokens, cached: None });
        }
        // The token of row r sees the cached ones, those before it in the span, and itself.
        let lengths = Tensor::f_arange(tokens, (Kind::Int64, device))?.f_add_scalar(span.cached + 1)?;
        let columns = span.table.len() as i64 * self.block_tokens;
        Ok(PrefillPlan {
            first_row,
            tokens,
            cached: Some(CachedContext {
                table: Tensor::f_from_slice(&span.table)?.f_to_device(device)?,
                mask: visible_below(&lengths, columns, kind, device)?,
            }),
        })
    }

    /// One query row for each sequence of a group.
    fn decode(&self, plan: &DecodePlan, cache: &LayerCache, queries: &Tensor) -> Result<Tensor, TchError> {
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        let (keys, values) = cache.gather(&plan.table)?;
        // [sequences, context, kv_heads, head_dim] seen as [sequences, kv_heads, context, head_dim].
        let heads_first =
            |gathered: Tensor| gathered.f_view([plan.sequences, -1, kv_heads, head_dim])?.f_transpose(1, 2);
        let queries = queries.f_narrow(0, plan.first_row, plan.sequences)?.f_reshape([
            plan.sequences,
            kv_heads,
            heads / kv_heads,
            head_dim,
        ])?;
        let attended = Tensor::f_scaled_dot_product_attention(
            &queries,
            &heads_first(keys)?,
            &heads_first(values)?,
            Some(&plan.mask),
            0.0,
            false,
            None,
            false,
        )?;
        attended.f_reshape([plan.sequences, heads * head_dim])
    }

    /// Several query rows of one sequence.
    fn prefill(
        &self,
        plan: &PrefillPlan,
        cache: &LayerCache,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, TchError> {
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        let groups = heads / kv_heads;
        let (keys, values) = match &plan.cached {
            Some(context) => cache.gather(&context.table)?,
            None => (
                keys.f_narrow(0, plan.first_row, plan.tokens)?,
                values.f_narrow(0, plan.first_row, plan.tokens)?,
            ),
        };
        // [context, kv_heads, head_dim] seen as [kv_heads, groups, context, head_dim].
        let expand = |rows: Tensor| {
            let context = rows.size3()?.0;
            rows.f_transpose(0, 1)?.f_unsqueeze(1)?.f_expand([kv_heads, groups, context, head_dim], false)
        };
        let queries = queries
            .f_narrow(0, plan.first_row, plan.tokens)?
            .f_reshape([plan.tokens, kv_heads, groups, head_dim])?
            .f_permute([1, 2, 0, 3])?;
        let attended = Tensor::f_scaled_dot_product_attention(
            &queries,
            &expand(keys)?,
            &expand(values)?,
            plan.cached.as_ref().map(|context| &context.mask),
            0.0,
            plan.cached.is_none(),
            None,
            false,
        )?;
        attended.f_permute([2, 0, 1, 3])?.f_reshape([plan.tokens, heads * head_dim])
    }
}

impl PagedAttention for LibtorchAttention {
    type Plan = LibtorchPlan;

    fn plan(&self, layout: &StepLayout, kind: Kind, device: Device) -> Result<LibtorchPlan, TchError> {
        Ok(LibtorchPlan {
            decodes: layout
                .decodes
                .iter()
                .map(|group| self.decode_plan(group, kind, device))
                .collect::<Result<_, _>>()?,
            prefills: layout
                .prefills
                .iter()
                .map(|span| self.prefill_plan(span, kind, device))
                .collect::<Result<_, _>>()?,
        })
    }

    fn attend(
        &self,
        plan: &LibtorchPlan,
        cache: &LayerCache,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, TchError> {
        // Groups and spans are in the order of their rows, so their results are the rows one after the other.
        let mut parts = Vec::with_capacity(plan.decodes.len() + plan.prefills.len());
        for group in &plan.decodes {
            parts.push(self.decode(group, cache, queries)?);
        }
        for span in &plan.prefills {
            parts.push(self.prefill(span, cache, queries, keys, values)?);
        }
        match parts.len() {
            1 => parts.pop().map_or_else(|| Tensor::f_cat::<Tensor>(&[], 0), Ok),
            _ => Tensor::f_cat(&parts, 0),
        }
    }
}

/// `[rows, columns]`: 0 where the column is below the row's length, else minus infinity.
fn visible_below(lengths: &Tensor, columns: i64, kind: Kind, device: Device) -> Result<Tensor, TchError> {
    let hidden = Tensor::f_arange(columns, (Kind::Int64, device))?.f_ge_tensor(&lengths.f_unsqueeze(1)?)?;
    let rows = lengths.size1()?;
    Tensor::f_zeros([rows, columns], (kind, device))?.f_masked_fill(&hidden, f64::NEG_INFINITY)
}
