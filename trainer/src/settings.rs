//! The settings of a run: a shape and a recipe.

use bitnet_formats::{ModelConfig, Preset, WeightScale};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::held_out::SplitKind;
use crate::ops::gemm::Precision;
use crate::ops::ramp::Quantizers;
use crate::schedule::{LrSchedule, ScheduleKind};

/// Everything that decides what a run computes, apart from the text.
///
/// Threads are not here: they change how fast a run is and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Shape and conventions; `vocab_size` follows the tokenizer.
    pub model: ModelConfig,
    /// Recipe.
    pub train: TrainSettings,
}

/// The recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// Optimiser steps.
    pub steps: u64,
    /// Sequences per micro-batch.
    pub batch: usize,
    /// Tokens per sequence.
    pub context: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Floor of the learning rate.
    pub min_lr: f64,
    /// Start of the second line of the two-stage schedule.
    pub stage2_lr: f64,
    /// Shape of the learning rate.
    pub schedule: ScheduleKind,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Decay of Adam's first moment.
    pub beta1: f64,
    /// Decay of Adam's second moment.
    pub beta2: f64,
    /// Adam's epsilon.
    pub eps: f64,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// True if embedding and head decay as well.
    pub decay_embedding: bool,
    /// Largest global norm of a gradient.
    pub clip: f64,
    /// Seed of weights, batches and samples.
    pub seed: u64,
    /// Share of the text that validates.
    pub val_fraction: f64,
    /// Which part of the text that is.
    #[serde(default)]
    pub split: SplitKind,
    /// In which order windows of the text are learned from.
    #[serde(default)]
    pub order: OrderKind,
    /// True if attention ends where a document begins.
    #[serde(default)]
    pub mask_documents: bool,
    /// How gradients enter the products of linear layers.
    #[serde(default)]
    pub precision: Precision,
    /// Steps between evaluations; 0 for one at the end.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 for one at the end.
    pub save_every: u64,
    /// A gradient norm of so many times the recent median is a spike; 0 for none.
    #[serde(default)]
    pub spike_factor: f64,
    /// Evaluations without a new best after which a run stops; 0 for never.
    #[serde(default)]
    pub patience: u64,
    /// True to keep the model of the best evaluation in a folder of its own.
    #[serde(default)]
    pub keep_best: bool,
    /// Models of earlier checkpoints that are kept.
    #[serde(default)]
    pub keep_last: u64,
    /// Whether activations are computed again in the backward pass, to save memory.
    #[serde(default)]
    pub checkpoint_activations: CheckpointActivations,
    /// Tokens of sample text at each evaluation; 0 for none.
    pub sample_tokens: usize,
    /// False trains the same network without quantisers, for comparison.
    pub quantize: bool,
    /// Share of the features of a layer's output that are left out; 0 for none.
    #[serde(default)]
    pub dropout: f64,
    /// First steps, in full precision.
    #[serde(default)]
    pub fp_steps: u64,
    /// Steps after those in which the ternary weights are turned up.
    #[serde(default)]
    pub ramp_steps: u64,
    /// True to write event files for TensorBoard.
    #[serde(default)]
    pub tensorboard: bool,
}

/// Order of the windows of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderKind {
    /// Each drawn anew, at any place.
    #[default]
    Random,
    /// Every window once an epoch, in an order that is drawn anew each epoch.
    Shuffled,
    /// The first micro-batch of `Random` again and again.
    Repeat,
}

/// Whether activations are computed again in the backward pass. The result is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointActivations {
    /// Where a run does not fit without.
    #[default]
    Auto,
    /// Yes: the least memory, a third more work.
    On,
    /// No: the least work.
    Off,
}

