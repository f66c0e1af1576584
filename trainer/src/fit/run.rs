//! A run: steps, evaluations, checkpoints.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::checkpoint::{BEST, RunFolder, copy_of_step};
use crate::data::{Input, TokenDataset};
use crate::error::{Error, Result};
use crate::eval::{Evaluation, evaluate};
use crate::fit::prompt::prompt;
use crate::fit::start::{Saved, check_export, check_start, resumed, saved_run, trainer};
use crate::fit::{FitOptions, Outcome};
use crate::history::{best, norm_limit};
use crate::init::Masters;
use crate::memory::MemoryEstimate;
use crate::metrics::{MetricsLog, Record};
use crate::plot::loss_svg;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::sample::{Prompt, SampleOptions, sample};
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;
use crate::trainer::{StepMetrics, Trainer};

/// A run with everything it needs.
pub(super) struct Run<'a> {
    ranks: Arc<Ranks>,
    trainer: Trainer,
    tokenizer: Tokenizer,
    data: TokenDataset,
    folder: RunFolder,
    metrics: MetricsLog,
    fingerprint: String,
    prompt: Prompt,
    pub(super) memory: MemoryEstimate,
    pub(super) progress: &'a mut Progress,
}

impl<'a> Run<'a> {
    pub(super) fn fresh(
        ranks: &Arc<Ranks>,
        options: &FitOptions,
        (settings, tokenizer): (Settings, Tokenizer),
        init: Option<&Masters>,
        input: &Input,
        progress: &'a mut Progress,
    ) -> Result<Self> {
        let folder = RunFolder::new(&options.out);
        let data = TokenDataset::new(&tokenizer, input, &settings.train)?;
        check_export(options, &settings)?;
        let memory = check_start(ranks, options, (0, &settings), input, &data)?;
        let trainer = trainer(&settings, init, data.train.end_of_text, memory.keep)?;
        let trainer = trainer.shared_by(Arc::clone(ranks));
        let inherited = init.map(Masters::inherited).transpose()?;
        ranks.wait();
        folder.clear()?;
        folder.save_description(&settings, &tokenizer)?;
        if let Some(inherited) = inherited {
            inherited.save(&folder)?;
        }
        let run = Self::new(
            ranks, trainer, tokenizer, data, folder, input, memory, progress,
        )?;
        // Shows now, and not after an hour, that the folder can hold a checkpoint.
        run.save()?;
        Ok(run)
    }

    pub(super) fn resume(
        ranks: &Arc<Ranks>,
        options: &FitOptions,
        steps: Option<u64>,
        input: &Input,
        progress: &'a mut Progress,
    ) -> Result<Self> {
        let Saved {
            run,
            tokenizer,
            data,
            memory,
        } = saved_run(ranks, options, steps, input)?;
        let trainer = resumed(run, &data, &memory)?.shared_by(Arc::clone(ranks));
        ranks.wait();
        let folder = RunFolder::new(&options.out);
        folder.save_settings(trainer.settings())?;
        // An interrupted save may have left the model of an earlier step.
        folder.save_model(trainer.model())?;
        Self::new(
            ranks, trainer, tokenizer, data, folder, input, memory, progress,
        )
    }

    #[expect(clippy::too_many_arguments, reason = "a field each")]
    fn new(
        ranks: &Arc<Ranks>,
        trainer: Trainer,
        tokenizer: Tokenizer,
        data: TokenDataset,
        folder: RunFolder,
        input: &Input,
        memory: MemoryEstimate,
        progress: &'a mut Progress,
    ) -> Result<Self> {
        let mut metrics = MetricsLog::open(&folder.file("metrics.jsonl"), trainer.step())?;
        if trainer.settings().train.tensorboard {
            metrics = metrics.with_events(folder.path(), trainer.step())?;
        }
        let prompt = prompt(&tokenizer, &data.validation)?;
        progress.begin(trainer.settings(), trainer.step(), &data, input.tally());
        Ok(Self {
            ranks: Arc::clone(ranks),
            trainer,
            tokenizer,
            data,
            folder,
            metrics,
            fingerprint: input.fingerprint(),
            prompt,
            memory,
            progress,
        })
    }

