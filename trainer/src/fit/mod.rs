//! `fit`: a run from its text to its last checkpoint.

mod prompt;
mod run;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::ThreadPool;

use crate::corpus::DataOptions;
use crate::data::{Input, TokenDataset};
use crate::error::{Error, Result};
use crate::eval::Evaluation;
use crate::export;
use crate::fit::run::Run;
use crate::fit::start::{check_folder, check_start, resumed, saved_run, trainer};
use crate::init::Masters;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::settings::Settings;
use crate::tokenizer::TokenizerKind;

pub use crate::fit::start::{DEFAULT_TOKENIZER, resolve};

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
