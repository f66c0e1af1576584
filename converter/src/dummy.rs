//! A model of random weights, for benchmarks on machines without a checkpoint.

use bitnet_formats::{Dtype, ModelConfig, TensorRole, TensorSpec, WeightScale};

use crate::error::ConvertError;
use crate::groups::{CodeRows, TernaryGroups};
use crate::rows::WeightRows;
use crate::source::Source;

/// Standard deviation of the embedding, that of a freshly initialised model.
const EMBEDDING_STD: f32 = 0.02;
/// Share of zeros among the codes: 102 of 256.
const ZERO_BYTES: u8 = 102;

/// Random weights of a shape: codes with about 40 % zeros, and norm gains of one.
///
/// Every row has a generator of its own, so that rows can be read in any order.
#[derive(Clone, Copy, Debug)]
pub struct DummySource {
    config: ModelConfig,
    seed: u64,
}

impl DummySource {
    /// Weights for this shape from this seed.
    #[must_use]
    pub const fn new(config: ModelConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// Seed of a tensor. The halves of `kv_b_proj` share theirs: they are one matrix.
    fn tensor_seed(&self, spec: &TensorSpec) -> u64 {
        let role = match spec.role {
            TensorRole::KvBValue => TensorRole::KvBKey,
            role => role,
        };
        let layer = spec.layer.map_or(0, |layer| layer as u64 + 1);
        mix(mix(self.seed ^ mix(layer)) ^ role as u64)
    }

    /// Width of the matrix in the checkpoint this would have been.
    fn source_cols(&self, spec: &TensorSpec) -> usize {
        match spec.role {
            TensorRole::KvBKey => self.config.shape(TensorRole::KvBValue).1,
            _ => spec.cols,
        }
    }
}

impl Source for DummySource {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn ternary(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        let cols = self.source_cols(spec);
        let codes = RandomCodes {
            seed: self.tensor_seed(spec),
            cols,
        };
        let scale = unit_gain_scale(self.config.weight_scale, cols);
        Ok(TernaryGroups::new(
            Box::new(codes),
            scale,
            &self.config,
            spec,
        ))
    }

    fn rows(&self, spec: &TensorSpec) -> Result<Box<dyn WeightRows + '_>, ConvertError> {
        match spec.role {
            TensorRole::Embedding | TensorRole::Head => Ok(Box::new(RandomRows {
                seed: self.tensor_seed(spec),
                cols: spec.cols,
            })),
            _ => Ok(Box::new(Ones)),
        }
    }
}

/// The scale at which a product keeps the size of its input: six tenths of the codes are not zero.
fn unit_gain_scale(convention: WeightScale, cols: usize) -> f32 {
    let reciprocal = (0.6 * cols as f32).sqrt();
    match convention {
        WeightScale::Multiply => 1.0 / reciprocal,
        WeightScale::Divide => reciprocal,
    }
}

struct RandomCodes {
    seed: u64,
    cols: usize,
}

impl CodeRows for RandomCodes {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        for (i, row) in out.chunks_exact_mut(self.cols).enumerate() {
            let mut random = SplitMix::of_row(self.seed, first + i);
            for part in row.chunks_mut(8) {
                let bytes = random.next().to_le_bytes();
                part.iter_mut().zip(bytes).for_each(|(c, b)| *c = code(b));
            }
        }
        Ok(())
    }
}

/// The code of a random byte: zero below [`ZERO_BYTES`], then half -1, half 1.
const fn code(byte: u8) -> i8 {
    const MIDDLE: u8 = ZERO_BYTES + (u8::MAX - ZERO_BYTES).div_ceil(2);
    match byte {
        0..ZERO_BYTES => 0,
        ZERO_BYTES..MIDDLE => -1,
        MIDDLE..=u8::MAX => 1,
    }
}

struct RandomRows {
    seed: u64,
    cols: usize,
}

impl WeightRows for RandomRows {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn read(&mut self, first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
        for (i, row) in out.chunks_exact_mut(self.cols).enumerate() {
            let mut random = SplitMix::of_row(self.seed, first + i);
            for part in row.chunks_mut(4) {
                let bits = random.next().to_le_bytes();
                let halves = bits.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
                part.iter_mut()
                    .zip(halves)
                    .for_each(|(w, h)| *w = uniform(h));
            }
        }
        Ok(())
    }
}

/// A uniform value around zero with standard deviation [`EMBEDDING_STD`].
fn uniform(half: u16) -> f32 {
    let around_zero = (f32::from(half) + 0.5) / 32_768.0 - 1.0;
    around_zero * EMBEDDING_STD * 3f32.sqrt()
}

/// A norm that changes nothing.
struct Ones;

impl WeightRows for Ones {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn read(&mut self, _first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
        out.fill(1.0);
        Ok(())
    }
}

/// The splitmix64 generator (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
struct SplitMix(u64);

impl SplitMix {
    fn of_row(seed: u64, row: usize) -> Self {
        Self(mix(seed ^ mix(row as u64)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_in_the_stated_shares() {
        let count = |wanted: i8| (0..=u8::MAX).filter(|b| code(*b) == wanted).count();
        assert_eq!([count(0), count(-1), count(1)], [102, 77, 77]);
    }

    #[test]
    fn rows_do_not_depend_on_the_order_of_reading() {
        let mut codes = RandomCodes { seed: 3, cols: 13 };
        let (mut whole, mut part) = ([9; 5 * 13], [9; 2 * 13]);
        codes.read(0, &mut whole).unwrap();
        codes.read(3, &mut part).unwrap();
        assert_eq!(whole[3 * 13..], part);
        assert_ne!(whole[..13], whole[13..26]);
    }

    #[test]
    fn the_embedding_has_the_stated_spread() {
        let mut rows = RandomRows {
            seed: 5,
            cols: 1000,
        };
        let mut values = vec![0.0; 50_000];
        rows.read(0, &mut values).unwrap();
        let square: f32 = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        let mean: f32 = values.iter().sum::<f32>() / values.len() as f32;
        assert!(
            (square.sqrt() - EMBEDDING_STD).abs() < 2e-4,
            "{}",
            square.sqrt()
        );
        assert!(mean.abs() < 3e-4, "{mean}");
    }
}
