//! Cross-entropy of one position: `-ln softmax(logits)[target]`.

use crate::real::Real;

/// Loss of one position in nats, from its logits.
///
/// The maximum is subtracted first; the sum of exponentials is f64.
pub fn loss<T: Real>(logits: &[T], target: usize) -> f64 {
    let max = maximum(logits);
    let sum: f64 = logits
        .iter()
        .map(|x| (*x - max).exp_negative().widen())
        .sum();
    sum.ln() - (logits[target] - max).widen()
}

/// As [`loss`], and turns the logits into their gradient times `weight`:
/// `weight * (softmax - onehot)`.
pub fn loss_and_gradient<T: Real>(logits: &mut [T], target: usize, weight: T) -> f64 {
    let max = maximum(logits);
    let of_target = (logits[target] - max).widen();
    for x in logits.iter_mut() {
        *x = (*x - max).exp_negative();
    }
    let sum: f64 = logits.iter().map(|x| x.widen()).sum();
    let norm = weight * T::from_f64(1.0 / sum);
    for x in logits.iter_mut() {
        *x *= norm;
    }
    logits[target] -= weight;
    sum.ln() - of_target
}

/// The largest logit; NaN if there is one, so that it reaches the loss.
fn maximum<T: Real>(logits: &[T]) -> T {
    let mut max = T::neg_infinity();
    let mut poison = T::zero();
    for x in logits {
        max = if *x > max { *x } else { max };
        poison += *x - *x;
    }
    max + poison
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_gradient, normals};

    #[test]
    fn gradient_matches_finite_differences() {
        let logits = normals(1, 11);
        let mut gradient = logits.clone();
        let value = loss_and_gradient(&mut gradient, 4, 0.25);
        assert!((value - loss(&logits, 4)).abs() < 1e-12);
        assert_gradient("logits", &logits, &gradient, |x| 0.25 * loss(x, 4));
    }

    #[test]
    fn equal_logits_cost_ln_v() {
        assert!((loss(&[3.0f32; 65], 9) - 65.0f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_poisoned_logit_poisons_the_loss() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!loss(&[0.0, bad, 1.0], 0).is_finite());
            assert!(!loss_and_gradient(&mut [0.0, bad, 1.0], 0, 1.0).is_finite());
        }
    }
}
