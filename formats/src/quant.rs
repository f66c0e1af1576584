//! The quantisers: absmean ternary weights, absmax int8 activations, int8 rows, int16 hidden state.
//!
//! This is their only definition. Trainer, converter and runtime call these functions, and every
//! SIMD version must give the same bits. Sources: "The Era of 1-bit LLMs" (arXiv 2402.17764),
//! section 2, for the two BitLinear quantisers; SPEC.md for the exact arithmetic.

use crate::config::WeightScale;
use crate::float::{bf16_to_f32, f32_to_bf16, round_half_even};

/// Floor under every mean and maximum, so that a zero tensor or token has a scale.
pub const SCALE_FLOOR: f32 = 1e-5;
/// Largest int16 code of a hidden state: both bytes of `127 * 256 + 127` fit an int8.
pub const HIDDEN_MAX: f32 = 32_639.0;

/// A value that is infinite or not a number met a quantiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinite;

impl core::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a value is infinite or not a number")
    }
}

impl core::error::Error for NonFinite {}

/// Running `mean |w|` of a tensor that may arrive in pieces.
///
/// Sixteen f64 sums by index mod 16, folded 8, 4, 2, 1: the same bits however it is cut.
#[derive(Clone, Debug, Default)]
pub struct AbsMean {
    lanes: [f64; 16],
    count: u64,
}

impl AbsMean {
    /// Adds the next values.
    pub fn update(&mut self, mut values: &[f32]) {
        let phase = (self.count % 16) as usize;
        self.count += values.len() as u64;
        if phase != 0 {
            let (head, rest) = values.split_at(values.len().min(16 - phase));
            self.add(phase, head);
            values = rest;
        }
        let (blocks, tail) = values.as_chunks::<16>();
        for block in blocks {
            self.add(0, block);
        }
        self.add(0, tail);
    }

    #[inline(always)]
    fn add(&mut self, phase: usize, values: &[f32]) {
        for (lane, w) in self.lanes[phase..].iter_mut().zip(values) {
            *lane += f64::from(w.abs());
        }
    }

    /// The mean, rounded once to f32; zero for no values.
    #[must_use]
    pub fn mean(&self) -> f32 {
        let mut sums = self.lanes;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                sums[i] += sums[i + width];
            }
        }
        (sums[0] / self.count.max(1) as f64) as f32
    }
}

/// `mean |w|` of a whole tensor.
#[must_use]
pub fn absmean(weights: &[f32]) -> f32 {
    let mut mean = AbsMean::default();
    mean.update(weights);
    mean.mean()
}

/// The multiplier that takes weights of this absolute mean to ternary codes: `1 / max(mean, 1e-5)`.
#[must_use]
pub fn weight_scale(absmean: f32) -> f32 {
    1.0 / absmean.max(SCALE_FLOOR)
}

/// Ternary code of one weight: `w * scale` rounded half to even and clamped to -1..=1.
#[inline(always)]
#[must_use]
pub fn ternary_code(weight: f32, scale: f32) -> i8 {
    round_half_even((weight * scale).clamp(-1.0, 1.0)) as i8
}

/// [`weight_scale`] in bf16 arithmetic: mean, floor and reciprocal are each rounded to bf16.
///
/// This is how onebitllms 0.0.4 packs the masters of Falcon-E.
#[must_use]
pub fn weight_scale_bf16(absmean: f32) -> f32 {
    to_bf16(1.0 / to_bf16(absmean).max(to_bf16(SCALE_FLOOR)))
}

/// [`ternary_code`] in bf16 arithmetic: the product is rounded to bf16 before it is rounded to a code.
#[inline(always)]
#[must_use]
pub fn ternary_code_bf16(weight: f32, scale: f32) -> i8 {
    round_half_even(to_bf16(to_bf16(weight) * scale).clamp(-1.0, 1.0)) as i8
}

fn to_bf16(x: f32) -> f32 {
    bf16_to_f32(f32_to_bf16(x))
}

/// Largest magnitude of a token.
///
/// Magnitudes of floats order like their bits, so this is an exact integer maximum in any order.
///
/// # Errors
///
/// [`NonFinite`] if any value is infinite or NaN.
#[inline(always)]
pub fn absmax(x: &[f32]) -> Result<f32, NonFinite> {
    let bits = x
        .iter()
        .fold(0, |max: u32, v| max.max(v.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(bits);
    if max.is_finite() {
        Ok(max)
    } else {
        Err(NonFinite)
    }
}

/// The multiplier that takes a token of this absmax to int8: `127 / max(absmax, 1e-5)`.
///
/// The reciprocal is rounded first and then multiplied, as PyTorch computes `127 / tensor`: the last
/// bit of this scale decides ties, and models are trained with that bit.
#[inline]
#[must_use]
pub fn activation_scale(absmax: f32) -> f32 {
    (1.0 / absmax.max(SCALE_FLOOR)) * 127.0
}

/// Int8 code of one activation: `x * scale` rounded half to even and clamped to -128..=127.
#[inline(always)]
#[must_use]
pub fn activation_code(x: f32, scale: f32) -> i8 {
    round_half_even((x * scale).clamp(-128.0, 127.0)) as i8
}

/// Quantises one token to int8 and returns its scale; `x` is about `code / scale`.
///
/// # Errors
///
/// [`NonFinite`] if any value is infinite or NaN.
///
/// # Panics
///
/// If the slices differ in length.
pub fn quantize_activations(x: &[f32], codes: &mut [i8]) -> Result<f32, NonFinite> {
    assert_eq!(x.len(), codes.len());
    let scale = activation_scale(absmax(x)?);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = activation_code(*x, scale);
    }
    Ok(scale)
}

/// Quantises a hidden state to int16 for an int8 head and returns its scale.
///
/// # Errors
///
/// [`NonFinite`] if any value is infinite or NaN.
///
/// # Panics
///
/// If the slices differ in length.
pub fn quantize_hidden(x: &[f32], codes: &mut [i16]) -> Result<f32, NonFinite> {
    assert_eq!(x.len(), codes.len());
    let scale = HIDDEN_MAX / absmax(x)?.max(SCALE_FLOOR);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = round_half_even((x * scale).clamp(-HIDDEN_MAX, HIDDEN_MAX)) as i16;
    }
    Ok(scale)
}

