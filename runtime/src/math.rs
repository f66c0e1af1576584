//! Elementary functions with one result on every machine.
//!
//! Plain multiplies and adds in a fixed order, no fused operations, no library that may change.
//! NUMERICS.md states the same formulas.

use core::hint::black_box;

/// Lanes of every feature sum.
pub const LANES: usize = 16;

/// Square root, correctly rounded: IEEE 754 allows one result.
#[inline]
#[must_use]
pub fn sqrt(x: f32) -> f32 {
    #[cfg(feature = "std")]
    return x.sqrt();
    #[cfg(not(feature = "std"))]
    return libm::sqrtf(x);
}

/// True where this thread rounds to nearest and keeps subnormal numbers, as IEEE 754 has it by default.
/// Code built with fast-math options may have told the processor otherwise.
#[must_use]
pub fn rounds_by_default() -> bool {
    let one = black_box(1.0f32);
    let (half_way, above) = (f32::EPSILON / 2.0, f32::EPSILON * 0.75);
    let (smallest, subnormal) = (black_box(f32::MIN_POSITIVE), black_box(f32::from_bits(1)));
    one + half_way == 1.0
        && one + above > 1.0
        && smallest * 0.5 > 0.0
        && subnormal * 8_388_608.0 == f32::MIN_POSITIVE
}

/// Folds sixteen lanes 8, 4, 2, 1.
#[inline(always)]
#[must_use]
pub fn fold_lanes(mut lanes: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// Sum of `n` terms in sixteen lanes by index mod 16; missing lanes are zero.
#[inline(always)]
pub fn sum16(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let full = n / LANES * LANES;
    for start in (0..full).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    for i in full..n {
        lanes[i - full] += term(i);
    }
    fold_lanes(lanes)
}

/// Dot product in sixteen lanes.
///
/// # Panics
///
/// If the slices differ in length.
#[inline]
#[must_use]
pub fn dot16(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    sum16(a.len(), |i| a[i] * b[i])
}

/// `e^x`, relative error below 1e-7. Below -87 it is zero, above 88 it is `e^88`.
///
/// `x = n ln 2 + r` with `|r| <= ln(2) / 2`, ln 2 split in two parts; `e^r` by its series to the
/// seventh power; `2^n` by the exponent bits.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // 355 / 512, exactly
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    // The addition rounds to an integer and leaves it in the low bits: no conversion is needed,
    // which compilers would do one by one.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let rounded = clamped * core::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.0 / 5_040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        series = series * r + coefficient;
    }
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits() - 127);
    let power = f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { series * power }
}

/// Sine and cosine of an angle in radians, for `|x| < 2^30`.
///
/// In f64: `x = k pi/2 + r` with pi/2 split in two parts, Taylor series to the fifteenth and
/// sixteenth power on `|r| <= pi/4`, then one rounding to f32.
#[must_use]
pub fn sin_cos(x: f32) -> (f32, f32) {
    /// The first 33 bits of pi/2: `k` times it is exact.
    const HALF_PI_HIGH: f64 = 1.570_796_326_734_125_6;
    const HALF_PI_LOW: f64 = 6.077_100_506_506_192e-11;
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    let x = f64::from(x);
    let k = (x * core::f64::consts::FRAC_2_PI + ROUND) - ROUND;
    let r = (x - k * HALF_PI_HIGH) - k * HALF_PI_LOW;
    let square = r * r;
    let (mut sin, mut cos) = (1.0, 1.0);
    for i in [14.0, 12.0, 10.0, 8.0, 6.0, 4.0, 2.0] {
        sin = 1.0 - sin * square / (i * (i + 1.0));
    }
    for i in [16.0, 14.0, 12.0, 10.0, 8.0, 6.0, 4.0, 2.0] {
        cos = 1.0 - cos * square / (i * (i - 1.0));
    }
    let (sin, cos) = ((r * sin) as f32, cos as f32);
    match (k as i64) & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
#[must_use]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `max(x, 0)^2`.
#[inline(always)]
#[must_use]
pub fn squared_relu(x: f32) -> f32 {
    let positive = if x > 0.0 { x } else { 0.0 };
    positive * positive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_true_value() {
        let mut worst = 0.0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - truth).abs() / truth);
        }
        assert!(worst < 1e-7, "{worst:e}");
        assert_eq!(0.693_359_4f32, 355.0 / 512.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(100.0), exp(88.0));
    }

    #[test]
    fn sin_cos_round_the_true_value() {
        for i in 0..2_000_000u32 {
            let x = i as f32 * 0.37;
            let (sin, cos) = sin_cos(x);
            let (true_sin, true_cos) = f64::from(x).sin_cos();
            assert!((f64::from(sin) - true_sin).abs() < 6.1e-8, "sin {x}");
            assert!((f64::from(cos) - true_cos).abs() < 6.1e-8, "cos {x}");
            assert_eq!(sin_cos(-x), (-sin, cos));
        }
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }

    /// The order of a feature sum is part of the format: this fixes it on values where it shows.
    #[test]
    fn sums_fold_by_lane() {
        let values: Vec<f32> = (0..37).map(|i| 1.0 + (i as f32) * 1e7).collect();
        let mut lanes = [0.0f32; 16];
        values
            .iter()
            .enumerate()
            .for_each(|(i, v)| lanes[i % 16] += v);
        let mut width = 8;
        while width > 0 {
            (0..width).for_each(|i| lanes[i] += lanes[i + width]);
            width /= 2;
        }
        assert_eq!(sum16(37, |i| values[i]), lanes[0]);
        assert_ne!(sum16(37, |i| values[i]), values.iter().sum::<f32>());
        assert_eq!(sum16(0, |_| 1.0), 0.0);
    }

    #[test]
    fn activations() {
        assert_eq!(squared_relu(-3.0), 0.0);
        assert_eq!(squared_relu(3.0), 9.0);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-7);
        assert_eq!(silu(0.0), 0.0);
        assert!(silu(-100.0) <= 0.0 && silu(-100.0) > -1e-30);
    }
}
