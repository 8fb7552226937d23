//! One sequence: a prompt, what has been generated after it, and how far it is computed.

use std::time::Instant;

use crate::backend::{BlockId, SampleRequest, SequenceId, TokenLogprob};

/// What a client asks the engine for: plain tokens in, plain tokens out.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; 0 only scores the prompt.
    pub max_new_tokens: u32,
    /// How to choose tokens.
    pub sampling: SamplingOptions,
    /// Report the prompt's log-probabilities, with `sampling.logprobs` alternatives each.
    pub prompt_logprobs: bool,
    /// Tokens that end the answer. The model's end-of-sequence tokens are among them unless they are to be ignored.
    pub stop_tokens: Vec<u32>,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// How to choose tokens; see [`SampleRequest`] for the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// Fixes all choices.
    pub seed: u64,
    /// Alternatives to report; `None` reports no log-probabilities at all.
    pub logprobs: Option<u32>,
}

/// Why a sequence ended in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The last token is one of the stop tokens.
    StopToken,
    /// As many tokens as asked for, or as the model takes.
    Length,
}

/// A log-probability of a prompt's token with the likeliest alternatives.
pub type PromptLogprob = (TokenLogprob, Vec<TokenLogprob>);

/// A sequence that waits or runs. Only the scheduler changes it.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) id: SequenceId,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_length: usize,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    /// Append-only while the sequence runs; empty while it waits.
    pub(crate) blocks: Vec<BlockId>,
    /// Prompt tokens whose log-probabilities are known, or are not wanted. The first never has one.
    pub(crate) scored: usize,
    pub(crate) prompt_logprobs: Vec<PromptLogprob>,
    pub(crate) request: GenerationRequest,
    /// Whether it has run before: true after a preemption.
    pub(crate) admitted: bool,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, mut request: GenerationRequest) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        let prompt_length = tokens.len();
        Self {
            id,
            tokens,
            prompt_length,
            computed: 0,
            blocks: Vec::new(),
            scored: if request.prompt_logprobs { 1 } else { prompt_length },
            prompt_logprobs: Vec::new(),
            request,
            admitted: false,
        }
    }

    /// Tokens still to be computed before the next one can be chosen.
    pub(crate) fn uncomputed(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens generated so far.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_length
    }

    /// Whether the prompt's log-probabilities are still being gathered.
    pub(crate) fn is_scoring(&self) -> bool {
        self.scored < self.prompt_length
    }

    /// Forgets what was computed, but not what was chosen: after a preemption, when its cache is gone.
    pub(crate) fn start_over(&mut self) {
        self.computed = 0;
        if self.is_scoring() {
            self.scored = 1;
            self.prompt_logprobs.clear();
        }
    }

    pub(crate) fn sample_request(&self) -> SampleRequest {
        let SamplingOptions { temperature, top_p, top_k, seed, logprobs } = self.request.sampling;
        SampleRequest {
            temperature,
            top_p,
            top_k,
            seed,
            draw: self.generated() as u64,
            logprobs,
            prompt_logprobs: self.is_scoring(),
            banned: Vec::new(),
        }
    }
}
