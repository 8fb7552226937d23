//! The same endpoint for the same session, by rendezvous hashing: no table, the same in every gateway, and when pods come or
//! go only the sessions of those pods move.
//!
//! A session whose endpoint is too loaded goes to the next in its order that is not. Requests without a session go to the
//! least loaded endpoint.

use std::cmp::Reverse;

use rand::Rng;

use super::least_load::LeastLoad;
use super::{Asked, Candidate, EndpointPolicy, Verdict, Why, rendezvous};

/// The same endpoint for the same session.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionAffinity;

impl EndpointPolicy for SessionAffinity {
    fn choose(&self, asked: &Asked<'_>, candidates: &[Candidate], rng: &mut dyn Rng) -> Option<Verdict> {
        let Some(session) = asked.session else { return LeastLoad.choose(asked, candidates, rng) };
        let least = candidates.iter().map(|candidate| candidate.in_flight).min()?;
        let place = |candidate: &Candidate| Reverse(rendezvous::weight(session, candidate.key));
        let first = candidates.iter().map(place).min()?;
        // The least loaded one is never too loaded, so there is one.
        let (index, chosen) = candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| !asked.rules.guard.exceeded(candidate.in_flight, least))
            .min_by_key(|(_, candidate)| place(candidate))?;
        let why = if place(chosen) == first { Why::Session } else { Why::SessionOverruled };
        Some(Verdict { index, why, matched: 0 })
    }
}
