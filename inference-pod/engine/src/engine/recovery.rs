//! What goes wrong in a step, and what then: one request fails, the batch shrinks, or the engine ends for all to see.

use std::panic::AssertUnwindSafe;

use super::Load;
use super::handle::{Command, Event, Failure};
use super::step_loop::Engine;
use crate::backend::{Backend, SequenceId};
use crate::scheduler::{Budget, StepError, StepPlan};
use crate::sequence::RequestId;

/// Steps without trouble after which a batch that had to shrink may grow again.
const STEPS_BEFORE_GROWTH: u32 = 64;

/// The loop ends: with a reason for all to see, or because it was told to.
pub(super) enum Stop {
    Fatal(String),
    Drained,
}

impl From<StepError> for Stop {
    fn from(error: StepError) -> Self {
        Self::Fatal(error.to_string())
    }
}

impl From<crate::block_pool::PoolError> for Stop {
    fn from(error: crate::block_pool::PoolError) -> Self {
        Self::Fatal(error.to_string())
    }
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("without a message"))
}

impl<B: Backend> Engine<B> {
    pub(super) fn run_until_the_end(&mut self) {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| self.run()));
        let reason = match outcome {
            Ok(Stop::Drained) => return,
            Ok(Stop::Fatal(reason)) => reason,
            Err(panic) => panic_message(&*panic),
        };
        tracing::error!(%reason, requests = self.clients.len(), "the engine has stopped");
        let reason = self.shared.dead.get_or_init(|| reason).clone();
        for client in self.clients.drain() {
            let _ = client.1.events.try_send(Event::Failed(Failure::Dead(reason.clone())));
        }
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit { events, .. } = command {
                let _ = events.try_send(Event::Failed(Failure::Dead(reason.clone())));
            }
        }
        self.observer.load(Load { usable_blocks: self.state.usable_blocks(), ..Load::default() });
    }

    pub(super) fn fail(&mut self, id: RequestId, failure: Failure) -> Result<(), Stop> {
        self.forget(id)?;
        if let Some(client) = self.clients.remove(&id) {
            // Whoever has gone need not be told.
            let _ = client.events.try_send(Event::Failed(failure));
        }
        Ok(())
    }

    /// Logits were not finite: the requests concerned fail, and nobody else is given what they have computed.
    pub(super) fn discard(&mut self, broken: &[SequenceId]) -> Result<(), Stop> {
        let discarded = self.state.discard(broken)?;
        if discarded.requests.is_empty() {
            return Err(Stop::Fatal(format!(
                "the backend reported non-finite logits of sequences {broken:?}, none of which runs"
            )));
        }
        if let Some(tiers) = &mut self.tiers {
            tiers.traffic.discard(&discarded.names);
        }
        discarded.requests.into_iter().try_for_each(|id| self.fail(id, Failure::NonFinite))
    }

    /// Memory ran out: half the batch next time, or, where one sequence alone is too much, that one fails.
    pub(super) fn shrink(&mut self, plan: &StepPlan, reason: &str) -> Result<(), Stop> {
        let (tokens, sequences) = (plan.tokens(), plan.batch.sequences.len());
        tracing::warn!(%reason, tokens, sequences, "memory ran out in a step; trying again with a smaller one");
        self.quiet_steps = 0;
        if sequences == 1 && tokens <= 2 {
            let ids = plan.batch.sequences.iter().filter_map(|step| self.state.request_of(step.sequence));
            let ids: Vec<RequestId> = ids.collect();
            return ids.into_iter().try_for_each(|id| self.fail(id, Failure::OutOfMemory));
        }
        self.budget = Budget {
            tokens: (tokens / 2).max(2),
            sequences: sequences.div_ceil(2),
            logits_rows: (plan.logits_rows() / 2).max(2),
        };
        Ok(())
    }

    pub(super) fn grow_again(&mut self) {
        if self.budget == self.largest {
            return;
        }
        self.quiet_steps += 1;
        if self.quiet_steps >= STEPS_BEFORE_GROWTH {
            self.quiet_steps = 0;
            self.budget = Budget {
                tokens: self.largest.tokens.min(self.budget.tokens * 2),
                sequences: self.largest.sequences.min(self.budget.sequences * 2),
                logits_rows: self.largest.logits_rows.min(self.budget.logits_rows * 2),
            };
        }
    }
}
