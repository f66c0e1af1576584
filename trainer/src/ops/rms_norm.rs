//! RMSNorm on one token: `y = (x * r) * gain`, `r = 1 / sqrt(mean(x^2) + eps)`.

use crate::ops::reduce::{dot, dot3};
use crate::real::Real;

/// `r` of one token.
#[inline(always)]
pub fn reciprocal<T: Real>(x: &[T], eps: T) -> T {
    let mean = dot(x, x) / T::from_f64(x.len() as f64);
    T::one() / (mean + eps).sqrt()
}

/// Adds to `d_x` and `d_gain` what one token's `d_y` asks for. `r` is its [`reciprocal`].
///
/// With `u = d_y * gain`: `d_gain = d_y * x * r`, `d_x = r * (u - x * (r^2 / n) * <u, x>)`.
#[inline(always)]
pub fn backward<T: Real>(x: &[T], gain: &[T], r: T, d_y: &[T], d_x: &mut [T], d_gain: &mut [T]) {
    let pull = dot3(d_y, gain, x) * r * r / T::from_f64(x.len() as f64);
    let weights = gain.iter().zip(d_gain);
    let tokens = x.iter().zip(d_y).zip(d_x);
    for (((x, d_y), d_x), (gain, d_gain)) in tokens.zip(weights) {
        *d_gain += *d_y * *x * r;
        *d_x += r * (*d_y * *gain - *x * pull);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_gradient, normals};

    /// The output by its definition.
    fn forward(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
        let r = reciprocal(x, eps);
        x.iter().zip(gain).map(|(x, gain)| (x * r) * gain).collect()
    }

    #[test]
    fn gradients_match_finite_differences() {
        for n in [1, 5, 16, 37] {
            let (x, gain, weights) = (normals(1, n), normals(2, n), normals(3, n));
            let loss =
                |x: &[f64], gain: &[f64]| crate::ops::check::dot(&weights, &forward(x, gain, 0.3));
            let r = reciprocal(&x, 0.3);
            let (mut d_x, mut d_gain) = (vec![0.0; n], vec![0.0; n]);
            backward(&x, &gain, r, &weights, &mut d_x, &mut d_gain);
            assert_gradient("x", &x, &d_x, |x| loss(x, &gain));
            assert_gradient("gain", &gain, &d_gain, |gain| loss(&x, gain));
        }
    }

    #[test]
    fn output_has_unit_mean_square() {
        let x = normals(4, 100);
        let y = forward(&x, &[1.0; 100], 0.0);
        assert!((dot(&y, &y) / 100.0 - 1.0).abs() < 1e-12);
    }
}
