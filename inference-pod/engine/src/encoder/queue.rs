//! What runs together: batches by tokens, taken from all requests in turn. Pure.
//!
//! A request may hold thousands of texts. Taking turns keeps a request of one text from waiting for all of them, and the
//! request that begins a batch changes with every batch, so that a long text that no rest of a budget has room for begins
//! one itself.

use std::collections::VecDeque;

/// What a batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchBudget {
    /// Most tokens. An input that is longer alone is a batch alone.
    pub tokens: usize,
    /// Most inputs.
    pub inputs: usize,
}

/// An input's place: which request, and which of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    /// The request.
    pub request: u64,
    /// Number of the input in it.
    pub index: usize,
    /// Tokens of the input.
    pub tokens: usize,
}

#[derive(Clone, Debug)]
struct Waiting {
    request: u64,
    lengths: Vec<usize>,
    /// The first input that has not run.
    next: usize,
}

/// Inputs that wait, by request.
#[derive(Clone, Debug, Default)]
pub struct EncoderQueue {
    /// The first begins the next batch.
    requests: VecDeque<Waiting>,
}

impl EncoderQueue {
    /// Adds a request behind all others: the tokens of each of its inputs.
    pub fn add(&mut self, request: u64, lengths: Vec<usize>) {
        if !lengths.is_empty() {
            self.requests.push_back(Waiting { request, lengths, next: 0 });
        }
    }

    /// Forgets a request, whatever of it has run.
    pub fn remove(&mut self, request: u64) {
        self.requests.retain(|waiting| waiting.request != request);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests that wait for at least one input.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// The next batch: an input of each request in turn, and again, while the budget lasts. A request whose next input does
    /// not fit any more is left out; its inputs never change their order. Nothing is taken out before [`EncoderQueue::done`].
    #[must_use]
    pub fn next_batch(&self, budget: BatchBudget) -> Vec<Item> {
        let mut batch: Vec<Item> = Vec::new();
        let mut tokens = 0;
        let mut open: Vec<(u64, usize, &[usize])> = self
            .requests
            .iter()
            .map(|waiting| (waiting.request, waiting.next, waiting.lengths.as_slice()))
            .collect();
        while !open.is_empty() {
            open.retain_mut(|(request, next, lengths)| {
                let Some(&length) = lengths.get(*next) else { return false };
                // The first is taken whatever its length.
                let fits = batch.is_empty() || tokens + length <= budget.tokens;
                if !fits || batch.len() >= budget.inputs.max(1) {
                    return false;
                }
                tokens += length;
                batch.push(Item { request: *request, index: *next, tokens: length });
                *next += 1;
                true
            });
        }
        batch
    }

    /// Takes out what has run, and lets the next request begin the next batch.
    pub fn done(&mut self, batch: &[Item]) {
        for waiting in &mut self.requests {
            let ran = batch.iter().filter(|item| item.request == waiting.request).count();
            waiting.next += ran;
        }
        let first = self.requests.front().map(|waiting| waiting.request);
        self.requests.retain(|waiting| waiting.next < waiting.lengths.len());
        if first.is_some() && first == self.requests.front().map(|waiting| waiting.request) {
            self.requests.rotate_left(1);
        }
    }
}