impl Settings {
    /// Shape and recipe of a preset. The learning rates are those of public runs of similar size.
    #[must_use]
    pub fn preset(preset: Preset) -> Self {
        let recipe = |steps, batch, context, lr| TrainSettings {
            steps,
            batch,
            context,
            accumulation: 1,
            lr,
            min_lr: 0.0,
            stage2_lr: 0.0,
            schedule: ScheduleKind::Cosine,
            warmup: 0,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            decay_embedding: false,
            clip: 1.0,
            seed: 1,
            val_fraction: 0.1,
            split: SplitKind::Auto,
            order: OrderKind::Random,
            mask_documents: true,
            precision: Precision::F32,
            eval_every: 0,
            save_every: 0,
            spike_factor: 10.0,
            patience: 0,
            keep_best: true,
            keep_last: 0,
            checkpoint_activations: CheckpointActivations::Auto,
            sample_tokens: 48,
            quantize: true,
            dropout: 0.0,
            fp_steps: 0,
            ramp_steps: 0,
            tensorboard: true,
        };
        let train = match preset {
            Preset::Nano => recipe(2_000, 8, 256, 3e-3),
            Preset::Tiny => recipe(700, 4, 256, 2e-3),
            Preset::Small => recipe(20_000, 8, 512, 1e-3),
            _ => recipe(100_000, 1, 2_048, 2e-4),
        };
        let model = ModelConfig {
            weight_scale: WeightScale::Divide,
            ..preset.config()
        };
        let mut settings = Self { model, train };
        settings.set_steps(settings.train.steps);
        settings.set_lr(settings.train.lr);
        settings
    }

    /// Sets the steps, and what follows: a twentieth of them to warm up (375 at most), ten
    /// evaluations and checkpoints.
    pub fn set_steps(&mut self, steps: u64) {
        let train = &mut self.train;
        train.steps = steps;
        train.warmup = (steps / 20).min(375);
        train.eval_every = steps.div_ceil(10);
        train.save_every = train.eval_every;
    }

    /// Sets the peak learning rate, and what follows: the floor is a tenth of it, the second stage
    /// begins at two thirds.
    pub fn set_lr(&mut self, lr: f64) {
        self.train.lr = lr;
        self.train.min_lr = lr / 10.0;
        self.train.stage2_lr = lr * 2.0 / 3.0;
    }

    /// Checks every setting, and settings against each other.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] naming the first that is wrong.
    pub fn validate(&self) -> Result<()> {
        let bad = |message: String| Err(Error::Usage(message));
        if let Err(problem) = self.model.validate() {
            return bad(format!("model.{problem}"));
        }
        self.train.validate()?;
        let (context, max_seq_len) = (self.train.context, self.model.max_seq_len);
        if context > max_seq_len {
            return bad(format!(
                "train.context is {context}, but model.max_seq_len is {max_seq_len}; lower the \
                 first (--context) or raise the second (--set model.max_seq_len={context})"
            ));
        }
        Ok(())
    }
}

