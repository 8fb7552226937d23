//! A bounded queue with two lanes and one taker: reads, for which somebody waits, go before writes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

struct Lanes<R, W> {
    reads: VecDeque<R>,
    writes: VecDeque<W>,
    closed: bool,
}

/// The queue. Putting never waits: what finds no room comes back.
pub struct Queue<R, W> {
    lanes: Mutex<Lanes<R, W>>,
    filled: Condvar,
    most_reads: usize,
    most_writes: usize,
}

/// What the taker gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Job<R, W> {
    /// From the first lane.
    Read(R),
    /// From the second lane, while the first is empty.
    Write(W),
    /// Nothing came in time.
    Nothing,
    /// Closed, and everything has been taken.
    Closed,
}

impl<R, W> Queue<R, W> {
    /// An empty queue with room for so many of each.
    pub fn new(most_reads: usize, most_writes: usize) -> Self {
        Self {
            lanes: Mutex::new(Lanes { reads: VecDeque::new(), writes: VecDeque::new(), closed: false }),
            filled: Condvar::new(),
            most_reads,
            most_writes,
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes<R, W>> {
        // Nothing panics while it holds the lock, so what is in there is whole.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a read.
    ///
    /// # Errors
    /// Gives it back where the lane is full or the queue closed.
    pub fn read(&self, read: R) -> Result<(), R> {
        let mut lanes = self.lanes();
        if lanes.closed || lanes.reads.len() >= self.most_reads {
            return Err(read);
        }
        lanes.reads.push_back(read);
        self.filled.notify_one();
        Ok(())
    }

    /// Asks for a write.
    ///
    /// # Errors
    /// Gives it back where the lane is full or the queue closed.
    pub fn write(&self, write: W) -> Result<(), W> {
        let mut lanes = self.lanes();
        if lanes.closed || lanes.writes.len() >= self.most_writes {
            return Err(write);
        }
        lanes.writes.push_back(write);
        self.filled.notify_one();
        Ok(())
    }

    /// Asks for a write that must not be lost and takes next to no memory. Only a closed queue drops it: nothing is read after
    /// that.
    pub fn write_in_any_case(&self, write: W) {
        let mut lanes = self.lanes();
        if !lanes.closed {
            lanes.writes.push_back(write);
            self.filled.notify_one();
        }
    }

    /// Takes nothing in any more; what is in there is still taken.
    pub fn close(&self) {
        self.lanes().closed = true;
        self.filled.notify_all();
    }

    /// Waits for something to do, at most this long.
    pub fn take(&self, patience: Duration) -> Job<R, W> {
        let nothing =
            |lanes: &mut Lanes<R, W>| lanes.reads.is_empty() && lanes.writes.is_empty() && !lanes.closed;
        let (mut lanes, _) = self
            .filled
            .wait_timeout_while(self.lanes(), patience, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = lanes.reads.pop_front() {
            Job::Read(read)
        } else if let Some(write) = lanes.writes.pop_front() {
            Job::Write(write)
        } else if lanes.closed {
            Job::Closed
        } else {
            Job::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_first_and_what_finds_no_room_comes_back() {
        let queue = Queue::new(1, 2);
        assert_eq!(queue.write("a"), Ok(()));
        assert_eq!(queue.write("b"), Ok(()));
        assert_eq!(queue.write("c"), Err("c"));
        queue.write_in_any_case("d");
        assert_eq!(queue.read(1), Ok(()));
        assert_eq!(queue.read(2), Err(2));
        assert_eq!(queue.take(Duration::ZERO), Job::Read(1));
        assert_eq!(queue.take(Duration::ZERO), Job::Write("a"));
        queue.close();
        assert_eq!(queue.read(3), Err(3));
        queue.write_in_any_case("e");
        assert_eq!(queue.take(Duration::ZERO), Job::Write("b"));
        assert_eq!(queue.take(Duration::ZERO), Job::Write("d"));
        assert_eq!(queue.take(Duration::ZERO), Job::Closed);
        let idle: Queue<(), ()> = Queue::new(1, 1);
        assert_eq!(idle.take(Duration::ZERO), Job::Nothing);
    }
}
