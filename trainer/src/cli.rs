//! The command line: flags to typed options, and what each command prints.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bitnet_formats::Preset;
use clap::{Args, Parser, Subcommand};

use crate::checkpoint::RunFolder;
use crate::config_file::ConfigFile;
use crate::corpus::DataOptions;
use crate::data::{EncodedText, Input, TokenDataset};
use crate::error::{Error, Result};
use crate::eval::evaluate;
use crate::fit::{FitOptions, Outcome, Start, fit_together, resolve, thread_pool};
use crate::init::Masters;
use crate::keys::{self, KEYS};
use crate::memory::{MemoryEstimate, Surroundings, mib};
use crate::model::Keep;
use crate::prepare::{PrepareOptions, prepare};
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::sample::{Prompt, SampleOptions, sample};
use crate::settings::Settings;
use crate::tokenizer::TokenizerKind;

/// Trains BitNet b1.58 language models on a CPU.
#[derive(Debug, Parser)]
#[command(name = "bitnet-trainer", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model on text.
    #[command(after_long_help = settings_help())]
    Fit(Box<FitArgs>),
    /// Turn a corpus into tokens on disk, for fit to read window by window: for texts larger than
    /// memory, and to encode a text once.
    Prepare(PrepareArgs),
    /// Measure the loss of a checkpoint on a text; on a folder of tokens, on those held out.
    Eval(EvalArgs),
    /// Continue a prompt.
    Sample(SampleArgs),
}

#[derive(Debug, Args)]
struct DataArgs {
    /// Text in UTF-8: files, quoted patterns such as 'books/**/*.txt', JSON Lines (.jsonl, .ndjson), or
    /// standard input as "-"; or, alone, a folder that prepare wrote. A file is one document, and so is
    /// a line of JSON. A line may hold a conversation instead of a text, as
    /// {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}; then
    /// all lines of the file do, the chat template is applied, and only the assistant's answers are
    /// learned. What is no text, is named and empty, or changes while it is read is an error; other
    /// empty documents are left out.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Field of JSON Lines that holds the text or the messages [default: text, else messages]; standard
    /// input is then JSON Lines too.
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// What stands between the documents of a text file, such as '<|endoftext|>'.
    #[arg(long, value_name = "TEXT")]
    separator: Option<String>,
}

impl DataArgs {
    fn options(&self) -> DataOptions {
        DataOptions {
            inputs: self.data.clone(),
            field: self.field.clone(),
            separator: self.separator.clone(),
        }
    }
}

#[derive(Debug, Args)]
struct PrepareArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Folder to write: tokens as raw u16 or u32, tokenizer.json, shards.json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// bpe:N, byte, char, or a tokenizer.json; see fit --help. bpe:N and char read the text twice.
    #[arg(long, default_value = "bpe:2048", value_name = "KIND")]
    tokenizer: TokenizerKind,
    /// Share of the text that validates.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    val_fraction: f64,
    /// auto, tail or document: see train.split in fit --help.
    #[arg(long, default_value = "auto", value_name = "KIND")]
    split: String,
    /// Seed of the draw of documents that validate.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Replace the tokens in --out.
    #[arg(long)]
    overwrite: bool,
}

impl PrepareArgs {
    fn options(&self) -> Result<PrepareOptions> {
        let mut settings = Settings::preset(Preset::Nano);
        keys::apply(&mut settings, &format!("train.split={}", self.split))?;
        settings.train.val_fraction = self.val_fraction;
        settings.train.seed = self.seed;
        settings.validate()?;
        Ok(PrepareOptions {
            data: self.data.options(),
            out: self.out.clone(),
            tokenizer: self.tokenizer.clone(),
            train: settings.train,
            overwrite: self.overwrite,
        })
    }
}

