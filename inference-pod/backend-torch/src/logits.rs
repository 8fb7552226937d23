//! From a step's hidden states to sampled tokens: which rows need logits, and what is asked of each.
//!
//! Logits are by far the widest tensor of a step, so they are computed for the rows that are asked about only, a bounded
//! number at a time.

use std::collections::BTreeSet;
use std::ops::Range;

use fairlead_engine::backend::{BackendError, Sampled, SequenceId, SequenceStep, StepBatch};
use fairlead_engine::sampling::{sample, score};
use tch::{TchError, Tensor};

use crate::error::step_error;

/// Numbers in one piece of logits: 64 MiB of f32.
const PIECE_NUMBERS: usize = 16 << 20;

/// What one row's logits are for.
struct Row<'a> {
    row: i64,
    /// Index of the sequence's place in the answer.
    place: usize,
    sequence: &'a SequenceStep,
    purpose: Purpose,
}

enum Purpose {
    /// The log-probability of a prompt's token, given those before it.
    Score(u32),
    /// The token that follows, after so many drafts.
    Choose { drafts: usize },
}

/// Samples where the batch asks for it. `rows` are those of each sequence, `logits` computes `[rows, vocabulary]`.
pub(crate) fn sample_step(
    batch: &StepBatch,
    rows: &[Range<usize>],
    vocabulary: usize,
    logits: impl Fn(&[i64]) -> Result<Tensor, TchError>,
) -> Result<Vec<Sampled>, BackendError> {
    let asked = asked_rows(batch, rows);
    let mut answers: Vec<Sampled> = batch
        .sequences
        .iter()
        .filter(|sequence| sequence.sample.is_some())
        .map(|sequence| Sampled {
            sequence: sequence.sequence,
            tokens: Vec::new(),
            prompt_logprobs: Vec::new(),
            drafts: Vec::new(),
        })
        .collect();
    let mut broken: BTreeSet<SequenceId> = BTreeSet::new();
    let mut numbers = Vec::new();
    for piece in asked.chunks((PIECE_NUMBERS / vocabulary.max(1)).max(1)) {
        let indices: Vec<i64> = piece.iter().map(|row| row.row).collect();
        let tensor = logits(&indices).map_err(step_error)?;
        numbers.resize(piece.len() * vocabulary, 0.0_f32);
        tensor.f_copy_data(&mut numbers, piece.len() * vocabulary).map_err(step_error)?;
        for (row, logits) in piece.iter().zip(numbers.chunks_exact(vocabulary)) {
            if answer_row(row, logits, &mut answers[row.place]).is_none() {
                broken.insert(row.sequence.sequence);
            }
        }
    }
    if broken.is_empty() { Ok(answers) } else { Err(BackendError::NonFinite(broken.into_iter().collect())) }
}

/// The rows that somebody asks about, in the batch's order.
fn asked_rows<'a>(batch: &'a StepBatch, rows: &[Range<usize>]) -> Vec<Row<'a>> {
    let sampled = batch
        .sequences
        .iter()
        .zip(rows)
        .filter_map(|(sequence, rows)| sequence.sample.as_ref().map(|request| (sequence, request, rows)));
    let mut asked = Vec::new();
    for (place, (sequence, request, rows)) in sampled.enumerate() {
        if request.prompt_logprobs {
            let certain = sequence.tokens.len() - sequence.drafts as usize;
            let followers = sequence.tokens[..certain].iter().skip(1).copied();
            asked.extend(rows.clone().zip(followers).map(|(row, token)| Row {
                row: row as i64,
                place,
                sequence,
                purpose: Purpose::Score(token),
            }));
        }
        let first = rows.end - 1 - sequence.drafts as usize;
        asked.extend((first..rows.end).enumerate().map(|(drafts, row)| Row {
            row: row as i64,
            place,
            sequence,
            purpose: Purpose::Choose { drafts },
        }));
    }
    asked
}

/// Fills in what one row tells. `None` if its logits are not finite.
fn answer_row(row: &Row<'_>, logits: &[f32], answer: &mut Sampled) -> Option<()> {
    let request = row.sequence.sample.as_ref()?;
    match row.purpose {
        Purpose::Score(token) => {
            answer.prompt_logprobs.push(score(logits, token, request.options.logprobs.unwrap_or(0)).ok()?);
        }
        Purpose::Choose { drafts } => {
            let before = &row.sequence.draft_tokens()[..drafts];
            // A row behind a wrong guess says nothing about this sequence.
            let holds = answer.tokens.iter().map(|chosen| chosen.token).eq(before.iter().copied());
            if holds {
                answer.tokens.push(sample(logits, request, before).ok()?);
            }
        }
    }
    Some(())
}
