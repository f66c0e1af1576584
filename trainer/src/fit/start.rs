//! How a run begins: what it starts from, and whether it can.

use crate::checkpoint::{RunFolder, RunState, SavedRun};
use crate::config_json;
use crate::data::{Input, TokenDataset, check_tokenizer};
use crate::error::{Error, Result};
use crate::export;
use crate::fit::FitOptions;
use crate::init::Masters;
use crate::memory::{MemoryEstimate, Surroundings};
use crate::model::{Keep, Model};
use crate::ranks::Ranks;
use crate::settings::Settings;
use crate::tokenizer::{Parts, Tokenizer, TokenizerKind};
use crate::trainer::Trainer;

/// The tokenizer of a run on text that names none.
pub const DEFAULT_TOKENIZER: TokenizerKind = TokenizerKind::Bpe(2048);

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

/// A run to go on with, and what belongs to it.
pub(super) struct Saved {
    /// Its weights are not yet loaded.
    pub(super) run: SavedRun,
    pub(super) tokenizer: Tokenizer,
    pub(super) data: TokenDataset,
    pub(super) memory: MemoryEstimate,
}

/// The run in the folder with its text, checked as far as that goes.
pub(super) fn saved_run(
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
pub(super) fn resumed(
    saved: SavedRun,
    data: &TokenDataset,
    memory: &MemoryEstimate,
) -> Result<Trainer> {
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

/// A run at step 0: its weights are read before anything is written, since `--out` may be where they are.
pub(super) fn trainer(
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

pub(super) fn check_folder(options: &FitOptions, overwrite: bool) -> Result<()> {
    if overwrite || !RunFolder::new(&options.out).is_occupied() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--out {}: there is a run in this folder; go on with it by --resume, replace it by \
         --overwrite, or choose another folder",
        options.out.display()
    )))
}

pub(super) fn check_export(options: &FitOptions, settings: &Settings) -> Result<()> {
    match &options.export {
        Some(file) => export::check(file, settings),
        None => Ok(()),
    }
}

/// Checks what every rank must have alike, and that the run fits in memory; returns what it will
/// hold.
pub(super) fn check_start(
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
