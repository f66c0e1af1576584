//! The one source of randomness: SplitMix64, addressed by purpose and position.
//!
//! A run's draws are a function of `(seed, stream, index)` and not of how many numbers were drawn
//! before. So the state of the random numbers in a checkpoint is the step itself, and a resumed
//! run draws what an uninterrupted one would have drawn.

/// What a sequence of draws is for; separate streams never overlap in practice.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// Initial weights, indexed by parameter.
    Init = 1,
    /// Windows of a training batch, indexed by micro-batch.
    Batch = 2,
    /// Tokens of generated text.
    Sample = 3,
    /// Order of windows, indexed by epoch.
    Order = 4,
    /// Documents that validate, indexed by group.
    HeldOut = 5,
    /// Features left out, indexed by sequence, and by layer and position.
    Dropout = 6,
}

/// SplitMix64 (Steele, Lea and Flood 2014): a counter and a mixing function.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The draws for one purpose and position.
    #[must_use]
    pub fn new(seed: u64, stream: Stream, index: u64) -> Self {
        let key = mix(mix(seed).wrapping_add(stream as u64)).wrapping_add(index);
        Self { state: mix(key) }
    }

    /// The next 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..n`, by the high half of a 128-bit product; the bias is below `n / 2^64`.
    ///
    /// # Panics
    ///
    /// If `n` is zero.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "no number is below zero");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_fixed_by_seed_stream_and_index() {
        let draw = |seed, stream, index| Rng::new(seed, stream, index).next_u64();
        assert_eq!(draw(1, Stream::Init, 0), draw(1, Stream::Init, 0));
        let all = [
            draw(1, Stream::Init, 0),
            draw(2, Stream::Init, 0),
            draw(1, Stream::Batch, 0),
            draw(1, Stream::Init, 1),
        ];
        let distinct: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    /// First output of the published generator for state 0.
    #[test]
    fn matches_the_published_sequence() {
        let mut rng = Rng { state: 0 };
        assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut rng = Rng::new(7, Stream::Init, 0);
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.01, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.01, "variance {variance}");
    }

    #[test]
    fn below_covers_its_range() {
        let mut rng = Rng::new(3, Stream::Batch, 9);
        let mut seen = [0u32; 7];
        (0..7000).for_each(|_| seen[rng.below(7)] += 1);
        assert!(
            seen.iter().all(|count| (800..1200).contains(count)),
            "{seen:?}"
        );
    }
}
