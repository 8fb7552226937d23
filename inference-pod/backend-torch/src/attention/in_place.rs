//! Paged attention that reads keys and values where they lie, for the few rows of a decode; libtorch's for the rest.
//!
//! Gathering a context costs more than attending to it with one row. With many rows of one sequence it costs little, and
//! libtorch's operators are made for that.

use fairlead_model::AttentionKind;
use fairlead_torch_shim::cpu::{PagedQueries, Visible, paged_attention};
use tch::{Device, Kind, TchError, Tensor};

use super::libtorch::{LibtorchAttention, LibtorchPlan, PrefillPlan};
use super::{HeadShape, PagedAttention};
use crate::kernels::Kernels;
use crate::kv_cache::LayerCache;
use crate::step::{PrefillSpan, StepLayout};

/// Rows of one sequence up to which its context is read in place: drafts, and what a shared prefix leaves to compute.
const MOST_ROWS_IN_PLACE: usize = 16;

/// Attention of a model.
pub(crate) struct Attention {
    libtorch: LibtorchAttention,
    kernels: Kernels,
    block_tokens: usize,
    window: Option<usize>,
}

/// One step, as parts in the order of their rows.
pub(crate) struct AttentionPlan(Vec<Part>);

enum Part {
    InPlace { first_row: i64, rows: i64, full: PagedQueries, sliding: Option<PagedQueries> },
    Prefill(PrefillPlan),
    All(LibtorchPlan),
}

impl Attention {
    /// `window` is what the model's layers with a sliding window see, in tokens.
    pub(crate) fn new(kernels: Kernels, shape: HeadShape, block_tokens: u32, window: Option<u32>) -> Self {
        Self {
            kernels,
            libtorch: LibtorchAttention::new(shape, block_tokens, window),
            block_tokens: block_tokens as usize,
            window: window.map(|tokens| tokens as usize),
        }
    }

    /// A part of rows whose lengths and tables are given one after the other.
    fn in_place(
        &self,
        first_row: usize,
        lengths: &[(usize, std::ops::Range<usize>)],
        blocks: Vec<u32>,
    ) -> Part {
        let seen_by = |window: usize| PagedQueries {
            tokens: lengths
                .iter()
                .map(|(length, table)| Visible {
                    positions: length.saturating_sub(window)..*length,
                    table: table.clone(),
                })
                .collect(),
            blocks: blocks.clone(),
            block_tokens: self.block_tokens,
        };
        Part::InPlace {
            first_row: first_row as i64,
            rows: lengths.len() as i64,
            full: seen_by(usize::MAX),
            sliding: self.window.map(seen_by),
        }
    }

    fn decodes(&self, layout: &StepLayout) -> Part {
        let mut lengths = Vec::new();
        let mut blocks = Vec::new();
        for group in &layout.decodes {
            for (row, &length) in group.lengths.iter().enumerate() {
                let first = blocks.len() + row * group.blocks;
                lengths.push((length as usize, first..first + group.blocks));
            }
            blocks.extend(group.table.iter().map(|&block| block as u32));
        }
        self.in_place(0, &lengths, blocks)
    }

    fn short_span(&self, span: &PrefillSpan) -> Part {
        let blocks: Vec<u32> = span.table.iter().map(|&block| block as u32).collect();
        let first = span.cached as usize + 1;
        let lengths: Vec<_> =
            (first..first + span.rows.len()).map(|length| (length, 0..blocks.len())).collect();
        self.in_place(span.rows.start, &lengths, blocks)
    }
}

impl PagedAttention for Attention {
    type Plan = AttentionPlan;

    fn plan(&self, layout: &StepLayout, kind: Kind, device: Device) -> Result<AttentionPlan, TchError> {
        if self.kernels == Kernels::Libtorch {
            return Ok(AttentionPlan(vec![Part::All(self.libtorch.plan(layout, kind, device)?)]));
        }
        let mut parts = Vec::with_capacity(1 + layout.prefills.len());
        if !layout.decodes.is_empty() {
            parts.push(self.decodes(layout));
        }
        for span in &layout.prefills {
            parts.push(if span.rows.len() <= MOST_ROWS_IN_PLACE {
                self.short_span(span)
            } else {
                Part::Prefill(self.libtorch.prefill_plan(span, kind, device)?)
            });
        }
        Ok(AttentionPlan(parts))
    }

    fn attend(
        &self,
        plan: &AttentionPlan,
        kind: AttentionKind,
        cache: &LayerCache,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, TchError> {
        let mut parts = Vec::with_capacity(plan.0.len());
        for part in &plan.0 {
            parts.push(match part {
                Part::InPlace { first_row, rows, full, sliding } => {
                    let seen = match kind {
                        AttentionKind::Full => full,
                        AttentionKind::Sliding => sliding.as_ref().unwrap_or(full),
                    };
                    let queries = queries.f_narrow(0, *first_row, *rows)?;
                    paged_attention(seen, &queries, cache.keys(), cache.values())?
                }
                Part::All(plan) => self.libtorch.attend(plan, kind, cache, queries, keys, values)?,
                Part::Prefill(plan) => self.libtorch.prefill(plan, kind, cache, queries, keys, values)?,
            });
        }
        match parts.len() {
            1 => parts.pop().map_or_else(|| Tensor::f_cat::<Tensor>(&[], 0), Ok),
            _ => Tensor::f_cat(&parts, 0),
        }
    }
}
