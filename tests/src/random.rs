//! The tests' own source of numbers: SplitMix64.

/// A seeded sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// About normal: the sum of twelve uniform numbers, less six.
    pub fn normal(&mut self) -> f32 {
        (0..12)
            .map(|_| self.below(1 << 20) as f32 / (1 << 20) as f32)
            .sum::<f32>()
            - 6.0
    }

    /// Token ids below `vocab_size`.
    pub fn ids(&mut self, n: usize, vocab_size: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab_size) as u32).collect()
    }
}