#[derive(Debug, Args)]
struct FitArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Folder of the run: checkpoint, metrics, loss curve.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// TOML file of settings: the keys of --set in tables [model] and [train], and preset, recipe,
    /// tokenizer. Flags and --set go before it. settings.toml of a run is such a file.
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Shape and recipe to start from: nano (about 1 M parameters), tiny (4 M), small (30 M),
    /// bitnet-700m [default: tiny].
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    preset: Option<String>,
    /// Rates, schedule and optimiser instead of the preset's: mission (2e-4 in a line to 0), b158
    /// (1.5e-3, from half-time the line of 1e-3 without decay, as published), tiny (1e-3, cosine).
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    recipe: Option<String>,
    /// bpe:N (byte-level BPE of N ids, at least 256, trained on the training text), byte (256 ids),
    /// char (the characters of the text), or a tokenizer.json [default: that of prepared tokens, else
    /// bpe:2048]. Where there are several documents, an id for the end of a text comes with it, and where
    /// there are conversations, a chat template and the ids it needs. A given tokenizer.json brings the
    /// template of the tokenizer_config.json or chat_template.jinja beside it.
    #[arg(long, value_name = "KIND", conflicts_with = "resume")]
    tokenizer: Option<TokenizerKind>,
    /// Checkpoint of master weights to start from: a folder that fit wrote, a public ternary model or a
    /// plain Llama, which --fp-steps and train.ramp_steps turn ternary gently (config.json and safetensors,
    /// f32, f16 or bf16). Shape and tokenizer come with it; the optimiser starts anew, with batch and
    /// context of the preset tiny and the recipe mission unless told otherwise.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["resume", "preset"])]
    init: Option<PathBuf>,
    /// Optimiser steps [default: the preset's]; warm-up and evaluations follow. With --resume it makes
    /// the run longer: the schedule of the learning rate is then that of so many steps.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Sequences per step [default: the preset's].
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    batch: Option<usize>,
    /// Tokens per sequence [default: the preset's]; at most model.max_seq_len.
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    context: Option<usize>,
    /// Peak learning rate [default: the preset's]; ends at a tenth of it.
    #[arg(long, value_name = "RATE", conflicts_with = "resume")]
    lr: Option<f64>,
    /// First steps in full precision, before the quantisers are on [default: 0]; train.ramp_steps then
    /// turns them on little by little.
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    fp_steps: Option<u64>,
    /// Seed of weights, batches and samples [default: 1].
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    seed: Option<u64>,
    /// How gradients enter the products of linear layers: f32, or bf16, which is quicker and takes a
    /// processor with AVX-512 BF16; the forward pass is exact in both [default: f32].
    #[arg(long, value_name = "KIND", conflicts_with = "resume")]
    precision: Option<String>,
    /// Any setting by name, after the flags above; may be repeated. See the list below.
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "resume")]
    set: Vec<String>,
    /// Threads [default: all cores]; the result is the same for any number.
    #[arg(long, value_name = "N", value_parser = threads_in_range)]
    threads: Option<usize>,
    /// Go on with the run in --out, with its settings; give the same --data.
    #[arg(long)]
    resume: bool,
    /// Replace the run in --out.
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Save and stop after this step, as Ctrl-C would; 0 writes the weights that training would begin
    /// with.
    #[arg(long, value_name = "STEP")]
    stop_at: Option<u64>,
    /// Pack the model into this .btn file when the run ends: the best evaluation's, or the last where
    /// train.keep_best is false. A file that is there is replaced.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Start even if the run seems not to fit in memory.
    #[arg(long)]
    ignore_memory: bool,
    /// Print parameters, settings and memory, and stop before training.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct EvalArgs {
    /// Folder that fit wrote.
    checkpoint: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Tokens per window [default: the model's max_seq_len].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Threads [default: all cores]; the result is the same for any number.
    #[arg(long, value_name = "N", value_parser = threads_in_range)]
    threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SampleArgs {
    /// Folder that fit wrote.
    checkpoint: PathBuf,
    /// Text to continue; with --chat, a question to answer.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Write the prompt as the user's message, by the chat template, and print the answer alone.
    #[arg(long)]
    chat: bool,
    /// What the model is told before the question.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tokens to add.
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_tokens: usize,
    /// 0 takes the likeliest token each time; higher is more varied, 1 is the model's own odds.
    #[arg(long, default_value_t = 0.8, value_name = "T", value_parser = temperature_in_range)]
    temperature: f64,
    /// Choose among the likeliest K tokens; 0 for all.
    #[arg(long, default_value_t = 40, value_name = "K")]
    top_k: usize,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// What stopped it; see [`exit_code`].
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Fit(args) if args.dry_run => print(&dry_run(&args)?),
            Command::Fit(args) => run_fit(&args),
            Command::Prepare(args) => print(&prepare(&args.options()?)?.summary()?),
            Command::Eval(args) => print(&run_eval(&args)?),
            Command::Sample(args) => print(&run_sample(&args)?),
        }
    }
}

/// 2 for bad usage, 1 for everything else.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Error>().map_or(1, Error::exit_code)
}

/// Writes results to stdout. Whoever closes the pipe has read enough.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

