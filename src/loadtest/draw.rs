//! Random numbers without a generator: each is a hash of the seed and of what it is for. So in every run with one seed
//! a receiver answers the same delivery the same way, whatever came before it. Pure.

/// A bijection of 64 bits in which every bit of the input changes half of the output (splitmix64's finaliser).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// One hash of several numbers, in their order.
pub fn hash(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |sum, part| mix(sum ^ mix(*part)))
}

/// Uniform in [0, 1).
pub fn chance(parts: &[u64]) -> f64 {
    // 53 bits are what an f64 can hold.
    (hash(parts) >> 11) as f64 / (1u64 << 53) as f64
}

/// Normally distributed with mean 0 and deviation 1 (Box and Muller).
pub fn normal(parts: &[u64]) -> f64 {
    let first = hash(parts);
    // Never 0, which has no logarithm.
    let radius = 1.0 - (first >> 11) as f64 / (1u64 << 53) as f64;
    let angle = chance(&[first, 1]) * std::f64::consts::TAU;
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_as_they_should_be() {
        let count = 100_000u64;
        let mean = (0..count).map(|n| chance(&[7, n])).sum::<f64>() / count as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let square = (0..count).map(|n| normal(&[7, n]).powi(2)).sum::<f64>() / count as f64;
        assert!((square - 1.0).abs() < 0.03, "{square}");
        let beyond = (0..count).filter(|n| normal(&[7, *n]) > 2.326_35).count() as f64 / count as f64;
        assert!((beyond - 0.01).abs() < 0.002, "{beyond}");
    }

    #[test]
    fn a_draw_repeats_and_depends_on_every_part() {
        assert_eq!(chance(&[1, 2, 3]), chance(&[1, 2, 3]));
        assert_ne!(hash(&[1, 2, 3]), hash(&[1, 3, 2]));
        assert_ne!(hash(&[1, 2]), hash(&[1, 2, 0]));
    }
}
