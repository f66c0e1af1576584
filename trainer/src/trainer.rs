//! One optimiser step after the other.

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::RunState;
use crate::data::TokenDataset;
use crate::error::{Error, Result};
use crate::memory::heads_at_once;
use crate::model::gradient::Worker;
use crate::model::{Keep, Model};
use crate::ops::dropout::Dropout;
use crate::optim::{AdamW, clip_factor, global_norm};
use crate::ranks::Ranks;
use crate::settings::Settings;

/// A run in progress: model, optimiser, step and buffers.
///
/// Nothing is allocated per step but the ids of its batch and the lists of jobs.
#[derive(Debug)]
pub struct Trainer {
    settings: Settings,
    model: Model<f32>,
    adam: AdamW,
    workers: Vec<Worker<f32>>,
    step: u64,
    ranks: Arc<Ranks>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Steps taken, this one included.
    pub step: u64,
    /// Mean loss of its batch before the update, nats per token.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// True if that was above the limit, or there was nothing to predict: nothing was updated.
    pub skipped: bool,
    /// Share of the ternary weights that changed; 0 until the quantisers are on.
    pub flips: f64,
    /// How far the quantisers were on, below 1; `None` once they are.
    pub lambda: Option<f64>,
}

impl Trainer {
    /// A run at step 0 with fresh weights. Texts do not see each other across `end_of_text`; what
    /// sequences `keep` for their backward pass changes no bit.
    #[must_use]
    pub fn new(settings: Settings, end_of_text: Option<u32>, keep: Keep) -> Self {
        let mut model = Model::new(settings.model, settings.train.quantize);
        model.init(settings.train.seed);
        Self::starting_from(settings, end_of_text, keep, model)
    }

    /// A run at step 0 with these weights, else as [`Trainer::new`].
    #[must_use]
    pub fn starting_from(
        settings: Settings,
        end_of_text: Option<u32>,
        keep: Keep,
        model: Model<f32>,
    ) -> Self {
        let train = &settings.train;
        let betas = (train.beta1, train.beta2);
        let adam = AdamW::new(&model, betas, train.eps, train.decay_embedding);
        Self::resume(settings, end_of_text, keep, model, adam, 0)
    }

    /// A run that goes on from `step`, else as [`Trainer::new`].
    #[must_use]
    pub fn resume(
        settings: Settings,
        end_of_text: Option<u32>,
        keep: Keep,
        mut model: Model<f32>,
        adam: AdamW,
        step: u64,
    ) -> Self {
        model.set_precision(settings.train.precision);
        let (config, train) = (&settings.model, &settings.train);
        let heads = heads_at_once(config, rayon::current_num_threads(), train.batch);
        let worker = |_| {
            Worker::keeping(keep, config, train.context)
                .divided_by(end_of_text)
                .with_heads(heads)
        };
        let workers = (0..train.batch).map(worker).collect();
        Self {
            settings,
            model,
            adam,
            workers,
            step,
            ranks: Arc::new(Ranks::alone()),
        }
    }

    /// Shares every step's micro-batches with other processes, which must take the same steps. The
    /// result is the same.
    #[must_use]
    pub fn shared_by(mut self, ranks: Arc<Ranks>) -> Self {
        self.ranks = ranks;
        self
    }

    /// The settings of the run.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The model as it stands.
    #[must_use]
    pub const fn model(&self) -> &Model<f32> {
        &self.model
    }

    /// The optimiser as it stands.
    #[must_use]
    pub const fn optimizer(&self) -> &AdamW {
        &self.adam
    }

    /// Steps taken.
    #[must_use]
    pub const fn step(&self) -> u64 {
        self.step
    }

    /// What a checkpoint says about this run.
    #[must_use]
    pub fn state(&self, text_fingerprint: &str) -> RunState {
        RunState {
            step: self.step,
            settings: self.settings.clone(),
            text_fingerprint: text_fingerprint.into(),
        }
    }

    /// Takes one step on the current rayon pool: gradients over all micro-batches, clip, update. Where
    /// the norm of the gradient is above `norm_limit`, or the step's windows hold nothing to predict,
    /// nothing is updated and the step is over.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] before anything is updated, if an activation, the loss or the gradient
    /// is infinite or NaN. `out` is the folder the message names.
    pub fn take_step(
        &mut self,
        data: &TokenDataset,
        norm_limit: Option<f64>,
        out: &Path,
    ) -> Result<StepMetrics> {
        let step = self.step;
        let non_finite = |what: String| Error::NonFinite {
            step: step + 1,
            what,
            out: out.into(),
        };
        let train = &self.settings.train;
        let (schedule, clip, lambda) = (train.lr_schedule(), train.clip, train.lambda(step));
        let (lr, decay) = (schedule.lr(step), schedule.weight_decay(step));
        self.model.set_quantizers(train.quantizers(step));
        let targets = data.counted_targets(train, step)?;
        let loss = self.gradient(data, targets, &non_finite)?;
        let grad_norm = global_norm(&self.model);
        if !grad_norm.is_finite() {
            let what = format!("the norm of the gradient is {grad_norm}");
            return Err(non_finite(what));
        }
        let skipped = targets == 0 || norm_limit.is_some_and(|limit| grad_norm > limit);
        if !skipped {
            let clip = clip_factor(grad_norm, clip);
            self.adam.step(&mut self.model, step, lr, decay, clip);
            self.model.refresh();
        }
        self.step = step + 1;
        Ok(StepMetrics {
            step: self.step,
            loss,
            lr,
            grad_norm,
            skipped,
            flips: match skipped {
                true => 0.0,
                false => self.model.flip_share(),
            },
            lambda,
        })
    }

    /// Gradient of the mean loss over all tokens the step predicts, whichever micro-batch they are in;
    /// returns that mean.
    fn gradient(
        &mut self,
        data: &TokenDataset,
        targets: usize,
        non_finite: &dyn Fn(String) -> Error,
    ) -> Result<f64> {
        let train = &self.settings.train;
        let tokens = targets.max(1) as f64;
        let weight = (1.0 / tokens) as f32;
        let (n, rank) = (self.ranks.count() as u64, self.ranks.rank() as u64);
        let rounds = self.ranks.rounds(train.accumulation)?;
        let first = self.step * train.accumulation as u64;
        let mut losses = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let index = first + round as u64 * n + rank;
            let batch = data.batch(train, index)?;
            for (i, worker) in (0..).zip(&mut self.workers) {
                let sequence = index * train.batch as u64 + i;
                worker.set_dropout(Dropout::new(train.dropout, train.seed, sequence));
            }
            self.ranks.begin_round(round, &mut self.model);
            let loss = self
                .model
                .accumulate_gradient(&batch, weight, &mut self.workers)
                .map_err(|e| non_finite(e.to_string()))?;
            losses.push(loss);
            self.ranks.end_round(round + 1 == rounds, &mut self.model);
        }
        let sum: f64 = self.ranks.losses(&losses).iter().sum();
        let loss = sum / tokens;
        if !loss.is_finite() {
            return Err(non_finite(format!("the loss is {loss}")));
        }
        Ok(loss)
    }
}
