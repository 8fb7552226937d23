//! An endpoint that has answered a request with the same beginning, because it has that beginning in its KV cache.
//!
//! What an endpoint has is guessed from what this gateway has sent there: nothing is asked of pods. The match wins unless the
//! endpoint is much more loaded than the least loaded one. Without a match worth it, one of the least loaded is taken, in an
//! order that depends on how the conversation opens, so that several gateways without a shared memory tend to the same one.

use std::cmp::Reverse;

use rand::Rng;

use super::least_load::least;
use super::prefix_index::PrefixIndex;
use super::prompt::PromptKey;
use super::rendezvous::weight;
use super::{Asked, Candidate, EndpointPolicy, Matched, Verdict, Why};

/// Prefers endpoints that have the beginning of the prompt.
#[derive(Debug)]
pub struct PrefixAware {
    index: PrefixIndex,
}

impl PrefixAware {
    /// Remembers in at most so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { index: PrefixIndex::new(bytes) }
    }

    /// One of the least loaded endpoints; of those that are nearly so, the first in the order of the conversation.
    fn unmatched(asked: &Asked<'_>, candidates: &[Candidate], rng: &mut dyn Rng) -> Option<usize> {
        if asked.prompt.blocks().is_empty() {
            // Too short for any cache: nothing to gain by an order.
            return least(candidates, rng);
        }
        let fewest = candidates.iter().map(|candidate| candidate.in_flight).min()?;
        let conversation = weight(asked.scope, asked.prompt.opening());
        let nearly = candidates.iter().enumerate().filter(|(_, c)| c.in_flight <= fewest + fewest / 8);
        nearly.max_by_key(|(_, candidate)| weight(conversation, candidate.key)).map(|(index, _)| index)
    }
}

impl EndpointPolicy for PrefixAware {
    fn choose(&self, asked: &Asked<'_>, candidates: &[Candidate], rng: &mut dyn Rng) -> Option<Verdict> {
        let fewest = candidates.iter().map(|candidate| candidate.in_flight).min()?;
        let matched = self.matched(asked, candidates);
        let enough = |bytes: usize| {
            bytes > 0 && bytes * 100 >= asked.prompt.bytes() * asked.rules.min_match_percent as usize
        };
        let free = |candidate: &Candidate| !asked.rules.guard.exceeded(candidate.in_flight, fewest);
        let usable = || {
            let pairs = candidates.iter().zip(&matched).enumerate();
            pairs.filter(|(_, (candidate, bytes))| enough(**bytes) && free(candidate))
        };
        if let Some(longest) = usable().map(|(_, (_, bytes))| *bytes).max() {
            // A match that is nearly as long is as good: then the load decides.
            let nearly = usable().filter(|(_, (_, bytes))| **bytes >= longest - longest / 10);
            let (index, (_, bytes)) =
                nearly.min_by_key(|(_, (candidate, bytes))| (candidate.in_flight, Reverse(**bytes)))?;
            return Some(Verdict { index, why: Why::PrefixMatch, matched: *bytes });
        }
        let index = Self::unmatched(asked, candidates, rng)?;
        let overruled = matched.iter().any(|bytes| enough(*bytes));
        let why = if overruled { Why::PrefixOverruled } else { Why::NoPrefixMatch };
        Some(Verdict { index, why, matched: *matched.get(index)? })
    }

    fn sent(&self, asked: &Asked<'_>, to: &Candidate) {
        // From the end, so that of one prompt the beginning is the newest: it is worth the most, and pods keep it longest too.
        for block in asked.prompt.blocks().iter().rev() {
            self.index.record(weight(asked.scope, *block), to.id);
        }
    }

    fn matched(&self, asked: &Asked<'_>, candidates: &[Candidate]) -> Matched {
        let mut matched = Matched::from_elem(0, candidates.len());
        for (block, hash) in asked.prompt.blocks().iter().enumerate() {
            // Nobody has a block without those before it.
            let Some(holders) = self.index.holders(weight(asked.scope, *hash)) else { break };
            for (matched, candidate) in matched.iter_mut().zip(candidates) {
                if holders.contains(&candidate.id) {
                    *matched = PromptKey::bytes_of(block + 1);
                }
            }
        }
        matched
    }
}
