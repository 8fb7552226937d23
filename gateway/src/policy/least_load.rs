//! The endpoint with the fewest requests in flight; among equals, a random one.
//!
//! Counts are this gateway's own, so several gateways do not herd on what another one saw a moment ago.

use std::sync::Arc;

use rand::{Rng, RngExt};

use super::EndpointPolicy;
use crate::endpoint::Endpoint;

/// Fewest requests in flight, ties at random.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoad;

impl EndpointPolicy for LeastLoad {
    fn choose(&self, candidates: &[&Arc<Endpoint>], rng: &mut dyn Rng) -> Option<usize> {
        let mut best: Option<(usize, usize)> = None;
        let mut ties = 0_u32;
        for (index, endpoint) in candidates.iter().enumerate() {
            let load = endpoint.in_flight();
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
        (0..count).map(|i| Arc::new(Endpoint::parse(&format!("http://e{i}:1")).expect("parses"))).collect()
    }

    #[test]
    fn the_least_loaded_is_chosen_whatever_the_dice_say() {
        let endpoints = endpoints(3);
        let _busy = [endpoints[0].begin(), endpoints[0].begin(), endpoints[2].begin()];
        let candidates: Vec<_> = endpoints.iter().collect();
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            assert_eq!(LeastLoad.choose(&candidates, &mut rng), Some(1));
        }
    }

    #[test]
    fn equals_share_evenly() {
        let endpoints = endpoints(4);
        let _busy = endpoints[3].begin();
        let candidates: Vec<_> = endpoints.iter().collect();
        let mut rng = StdRng::seed_from_u64(7);
        let mut counts = [0_u32; 4];
        for _ in 0..9_000 {
            counts[LeastLoad.choose(&candidates, &mut rng).expect("a choice")] += 1;
        }
        assert_eq!(counts[3], 0);
        // Binomial(9000, 1/3): sigma is 44.7, so five sigma is 224.
        assert!(counts[..3].iter().all(|count| count.abs_diff(3_000) < 224), "{counts:?}");
    }

    #[test]
    fn nothing_to_choose_from() {
        assert_eq!(LeastLoad.choose(&[], &mut StdRng::seed_from_u64(0)), None);
    }
}
