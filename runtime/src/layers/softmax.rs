//! Softmax over the scores of one head.

use crate::math::{exp, sum16};

/// Replaces scores by probabilities: exact maximum, `exp(s - max)`, sum by position mod 16, then
/// one multiplication by the reciprocal of the sum.
pub(crate) fn softmax(scores: &mut [f32]) {
    let max = scores
        .iter()
        .fold(f32::NEG_INFINITY, |max, s| if *s > max { *s } else { max });
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    let inverse = 1.0 / sum16(scores.len(), |i| scores[i]);
    scores.iter_mut().for_each(|s| *s *= inverse);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_share_equally_and_far_ones_vanish() {
        let mut scores = [5.0; 4];
        softmax(&mut scores);
        assert_eq!(scores, [0.25; 4]);
        let mut scores = [0.0, 200.0];
        softmax(&mut scores);
        assert_eq!(scores, [0.0, 1.0]);
    }
}
