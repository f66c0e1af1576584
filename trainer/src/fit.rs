//! `fit`: a run from its text to its last checkpoint.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::ThreadPool;

use crate::chat::ChatEncoder;
use crate::checkpoint::{BEST, RunFolder, RunState, SavedRun, copy_of_step};
use crate::config_json;
use crate::corpus::DataOptions;
use crate::data::{EncodedText, Input, TokenDataset, check_tokenizer};
use crate::error::{Error, Result};
use crate::eval::{Evaluation, evaluate};
use crate::export;
use crate::history::{best, norm_limit};
use crate::init::Masters;
use crate::memory::{MemoryEstimate, PROMPT_TOKENS, Surroundings};
use crate::metrics::{MetricsLog, Record};
use crate::model::{Keep, Model};
use crate::plot::loss_svg;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::sample::{Prompt, SampleOptions, sample};
use crate::settings::Settings;
use crate::tokenizer::{Parts, Tokenizer, TokenizerKind};
use crate::trainer::{StepMetrics, Trainer};

/// The tokenizer of a run on text that names none.
pub const DEFAULT_TOKENIZER: TokenizerKind = TokenizerKind::Bpe(2048);
/// Validation tokens in which a prompt for samples is looked for.
const PROMPT_SEARCH_TOKENS: usize = 1024;

/// What to train on, and where to.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// What to learn from.
    pub data: DataOptions,
    /// Folder of the run.
    pub out: PathBuf,
    /// A new run or an old one.
    pub start: Start,
    /// Threads; the result is the same for any number.
    pub threads: usize,
    /// Stop after this step, as an interrupt would; 0 to write the first checkpoint and no more.
    pub stop_at: Option<u64>,
    /// Where the finished model goes as a `.btn` file.
    pub export: Option<PathBuf>,
    /// Start even if the run seems not to fit in memory.
    pub ignore_memory: bool,
}

/// How a run begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// At step 0.
    Fresh {
        /// Shape and recipe; `vocab_size` follows the tokenizer.
        settings: Box<Settings>,
        /// Which tokenizer; `None` for that of prepared tokens or of `init`, else for
        /// [`DEFAULT_TOKENIZER`].
        tokenizer: Option<TokenizerKind>,
        /// Weights to start from; `None` for fresh ones.
        init: Option<Arc<Masters>>,
        /// Replace a run that is there.
        overwrite: bool,
    },
    /// From the checkpoint in the folder, with its settings.
    Resume {
        /// Steps of the run from now on, to make it longer.
        steps: Option<u64>,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// All steps are taken; the last evaluation, where this call made it.
    Finished(Option<Evaluation>),
    /// The validation loss no longer fell; saved. `--resume` takes the steps that are left.
    EarlyStopped {
        /// Steps taken.
        step: u64,
        /// The step of the best evaluation.
        best_step: u64,
        /// Its loss, nats per token.
        best_loss: f64,
    },
    /// Stopped early and saved; goes on with `--resume`.
    Stopped {
        /// Steps taken.
        step: u64,
    },
}

/// A run with everything it needs.
struct Run<'a> {
    ranks: Arc<Ranks>,
    trainer: Trainer,
    tokenizer: Tokenizer,
    data: TokenDataset,
    folder: RunFolder,
    metrics: MetricsLog,
    fingerprint: String,
    prompt: Prompt,
    memory: MemoryEstimate,
    progress: &'a mut Progress,
}

/// The pool that all work of a command runs on.
///
/// # Errors
///
/// [`Error::Threads`].
pub fn thread_pool(threads: usize) -> Result<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::Threads {
        threads,
        problem: e.to_string(),
    })
}

/// Trains until the last step, or until `stop` is set.
///
/// # Errors
///
/// Anything in [`Error`]; a checkpoint that was there before is then still there.
pub fn fit(options: &FitOptions, stop: &AtomicBool, progress: &mut Progress) -> Result<Outcome> {
    fit_together(&Arc::new(Ranks::alone()), options, stop, progress)
}

/// As [`fit`], as one of several processes that share the work. The first writes the same bytes that
/// it would write alone; the others write nothing.
///
/// # Errors
///
/// As [`fit`], and [`Error::Usage`] if the ranks have not all been given the same. The caller must
/// then end all ranks.
pub fn fit_together(
    ranks: &Arc<Ranks>,
    options: &FitOptions,
    stop: &AtomicBool,
    progress: &mut Progress,
) -> Result<Outcome> {
    let input = Input::read(&options.data)?;
    let pool = thread_pool(options.threads)?;
    pool.install(|| {
        if !ranks.is_first() {
            return follow(ranks, options, stop, &input);
        }
        let mut run = match &options.start {
            Start::Fresh {
                settings,
                tokenizer,
                init,
                overwrite,
            } => {
                check_folder(options, *overwrite)?;
                let init = init.as_deref();
                let resolved = resolve(settings, tokenizer.as_ref(), init, &input)?;
                Run::fresh(ranks, options, resolved, init, &input, progress)?
            }
            Start::Resume { steps } => Run::resume(ranks, options, *steps, &input, progress)?,
        };
        let outcome = run.train(options.stop_at, stop)?;
        run.progress.memory(&run.memory);
        let model = run.model_to_export();
        drop(run);
        match (&options.export, outcome) {
            (None, _) | (_, Outcome::Stopped { .. }) => {}
            (Some(file), _) => export::export(&model, file)?,
        }
        Ok(outcome)
    })
}

