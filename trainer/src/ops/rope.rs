//! Rotary position embedding by half rotation: element `i` turns with element `i + dim / 2`.

use ndarray::Array2;

use crate::real::Real;
use crate::tensor::row;

/// Cosines and sines of every position and pair, each `[positions, dim / 2]`.
#[derive(Clone, Debug)]
pub struct Rope<T> {
    cos: Array2<T>,
    sin: Array2<T>,
}

impl<T: Real> Rope<T> {
    /// Tables for positions `0..positions` of a head part `dim` wide. The angle is the f32 product
    /// of position and inverse frequency, as in the runtime.
    #[must_use]
    pub fn new(rope: &bitnet_formats::Rope, dim: usize, positions: usize) -> Self {
        let inv_freq = rope.inv_freq(dim / 2);
        let angle = |(pos, i): (usize, usize)| f64::from(pos as f32 * inv_freq[i]);
        let shape = (positions, dim / 2);
        Self {
            cos: Array2::from_shape_fn(shape, |at| T::from_f64(angle(at).cos())),
            sin: Array2::from_shape_fn(shape, |at| T::from_f64(angle(at).sin())),
        }
    }

    /// Turns one head of one token in place: `x1 c - x2 s`, `x2 c + x1 s`.
    #[inline(always)]
    pub fn rotate(&self, pos: usize, head: &mut [T]) {
        for (low, high, c, s) in self.pairs(pos, head) {
            let (x1, x2) = (*low, *high);
            *low = x1 * c - x2 * s;
            *high = x2 * c + x1 * s;
        }
    }

    /// Turns a gradient back: the transpose of [`Rope::rotate`].
    #[inline(always)]
    pub fn rotate_back(&self, pos: usize, head: &mut [T]) {
        for (low, high, c, s) in self.pairs(pos, head) {
            let (g1, g2) = (*low, *high);
            *low = g1 * c + g2 * s;
            *high = g2 * c - g1 * s;
        }
    }

    /// What turns together, with cosine and sine.
    #[inline(always)]
    fn pairs<'h>(
        &self,
        pos: usize,
        head: &'h mut [T],
    ) -> impl Iterator<Item = (&'h mut T, &'h mut T, T, T)> {
        let (low, high) = head.split_at_mut(head.len() / 2);
        let turns = row(&self.cos, pos).iter().zip(row(&self.sin, pos));
        let pairs = low.iter_mut().zip(high).zip(turns);
        pairs.map(|((low, high), (c, s))| (low, high, *c, *s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_gradient, dot, normals};

    fn turning(theta: f32) -> bitnet_formats::Rope {
        let pairing = bitnet_formats::RopePairing::HalfRotation;
        bitnet_formats::Rope { theta, pairing }
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let rope = Rope::<f64>::new(&turning(100.0), 6, 9);
        let (x, weights) = (normals(1, 6), normals(2, 6));
        let mut gradient = weights.clone();
        rope.rotate_back(7, &mut gradient);
        assert_gradient("head", &x, &gradient, |x| {
            let mut y = x.to_vec();
            rope.rotate(7, &mut y);
            dot(&weights, &y)
        });
    }

    /// What RoPE is for: a score depends on the distance of two positions only.
    #[test]
    fn scores_depend_on_distance() {
        let rope = Rope::<f64>::new(&turning(10_000.0), 8, 40);
        let score = |q_pos, k_pos| {
            let (mut q, mut k) = (normals(1, 8), normals(2, 8));
            rope.rotate(q_pos, &mut q);
            rope.rotate(k_pos, &mut k);
            dot(&q, &k)
        };
        assert!((score(9, 4) - score(35, 30)).abs() < 1e-5);
        assert!((score(9, 4) - score(9, 5)).abs() > 1e-3);
    }

    #[test]
    fn position_zero_does_not_turn() {
        let mut x = [1.0f32, 2.0, 3.0, 4.0];
        Rope::new(&turning(10_000.0), 4, 1).rotate(0, &mut x);
        assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
    }
}
