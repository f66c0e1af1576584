//! Cross-entropy of one position: `-ln softmax(logits)[target]`.

use crate::ops::reduce::{maximum, sum};
use crate::real::Real;

/// Loss of one position in nats; its logits are lost.
#[inline(always)]
pub fn loss<T: Real>(logits: &mut [T], target: usize) -> f64 {
    let (log_sum, of_target, _) = exponentials(logits, target);
    log_sum - of_target
}

/// As [`loss`], and turns the logits into their gradient times `weight`:
/// `weight * (softmax - onehot)`.
#[inline(always)]
pub fn loss_and_gradient<T: Real>(logits: &mut [T], target: usize, weight: T) -> f64 {
    let (log_sum, of_target, sum) = exponentials(logits, target);
    let norm = weight / sum;
    for x in logits.iter_mut() {
        *x *= norm;
    }
    logits[target] -= weight;
    log_sum - of_target
}

/// Turns logits into `exp(x - max)`; returns the log of their sum, the target's `x - max`, and the
/// sum. An infinite logit or a NaN makes the sum NaN, and so reaches the loss.
#[inline(always)]
fn exponentials<T: Real>(logits: &mut [T], target: usize) -> (f64, f64, T) {
    let max = maximum(logits);
    let of_target = (logits[target] - max).widen();
    for x in logits.iter_mut() {
        *x = (*x - max).exp_negative();
    }
    let sum = sum(logits);
    (sum.widen().ln(), of_target, sum)
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
        assert!((value - loss(&mut logits.clone(), 4)).abs() < 1e-12);
        assert_gradient("logits", &logits, &gradient, |x| {
            0.25 * loss(&mut x.to_vec(), 4)
        });
    }

    #[test]
    fn equal_logits_cost_ln_v() {
        assert!((loss(&mut [3.0f32; 65], 9) - 65.0f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_poisoned_logit_poisons_the_loss() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!loss(&mut [0.0, bad, 1.0], 0).is_finite());
            assert!(!loss_and_gradient(&mut [0.0, bad, 1.0], 0, 1.0).is_finite());
        }
    }
}