/// The tokenizer of a fresh run, and its settings with what follows from tokenizer and input.
///
/// # Errors
///
/// As [`Tokenizer::new`] and [`Settings::validate`]; as [`Masters::tokenizer`] and
/// [`Masters::check_shape`] where a run starts from those.
pub fn resolve(
    settings: &Settings,
    kind: Option<&TokenizerKind>,
    init: Option<&Masters>,
    input: &Input,
) -> Result<(Settings, Tokenizer)> {
    settings.validate()?;
    let mut settings = settings.clone();
    input.settle(&mut settings.train);
    let tokenizer = match init {
        Some(masters) => {
            masters.check_shape(&settings)?;
            settings.model.vocab_size = masters.model().vocab_size;
            masters.tokenizer(kind, input)?
        }
        None => {
            let tokenizer = tokenizer(&settings, kind, input)?;
            settings.model.vocab_size = tokenizer.vocab_size();
            tokenizer
        }
    };
    settings.validate()?;
    // Better to hear now that the model cannot be saved.
    config_json::write(&settings.model, settings.train.quantize, None).map_err(Error::Usage)?;
    Ok((settings, tokenizer))
}

fn tokenizer(
    settings: &Settings,
    kind: Option<&TokenizerKind>,
    input: &Input,
) -> Result<Tokenizer> {
    let documents = match (input, kind) {
        (Input::Prepared(prepared), None) => return prepared.tokenizer(),
        (Input::Prepared(_), Some(_)) => {
            let message = "--tokenizer: the tokens in --data have theirs; leave it out";
            return Err(Error::Usage(message.into()));
        }
        (Input::Documents(documents), _) => documents,
    };
    let kind = kind.unwrap_or(&DEFAULT_TOKENIZER);
    let read = |see: &mut Parts<'_>| documents.divide(&settings.train, see);
    let tokenizer = Tokenizer::new(kind, documents.needs(), read)?;
    check_tokenizer(&tokenizer, documents.needs())?;
    Ok(tokenizer)
}

/// What a rank that is not the first does: it takes the same steps, and neither writes nor speaks.
fn follow(
    ranks: &Arc<Ranks>,
    options: &FitOptions,
    stop: &AtomicBool,
    input: &Input,
) -> Result<Outcome> {
    let (trainer, data) = match &options.start {
        Start::Fresh {
            settings,
            tokenizer,
            init,
            ..
        } => {
            let init = init.as_deref();
            let (settings, tokenizer) = resolve(settings, tokenizer.as_ref(), init, input)?;
            let data = TokenDataset::new(&tokenizer, input, &settings.train)?;
            let memory = check_start(ranks, options, (0, &settings), input, &data)?;
            let end_of_text = data.train.end_of_text;
            (trainer(&settings, init, end_of_text, memory.keep)?, data)
        }
        Start::Resume { steps } => {
            let saved = saved_run(ranks, options, *steps, input)?;
            (resumed(saved.run, &saved.data, &saved.memory)?, saved.data)
        }
    };
    let mut trainer = trainer.shared_by(Arc::clone(ranks));
    ranks.wait();
    let steps = trainer.settings().train.steps;
    while trainer.step() < steps && options.stop_at != Some(trainer.step()) {
        let limit = ranks.share(None);
        trainer.take_step(&data, limit, &options.out)?;
        if ranks.any(stop.load(Ordering::Relaxed)) {
            break;
        }
    }
    Ok(Outcome::Stopped {
        step: trainer.step(),
    })
}

/// A run to go on with, and what belongs to it.
struct Saved {
    /// Its weights are not yet loaded.
    run: SavedRun,
    tokenizer: Tokenizer,
    data: TokenDataset,
    memory: MemoryEstimate,
}

/// The run in the folder with its text, checked as far as that goes.
fn saved_run(
    ranks: &Ranks,
    options: &FitOptions,
    steps: Option<u64>,
    input: &Input,
) -> Result<Saved> {
    let folder = RunFolder::new(&options.out);
    if !folder.file("state.safetensors").exists() {
        return Err(Error::Usage(format!(
            "--resume: there is no run in {}; leave out --resume to begin one",
            options.out.display()
        )));
    }
    let mut run = folder.open_state()?;
    if let Some(steps) = steps {
        extend(&mut run.state, steps)?;
    }
    let state = &run.state;
    if input.fingerprint() != state.text_fingerprint {
        return Err(Error::Data(format!(
            "--data: the text is not the one that the run in {} began with; give the same files \
             in the same order",
            options.out.display()
        )));
    }
    let tokenizer = folder.load_tokenizer()?;
    let data = TokenDataset::new(&tokenizer, input, &state.settings.train)?;
    check_export(options, &state.settings)?;
    let start = (state.step, &state.settings);
    let memory = check_start(ranks, options, start, input, &data)?;
    Ok(Saved {
        run,
        tokenizer,
        data,
        memory,
    })
}

