//! Dropout: some features of a layer's output are zero, and the others that much larger.
//!
//! ```text
//! y = x * m / (1 - rate)        m = 0 with probability rate, else 1
//! ```
//!
//! It stands where GPT-2 has it, between a block's two outputs (of `o_proj` and of `down_proj`) and
//! the residual stream. A mask is a function of seed, sequence, layer, place and position: the
//! backward pass draws it again, and neither threads nor a resumed run change it.

use ndarray::Array2;

use crate::real::Real;
use crate::rng::{Rng, Stream};
use crate::tensor::row_mut;

/// Which output of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// That of the attention layer.
    Attention = 0,
    /// That of the feed-forward layer.
    FeedForward = 1,
}

/// The masks of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Draws of 32 bits below this are zeros.
    zeros: u64,
    /// `1 / (1 - rate)`.
    scale: f32,
    /// Tells sequences apart.
    key: u64,
    /// Position of the first row.
    first: u64,
}

impl Dropout {
    /// No feature is ever zero.
    pub const OFF: Self = Self {
        zeros: 0,
        scale: 1.0,
        key: 0,
        first: 0,
    };

    /// Masks of sequence number `sequence` of a run; `rate` is in [0, 1).
    #[must_use]
    pub fn new(rate: f64, seed: u64, sequence: u64) -> Self {
        Self {
            zeros: (rate * (1u64 << 32) as f64).round() as u64,
            scale: (1.0 / (1.0 - rate)) as f32,
            key: Rng::new(seed, Stream::Dropout, sequence).next_u64(),
            first: 0,
        }
    }

    /// The masks from a position on.
    #[must_use]
    pub const fn from_position(self, first: usize) -> Self {
        Self {
            first: first as u64,
            ..self
        }
    }

    /// Applies the mask of a layer to `x`, `[positions, width]`: values on the way forward, gradients
    /// on the way back.
    pub fn apply<T: Real>(&self, layer: usize, place: Place, x: &mut Array2<T>) {
        if self.zeros == 0 {
            return;
        }
        let scale = T::from_f32(self.scale);
        let of_layer = (2 * layer as u64 + place as u64) << 32;
        for t in 0..x.nrows() {
            let index = of_layer + self.first + t as u64;
            let mut rng = Rng::new(self.key, Stream::Dropout, index);
            for pair in row_mut(x, t).chunks_mut(2) {
                let bits = rng.next_u64();
                for (x, bits) in pair.iter_mut().zip([bits >> 32, bits & 0xffff_ffff]) {
                    *x = if bits < self.zeros {
                        T::zero()
                    } else {
                        *x * scale
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::flat;

    fn mask(dropout: Dropout, layer: usize, place: Place) -> Vec<f32> {
        let mut ones = Array2::from_elem((300, 101), 1.0);
        dropout.apply(layer, place, &mut ones);
        flat(&ones).to_vec()
    }

    #[test]
    fn the_share_of_zeros_is_the_rate_and_the_mean_stays() {
        let mask = mask(Dropout::new(0.2, 1, 0), 0, Place::Attention);
        let n = mask.len() as f32;
        let zeros = mask.iter().filter(|x| **x == 0.0).count() as f32 / n;
        let mean = mask.iter().sum::<f32>() / n;
        assert!((zeros - 0.2).abs() < 0.01, "{zeros}");
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!(mask.iter().all(|x| *x == 0.0 || *x == 1.25));
    }

    /// Two masks that have nothing to do with each other agree in 0.68 of all features.
    #[test]
    fn every_sequence_layer_and_place_has_its_own_mask() {
        let of =
            |seed, sequence, layer, place| mask(Dropout::new(0.2, seed, sequence), layer, place);
        let first = of(1, 0, 0, Place::Attention);
        assert!(first == of(1, 0, 0, Place::Attention));
        for other in [
            of(2, 0, 0, Place::Attention),
            of(1, 1, 0, Place::Attention),
            of(1, 0, 1, Place::Attention),
            of(1, 0, 0, Place::FeedForward),
        ] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            let share = same as f32 / first.len() as f32;
            assert!((share - 0.68).abs() < 0.01, "{share}");
        }
        // Rows differ as well, and go with their positions.
        assert_ne!(first[..101], first[101..202]);
        let later = Dropout::new(0.2, 1, 0).from_position(2);
        let later = mask(later, 0, Place::Attention);
        assert!(later[..298 * 101] == first[2 * 101..]);
    }

    #[test]
    fn off_changes_nothing() {
        for off in [Dropout::OFF, Dropout::new(0.0, 1, 7)] {
            assert!(mask(off, 1, Place::FeedForward).iter().all(|x| *x == 1.0));
        }
    }
}
