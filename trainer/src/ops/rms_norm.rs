//! RMSNorm on one token: `y = (x * r) * gain`, `r = 1 / sqrt(mean(x^2) + eps)`.

use crate::ops::reduce::{dot, dot3};
use crate::real::Real;

/// Norms one token into `y` and returns `r`.
pub fn forward<T: Real>(x: &[T], gain: &[T], eps: T, y: &mut [T]) -> T {
    let mean = dot(x, x) / T::from_f64(x.len() as f64);
    let r = T::one() / (mean + eps).sqrt();
    for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
        *y = (*x * r) * *gain;
    }
    r
}

/// Adds to `d_x` and `d_gain` what one token's `d_y` asks for. `r` is what [`forward`] returned.
///
/// With `u = d_y * gain`: `d_gain = d_y * x * r`, `d_x = r * (u - x * (r^2 / n) * <u, x>)`.
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

    #[test]
    fn gradients_match_finite_differences() {
        for n in [1, 5, 16, 37] {
            let (x, gain, weights) = (normals(1, n), normals(2, n), normals(3, n));
            let loss = |x: &[f64], gain: &[f64]| {
                let mut y = vec![0.0; n];
                forward(x, gain, 0.3, &mut y);
                crate::ops::check::dot(&weights, &y)
            };
            let r = forward(&x, &gain, 0.3, &mut vec![0.0; n]);
            let (mut d_x, mut d_gain) = (vec![0.0; n], vec![0.0; n]);
            backward(&x, &gain, r, &weights, &mut d_x, &mut d_gain);
            assert_gradient("x", &x, &d_x, |x| loss(x, &gain));
            assert_gradient("gain", &gain, &d_gain, |gain| loss(&x, gain));
        }
    }

    #[test]
    fn output_has_unit_mean_square() {
        let x = normals(4, 100);
        let mut y = vec![0.0; 100];
        forward(&x, &[1.0; 100], 0.0, &mut y);
        assert!((dot(&y, &y) / 100.0 - 1.0).abs() < 1e-12);
    }
}