/// The run of a checkpoint.
fn resumed(saved: SavedRun, data: &TokenDataset, memory: &MemoryEstimate) -> Result<Trainer> {
    let (model, adam) = saved.load()?;
    let RunState { settings, step, .. } = saved.state;
    let (end_of_text, keep) = (data.train.end_of_text, memory.keep);
    Ok(Trainer::resume(
        settings,
        end_of_text,
        keep,
        model,
        adam,
        step,
    ))
}

impl<'a> Run<'a> {
    fn fresh(
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

    fn resume(
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

    fn train(&mut self, stop_at: Option<u64>, stop: &AtomicBool) -> Result<Outcome> {
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
    fn model_to_export(&self) -> PathBuf {
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

/// A run at step 0: its weights are read before anything is written, since `--out` may be where they are.
fn trainer(
    settings: &Settings,
    init: Option<&Masters>,
    end_of_text: Option<u32>,
    keep: Keep,
) -> Result<Trainer> {
    let Some(masters) = init else {
        return Ok(Trainer::new(settings.clone(), end_of_text, keep));
    };
    let mut model = Model::new(settings.model, settings.train.quantize);
    masters.load_into(&mut model)?;
    let settings = settings.clone();
    Ok(Trainer::starting_from(settings, end_of_text, keep, model))
}

fn check_folder(options: &FitOptions, overwrite: bool) -> Result<()> {
    if overwrite || !RunFolder::new(&options.out).is_occupied() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--out {}: there is a run in this folder; go on with it by --resume, replace it by \
         --overwrite, or choose another folder",
        options.out.display()
    )))
}

fn check_export(options: &FitOptions, settings: &Settings) -> Result<()> {
    match &options.export {
        Some(file) => export::check(file, settings),
        None => Ok(()),
    }
}

/// Checks what every rank must have alike, and that the run fits in memory; returns what it will
/// hold.
fn check_start(
    ranks: &Ranks,
    options: &FitOptions,
    (step, settings): (u64, &Settings),
    input: &Input,
    data: &TokenDataset,
) -> Result<MemoryEstimate> {
    ranks.rounds(settings.train.accumulation)?;
    ranks.agree("the text of --data", &input.fingerprint())?;
    let (train, model) = (&settings.train, &settings.model);
    ranks.agree("the run", &format!("{step} {train:?} {model:?}"))?;
    let around = Surroundings::now(data, ranks);
    let memory = MemoryEstimate::choose(settings, &around);
    if !options.ignore_memory {
        memory.check(settings, &around)?;
    }
    Ok(memory)
}

/// Gives a run more steps. Warm-up, evaluations and checkpoints stay as they are; the learning rate
/// is from now on what the schedule says for so many steps.
fn extend(state: &mut RunState, steps: u64) -> Result<()> {
    let (taken, planned) = (state.step, state.settings.train.steps);
    if steps < planned {
        return Err(Error::Usage(format!(
            "--steps {steps}: the run is at step {taken} of {planned} and can be made longer, not \
             shorter; --stop-at {steps} stops it early"
        )));
    }
    state.settings.train.steps = steps;
    Ok(())
}

fn is_due(step: u64, every: u64, steps: u64) -> bool {
    step == steps || (every > 0 && step.is_multiple_of(every))
}

/// A prompt from the beginning of the validation text: the first words of a line, or the end of a
/// question.
fn prompt(tokenizer: &Tokenizer, validation: &EncodedText) -> Result<Prompt> {
    let count = validation.tokens.len().min(PROMPT_SEARCH_TOKENS);
    let ids = validation.tokens.read(0, count)?;
    let marks = validation.mask.read(0, count)?;
    let before_answer = marks.and_then(|marks| marks.iter().position(|counted| *counted));
    if let Some(before_answer @ 1..) = before_answer {
        let first = before_answer.saturating_sub(PROMPT_TOKENS);
        let ids = ids[first..before_answer].to_vec();
        return Ok(Prompt {
            text: tokenizer.decode(&ids)?,
            ends: ChatEncoder::new(tokenizer)?.end_ids().collect(),
            ids,
        });
    }
    let is_end = |id: &u32| Some(*id) == tokenizer.end_of_text();
    let first = ids.split(is_end).find(|text| !text.is_empty());
    let text = tokenizer.decode(first.unwrap_or(&ids))?;
    Prompt::of_text(tokenizer, &first_words(&text))
}

/// A prompt of three words or less: the beginning of a line of the text, or its first character.
fn first_words(text: &str) -> String {
    let line = text
        .lines()
        .skip(1)
        .map(str::trim)
        .find(|line| line.len() > 20);
    let end = |line: &str| {
        line.match_indices(char::is_whitespace)
            .nth(2)
            .map(|(at, _)| at)
    };
    match line {
        Some(line) => line[..end(line).unwrap_or(line.len())].to_string(),
        None => text.chars().take(1).collect(),
    }
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
