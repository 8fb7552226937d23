//! One answer on its way: the prompt, what has been generated after it, how far it is computed, and which blocks hold that.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::{BlockBytes, BlockCopy, BlockId, BlockLoad, SampleRequest, SequenceId, SequenceStep};
use crate::prefix_hash::BlockHash;
use crate::sampling::{SamplingOptions, TokenHistory, TokenMask};
use crate::sequence::{Constraint, GenerationRequest, PromptLogprob, RequestId};

/// Requests that may come later than one of the next better priority and still go after it. A priority is a head start in
/// the queue, not a class of its own: so work of the worst priority gets its turn under any load.
pub const REQUESTS_PER_PRIORITY: i64 = 1024;

/// Who goes first, and who stays when blocks run out: smaller ranks. Fixed for a sequence's life, so whoever was preempted
/// comes back to his own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// Its number in order of arrival, moved by its priority.
    due: i64,
    arrival: u64,
    choice: u32,
}

impl Rank {
    pub(crate) fn new(priority: i32, arrival: u64) -> Self {
        let due = arrival as i64 + i64::from(priority) * REQUESTS_PER_PRIORITY;
        Self { due, arrival, choice: 0 }
    }

    /// The same request's answer of that number.
    pub(crate) fn of_choice(self, choice: u32) -> Self {
        Self { choice, ..self }
    }

    pub(crate) fn choice(self) -> u32 {
        self.choice
    }
}

/// A sequence that waits or runs. Only the scheduler changes it.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) request_id: RequestId,
    pub(crate) rank: Rank,
    /// What all answers of the request have in common; prompt and constraint have been taken out.
    pub(crate) request: Rc<GenerationRequest>,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_length: usize,
    /// Guesses at what follows `tokens`, to be checked in the next step.
    pub(crate) drafts: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    /// Append-only while the sequence runs, but for a shared block that is about to be written; empty while it waits.
    pub(crate) blocks: Vec<BlockId>,
    /// What the first block's parent is.
    pub(crate) root: BlockHash,
    /// Names of the full blocks of `tokens`, as many as were needed so far.
    pub(crate) names: Vec<BlockHash>,
    /// Leading blocks that were offered to others, or came from them.
    pub(crate) registered: usize,
    /// Copies and loads to be made before its next step; `from` blocks have an owner for it.
    pub(crate) copies: Vec<BlockCopy>,
    pub(crate) loads: Vec<BlockLoad>,
    /// Blocks that a slower tier has at hand, by name.
    pub(crate) offered: HashMap<BlockHash, BlockBytes>,
    /// Not to be admitted yet: a slower tier is fetching.
    pub(crate) held: bool,
    /// Prompt tokens whose log-probabilities are known, or are not wanted. The first never has one.
    pub(crate) scored: usize,
    pub(crate) prompt_logprobs: Vec<PromptLogprob>,
    /// `request.sampling` with this answer's seed, shared with every step.
    pub(crate) sampling: Arc<SamplingOptions>,
    /// Stop tokens that must not be chosen yet.
    pub(crate) banned: Arc<[u32]>,
    /// Where `sampling` has penalties.
    pub(crate) history: Option<Arc<TokenHistory>>,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    /// What the constraint allows next and after each draft; empty until asked for.
    pub(crate) masks: Vec<Arc<TokenMask>>,
    /// Answers that begin when this one's prompt is computed.
    pub(crate) unforked: u32,
    /// Whether it has run before: true after a preemption.
    pub(crate) admitted: bool,
    /// Whether slower tiers know that it waits.
    pub(crate) was_told: bool,
    /// It has its last token and leaves when the step is taken in.
    pub(crate) ended: bool,
}

