//! The order of windows in an epoch: a seeded permutation that takes no memory.

use crate::rng::{Rng, Stream};

const ROUNDS: u64 = 4;

/// A permutation of `0..n`, a function of seed and epoch alone.
///
/// A balanced Feistel network permutes the smallest power of four that is not below `n`; what falls
/// outside is permuted again until it falls inside (Black and Rogaway 2002, cycle walking), four
/// times at most on average.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; ROUNDS as usize],
}

impl Permutation {
    /// The order of epoch `epoch`, of `n` things.
    ///
    /// # Panics
    ///
    /// If `n` is zero.
    #[must_use]
    pub fn new(seed: u64, epoch: u64, n: u64) -> Self {
        assert!(n > 0, "nothing to permute");
        let bits = 64 - (n - 1).leading_zeros();
        let mut rng = Rng::new(seed, Stream::Order, epoch);
        Self {
            n,
            half_bits: bits.div_ceil(2),
            keys: std::array::from_fn(|_| rng.next_u64()),
        }
    }

    /// What comes at `place`, below `n` like `place` itself.
    #[must_use]
    pub fn at(&self, place: u64) -> u64 {
        let mut x = self.shuffle(place);
        while x >= self.n {
            x = self.shuffle(x);
        }
        x
    }

    fn shuffle(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            let mixed = Rng::new(key, Stream::Order, right).next_u64();
            (left, right) = (right, left ^ (mixed & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_gets_one_thing() {
        for n in [1, 2, 3, 4, 5, 16, 17, 100, 1000] {
            let order = Permutation::new(7, 1, n);
            let mut seen: Vec<u64> = (0..n).map(|i| order.at(i)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "{n}");
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_neighbours_part() {
        let at = |seed, epoch| -> Vec<u64> {
            let order = Permutation::new(seed, epoch, 1000);
            (0..1000).map(|i| order.at(i)).collect()
        };
        assert_eq!(at(1, 0), at(1, 0));
        assert_ne!(at(1, 0), at(1, 1));
        assert_ne!(at(1, 0), at(2, 0));
        let neighbours = at(1, 0).windows(2).filter(|w| w[0] + 1 == w[1]).count();
        assert!(neighbours < 10, "{neighbours}");
    }
}
