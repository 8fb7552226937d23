//! Paged attention with libtorch's operators: gather the blocks, then scaled dot-product attention.
//!
//! Query heads that share a key and value head are never given copies of it. In a decode they become the query rows of
//! their shared head; in a prefill the shared head is expanded by a stride of zero.
//!
//! A sliding window is a second mask. The blocks that lie wholly behind it are gathered and hidden all the same: they stay
//! in the sequence's block table, as layers without a window need them.

use fairlead_model::AttentionKind;
use tch::{Device, Kind, TchError, Tensor};

use super::{HeadShape, PagedAttention};
use crate::kv_cache::LayerCache;
use crate::step::{DecodeGroup, PrefillSpan, StepLayout};

/// Attention on any device that libtorch knows.
pub(crate) struct LibtorchAttention {
    shape: HeadShape,
    block_tokens: i64,
    /// Tokens that a layer of [`AttentionKind::Sliding`] sees, the newest included; `None` where there is no such layer.
    window: Option<i64>,
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
    /// `[sequences, 1, 1, blocks * block_tokens]` each.
    masks: Masks,
}

pub(super) struct PrefillPlan {
    first_row: i64,
    tokens: i64,
    context: Context,
}

/// What the rows of a prefill attend to.
enum Context {
    /// The span itself, which is its sequence's beginning and no longer than the window: no gathering and no mask.
    Own,
    /// The same, but longer than the window: `[tokens, tokens]` for layers that have one.
    OwnBeyondWindow(Tensor),
    /// What is in the cache.
    Cached {
        /// `[blocks]`
        table: Tensor,
        /// `[tokens, blocks * block_tokens]` each.
        masks: Masks,
    },
}

/// 0 where a token may be seen, else minus infinity.
struct Masks {
    full: Tensor,
    /// Absent where no layer has a window, or the window hides nothing in this step.
    sliding: Option<Tensor>,
}

impl Masks {
    fn of(&self, kind: AttentionKind) -> &Tensor {
        match kind {
            AttentionKind::Full => &self.full,
            AttentionKind::Sliding => self.sliding.as_ref().unwrap_or(&self.full),
        }
    }
}

impl LibtorchAttention {
    /// `window` is what the model's layers with a sliding window see, in tokens.
    pub(crate) fn new(shape: HeadShape, block_tokens: u32, window: Option<u32>) -> Self {
        Self { shape, block_tokens: i64::from(block_tokens), window: window.map(i64::from) }
    }

    fn decode_plan(&self, group: &DecodeGroup, kind: Kind, device: Device) -> Result<DecodePlan, TchError> {
        let lengths = Tensor::f_from_slice(&group.lengths)?.f_to_device(device)?;
        let columns = group.blocks as i64 * self.block_tokens;
        let longest = group.lengths.iter().copied().max().unwrap_or(0);
        let masks = self.masks(&lengths, longest, columns, kind)?;
        let by_sequence = |mask: &Tensor| mask.f_view([-1, 1, 1, columns]);
        Ok(DecodePlan {
            first_row: group.rows.start as i64,
            sequences: group.rows.len() as i64,
            table: Tensor::f_from_slice(&group.table)?.f_to_device(device)?,
            masks: Masks {
                full: by_sequence(&masks.full)?,
                sliding: masks.sliding.as_ref().map(by_sequence).transpose()?,
            },
        })
    }

    pub(super) fn prefill_plan(
        &self,
        span: &PrefillSpan,
        kind: Kind,
        device: Device,
    ) -> Result<PrefillPlan, TchError> {
        let (first_row, tokens) = (span.rows.start as i64, span.rows.len() as i64);
        // The token of row r sees the cached ones, those before it in the span, and itself.
        let lengths = || Tensor::f_arange(tokens, (Kind::Int64, device))?.f_add_scalar(span.cached + 1);
        let context = if span.cached > 0 {
            let columns = span.table.len() as i64 * self.block_tokens;
            Context::Cached {
                table: Tensor::f_from_slice(&span.table)?.f_to_device(device)?,
                masks: self.masks(&lengths()?, span.cached + tokens, columns, kind)?,
            }
        } else {
            match self.window.filter(|&window| window < tokens) {
                Some(window) => Context::OwnBeyondWindow(visible(&lengths()?, tokens, Some(window), kind)?),
                None => Context::Own,
            }
        };
        Ok(PrefillPlan { first_row, tokens, context })
    }

    /// Masks of rows that see so many tokens each, `longest` at most; `[rows, columns]`.
    fn masks(&self, lengths: &Tensor, longest: i64, columns: i64, kind: Kind) -> Result<Masks, TchError> {
        let window = self.window.filter(|&window| window < longest);
        Ok(Masks {
            full: visible(lengths, columns, None, kind)?,
            sliding: window.map(|window| visible(lengths, columns, Some(window), kind)).transpose()?,
        })
    }

    /// One query row for each sequence of a group.
    fn decode(
        &self,
        plan: &DecodePlan,
        kind: AttentionKind,
        cache: &LayerCache,
        queries: &Tensor,
    ) -> Result<Tensor, TchError> {
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
            Some(plan.masks.of(kind)),
            0.0,
            false,
            None,
            false,
        )?;
        attended.f_reshape([plan.sequences, heads * head_dim])
    }

    /// Several query rows of one sequence.
    pub(super) fn prefill(
        &self,
        plan: &PrefillPlan,
        kind: AttentionKind,
        cache: &LayerCache,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, TchError> {
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        let groups = heads / kv_heads;
        let mask = match (&plan.context, kind) {
            (Context::Cached { masks, .. }, _) => Some(masks.of(kind)),
            (Context::OwnBeyondWindow(mask), AttentionKind::Sliding) => Some(mask),
            (Context::OwnBeyondWindow(_), AttentionKind::Full) | (Context::Own, _) => None,
        };
        let (keys, values) = match &plan.context {
            Context::Cached { table, .. } => cache.gather(table)?,
            Context::Own | Context::OwnBeyondWindow(_) => (
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
            mask,
            0.0,
            mask.is_none(),
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
        kind: AttentionKind,
        cache: &LayerCache,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, TchError> {
        // Groups and spans are in the order of their rows, so their results are the rows one after the other.
        let mut parts = Vec::with_capacity(plan.decodes.len() + plan.prefills.len());
        for group in &plan.decodes {
            parts.push(self.decode(group, kind, cache, queries)?);
        }
        for span in &plan.prefills {
            parts.push(self.prefill(span, kind, cache, queries, keys, values)?);
        }
        match parts.len() {
            1 => parts.pop().map_or_else(|| Tensor::f_cat::<Tensor>(&[], 0), Ok),
            _ => Tensor::f_cat(&parts, 0),
        }
    }
}

/// `[rows, columns]`: 0 where the column is below the row's length and, with a window, among its last so many; else minus
/// infinity.
fn visible(lengths: &Tensor, columns: i64, window: Option<i64>, kind: Kind) -> Result<Tensor, TchError> {
    let device = lengths.device();
    let (positions, lengths) = (Tensor::f_arange(columns, (Kind::Int64, device))?, lengths.f_unsqueeze(1)?);
    let mut hidden = positions.f_ge_tensor(&lengths)?;
    if let Some(window) = window {
        hidden = hidden.f_logical_or(&positions.f_lt_tensor(&lengths.f_sub_scalar(window)?)?)?;
    }
    Tensor::f_zeros(hidden.size(), (kind, device))?.f_masked_fill(&hidden, f64::NEG_INFINITY)
}
