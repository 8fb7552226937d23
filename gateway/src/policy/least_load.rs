//! The endpoint with the fewest requests in flight; among equals, a random one.
//!
//! Counts are this gateway's own, so several gateways do not herd on what another one saw a moment ago.

use rand::{Rng, RngExt};

use super::{Asked, Candidate, EndpointPolicy, Verdict, Why};

/// Fewest requests in flight, ties at random.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoad;

impl EndpointPolicy for LeastLoad {
    fn choose(&self, _: &Asked<'_>, candidates: &[Candidate], rng: &mut dyn Rng) -> Option<Verdict> {
        let index = least(candidates, rng)?;
        Some(Verdict { index, why: Why::LeastLoad, matched: 0 })
    }
}

/// The least loaded candidate.
pub fn least(candidates: &[Candidate], rng: &mut dyn Rng) -> Option<usize> {
    let mut best: Option<(usize, usize)> = None;
    let mut ties = 0_u32;
    for (index, candidate) in candidates.iter().enumerate() {
        let load = candidate.in_flight;
        match best {
            Some((_, least)) if load > least => {}
            Some((_, least)) if load == least => {
                // Reservoir of one: the k-th of the equals replaces the choice with probability 1/k.
                ties += 1;
                if rng.random_range(0..ties) == 0 {
                    best = Some((index, load));
                }
            }
            _ => {
                best = Some((index, load));
                ties = 1;
            }
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn loaded(loads: &[usize]) -> Vec<Candidate> {
        (1..).zip(loads).map(|(id, load)| Candidate { id, key: id.into(), in_flight: *load }).collect()
    }

    #[test]
    fn the_least_loaded_is_chosen_whatever_the_dice_say() {
        for seed in 0..50 {
            assert_eq!(least(&loaded(&[2, 0, 1]), &mut StdRng::seed_from_u64(seed)), Some(1));
        }
    }

    #[test]
    fn equals_share_evenly() {
        let candidates = loaded(&[0, 0, 0, 1]);
        let mut rng = StdRng::seed_from_u64(7);
        let mut counts = [0_u32; 4];
        for _ in 0..9_000 {
            counts[least(&candidates, &mut rng).expect("a choice")] += 1;
        }
        assert_eq!(counts[3], 0);
        // Binomial(9000, 1/3): sigma is 44.7, so five sigma is 224.
        assert!(counts[..3].iter().all(|count| count.abs_diff(3_000) < 224), "{counts:?}");
    }

    #[test]
    fn nothing_to_choose_from() {
        assert_eq!(least(&[], &mut StdRng::seed_from_u64(0)), None);
    }
}
