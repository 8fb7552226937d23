//! The step loop's part in the KV tiers: when blocks are saved, and what it does while everybody waits for a disk.

use std::time::{Duration, Instant};

use super::step_loop::Engine;
use crate::backend::Backend;
use crate::tiers::{TierError, Traffic};

/// A step may grow by one part in so many for what is kept of it.
pub(super) const SAVING_SHARE: u32 = 20;

/// Time to save blocks in, between two looks at the commands, while there is nothing else to do.
pub(super) const IDLE_SAVING: Duration = Duration::from_millis(5);

/// The tiers, and a clock to wait for them by.
pub(super) struct TierLink {
    pub(super) traffic: Traffic,
    clock: tokio::runtime::Runtime,
}

impl TierLink {
    /// # Errors
    /// [`TierError::Thread`] if the system gives no clock.
    pub(super) fn new(traffic: Traffic) -> Result<Self, TierError> {
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Ok(Self { traffic, clock: clock.map_err(|error| TierError::Thread(error.to_string()))? })
    }
}

impl<B: Backend> Engine<B> {
    /// Keeps blocks that steps have filled.
    pub(super) fn save_blocks(&mut self, allowance: Duration) {
        if let Some(tiers) = &mut self.tiers {
            tiers.traffic.save(&self.state, &mut self.backend, allowance);
        }
    }

    /// All that wait are held back until their blocks come: waits for that, for a command, or until they have waited long
    /// enough.
    pub(super) fn wait_for_tiers(&mut self) {
        let Some(tiers) = &mut self.tiers else { return };
        // Whoever is held back has a deadline, unless all has come already.
        let Some(deadline) = tiers.traffic.next_deadline().filter(|deadline| *deadline > Instant::now())
        else {
            return;
        };
        let commands = &mut self.commands;
        let waiting = async { tokio::time::timeout_at(deadline.into(), commands.recv()).await };
        match tiers.clock.block_on(waiting) {
            Ok(Some(command)) => self.take(command),
            // Closed: nobody can wake the engine any more.
            Ok(None) => tiers.traffic.release(&mut self.state),
            Err(_) => {}
        }
    }
}
