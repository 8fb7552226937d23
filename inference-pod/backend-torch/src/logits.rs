//! From a step's hidden states to sampled tokens: which rows need logits, and what is asked of each.
//!
//! Logits are by far the widest tensor of a step, so they are computed for the rows that are asked about only, a bounded
//! number at a time.

use std::collections::BTreeSet;
use std::ops::Range;

use fairlead_engine::backend::{BackendError, SampledToken, SequenceId, SequenceStep, StepBatch};
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
    /// The token that followed, whose log-probability is wanted; `None` for the last row, which decides the next token.
    followed_by: Option<u32>,
}

/// Samples where the batch asks for it. `rows` are those of each sequence, `logits` computes `[rows, vocabulary]`.
pub(crate) fn sample_step(
    batch: &StepBatch,
    rows: &[Range<usize>],
    vocabulary: usize,
    logits: impl Fn(&[i64]) -> Result<Tensor, TchError>,
) -> Result<Vec<SampledToken>, BackendError> {
    let asked = asked_rows(batch, rows);
    let mut answers: Vec<SampledToken> = batch
        .sequences
        .iter()
        .filter(|sequence| sequence.sample.is_some())
        .map(|sequence| SampledToken {
            sequence: sequence.sequence,
            token: 0,
            logprob: None,
            top_logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
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
            let followers = sequence.tokens.iter().skip(1).copied();
            asked.extend(rows.clone().zip(followers).map(|(row, token)| Row {
                row: row as i64,
                place,
                sequence,
                followed_by: Some(token),
            }));
        }
        asked.push(Row { row: rows.end as i64 - 1, place, sequence, followed_by: None });
    }
    asked
}

/// Fills in what one row tells. `None` if its logits are not finite.
fn answer_row(row: &Row<'_>, logits: &[f32], answer: &mut SampledToken) -> Option<()> {
    let request = row.sequence.sample.as_ref()?;
    match row.followed_by {
        Some(token) => {
            answer.prompt_logprobs.push(score(logits, token, request.logprobs.unwrap_or(0)).ok()?);
        }
        None => {
            let choice = sample(logits, request).ok()?;
            answer.token = choice.token;
            answer.logprob = choice.logprob;
            answer.top_logprobs = choice.top_logprobs;
        }
    }
    Some(())
}
