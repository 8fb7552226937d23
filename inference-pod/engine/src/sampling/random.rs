//! Random numbers that are functions of what they are for.

/// A number in [0, 1) that depends on `seed` and `draw` only.
pub fn uniform(seed: u64, draw: u64) -> f64 {
    // Two rounds of SplitMix64's finalizer: neighbouring seeds and draws give unrelated numbers.
    let mixed = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ draw.wrapping_mul(0xd134_2543_de82_ef95));
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_draws_are_unrelated() {
        let mut sum = 0.0;
        let mut product = 0.0;
        for i in 0..10_000 {
            let (a, b) = (uniform(i, 0), uniform(i + 1, 0));
            sum += a;
            product += (a - 0.5) * (b - 0.5);
        }
        assert!((sum / 10_000.0 - 0.5).abs() < 0.02);
        assert!((product / 10_000.0).abs() < 0.01);
    }
}
