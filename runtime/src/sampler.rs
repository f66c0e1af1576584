//! Choosing the next token.

use crate::math::exp;
use crate::session::Want;

/// How the next token is chosen.
///
/// The order is fixed: sort by logit (ties to the lower id), keep `top_k`, probabilities at
/// `temperature`, keep the smallest head whose mass reaches `top_p`, drop what is below `min_p`
/// times the best, draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 chooses the best token always.
    pub temperature: f32,
    /// Number of best tokens that stay; 0 for all.
    pub top_k: usize,
    /// Mass of the best tokens that stay; 1 for all.
    pub top_p: f32,
    /// Least probability relative to the best token's; 0 for all.
    pub min_p: f32,
    /// Seed of the generator.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

/// A token and its logit, later its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub id: u32,
    /// Logit, or unnormalised probability.
    pub weight: f32,
}

/// Draws tokens. The same seed and logits give the same tokens on every machine.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    state: u64,
}

impl Sampler {
    /// A sampler at the start of its sequence.
    #[must_use]
    pub const fn new(config: SamplerConfig) -> Self {
        Self {
            config,
            state: config.seed,
        }
    }

    /// The logits it needs.
    #[must_use]
    pub fn wants(&self) -> Want {
        match self.is_greedy() {
            true => Want::Best,
            false => Want::Last,
        }
    }

    fn is_greedy(&self) -> bool {
        self.config.temperature <= 0.0
    }

    /// Chooses a token. `work` is lent, one candidate per logit; greedy choice does not use it.
    ///
    /// # Panics
    ///
    /// If `logits` is empty, or `work` is shorter and the temperature is not 0.
    pub fn sample(&mut self, logits: &[f32], work: &mut [Candidate]) -> u32 {
        if self.is_greedy() {
            return argmax(logits);
        }
        let work = &mut work[..logits.len()];
        for (id, (candidate, logit)) in work.iter_mut().zip(logits).enumerate() {
            *candidate = Candidate {
                id: id as u32,
                weight: *logit,
            };
        }
        let kept = self.keep(work);
        self.draw(kept)
    }

    /// Reduces the candidates to those that may be drawn, best first, with their weights.
    fn keep<'a>(&self, work: &'a mut [Candidate]) -> &'a [Candidate] {
        let best =
            |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id));
        let k = match self.config.top_k {
            0 => work.len(),
            k => k.min(work.len()),
        };
        if k < work.len() {
            work.select_nth_unstable_by(k - 1, best);
        }
        let kept = &mut work[..k];
        kept.sort_unstable_by(best);
        let max = kept[0].weight;
        let scale = 1.0 / self.config.temperature;
        kept.iter_mut()
            .for_each(|c| c.weight = exp((c.weight - max) * scale));
        let n = self.top_p_len(kept).min(self.min_p_len(kept));
        &kept[..n.max(1)]
    }

    fn top_p_len(&self, kept: &[Candidate]) -> usize {
        if self.config.top_p >= 1.0 {
            return kept.len();
        }
        let goal = self.config.top_p * total(kept);
        let mut mass = 0.0;
        let reaches = |c: &Candidate| {
            mass += c.weight;
            mass >= goal
        };
        kept.iter()
            .position(reaches)
            .map_or(kept.len(), |last| last + 1)
    }

    fn min_p_len(&self, kept: &[Candidate]) -> usize {
        let least = self.config.min_p * kept[0].weight;
        kept.iter().take_while(|c| c.weight >= least).count()
    }

    fn draw(&mut self, kept: &[Candidate]) -> u32 {
        let goal = self.uniform() * total(kept);
        let mut mass = 0.0;
        let covers = |c: &&Candidate| {
            mass += c.weight;
            mass > goal
        };
        kept.iter().find(covers).unwrap_or(&kept[kept.len() - 1]).id
    }

    /// A number in [0, 1) from the upper 24 bits of SplitMix64 (Steele, Lea, Flood 2014).
    fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0
    }
}