/// Quantises one row of an embedding or head to int8; `w` is about `code * scale`.
///
/// # Errors
///
/// [`NonFinite`] if any value is infinite or NaN.
///
/// # Panics
///
/// If the slices differ in length.
pub fn quantize_row(row: &[f32], codes: &mut [i8]) -> Result<f32, NonFinite> {
    assert_eq!(row.len(), codes.len());
    let max = absmax(row)?;
    // Below 1e-36 the reciprocal would overflow: such a row is zero.
    if max < 1e-36 {
        codes.fill(0);
        return Ok(0.0);
    }
    let inverse = 127.0 / max;
    for (code, w) in codes.iter_mut().zip(row) {
        *code = round_half_even((w * inverse).clamp(-127.0, 127.0)) as i8;
    }
    Ok(max / 127.0)
}

/// The factor that takes an integer dot product to a BitLinear's output, one per token and matrix.
#[inline]
#[must_use]
pub fn linear_factor(convention: WeightScale, weight_scale: f32, act_scale: f32) -> f32 {
    match convention {
        WeightScale::Multiply => weight_scale / act_scale,
        WeightScale::Divide => 1.0 / (act_scale * weight_scale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_half_to_even() {
        let codes = [0.5, 1.5, -0.5, -1.5, 0.49, 0.51].map(|w| ternary_code(w, 1.0));
        assert_eq!(codes, [0, 1, 0, -1, 0, 1]);
        let codes = [0.5, 1.5, 2.5, -2.5, 126.5, -126.5].map(|x| activation_code(x, 1.0));
        assert_eq!(codes, [0, 2, 2, -2, 126, -126]);
    }

    #[test]
    fn outliers_clamp() {
        assert_eq!(ternary_code(1e30, 1e5), 1);
        assert_eq!(ternary_code(-1e30, 1e5), -1);
        assert_eq!(activation_code(-1e9, 1.0), -128);
    }

    #[test]
    fn the_largest_activation_is_127() {
        let mut codes = [0; 4];
        let scale = quantize_activations(&[0.0, -2.0, 1.0, 0.5], &mut codes).unwrap();
        assert_eq!(scale, 63.5);
        assert_eq!(codes, [0, -127, 64, 32]); // 63.5 and 31.75
    }

    #[test]
    fn zero_tokens_and_rows_are_legal() {
        let mut codes = [9; 3];
        assert_eq!(
            quantize_activations(&[0.0; 3], &mut codes),
            Ok((1.0 / SCALE_FLOOR) * 127.0)
        );
        assert_eq!(codes, [0; 3]);
        assert_eq!(quantize_row(&[0.0; 3], &mut codes), Ok(0.0));
        assert_eq!(quantize_row(&[f32::MIN_POSITIVE; 3], &mut codes), Ok(0.0));
    }

    #[test]
    fn non_finite_values_are_errors() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = [1.0, bad, 2.0];
            assert_eq!(absmax(&x), Err(NonFinite));
            assert_eq!(quantize_activations(&x, &mut [0; 3]), Err(NonFinite));
            assert_eq!(quantize_hidden(&x, &mut [0; 3]), Err(NonFinite));
            assert_eq!(quantize_row(&x, &mut [0; 3]), Err(NonFinite));
        }
    }

    #[test]
    fn both_bytes_of_a_hidden_code_fit_an_int8() {
        let mut codes = [0; 2];
        quantize_hidden(&[3.0, -3.0], &mut codes).unwrap();
        assert_eq!(codes, [32_639, -32_639]);
        for code in codes {
            let low = code as i8;
            let high = (i32::from(code) - i32::from(low)) / 256;
            assert!(i8::try_from(high).is_ok());
        }
    }

    #[test]
    fn the_mean_does_not_depend_on_the_cut() {
        let weights: Vec<f32> = (0..1000)
            .map(|i| ((i * 7919) % 1009) as f32 - 500.3)
            .collect();
        let whole = absmean(&weights);
        for cut in [1, 3, 15, 16, 17, 100, 999] {
            let mut mean = AbsMean::default();
            weights.chunks(cut).for_each(|piece| mean.update(piece));
            assert_eq!(mean.mean().to_bits(), whole.to_bits(), "cut {cut}");
        }
        let exact: f64 = weights.iter().map(|w| f64::from(w.abs())).sum::<f64>() / 1000.0;
        assert!((f64::from(whole) - exact).abs() <= exact * 1e-7);
        assert_eq!(absmean(&[]), 0.0);
    }

    #[test]
    fn factors_follow_the_convention() {
        assert_eq!(linear_factor(WeightScale::Multiply, 0.5, 4.0), 0.125);
        assert_eq!(linear_factor(WeightScale::Divide, 2.0, 4.0), 0.125);
    }
}