fn run_fit(args: &FitArgs) -> anyhow::Result<()> {
    let start = match args.resume {
        true => Start::Resume { steps: args.steps },
        false => {
            let init = args.masters()?;
            let (settings, tokenizer) = args.settings(init.as_ref())?;
            Start::Fresh {
                settings: Box::new(settings),
                tokenizer,
                init: init.map(Arc::new),
                overwrite: args.overwrite,
            }
        }
    };
    let options = FitOptions {
        data: args.data.options(),
        out: args.out.clone(),
        start,
        threads: args.threads.map_or_else(all_cores, Ok)?,
        stop_at: args.stop_at,
        export: args.export.clone(),
        ignore_memory: args.ignore_memory,
    };
    let stop = stop_on_interrupt()?;
    let ranks = Arc::new(Ranks::join()?);
    let outcome = fit_together(&ranks, &options, &stop, &mut Progress::new());
    match outcome {
        Err(error) if ranks.count() > 1 => end_all(&ranks, &error),
        Ok(outcome) if ranks.is_first() => print(&ending(&outcome, &args.out)),
        outcome => outcome.map(|_| ()).map_err(Into::into),
    }
}

/// Says what stopped this rank, and stops the others.
fn end_all(ranks: &Ranks, error: &Error) -> ! {
    if !ranks.is_first() {
        // What is wrong for all, the first says, and ends the others before they say it again.
        std::thread::sleep(Duration::from_secs(1));
    }
    eprintln!("error: rank {}: {error}", ranks.rank());
    ranks.abort(error.exit_code())
}

/// Ctrl-C asks for a checkpoint; a second one ends the program at once.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let handler = move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; again to stop at once, without saving");
    };
    ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

fn ending(outcome: &Outcome, out: &Path) -> String {
    let folder = out.display();
    match outcome {
        Outcome::Finished(Some(found)) => format!(
            "validation {:.4} nats per token, {:.4} bits per byte\n\
             checkpoint in {folder}, loss curve in {folder}/loss.svg\n",
            found.nats_per_token, found.bits_per_byte
        ),
        Outcome::EarlyStopped {
            step,
            best_step,
            best_loss,
        } => format!(
            "stopped at step {step}: the validation loss was lowest at step {best_step}, \
             {best_loss:.4} nats per token\ncheckpoint in {folder}, that of step {best_step} in \
             {folder}/best where it is kept\n"
        ),
        Outcome::Finished(None) => format!("the run in {folder} has taken all its steps\n"),
        Outcome::Stopped { step } => format!(
            "saved at step {step}; go on with: bitnet-trainer fit --resume --out {folder} --data ...\n"
        ),
    }
}

impl FitArgs {
    fn masters(&self) -> Result<Option<Masters>> {
        self.init.as_deref().map(Masters::open).transpose()
    }

    /// Settings and tokenizer: the preset or the checkpoint, the recipe, the file, the flags, `--set`.
    fn settings(&self, init: Option<&Masters>) -> Result<(Settings, Option<TokenizerKind>)> {
        let file = self.config.as_deref().map(ConfigFile::read).transpose()?;
        let named = |flag: &Option<String>, name: &str| {
            let in_file = || file.as_ref().and_then(|file| file.flag(name));
            flag.as_deref().or_else(in_file).map(str::to_owned)
        };
        let preset = named(&self.preset, "preset");
        let mut settings = match (init, preset) {
            (None, preset) => Settings::preset(preset_named(preset.as_deref().unwrap_or("tiny"))?),
            (Some(masters), None) => masters.settings(),
            (Some(_), Some(_)) => {
                let message = "preset: --init brings its shape; leave the preset out";
                return Err(Error::Usage(message.into()));
            }
        };
        if let Some(name) = named(&self.recipe, "recipe") {
            Recipe::from_name(&name)?.apply(&mut settings.train);
        }
        if let Some(file) = &file {
            file.apply(&mut settings)?;
        }
        self.apply_flags(&mut settings)?;
        settings.validate()?;
        let tokenizer = named(&None, "tokenizer").map(|kind| kind.parse());
        let tokenizer = tokenizer.transpose().map_err(Error::Usage)?;
        Ok((settings, self.tokenizer.clone().or(tokenizer)))
    }

    fn apply_flags(&self, settings: &mut Settings) -> Result<()> {
        if let Some(steps) = self.steps {
            settings.set_steps(steps);
        }
        let train = &mut settings.train;
        train.batch = self.batch.unwrap_or(train.batch);
        train.context = self.context.unwrap_or(train.context);
        train.seed = self.seed.unwrap_or(train.seed);
        train.fp_steps = self.fp_steps.unwrap_or(train.fp_steps);
        if let Some(lr) = self.lr {
            settings.set_lr(lr);
        }
        if let Some(kind) = &self.precision {
            keys::apply(settings, &format!("train.precision={kind}"))?;
        }
        let mut assignments = self.set.iter();
        assignments.try_for_each(|assignment| keys::apply(settings, assignment))
    }
}