    pub(super) fn train(&mut self, stop_at: Option<u64>, stop: &AtomicBool) -> Result<Outcome> {
        let train = self.trainer.settings().train.clone();
        let step = self.trainer.step();
        if stop_at == Some(step) && step < train.steps {
            self.progress.end();
            return Ok(Outcome::Stopped { step });
        }
        let mut last_evaluation = None;
        while self.trainer.step() < train.steps {
            let begun = Instant::now();
            let quantized = train.lambda(self.trainer.step()).is_none();
            let limit = norm_limit(self.metrics.records(), train.spike_factor, quantized);
            let limit = self.ranks.share(limit);
            let step = self
                .trainer
                .take_step(&self.data, limit, self.folder.path())?;
            let seconds = begun.elapsed().as_secs_f64();
            let mut record = record(&step, train.tokens_per_step() as f64 / seconds);
            if is_due(step.step, train.eval_every, train.steps) {
                last_evaluation = Some(self.evaluate(&mut record)?);
            }
            self.progress.step(&record, seconds);
            let evaluated = record.val_loss.is_some();
            self.metrics.push(record)?;
            if evaluated {
                self.draw()?;
                self.keep_best()?;
            }
            let early = evaluated.then(|| self.early_stop()).flatten();
            let stopping = stop.load(Ordering::Relaxed) || stop_at == Some(step.step);
            let stopping = self.ranks.any(stopping || early.is_some());
            if stopping || is_due(step.step, train.save_every, train.steps) {
                self.save()?;
                self.keep_last()?;
            }
            if stopping && step.step < train.steps {
                self.progress.end();
                return Ok(early.unwrap_or(Outcome::Stopped { step: step.step }));
            }
        }
        self.progress.end();
        Ok(Outcome::Finished(last_evaluation))
    }

    /// Keeps a copy of the model if the evaluation just made is the best so far.
    fn keep_best(&self) -> Result<()> {
        let is_best = matches!(best(self.metrics.records()), Some((_, 0)));
        match is_best && self.trainer.settings().train.keep_best {
            true => self.save_copy(BEST),
            false => Ok(()),
        }
    }

    fn keep_last(&self) -> Result<()> {
        let keep = self.trainer.settings().train.keep_last;
        if keep > 0 {
            self.save_copy(&copy_of_step(self.trainer.step()))?;
            self.folder.drop_copies(keep)?;
        }
        Ok(())
    }

    fn save_copy(&self, name: &str) -> Result<()> {
        let (settings, model) = (self.trainer.settings(), self.trainer.model());
        self.folder
            .save_copy(name, settings, &self.tokenizer, model)
    }

    /// How the run ends if so many evaluations brought no new best.
    fn early_stop(&self) -> Option<Outcome> {
        let patience = self.trainer.settings().train.patience;
        let (record, after) = best(self.metrics.records())?;
        (patience > 0 && after >= patience).then_some(Outcome::EarlyStopped {
            step: self.trainer.step(),
            best_step: record.step,
            best_loss: record.val_loss?,
        })
    }

    /// The best model where it is kept, else the last.
    pub(super) fn model_to_export(&self) -> PathBuf {
        let best = self.folder.file(BEST);
        match best.join("model.safetensors").exists() {
            true => best,
            false => self.folder.path().into(),
        }
    }

    /// Measures the validation text and writes a sample, into the record.
    fn evaluate(&mut self, record: &mut Record) -> Result<Evaluation> {
        let model = self.trainer.model();
        let train = &self.trainer.settings().train;
        // The text and the context are checked by now: what can fail is the arithmetic.
        let found = evaluate(model, &self.data.validation, train.context).map_err(|e| {
            Error::NonFinite {
                step: record.step,
                what: format!("validation: {e}"),
                out: self.folder.path().into(),
            }
        })?;
        record.val_loss = Some(found.nats_per_token);
        record.val_bits_per_byte = Some(found.bits_per_byte);
        record.zero_share = record.lambda.is_none().then(|| model.zero_share());
        record.tensors = Some(model.tensor_records());
        if train.sample_tokens > 0 {
            let options = SampleOptions {
                max_tokens: train.sample_tokens,
                temperature: 0.8,
                top_k: 40,
                seed: train.seed,
            };
            let text = sample(model, &self.tokenizer, &self.prompt, &options)?;
            record.sample = Some(format!("{}{text}", self.prompt.text));
        }
        Ok(found)
    }

    fn draw(&self) -> Result<()> {
        let model = &self.trainer.settings().model;
        let params = model.parameter_count() as f64 / 1e6;
        let title = format!(
            "{params:.2} M parameters, {} layers of {}, {} ids",
            model.n_layers, model.hidden_size, model.vocab_size
        );
        let svg = loss_svg(self.metrics.records(), &title);
        crate::files::write_bytes(&self.folder.file("loss.svg"), svg.as_bytes())
    }

    fn save(&self) -> Result<()> {
        let state = self.trainer.state(&self.fingerprint);
        self.folder
            .save(&state, self.trainer.model(), self.trainer.optimizer())
    }
}

fn is_due(step: u64, every: u64, steps: u64) -> bool {
    step == steps || (every > 0 && step.is_multiple_of(every))
}

fn record(step: &StepMetrics, tokens_per_s: f64) -> Record {
    Record {
        step: step.step,
        loss: step.loss,
        lr: step.lr,
        grad_norm: step.grad_norm,
        tokens_per_s: tokens_per_s.round(),
        skipped: step.skipped,
        flips: step.flips,
        lambda: step.lambda,
        ..Record::default()
    }
}
