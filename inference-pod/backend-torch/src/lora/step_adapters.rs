//! Whose rows are whose in one step.

use std::collections::BTreeMap;
use std::ops::Range;

use fairlead_engine::backend::{AdapterId, BackendError, StepBatch};
use tch::{Device, TchError, Tensor};

use super::{Adapter, Fused};
use crate::error::step_error;

/// The adapters of a step, each with its rows; prepared once, used in every layer.
pub(crate) struct StepAdapters<'a> {
    groups: Vec<(Rows, &'a Adapter)>,
}

/// Rows of one adapter.
enum Rows {
    /// One behind the other: nothing has to be gathered.
    Together {
        /// The first of them.
        first: i64,
        /// How many.
        count: i64,
    },
    /// Anywhere: their indices, `[count]`.
    Scattered(Tensor),
}

impl<'a> StepAdapters<'a> {
    /// Finds the rows of each adapter; `rows` are those of each sequence of the batch.
    ///
    /// # Errors
    /// [`BackendError::Fatal`] where a sequence names an adapter that is not loaded: the engine never does. What libtorch says.
    pub(crate) fn plan(
        batch: &StepBatch,
        rows: &[Range<usize>],
        loaded: &'a BTreeMap<AdapterId, Adapter>,
        device: Device,
    ) -> Result<Self, BackendError> {
        let group = |(id, spans)| {
            let adapter = loaded.get(&id).ok_or_else(|| {
                BackendError::Fatal(format!(
                    "the scheduler made an impossible batch: adapter {id} is not loaded"
                ))
            })?;
            Ok((Rows::new(spans, device).map_err(step_error)?, adapter))
        };
        let groups = spans_by_adapter(batch, rows).into_iter().map(group);
        Ok(Self { groups: groups.collect::<Result<_, _>>()? })
    }

    /// What they add in one layer.
    pub(crate) fn layer(&self, layer: usize) -> LayerAdapters<'_> {
        LayerAdapters { step: self, layer }
    }
}

/// The adapters of a step in one layer.
#[derive(Clone, Copy)]
pub(crate) struct LayerAdapters<'a> {
    step: &'a StepAdapters<'a>,
    layer: usize,
}

impl LayerAdapters<'_> {
    /// Adds to `output`, `[tokens, out]`, which a projection of the base model has made of `input`, `[tokens, in]`.
    pub(crate) fn add(&self, fused: Fused, input: &Tensor, output: &Tensor) -> Result<(), TchError> {
        for (rows, adapter) in &self.step.groups {
            let Some(delta) = adapter.delta(self.layer, fused) else { continue };
            match rows {
                Rows::Together { first, count } => {
                    let rows = |tensor: &Tensor| tensor.f_narrow(0, *first, *count);
                    delta.add(&rows(input)?, &rows(output)?)?;
                }
                Rows::Scattered(rows) => delta.add_to_rows(rows, input, output)?,
            }
        }
        Ok(())
    }
}

impl Rows {
    fn new(spans: Vec<Range<usize>>, device: Device) -> Result<Self, TchError> {
        if let [only] = spans.as_slice() {
            return Ok(Self::Together { first: only.start as i64, count: only.len() as i64 });
        }
        let rows: Vec<i64> = spans.into_iter().flatten().map(|row| row as i64).collect();
        Ok(Self::Scattered(Tensor::f_from_slice(&rows)?.f_to_device(device)?))
    }
}

/// The rows of each adapter as ranges in rising order, neighbours put together.
fn spans_by_adapter(batch: &StepBatch, rows: &[Range<usize>]) -> BTreeMap<AdapterId, Vec<Range<usize>>> {
    let mut spans: BTreeMap<AdapterId, Vec<Range<usize>>> = BTreeMap::new();
    for (sequence, rows) in batch.sequences.iter().zip(rows) {
        if let Some(id) = sequence.adapter {
            spans.entry(id).or_default().push(rows.clone());
        }
    }
    for spans in spans.values_mut() {
        spans.sort_by_key(|span| span.start);
        spans.dedup_by(|next, before| {
            let touches = next.start == before.end;
            if touches {
                before.end = next.end;
            }
            touches
        });
    }
    spans
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is what is meant
mod tests {
    use fairlead_engine::backend::SequenceStep;

    use super::*;

    fn sequence(adapter: Option<AdapterId>) -> SequenceStep {
        SequenceStep {
            sequence: 0,
            tokens: vec![1],
            first_position: 0,
            block_table: vec![1],
            drafts: 0,
            adapter,
            sample: None,
        }
    }

    #[test]
    fn rows_that_touch_are_one_range_and_rows_without_an_adapter_are_nobodys() {
        let batch = StepBatch::from([Some(7), None, Some(3), Some(7), Some(7)].map(sequence).to_vec());
        let rows = [4..9, 0..1, 2..3, 1..2, 3..4];
        let spans = spans_by_adapter(&batch, &rows);
        assert_eq!(spans, BTreeMap::from([(3, vec![2..3]), (7, vec![1..2, 3..9])]));
        assert!(spans_by_adapter(&StepBatch::from(vec![sequence(None)]), &rows).is_empty());
    }

    #[test]
    fn an_adapter_that_is_not_loaded_is_named() {
        let batch = StepBatch::from(vec![sequence(Some(5))]);
        let (rows, loaded) = ([0..1], BTreeMap::new());
        let planned = StepAdapters::plan(&batch, &rows, &loaded, Device::Cpu);
        assert!(
            matches!(planned, Err(BackendError::Fatal(problem)) if problem.contains("adapter 5 is not loaded"))
        );
    }
}
