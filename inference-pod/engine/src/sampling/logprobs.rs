//! Log-probabilities of a row as the model gave it.

use super::SampleError;
use super::filters::{highest_tokens, likeliest_of_finite};
use crate::backend::TokenLogprob;

/// The log-probability of `token` in a row, and the row's `count` likeliest tokens in falling order.
///
/// # Errors
/// [`SampleError::NonFinite`] if any logit is NaN or infinite, or `token` is not in the row.
pub fn score(
    logits: &[f32],
    token: u32,
    count: u32,
) -> Result<(TokenLogprob, Vec<TokenLogprob>), SampleError> {
    let (_, highest) = likeliest_of_finite(logits).ok_or(SampleError::NonFinite)?;
    let own = *logits.get(token as usize).ok_or(SampleError::NonFinite)?;
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    let normalizer = f64::from(highest) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let top = highest_tokens(logits, count as usize)
        .into_iter()
        .map(|token| TokenLogprob { token, logprob: logprob(logits[token as usize]) })
        .collect();
    Ok((TokenLogprob { token, logprob: logprob(own) }, top))
}