/// Sum of the weights, in order.
fn total(kept: &[Candidate]) -> f32 {
    kept.iter().fold(0.0, |sum, c| sum + c.weight)
}

/// The id of the largest logit; the lowest where several are equal.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    assert!(!logits.is_empty(), "no logits");
    let mut best = 0;
    for (i, chunk) in logits.chunks(ARGMAX_CHUNK).enumerate() {
        // Nearly always false, and found out for many logits at once.
        let max = logits[best];
        if !chunk
            .iter()
            .fold(false, |found, logit| found | (*logit > max))
        {
            continue;
        }
        for (id, logit) in (i * ARGMAX_CHUNK..).zip(chunk) {
            if *logit > logits[best] {
                best = id;
            }
        }
    }
    best as u32
}

/// Logits that are compared with the best so far together.
const ARGMAX_CHUNK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, -1.0, 0.0];

    fn draws(config: SamplerConfig, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(config);
        let mut work = [Candidate::default(); 6];
        (0..n).map(|_| sampler.sample(&LOGITS, &mut work)).collect()
    }

    fn distinct(config: SamplerConfig) -> Vec<u32> {
        let mut ids = draws(config, 2_000);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    const WARM: SamplerConfig = SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 3,
    };

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits() {
        assert_eq!(draws(SamplerConfig::default(), 3), [1, 1, 1]);
        assert_eq!(draws(SamplerConfig { top_k: 1, ..WARM }, 3), [1, 1, 1]);
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        assert_eq!(distinct(WARM), [0, 1, 2, 3, 4, 5]);
        assert_eq!(distinct(SamplerConfig { top_k: 3, ..WARM }), [1, 2, 3]);
        // Masses: 1 and 3 have 0.388 each, 2 has 0.143.
        assert_eq!(
            distinct(SamplerConfig {
                top_p: 0.38,
                ..WARM
            }),
            [1]
        );
        assert_eq!(distinct(SamplerConfig { top_p: 0.7, ..WARM }), [1, 3]);
        assert_eq!(distinct(SamplerConfig { top_p: 0.8, ..WARM }), [1, 2, 3]);
        assert_eq!(distinct(SamplerConfig { min_p: 0.3, ..WARM }), [1, 2, 3]);
        assert_eq!(distinct(SamplerConfig { min_p: 1.0, ..WARM }), [1, 3]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let ids = draws(WARM, 20_000);
        let sum: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (id, logit) in LOGITS.iter().enumerate() {
            let share = ids.iter().filter(|i| **i == id as u32).count() as f64 / 20_000.0;
            assert!(
                (share - f64::from(*logit).exp() / sum).abs() < 0.01,
                "id {id}: {share}"
            );
        }
    }

    #[test]
    fn argmax_takes_the_first_of_the_largest() {
        let mut logits = vec![-1.0f32; 300];
        assert_eq!(argmax(&logits), 0);
        for id in [299, 200, 130, 64, 63] {
            logits[id] = 2.0;
            assert_eq!(argmax(&logits), id as u32);
        }
        logits[128] = 3.0;
        assert_eq!(argmax(&logits), 128);
        logits[1] = f32::NAN;
        assert_eq!(argmax(&logits), 128);
        assert_eq!(argmax(&[f32::NEG_INFINITY, -1e30]), 1);
    }

    /// The generator and the draw are part of the contract: the same text everywhere.
    #[test]
    fn a_seed_gives_a_known_sequence() {
        assert_eq!(draws(WARM, 12), draws(WARM, 12));
        assert_ne!(
            draws(WARM, 64),
            draws(SamplerConfig { seed: 4, ..WARM }, 64)
        );
        let mut sampler = Sampler::new(SamplerConfig { seed: 0, ..WARM });
        assert_eq!(sampler.uniform(), 0xe220a8 as f32 / 16_777_216.0);
    }
}
