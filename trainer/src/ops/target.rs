//! What a position is to predict: a token, or nothing.

use crate::ops::cross_entropy;
use crate::real::Real;

/// The target of a position that nothing is learned from.
pub const IGNORED: u32 = u32::MAX;

/// How many of the targets are predicted.
#[must_use]
pub fn counted(targets: &[u32]) -> usize {
    targets.iter().filter(|target| **target != IGNORED).count()
}

/// Loss of one position in nats, zero where its target is [`IGNORED`]; its logits are lost.
#[inline(always)]
pub fn loss<T: Real>(logits: &mut [T], target: u32) -> f64 {
    match target {
        IGNORED => 0.0,
        target => cross_entropy::loss(logits, target as usize),
    }
}

/// As [`loss`], and turns the logits into their gradient times `weight`.
#[inline(always)]
pub fn loss_and_gradient<T: Real>(logits: &mut [T], target: u32, weight: T) -> f64 {
    if target == IGNORED {
        logits.fill(T::zero());
        return 0.0;
    }
    cross_entropy::loss_and_gradient(logits, target as usize, weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_positions_have_neither_loss_nor_gradient() {
        let mut logits = [1.0f32, 2.0, f32::NAN];
        assert_eq!(loss(&mut logits, IGNORED), 0.0);
        assert_eq!(loss_and_gradient(&mut logits, IGNORED, 0.5), 0.0);
        assert_eq!(logits, [0.0; 3]);
        assert_eq!(counted(&[3, IGNORED, 0]), 2);
    }
}