impl Sequence {
    pub(crate) fn new(
        id: SequenceId,
        request_id: RequestId,
        arrival: u64,
        mut request: GenerationRequest,
    ) -> Self {
        let mut tokens = std::mem::take(&mut request.prompt);
        let prompt_length = tokens.len();
        let answered = std::mem::take(&mut request.answered);
        let history = has_penalties(&request.sampling).then(|| {
            let mut history =
                TokenHistory { prompt: tokens.iter().copied().collect(), ..TokenHistory::default() };
            answered.iter().for_each(|token| *history.answer.entry(*token).or_default() += 1);
            Arc::new(history)
        });
        // From here on it is like a sequence that was preempted after them.
        tokens.extend(answered);
        let banned =
            if request.min_new_tokens > 0 { request.stop_tokens.as_slice().into() } else { Arc::default() };
        Self {
            id,
            request_id,
            rank: Rank::new(request.priority, arrival),
            tokens,
            prompt_length,
            drafts: Vec::new(),
            computed: 0,
            blocks: Vec::new(),
            root: BlockHash::root(
                request.adapter.as_ref().map(|adapter| &adapter.digest),
                request.cache_salt.as_deref(),
            ),
            names: Vec::new(),
            registered: 0,
            copies: Vec::new(),
            loads: Vec::new(),
            offered: HashMap::new(),
            held: false,
            scored: if request.prompt_logprobs { 1 } else { prompt_length },
            prompt_logprobs: Vec::new(),
            sampling: Arc::new(request.sampling.clone()),
            banned,
            history,
            constraint: request.constraint.take(),
            masks: Vec::new(),
            unforked: request.choices.max(1) - 1,
            request: Rc::new(request),
            admitted: false,
            was_told: false,
            ended: false,
        }
    }

