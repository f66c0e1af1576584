//! How far the quantisers are on: off, on, or between the two.
//!
//! A run may begin in full precision, and then turn the ternary weights up step by step:
//!
//! ```text
//! W' = W + lambda * (q(W) - W)        q(W) = ternary codes / scale
//! ```
//!
//! The straight-through estimator takes `q(W) - W` as a constant, so the gradient is that of the
//! linear map with `W'` frozen, passed to `W`. Activations stay as they are until `lambda` is 1: their
//! int8 codes are near enough to make no step. From then on nothing is left of the ramp.

use bitnet_formats::quant;

use crate::real::Real;

/// Which quantisers a network uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantizers {
    /// None: weights and activations as they are.
    Off,
    /// Weights this share of the way to ternary, above 0 and below 1.
    Ramp(f32),
    /// Ternary weights, int8 activations.
    On,
}

impl Quantizers {
    /// Those of step `step`, from 0: off for the first `fp_steps`, then rising in a line that would
    /// reach the end one step after `ramp_steps`, then on.
    #[must_use]
    pub fn of_step(step: u64, fp_steps: u64, ramp_steps: u64) -> Self {
        match step.checked_sub(fp_steps) {
            None => Self::Off,
            Some(done) if done < ramp_steps => {
                Self::Ramp((done + 1) as f32 / (ramp_steps + 1) as f32)
            }
            Some(_) => Self::On,
        }
    }

    /// 0 off, 1 on.
    #[must_use]
    pub const fn lambda(self) -> f32 {
        match self {
            Self::Off => 0.0,
            Self::Ramp(lambda) => lambda,
            Self::On => 1.0,
        }
    }
}

/// `W'` of the weights, for the scale that quantises them.
pub fn blend<T: Real>(weights: &[T], scale: f32, lambda: f32, blended: &mut [T]) {
    let lambda = T::from_f32(lambda);
    for (blended, w) in blended.iter_mut().zip(weights) {
        let ternary = f32::from(quant::ternary_code(w.narrow(), scale)) / scale;
        *blended = *w + lambda * (T::from_f32(ternary) - *w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramp_rises_in_a_line_between_its_ends() {
        let of = |step| Quantizers::of_step(step, 2, 3);
        let all: Vec<_> = (0..7).map(of).collect();
        let ramp = [0.25, 0.5, 0.75].map(Quantizers::Ramp);
        assert_eq!(all[..2], [Quantizers::Off; 2]);
        assert_eq!(all[2..5], ramp);
        assert_eq!(all[5..], [Quantizers::On; 2]);
        assert_eq!(Quantizers::of_step(0, 0, 0), Quantizers::On);
    }

    #[test]
    fn blended_weights_lie_between_master_and_ternary() {
        let (weights, scale) = ([0.5f64, -0.1, 3.0, -0.4], 2.0);
        let mut blended = [0.0; 4];
        blend(&weights, scale, 0.25, &mut blended);
        // Ternary: 0.5, 0, 0.5, -0.5.
        let expected = [0.5, -0.075, 2.375, -0.425];
        for (found, expected) in blended.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }
}
