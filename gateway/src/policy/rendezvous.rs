//! Highest-random-weight order: every gateway ranks the same endpoints the same way for a key, with no state, and an endpoint
//! that comes or goes moves only the keys that it gets or had. Pure.

/// The place of an endpoint in a key's order; the highest is first.
pub fn weight(key: u64, endpoint: u64) -> u64 {
    // The finalizer of SplitMix64: every bit of the sum changes half of the bits.
    let mut mixed = key.wrapping_add(endpoint.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ endpoint;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    fn first(key: u64, endpoints: std::ops::Range<u64>) -> u64 {
        endpoints.max_by_key(|endpoint| weight(key, xxh3_64(&endpoint.to_le_bytes()))).expect("one")
    }

    #[test]
    fn keys_spread_evenly_and_a_new_endpoint_takes_only_its_share() {
        let (mut counts, mut moved) = ([0_u32; 9], 0_u32);
        for number in 0_u64..9_000 {
            let key = xxh3_64(&number.to_le_bytes());
            let (before, after) = (first(key, 0..8), first(key, 0..9));
            counts[usize::try_from(after).expect("small")] += 1;
            if before != after {
                assert_eq!(after, 8, "nobody moves between those that were there");
                moved += 1;
            }
        }
        // Binomial(9000, 1/9): sigma is 29.8.
        assert!(counts.iter().all(|count| count.abs_diff(1_000) < 150), "{counts:?}");
        assert_eq!(moved, counts[8]);
    }

    #[test]
    fn consecutive_keys_are_no_special_case() {
        let mut counts = [0_u32; 4];
        for key in 0_u64..4_000 {
            counts[usize::try_from(first(key, 0..4)).expect("small")] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(1_000) < 140), "{counts:?}");
    }
}
