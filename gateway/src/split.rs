//! The weighted draw that splits a route's traffic over its backends. Pure: the dice are handed in.

use rand::{Rng, RngExt};

/// Draws an index with probability `weight / sum of weights`; `None` when the weights sum to zero.
pub fn draw(weights: impl Iterator<Item = u32> + Clone, rng: &mut dyn Rng) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    let mut left = rng.random_range(0..total);
    for (index, weight) in weights.enumerate() {
        match left.checked_sub(u64::from(weight)) {
            Some(rest) => left = rest,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn counts(weights: &[u32], draws: u32) -> Vec<u32> {
        let mut rng = StdRng::seed_from_u64(42);
        let mut counts = vec![0; weights.len()];
        for _ in 0..draws {
            counts[draw(weights.iter().copied(), &mut rng).expect("a draw")] += 1;
        }
        counts
    }

    #[test]
    fn shares_are_binomial_around_the_weights() {
        for weights in [&[90, 10][..], &[1, 1], &[5, 0, 95], &[1, 2, 3, 4]] {
            let draws = 20_000;
            let total: u32 = weights.iter().sum();
            for (weight, count) in weights.iter().zip(counts(weights, draws)) {
                let p = f64::from(*weight) / f64::from(total);
                let sigma = (f64::from(draws) * p * (1.0 - p)).sqrt();
                let off = (f64::from(count) - f64::from(draws) * p).abs();
                assert!(
                    off <= 5.0 * sigma,
                    "weight {weight} of {weights:?}: {count} of {draws}, sigma {sigma}"
                );
            }
        }
    }

    #[test]
    fn weight_zero_is_never_drawn() {
        assert_eq!(counts(&[0, 7, 0], 1_000), [0, 1_000, 0]);
    }

    #[test]
    fn no_weight_no_draw() {
        let mut rng = StdRng::seed_from_u64(0);
        assert_eq!(draw([0, 0].into_iter(), &mut rng), None);
        assert_eq!(draw(std::iter::empty(), &mut rng), None);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let counts = counts(&[u32::MAX, u32::MAX], 1_000);
        assert!(counts.iter().all(|count| count.abs_diff(500) < 100), "{counts:?}");
    }
}
