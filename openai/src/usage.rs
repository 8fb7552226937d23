//! Token counts of one request.

use serde::{Deserialize, Serialize};

/// Tokens that a request read and wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Their sum.
    pub total_tokens: u64,
    /// More about the prompt's.
    #[serde(default)]
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What is known of a prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Those that were computed for an earlier request already.
    pub cached_tokens: u64,
}

impl Usage {
    /// Counts for a prompt and its answer.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails::default(),
        }
    }

    /// The same counts, so many of the prompt's tokens from the cache; never more than the prompt has.
    #[must_use]
    pub fn with_cached(mut self, tokens: u64) -> Self {
        self.prompt_tokens_details.cached_tokens = tokens.min(self.prompt_tokens);
        self
    }
}
