//! AdamW with clipping by the global norm.
//!
//! The order is PyTorch's: clip, update both moments, decay the weight, then step by the
//! bias-corrected ratio. Decay applies to the BitLinear matrices; norms never decay, embedding and
//! head only where asked.

use rayon::prelude::*;

use crate::model::Model;
use crate::ops::reduce::sum;
use crate::ops::simd::vectorized;
use crate::param::{Param, ParamKind};
use crate::tensor::{flat, flat_mut};

/// Elements that one job updates or sums. A constant, so that sums do not depend on threads.
const JOB_ELEMENTS: usize = 1 << 14;

/// Moments of one parameter, flat.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub m: Vec<f32>,
    /// Running mean of its square.
    pub v: Vec<f32>,
}

/// The optimiser: settings and the moments of every parameter, in file order.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// True if embedding and head decay as well.
    pub decay_embedding: bool,
    /// Moments by parameter.
    pub moments: Vec<Moments>,
}

/// Numbers of one update, the same for all elements of a parameter.
#[derive(Clone, Copy)]
struct Update {
    clip: f32,
    beta1: f32,
    beta2: f32,
    keep: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
}

impl AdamW {
    /// Zero moments for the parameters of `model`.
    #[must_use]
    pub fn new(model: &Model<f32>, betas: (f64, f64), eps: f64, decay_embedding: bool) -> Self {
        let zero = |param: &&Param<f32>| Moments {
            m: vec![0.0; param.value.len()],
            v: vec![0.0; param.value.len()],
        };
        Self {
            beta1: betas.0,
            beta2: betas.1,
            eps,
            decay_embedding,
            moments: model.params().iter().map(zero).collect(),
        }
    }

    /// Takes step `step` (from 0) at rate `lr`. `clip` is the factor of [`clip_factor`].
    pub fn step(&mut self, model: &mut Model<f32>, step: u64, lr: f64, decay: f64, clip: f64) {
        let correction = |beta: f64| 1.0 - beta.powf((step + 1) as f64);
        let update = Update {
            clip: clip as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            keep: 1.0,
            step_size: (lr / correction(self.beta1)) as f32,
            root_correction: (1.0 / correction(self.beta2).sqrt()) as f32,
            eps: self.eps as f32,
        };
        let decayed = (1.0 - lr * decay) as f32;
        for (param, moments) in model.params_mut().into_iter().zip(&mut self.moments) {
            let decays = match param.kind {
                ParamKind::Linear => true,
                ParamKind::Embedding => self.decay_embedding,
                ParamKind::Gain => false,
            };
            let keep = if decays { decayed } else { 1.0 };
            Update { keep, ..update }.apply(param, moments);
        }
    }
}

impl Update {
    fn apply(self, param: &mut Param<f32>, moments: &mut Moments) {
        let grads = flat(&param.grad).par_chunks(JOB_ELEMENTS);
        flat_mut(&mut param.value)
            .par_chunks_mut(JOB_ELEMENTS)
            .zip(grads)
            .zip(moments.m.par_chunks_mut(JOB_ELEMENTS))
            .zip(moments.v.par_chunks_mut(JOB_ELEMENTS))
            .for_each(|(((w, g), m), v)| self.apply_chunk(w, g, m, v));
    }

    fn apply_chunk(self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        vectorized!({
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * self.clip;
                *m = self.beta1 * *m + (1.0 - self.beta1) * g;
                *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
                let root = v.sqrt() * self.root_correction + self.eps;
                *w = *w * self.keep - self.step_size * *m / root;
            }
        });
    }
}

/// Euclidean norm of all gradients together.
#[must_use]
pub fn global_norm(model: &Model<f32>) -> f64 {
    let params = model.params();
    let sums: Vec<f64> = params
        .par_iter()
        .flat_map_iter(|param| flat(&param.grad).chunks(JOB_ELEMENTS))
        .map(sum_of_squares)
        .collect();
    sums.iter().sum::<f64>().sqrt()
}

/// In 16 lanes by index, folded like the sums over features.
fn sum_of_squares(values: &[f32]) -> f64 {
    vectorized!({
        let mut lanes = [0.0f64; 16];
        let (blocks, tail) = values.as_chunks::<16>();
        for block in blocks {
            for i in 0..16 {
                lanes[i] += f64::from(block[i]) * f64::from(block[i]);
            }
        }
        for (lane, g) in lanes.iter_mut().zip(tail) {
            *lane += f64::from(*g) * f64::from(*g);
        }
        sum(&lanes)
    })
}

/// What brings a gradient of this norm down to `limit`: `min(1, limit / (norm + 1e-6))`.
#[must_use]
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(kind: ParamKind) -> Param<f32> {
        let mut param = Param::new("w".into(), kind, 1, 2);
        flat_mut(&mut param.value).copy_from_slice(&[1.0, -2.0]);
        flat_mut(&mut param.grad).copy_from_slice(&[0.5, 0.25]);
        param
    }

    /// Two steps worked by hand from the definition, in f64.
    #[test]
    fn follows_the_definition() {
        let (beta1, beta2, eps, lr, decay) = (0.9, 0.95, 1e-8, 0.1, 0.2);
        let mut param = param(ParamKind::Linear);
        let mut moments = Moments {
            m: vec![0.0; 2],
            v: vec![0.0; 2],
        };
        let (mut w, mut m, mut v) = (1.0f64, 0.0, 0.0);
        for step in 1..=2 {
            m = beta1 * m + (1.0 - beta1) * 0.5;
            v = beta2 * v + (1.0 - beta2) * 0.25;
            let m_hat = m / (1.0 - f64::powi(beta1, step));
            let v_hat = v / (1.0 - f64::powi(beta2, step));
            w -= lr * decay * w;
            w -= lr * m_hat / (v_hat.sqrt() + eps);
            let update = Update {
                clip: 1.0,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                keep: (1.0 - lr * decay) as f32,
                step_size: (lr / (1.0 - f64::powi(beta1, step))) as f32,
                root_correction: (1.0 / (1.0 - f64::powi(beta2, step)).sqrt()) as f32,
                eps: eps as f32,
            };
            update.apply(&mut param, &mut moments);
            let now = f64::from(flat(&param.value)[0]);
            assert!((now - w).abs() < 1e-6, "step {step}: {now} {w}");
        }
    }

    #[test]
    fn clipping_leaves_small_gradients_alone() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) * 4.0 - 1.0).abs() < 1e-6);
    }

    /// With a gradient of zero only decay moves a parameter: matrices, and nothing else.
    #[test]
    fn only_matrices_decay() {
        let config = bitnet_formats::ModelConfig {
            vocab_size: 5,
            max_seq_len: 4,
            n_layers: 1,
            ..bitnet_formats::Preset::Nano.config()
        };
        for decay_embedding in [false, true] {
            let mut model = Model::<f32>::new(config, true);
            model.init(1);
            let before = model.clone();
            let mut adam = AdamW::new(&model, (0.9, 0.95), 1e-8, decay_embedding);
            adam.step(&mut model, 0, 0.1, 0.5, 1.0);
            for (old, new) in before.params().iter().zip(model.params()) {
                let decays = match old.kind {
                    ParamKind::Linear => true,
                    ParamKind::Embedding => decay_embedding,
                    ParamKind::Gain => false,
                };
                assert_eq!(old.value != new.value, decays, "{}", old.name);
            }
        }
    }
}