    /// Another answer to the same prompt, at the point where the prompt is computed and nothing is chosen: all but its last
    /// token is taken as computed, in the same blocks. The caller gives those one more owner.
    pub(crate) fn fork(&self, id: SequenceId, choice: u32) -> Self {
        let seed = self.sampling.seed.wrapping_add(u64::from(choice));
        Self {
            id,
            request_id: self.request_id,
            rank: self.rank.of_choice(choice),
            request: Rc::clone(&self.request),
            tokens: self.tokens.clone(),
            prompt_length: self.prompt_length,
            drafts: Vec::new(),
            computed: self.tokens.len() - 1,
            blocks: self.blocks.clone(),
            root: self.root,
            names: self.names.clone(),
            registered: self.registered,
            copies: Vec::new(),
            loads: Vec::new(),
            offered: HashMap::new(),
            held: false,
            scored: self.prompt_length,
            prompt_logprobs: Vec::new(),
            sampling: Arc::new(SamplingOptions { seed, ..(*self.sampling).clone() }),
            banned: Arc::clone(&self.banned),
            history: self.history.clone(),
            constraint: self.constraint.clone(),
            masks: Vec::new(),
            unforked: 0,
            admitted: true,
            was_told: false,
            ended: false,
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

    /// Whether it streams: one token decides the next one.
    pub(crate) fn is_writing(&self) -> bool {
        self.uncomputed() == 1 && !self.is_scoring()
    }

    /// Position of the next slice's first token. A scored prompt's later slices begin with a token that is computed
    /// already, so that the next one's log-probability is known.
    pub(crate) fn slice_start(&self) -> usize {
        if self.is_scoring() { self.computed.saturating_sub(1) } else { self.computed }
    }

    /// The longest slice that can be computed next, of at most so many tokens and logits rows; 0 where none is of use.
    pub(crate) fn slice(&self, tokens: usize, rows: usize) -> usize {
        let whole = self.tokens.len() - self.slice_start();
        let length = whole.min(tokens);
        if self.is_scoring() {
            // One that begins with a known token must bring a new one along.
            let least = if self.computed > 0 { 2 } else { 1 };
            Some(length.min(rows)).filter(|length| *length >= least).unwrap_or(0)
        } else if length == whole && rows == 0 {
            length.saturating_sub(1)
        } else {
            length
        }
    }

    /// Logits rows that a slice of that length asks for, without drafts.
    pub(crate) fn rows(&self, slice: usize) -> usize {
        if self.is_scoring() { slice } else { usize::from(self.slice_start() + slice == self.tokens.len()) }
    }

    /// Most guesses that can be of use: the last token of an answer is never a guess.
    pub(crate) fn most_drafts(&self, max_length: usize) -> usize {
        let asked = (self.request.max_new_tokens as usize).saturating_sub(self.generated());
        asked.min(max_length.saturating_sub(self.tokens.len())).saturating_sub(1)
    }

    /// Takes guesses in, as far as they are of use and the constraint would take them.
    pub(crate) fn set_drafts(&mut self, mut drafts: Vec<u32>, max_length: usize) {
        drafts.truncate(self.most_drafts(max_length));
        // Nothing follows a stop token, so a guess at one is worth nothing either.
        if let Some(stop) = drafts.iter().position(|token| self.request.stop_tokens.contains(token)) {
            drafts.truncate(stop);
        }
        if let Some(constraint) = &mut self.constraint
            && !drafts.is_empty()
        {
            let valid = constraint.valid_prefix(&drafts);
            drafts.truncate(valid);
        }
        self.drafts = drafts;
    }

    /// Makes the constraint's masks for the next token and after each of the first `drafts` guesses, once for each
    /// position. Says how many of the guesses can be checked: behind a wrong one may be no way on, which says nothing about the
    /// answer.
    ///
    /// # Errors
    /// What the constraint says against any next token; the sequence cannot go on.
    pub(crate) fn prepare_masks(&mut self, drafts: usize) -> Result<usize, String> {
        let Some(constraint) = &mut self.constraint else { return Ok(drafts) };
        if self.masks.is_empty() {
            let mask = constraint.mask()?;
            if mask.allows_nothing() {
                return Err("no token may come next".to_owned());
            }
            self.masks.push(mask);
        }
        let known = self.masks.len() - 1;
        if known < drafts {
            // A copy: a constraint that has failed stays so.
            let mut ahead = constraint.fork();
            let (seen, unseen) = self.drafts[..drafts].split_at(known);
            if seen.iter().all(|token| ahead.accept(*token).is_ok()) {
                let masks =
                    unseen.iter().map_while(|token| ahead.accept(*token).and_then(|()| ahead.mask()).ok());
                self.masks.extend(masks.take_while(|mask| !mask.allows_nothing()));
            }
        }
        Ok(drafts.min(self.masks.len() - 1))
    }

    /// Appends a chosen token: to the tokens, the history and, unless it ends the answer, the constraint.
    ///
    /// # Errors
    /// What the constraint says against the token.
    pub(crate) fn push(&mut self, token: u32) -> Result<(), String> {
        self.tokens.push(token);
        self.masks.clear();
        if let Some(history) = &mut self.history {
            *Arc::make_mut(history).answer.entry(token).or_default() += 1;
        }
        match &mut self.constraint {
            Some(constraint) if !self.request.stop_tokens.contains(&token) => constraint.accept(token),
            _ => Ok(()),
        }
    }

    /// Forgets what was computed, but not what was chosen: after a preemption, when its blocks are given back.
    pub(crate) fn start_over(&mut self) {
        self.computed = 0;
        self.registered = 0;
        self.was_told = false;
        self.drafts.clear();
        self.masks.truncate(1);
        if self.is_scoring() {
            self.scored = 1;
            self.prompt_logprobs.clear();
        }
    }

    /// Its part of a step: a slice of that length and the first `drafts` guesses.
    pub(crate) fn step(&self, slice: usize, drafts: usize) -> SequenceStep {
        let first = self.slice_start();
        let end = first + slice;
        let mut tokens = Vec::with_capacity(slice + drafts);
        tokens.extend_from_slice(&self.tokens[first..end]);
        tokens.extend_from_slice(&self.drafts[..drafts]);
        SequenceStep {
            sequence: self.id,
            tokens,
            first_position: first as u32,
            block_table: self.blocks.clone(),
            drafts: drafts as u32,
            adapter: self.request.adapter.map(|adapter| adapter.id),
            sample: (self.rows(slice) > 0).then(|| self.sample_request(end, drafts)),
        }
    }

    fn sample_request(&self, end: usize, drafts: usize) -> SampleRequest {
        let decides = end == self.tokens.len();
        SampleRequest {
            options: Arc::clone(&self.sampling),
            draw: self.generated() as u64,
            prompt_logprobs: self.is_scoring(),
            history: self.history.clone(),
            // What an earlier chunk of a scored prompt would choose is dropped.
            masks: if decides { self.masks.iter().take(drafts + 1).cloned().collect() } else { Vec::new() },
            banned: Arc::clone(&self.banned),
            banned_draws: u64::from(self.request.min_new_tokens),
        }
    }
}

fn has_penalties(options: &SamplingOptions) -> bool {
    options.repetition_penalty != 1.0 || options.presence_penalty != 0.0 || options.frequency_penalty != 0.0
}
