//! The live request's part: references to the bytes that its client gets, handed to the mirrored leg when it has ended.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::metrics::Outcome;

/// Most bytes of an answer that are compared.
pub const MOST_COMPARED: usize = 1 << 20;

/// What the client of the live request got.
#[derive(Debug)]
pub struct LiveAnswer {
    /// Whether it was answered, whole.
    pub ok: bool,
    /// From its arrival to its last byte.
    pub took: Duration,
    /// What it got, in pieces; `None` when that is more than is compared.
    pub pieces: Option<Vec<Bytes>>,
    /// Whether the pieces are events.
    pub events: bool,
}

/// Watches a live request for its mirrored leg.
#[derive(Debug)]
pub struct Watch {
    tell: Option<oneshot::Sender<LiveAnswer>>,
    begun: Instant,
    pieces: Vec<Bytes>,
    length: usize,
    events: bool,
}

impl Watch {
    /// Tells `tell` when the request has ended.
    pub fn new(tell: oneshot::Sender<LiveAnswer>, begun: Instant) -> Self {
        Self { tell: Some(tell), begun, pieces: Vec::new(), length: 0, events: false }
    }

    /// This is passed on to the client.
    pub fn passed(&mut self, piece: &Bytes, events: bool) {
        self.events |= events;
        self.length = self.length.saturating_add(piece.len());
        if self.length <= MOST_COMPARED {
            self.pieces.push(piece.clone());
        } else {
            self.pieces = Vec::new();
        }
    }

    /// It has ended.
    pub fn ended(&mut self, outcome: Outcome) {
        if let Some(tell) = self.tell.take() {
            let pieces = (self.length <= MOST_COMPARED).then(|| std::mem::take(&mut self.pieces));
            // Nobody listens when the mirrored leg was given up.
            let _ = tell.send(LiveAnswer {
                ok: outcome == Outcome::Ok,
                took: self.begun.elapsed(),
                pieces,
                events: self.events,
            });
        }
    }
}