impl TrainSettings {
    fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("train.steps", self.steps),
            ("train.batch", self.batch as u64),
            ("train.context", self.context as u64),
            ("train.accumulation", self.accumulation as u64),
        ];
        for (key, value) in at_least_one {
            check(key, value, value >= 1, "at least 1")?;
        }
        let positive = |x: f64| x > 0.0 && x.is_finite();
        for (key, value) in [("lr", self.lr), ("eps", self.eps), ("clip", self.clip)] {
            let key = format!("train.{key}");
            check(&key, value, positive(value), "above 0")?;
        }
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            let key = format!("train.{key}");
            check(&key, value, (0.0..1.0).contains(&value), "in [0, 1)")?;
        }
        let rates = [
            ("train.min_lr", self.min_lr, self.lr),
            ("train.stage2_lr", self.stage2_lr, self.lr),
            ("train.weight_decay", self.weight_decay, f64::MAX),
        ];
        for (key, value, max) in rates {
            let range = "at least 0, and no rate above train.lr";
            check(key, value, (0.0..=max).contains(&value), range)?;
        }
        let factor = self.spike_factor;
        let fits = factor == 0.0 || (factor > 1.0 && factor.is_finite());
        check("train.spike_factor", factor, fits, "0 or above 1")?;
        let dropout = self.dropout;
        check(
            "train.dropout",
            dropout,
            (0.0..1.0).contains(&dropout),
            "in [0, 1)",
        )?;
        self.validate_start()?;
        if !self.precision.is_supported() {
            return Err(Error::Usage(
                "train.precision is bf16, which takes a processor with AVX-512 BF16, and this one has \
                 none; use f32. A run that began with bf16 goes on here from its weights, by --init"
                    .into(),
            ));
        }
        let fraction = self.val_fraction;
        let fits = fraction > 0.0 && fraction < 1.0;
        check("train.val_fraction", fraction, fits, "between 0 and 1")
    }

    /// A run that never got to its quantisers would not have trained a ternary model.
    fn validate_start(&self) -> Result<()> {
        let (fp, ramp, steps) = (self.fp_steps, self.ramp_steps, self.steps);
        let bad = |message: String| Err(Error::Usage(message));
        if fp == 0 && ramp == 0 {
            return Ok(());
        }
        if !self.quantize {
            let message = "train.fp_steps and train.ramp_steps lead to quantisers, but train.quantize \
                           is false; leave out one or the other";
            return bad(message.into());
        }
        match fp.checked_add(ramp) {
            Some(before) if before < steps => Ok(()),
            _ => bad(format!(
                "train.fp_steps is {fp} and train.ramp_steps {ramp}; together they must be below \
                 train.steps, {steps}, for the model to be trained as it will be used"
            )),
        }
    }

    /// Which quantisers step `step`, from 0, is taken with.
    #[must_use]
    pub fn quantizers(&self, step: u64) -> Quantizers {
        match self.quantize {
            true => Quantizers::of_step(step, self.fp_steps, self.ramp_steps),
            false => Quantizers::Off,
        }
    }

    /// How far the quantisers are on in a step; `None` where they are, and in a run without any.
    #[must_use]
    pub fn lambda(&self, step: u64) -> Option<f64> {
        let lambda = self.quantizers(step).lambda();
        (self.quantize && lambda < 1.0).then(|| f64::from(lambda))
    }

    /// Learning rate and weight decay by step.
    #[must_use]
    pub const fn lr_schedule(&self) -> LrSchedule {
        LrSchedule {
            kind: self.schedule,
            lr: self.lr,
            min_lr: self.min_lr,
            stage2_lr: self.stage2_lr,
            warmup: self.warmup,
            steps: self.steps,
            weight_decay: self.weight_decay,
        }
    }

    /// Tokens that one optimiser step learns from.
    #[must_use]
    pub const fn tokens_per_step(&self) -> usize {
        self.batch * self.context * self.accumulation
    }
}

fn check(key: &str, value: impl std::fmt::Display, fits: bool, range: &str) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{key} is {value}; it must be {range}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for preset in Preset::ALL {
            Settings::preset(preset)
                .validate()
                .unwrap_or_else(|e| panic!("{}: {e}", preset.name()));
        }
    }

    #[test]
    fn a_context_beyond_the_model_names_both_settings() {
        let mut settings = Settings::preset(Preset::Nano);
        settings.train.context = 300;
        let message = settings.validate().unwrap_err().to_string();
        assert!(message.contains("train.context is 300"), "{message}");
        assert!(message.contains("model.max_seq_len is 256"), "{message}");
    }

    #[test]
    fn each_setting_has_a_range() {
        type Change = fn(&mut TrainSettings);
        let cases: [(&str, Change); 13] = [
            ("train.steps", |t| t.steps = 0),
            ("train.batch", |t| t.batch = 0),
            ("train.lr", |t| t.lr = f64::NAN),
            ("train.clip", |t| t.clip = 0.0),
            ("train.beta2", |t| t.beta2 = 1.0),
            ("train.min_lr", |t| t.min_lr = -1.0),
            ("train.stage2_lr", |t| t.stage2_lr = 9.0),
            ("train.val_fraction", |t| t.val_fraction = 1.0),
            ("train.spike_factor", |t| t.spike_factor = 0.5),
            ("train.dropout", |t| t.dropout = 1.0),
            ("train.fp_steps", |t| t.fp_steps = t.steps),
            ("train.fp_steps", |t| t.ramp_steps = u64::MAX),
            ("train.fp_steps", |t| (t.fp_steps, t.quantize) = (1, false)),
        ];
        for (key, change) in cases {
            let mut settings = Settings::preset(Preset::Nano);
            change(&mut settings.train);
            let error = settings.validate().unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().starts_with(key), "{key}: {error}");
        }
    }
}
