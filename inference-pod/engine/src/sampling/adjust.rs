//! What changes logits before anything is drawn: bias, penalties, masks and bans.

use super::{SampleError, SamplingOptions, TokenHistory, TokenMask};
use crate::backend::SampleRequest;

/// Whether a row's logits are to be changed at all.
pub(super) fn is_needed(request: &SampleRequest, before: &[u32]) -> bool {
    let options = &request.options;
    !options.logit_bias.is_empty()
        || has_penalties(options)
        || !request.masks.is_empty()
        || bans(request, before)
}

fn has_penalties(options: &SamplingOptions) -> bool {
    options.repetition_penalty != 1.0 || options.presence_penalty != 0.0 || options.frequency_penalty != 0.0
}

fn bans(request: &SampleRequest, before: &[u32]) -> bool {
    !request.banned.is_empty() && request.draw + (before.len() as u64) < request.banned_draws
}

/// Writes the changed logits to `row`. Tokens that must not be chosen are negative infinity there, all others finite; at
/// least one is.
pub(super) fn adjust(
    logits: &[f32],
    request: &SampleRequest,
    before: &[u32],
    row: &mut Vec<f32>,
) -> Result<(), SampleError> {
    let options = &*request.options;
    row.clear();
    row.extend_from_slice(logits);
    for &(token, bias) in &options.logit_bias {
        change(row, token, |logit| logit + bias);
    }
    if has_penalties(options) {
        penalize(row, options, request.history.as_deref(), before);
    }
    if !request.masks.is_empty() {
        // The scheduler sends a mask for each row; behind the last one nothing may come.
        let mask = request.masks.get(before.len()).ok_or(SampleError::NothingAllowed)?;
        forbid(row, mask);
        if row.iter().all(|logit| logit.is_infinite()) {
            return Err(SampleError::NothingAllowed);
        }
    }
    if bans(request, before) {
        let is_banned = |token: usize| request.banned.contains(&(token as u32));
        let leaves_some = row.iter().enumerate().any(|(token, logit)| logit.is_finite() && !is_banned(token));
        if leaves_some {
            for &token in request.banned.iter() {
                if let Some(logit) = row.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
    Ok(())
}

/// Changes a token's logit and keeps it finite, however extreme a client's numbers are.
fn change(row: &mut [f32], token: u32, to: impl Fn(f32) -> f32) {
    if let Some(logit) = row.get_mut(token as usize) {
        let changed = to(*logit);
        if !changed.is_nan() {
            *logit = changed.clamp(f32::MIN, f32::MAX);
        }
    }
}

/// Repetition over prompt and answer, then frequency and presence over the answer alone. `before` is the answer's end.
fn penalize(row: &mut [f32], options: &SamplingOptions, history: Option<&TokenHistory>, before: &[u32]) {
    let times_before = |token: u32| before.iter().filter(|&&other| other == token).count() as u32;
    let in_prompt = |token: u32| history.is_some_and(|history| history.prompt.contains(&token));
    let in_answer = |token: u32| history.is_some_and(|history| history.answer.contains_key(&token));
    // What the answer has and how often, each token once.
    let of_history = history.into_iter().flat_map(|history| {
        history.answer.iter().map(|(&token, &count)| (token, count + times_before(token)))
    });
    let is_first = |index: usize, token: u32| !before[..index].contains(&token) && !in_answer(token);
    let of_drafts = before.iter().enumerate().filter(|&(index, &token)| is_first(index, token));
    let answer = of_history.chain(of_drafts.map(|(_, &token)| (token, times_before(token))));

    let repeat = |logit: f32| {
        if logit > 0.0 { logit / options.repetition_penalty } else { logit * options.repetition_penalty }
    };
    if options.repetition_penalty != 1.0 {
        for &token in history.into_iter().flat_map(|history| &history.prompt) {
            change(row, token, repeat);
        }
    }
    for (token, count) in answer {
        if options.repetition_penalty != 1.0 && !in_prompt(token) {
            change(row, token, repeat);
        }
        change(row, token, |logit| logit - options.frequency_penalty * count as f32);
        change(row, token, |logit| logit - options.presence_penalty);
    }
}

/// Takes out what a mask does not allow, a word at a time: most words are all ones or all zeros.
fn forbid(row: &mut [f32], mask: &TokenMask) {
    let words = mask.words.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in row.chunks_mut(32).zip(words) {
        match word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}