fn preset_named(name: &str) -> Result<Preset> {
    Preset::from_name(name).ok_or_else(|| {
        let names = Preset::ALL.map(Preset::name);
        Error::Usage(format!(
            "--preset {name}: there is no such preset; the nearest is {}, all are {}",
            keys::nearest(name, names.into_iter()),
            names.join(", ")
        ))
    })
}

fn dry_run(args: &FitArgs) -> anyhow::Result<String> {
    let input = Input::read(&args.data.options())?;
    let init = args.masters()?;
    let (settings, tokenizer) = args.settings(init.as_ref())?;
    let (settings, tokenizer) = resolve(&settings, tokenizer.as_ref(), init.as_ref(), &input)?;
    let data = TokenDataset::new(&tokenizer, &input, &settings.train)?;
    let pool = thread_pool(args.threads.map_or_else(all_cores, Ok)?)?;
    let around = pool.install(|| Surroundings::now(&data, &Ranks::alone()));
    Ok(dry_run_text(
        &settings,
        &MemoryEstimate::choose(&settings, &around),
    ))
}

fn dry_run_text(settings: &Settings, memory: &MemoryEstimate) -> String {
    let bytes = |n: u64| format!("{n} bytes ({})", mib(n));
    let activations = match memory.keep {
        Keep::Activations => "all kept",
        Keep::Inputs => "computed again in the backward pass",
    };
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14} {value}");
    };
    line("parameters", memory.parameters.to_string());
    line("vocabulary", settings.model.vocab_size.to_string());
    line("tokens/step", settings.train.tokens_per_step().to_string());
    line("steps", settings.train.steps.to_string());
    line("memory", bytes(memory.total_bytes()));
    line("  weights", bytes(memory.weight_bytes));
    let of_training = bytes(memory.activation_bytes);
    line("  activations", format!("{of_training}, {activations}"));
    line("  evaluation", bytes(memory.evaluation_bytes));
    line("  text, program", bytes(memory.held_bytes));
    out.push('\n');
    for key in KEYS {
        if let Some(value) = key.value(settings) {
            let _ = writeln!(out, "{}={value}", key.name);
        }
    }
    out
}

fn run_eval(args: &EvalArgs) -> anyhow::Result<String> {
    let (model, tokenizer) = RunFolder::new(&args.checkpoint).load_model()?;
    let input = Input::read(&args.data.options())?;
    let text = EncodedText::of_input(&tokenizer, &input)?;
    let context = args.context.unwrap_or(model.config().max_seq_len);
    let pool = thread_pool(args.threads.map_or_else(all_cores, Ok)?)?;
    let found = pool.install(|| evaluate(&model, &text, context))?;
    if args.json {
        return Ok(serde_json::to_string(&found)? + "\n");
    }
    Ok(format!(
        "{} tokens predicted in windows of {}\n\
         {:.6} nats per token\n{:.4} perplexity\n{:.6} bits per byte\n",
        found.tokens, found.context, found.nats_per_token, found.perplexity, found.bits_per_byte
    ))
}

fn run_sample(args: &SampleArgs) -> Result<String> {
    let (model, tokenizer) = RunFolder::new(&args.checkpoint).load_model()?;
    let options = SampleOptions {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        seed: args.seed,
    };
    if args.chat {
        let system = args.system.as_deref();
        let prompt = Prompt::of_question(&tokenizer, system, &args.prompt)?;
        return Ok(sample(&model, &tokenizer, &prompt, &options)? + "\n");
    }
    let prompt = Prompt::of_text(&tokenizer, &args.prompt)?;
    let text = sample(&model, &tokenizer, &prompt, &options)?;
    Ok(format!("{}{text}\n", args.prompt))
}

fn all_cores() -> anyhow::Result<usize> {
    let cores = std::thread::available_parallelism();
    Ok(cores
        .context("cannot count the cores; give --threads")?
        .get())
}

fn threads_in_range(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("a number of threads is between 1 and 1024".into()),
    }
}

fn temperature_in_range(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(t) if (0.0..=100.0).contains(&t) => Ok(t),
        _ => Err("a temperature is between 0 and 100".into()),
    }
}

fn settings_help() -> String {
    let mut out = String::from("Settings for --set:\n");
    for key in KEYS {
        let _ = writeln!(out, "  {:<26} {}", key.name, key.help);
    }
    out
}
