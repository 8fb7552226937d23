//! Which backend a request of a split goes to: by chance, or by a subject that sticks to its backend. Pure: dice are handed in.
//!
//! A subject (a user, say) is placed by weighted rendezvous hashing: each backend waits for it a time that is exponentially
//! distributed at the rate of the backend's weight, and the shortest wait has it. The waits depend on nothing but the subject and
//! the backend's name, so every gateway comes to the same answer, today and after a restart, in whatever order the backends
//! stand. When one weight grows, only that backend's waits become shorter: subjects move to it and none moves away from it or
//! between the others. Over many subjects the shares are the weights.

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

/// The index of the share that a subject sticks to; `None` when the weights sum to zero. Shares are (key, weight), the key from
/// [`key_of`].
pub fn stick(shares: impl Iterator<Item = (u64, u32)>, subject: u64) -> Option<usize> {
    let mut best: Option<(f64, u64, usize)> = None;
    for (index, (key, weight)) in shares.enumerate() {
        if weight == 0 {
            continue;
        }
        let wait = exponential(mix(subject ^ mix(key))) / f64::from(weight);
        // The key decides between equals, so that the order does not.
        if best.is_none_or(|(least, least_key, _)| (wait, key) < (least, least_key)) {
            best = Some((wait, key, index));
        }
    }
    best.map(|(_, _, index)| index)
}

/// What a backend or a revision is known by in [`stick`].
pub fn key_of(name: &str) -> u64 {
    first_eight(&blake3::hash(name.as_bytes()))
}

/// What a sticky key is known by in [`stick`]: another number for every route and every kind of key.
pub fn subject_of(route: &str, kind: &str, key: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in [route, kind, key] {
        // With the lengths, so that parts cannot run into each other.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    first_eight(&hasher.finalize())
}

fn first_eight(hash: &blake3::Hash) -> u64 {
    hash.as_bytes().iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Spreads what differs in few bits over all of them (the finalizer of splitmix64).
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A wait at rate 1 from uniform bits. `libm` gives the same answer on every processor; the standard library need not.
fn exponential(bits: u64) -> f64 {
    const STEPS: f64 = (1_u64 << 53) as f64;
    let uniform = ((bits >> 11) + 1) as f64 / STEPS;
    -libm::log(uniform)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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

    fn users_of(weights: &[u32], users: u32) -> Vec<u32> {
        let shares: Vec<_> = shares(weights);
        let mut counts = vec![0; weights.len()];
        for user in 0..users {
            let subject = subject_of("ns/chat", "User", &format!("user-{user}"));
            counts[stick(shares.iter().copied(), subject).expect("a backend")] += 1;
        }
        counts
    }

    fn shares(weights: &[u32]) -> Vec<(u64, u32)> {
        weights.iter().enumerate().map(|(index, weight)| (key_of(&format!("v{index}")), *weight)).collect()
    }

    #[test]
    fn shares_are_binomial_around_the_weights() {
        for weights in [&[90, 10][..], &[1, 1], &[5, 0, 95], &[1, 2, 3, 4]] {
            let draws = 20_000;
            let total: u32 = weights.iter().sum();
            for counted in [counts(weights, draws), users_of(weights, draws)] {
                for (weight, count) in weights.iter().zip(counted) {
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
    }

    #[test]
    fn weight_zero_is_never_drawn() {
        assert_eq!(counts(&[0, 7, 0], 1_000), [0, 1_000, 0]);
        assert_eq!(users_of(&[0, 7, 0], 1_000), [0, 1_000, 0]);
    }

    #[test]
    fn no_weight_no_draw() {
        let mut rng = StdRng::seed_from_u64(0);
        assert_eq!(draw([0, 0].into_iter(), &mut rng), None);
        assert_eq!(draw(std::iter::empty(), &mut rng), None);
        assert_eq!(stick([(1, 0), (2, 0)].into_iter(), 7), None);
        assert_eq!(stick(std::iter::empty(), 7), None);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let counts = counts(&[u32::MAX, u32::MAX], 1_000);
        assert!(counts.iter().all(|count| count.abs_diff(500) < 100), "{counts:?}");
    }

    /// Where a user goes is part of what gateways of different versions must agree on: this test may only change with a reason
    /// to move every user of every route.
    #[test]
    fn the_places_of_users_never_change() {
        let subject = |user: &str| subject_of("ns/chat", "User", user);
        assert_eq!(subject("ada"), 8_269_173_458_642_045_982);
        let place = |user: &str| stick(shares(&[70, 20, 10]).into_iter(), subject(user));
        let places: Vec<_> = ["ada", "bob", "cleo", "dan", "eve", "fay", "gus", "hal"].map(place).into();
        assert_eq!(places, [0, 1, 0, 2, 2, 0, 1, 0].map(Some));
    }

    #[test]
    fn subjects_differ_by_route_kind_and_key() {
        let all = [("a", "b", "c"), ("a", "b", "d"), ("ab", "", "c"), ("a", "bc", ""), ("x", "b", "c")];
        let subjects: std::collections::BTreeSet<_> = all.map(|(r, k, s)| subject_of(r, k, s)).into();
        assert_eq!(subjects.len(), all.len());
    }

    proptest! {
        /// A growing canary only ever adds users: whoever moves moves to the backend that grew.
        #[test]
        fn who_moves_moves_to_the_one_that_grew(
            weights in prop::collection::vec(0_u32..1_000, 2..8),
            canary in any::<prop::sample::Index>(),
            more in 1_u32..1_000_000,
            scale in 1_u32..50,
            subject in any::<u64>(),
        ) {
            let canary = canary.index(weights.len());
            let before = stick(shares(&weights).into_iter(), subject);
            // The others in the same proportion, as a canary's step changes them.
            let mut grown: Vec<u32> = weights.iter().map(|weight| weight * scale).collect();
            grown[canary] += more;
            let after = stick(shares(&grown).into_iter(), subject);
            prop_assert!(after == before || after == Some(canary), "{before:?} to {after:?}");
        }

        #[test]
        fn the_order_of_backends_does_not_matter(
            weights in prop::collection::vec(0_u32..1_000, 1..8),
            turn in 0_usize..8,
            subject in any::<u64>(),
        ) {
            let shares = shares(&weights);
            let mut turned = shares.clone();
            turned.rotate_left(turn % shares.len());
            let key = |shares: &[(u64, u32)]| stick(shares.iter().copied(), subject).map(|index| shares[index].0);
            prop_assert_eq!(key(&shares), key(&turned));
        }

        /// A backend that goes away moves its own subjects and nobody else's.
        #[test]
        fn a_lost_backend_moves_its_own_subjects_only(
            weights in prop::collection::vec(1_u32..1_000, 2..8),
            lost in any::<prop::sample::Index>(),
            subject in any::<u64>(),
        ) {
            let lost = lost.index(weights.len());
            let before = stick(shares(&weights).into_iter(), subject);
            let mut left = weights.clone();
            left[lost] = 0;
            let after = stick(shares(&left).into_iter(), subject);
            prop_assert!(before == Some(lost) || after == before);
        }
    }
}
