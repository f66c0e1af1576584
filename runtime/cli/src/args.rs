//! The command line.

use std::path::{Path, PathBuf};

use bitnet_formats::{ModelConfig, Output};
use bitnet_runtime::{Archive, Isa, Kernels, KvType, MAX_THREADS, SamplerConfig, SessionConfig};
use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser, ValueEnum};

use crate::cores;

/// Run a .btn language model: text goes to stdout as it comes, figures to stderr.
#[derive(Debug, Parser)]
#[command(name = "bitnet-run", version, max_term_width = 100)]
#[command(group(ArgGroup::new("task").required(true).multiple(true)))]
#[command(group(ArgGroup::new("alone").args([
    "ids", "plan", "selftest", "perplexity", "bench", "doctor",
])))]
pub(crate) struct Args {
    /// The model, as written by bitnet-convert.
    #[arg(required_unless_present = "doctor")]
    model: Option<PathBuf>,

    /// Continue this text; `-` reads it from stdin.
    #[arg(
        long,
        group = "task",
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with_all = ["ids", "plan", "selftest", "perplexity", "bench", "doctor"]
    )]
    prompt: Option<String>,

    /// Talk with an instruct model, by the chat template in the file: --prompt is the question, or
    /// else every line of stdin is one.
    #[arg(long, group = "task", conflicts_with_all = ["ids", "plan", "selftest", "perplexity", "bench", "doctor", "logits"])]
    chat: bool,

    /// What the model is told before a conversation.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "chat",
        allow_hyphen_values = true
    )]
    pub(crate) system: Option<String>,

    /// Print the embedding of this text, a vector of length one, where the model gives embeddings;
    /// `-` reads the text from stdin.
    #[arg(
        long,
        group = "task",
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with_all = ["prompt", "chat", "alone", "logits"]
    )]
    embed: Option<String>,

    /// Continue these token ids, for example 5,17,3; embed them, where the model gives embeddings.
    #[arg(
        long,
        group = "task",
        value_delimiter = ',',
        allow_negative_numbers = true,
        value_name = "IDS"
    )]
    ids: Option<Vec<u32>>,

    /// Print the exact bytes for weights, cache and scratch, and run nothing.
    #[arg(long, group = "task")]
    plan: bool,

    /// Replay the self-test vectors in the file and compare the logits hashes.
    #[arg(long, group = "task")]
    selftest: bool,

    /// Print nats per token, perplexity and bits per byte of a text file.
    #[arg(long, group = "task", value_name = "FILE")]
    perplexity: Option<PathBuf>,

    /// Time the model: prompts of 128 and 512 tokens, 128 decoded tokens, passes over the weights,
    /// and the machine's own best read loop. All configurations must give the same logits.
    #[arg(long, group = "task")]
    bench: bool,

    /// Print what this machine has: instruction sets, kernels, caches, pages, bandwidth. With a
    /// model, also how its weights would be held.
    #[arg(long, group = "task")]
    doctor: bool,

    /// Timings of each kind for --bench.
    #[arg(long, conflicts_with_all = ["prompt", "ids", "plan", "selftest", "perplexity", "doctor"], value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub(crate) repetitions: usize,

    /// Most tokens to generate.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        default_value_t = 256
    )]
    pub(crate) max_tokens: usize,

    /// Stop where this text comes; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,

    /// Positions of the context [default: what prompt and --max-tokens need, or the model's for
    /// --plan and --perplexity; at most the model's].
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = at_least_one)]
    pub(crate) context: Option<usize>,

    /// Tokens of a prompt that are read together: more is faster and takes more scratch memory.
    /// Never more than the context.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    prefill_batch: usize,

    /// Threads that work at once [default: the performance cores this process may use; also 1 for
    /// --bench, which takes several]. The result is the same for any number; each needs a little
    /// scratch memory.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_delimiter = ',', value_parser = threads)]
    threads: Vec<usize>,

    /// Randomness of the choice; 0 takes the best token always.
    #[arg(long, allow_negative_numbers = true, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    temperature: f32,

    /// Choose among the K best tokens only; 0 for all.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "K",
        default_value_t = 0
    )]
    top_k: usize,

    /// Choose among the best tokens that together have probability P.
    #[arg(long, allow_negative_numbers = true, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    top_p: f32,

    /// Drop tokens less probable than P times the best.
    #[arg(long, allow_negative_numbers = true, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    min_p: f32,

    /// Seed of the choice: the same seed gives the same text on every machine.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0)]
    seed: u64,

    /// Cache of keys and values. A latent cache is lossless: f32 is the same as native there
    /// [default: native; f32 for models that give embeddings, whose cache holds one text].
    #[arg(long, value_enum)]
    kv: Option<Kv>,

    /// Where ternary weights are while running: in the file, or copied to memory in a layout. No
    /// result depends on it. A packed file is always decoded to memory. --bench takes several
    /// [default: low, t5 of a packed file; for --bench these and fast].
    #[arg(long, value_enum, value_delimiter = ',', hide_default_value = true)]
    weights: Vec<Hold>,

    /// Kernels to run on; --bench takes several [default: the fastest].
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = kernels)]
    isa: Vec<Kernels>,

    /// Also write the f32 logits of the prompt, [tokens, vocabulary], as safetensors.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plan", "selftest", "perplexity", "bench", "doctor"])]
    pub(crate) logits: Option<PathBuf>,

    /// Do not check every byte of the file before the first token. Damage then shows only in the
    /// text.
    #[arg(long)]
    pub(crate) trust: bool,

    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to do with the model.
pub(crate) enum Task<'a> {
    Plan,
    SelfTest,
    Perplexity(&'a Path),
    /// The question, if it is only one.
    Chat(Option<&'a str>),
    Bench,
    Doctor,
    Embed(&'a str),
    Generate(Prompt<'a>),
}

/// What to continue.
pub(crate) enum Prompt<'a> {
    Text(&'a str),
    Ids(&'a [u32]),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kv {
    /// Int8 latents (lossless) for latent attention, f16 otherwise.
    Native,
    /// f16 keys and values.
    F16,
    /// f32 keys and values.
    F32,
}

/// How ternary weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Hold {
    /// In the mapped file, in its layout: starts at once, takes no memory (also: mapped).
    #[value(alias = "mapped")]
    Low,
    /// Copied to memory as T5 or T2, whichever a short measurement finds faster on this machine;
    /// like low where there is no memory for it. At temperature 0 an int8 head is bounded by a copy
    /// of six of its bits, and read only where the best token may be.
    Fast,
    /// Copied as T5, 1.6 bits per weight.
    T5,
    /// Copied as T2, 2 bits per weight.
    T2,
}

impl Hold {
    /// What takes the least memory.
    fn usual(archive: &Archive<'_>) -> Self {
        match archive.has_packed() {
            true => Self::T5,
            false => Self::Low,
        }
    }

    /// The name users type.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Fast => "fast",
            Self::T5 => "t5",
            Self::T2 => "t2",
        }
    }
}

impl Args {
    /// The arguments of this process, or an exit with what is wrong with them.
    pub(crate) fn read() -> Self {
        let args = Self::parse();
        let lists = [
            ("--weights", args.weights.len()),
            ("--threads", args.threads.len()),
            ("--isa", args.isa.len()),
        ];
        for (name, n) in lists {
            if n > 1 && !args.bench {
                let message = format!("{name} takes several values only with --bench");
                Self::command()
                    .error(ErrorKind::TooManyValues, message)
                    .exit();
            }
        }
        args
    }

    /// The model's path; only --doctor does without.
    pub(crate) fn model(&self) -> Option<&Path> {
        self.model.as_deref()
    }

    pub(crate) fn task(&self) -> Task<'_> {
        if self.chat {
            return Task::Chat(self.prompt.as_deref());
        }
        if let Some(text) = &self.prompt {
            return Task::Generate(Prompt::Text(text));
        }
        if let Some(text) = &self.embed {
            return Task::Embed(text);
        }
        if let Some(ids) = &self.ids {
            return Task::Generate(Prompt::Ids(ids));
        }
        match &self.perplexity {
            Some(path) => Task::Perplexity(path),
            None if self.plan => Task::Plan,
            None if self.bench => Task::Bench,
            None if self.doctor => Task::Doctor,
            None => Task::SelfTest,
        }
    }

    const fn kv(&self, output: Output) -> KvType {
        match (self.kv, output) {
            (Some(Kv::F16), _) => KvType::F16,
            (Some(Kv::F32), _) | (None, Output::Embedding) => KvType::F32,
            (Some(Kv::Native), _) | (None, _) => KvType::Native,
        }
    }

    /// A session of this many positions. A chunk longer than that would be memory nobody uses.
    pub(crate) fn session(&self, config: &ModelConfig, max_seq_len: usize) -> SessionConfig {
        SessionConfig {
            max_seq_len,
            prefill_batch: self.prefill_batch.min(max_seq_len),
            kv: self.kv(config.output),
            threads: self.threads(),
        }
    }

    /// What was asked for, if anything.
    pub(crate) fn given_hold(&self) -> Option<Hold> {
        self.weights.first().copied()
    }

    pub(crate) fn hold(&self, archive: &Archive<'_>) -> Hold {
        self.given_hold().unwrap_or(Hold::usual(archive))
    }

    pub(crate) fn bench_holds(&self, archive: &Archive<'_>) -> Vec<Hold> {
        match &self.weights[..] {
            [] => vec![Hold::usual(archive), Hold::Fast],
            holds => holds.to_vec(),
        }
    }

    pub(crate) fn kernels(&self) -> Kernels {
        self.isa.first().copied().unwrap_or_else(Kernels::detect)
    }

    pub(crate) fn bench_kernels(&self) -> Vec<Kernels> {
        match &self.isa[..] {
            [] => vec![Kernels::detect()],
            kernels => kernels.to_vec(),
        }
    }

    /// Threads of a run.
    pub(crate) fn threads(&self) -> usize {
        let threads = self.threads.first().copied();
        let threads = threads.unwrap_or_else(cores::default_threads);
        threads.min(MAX_THREADS)
    }

    pub(crate) fn bench_threads(&self) -> Vec<usize> {
        match (&self.threads[..], self.threads()) {
            ([], 1) => vec![1],
            ([], all) => vec![1, all],
            (given, _) => given.to_vec(),
        }
    }

    pub(crate) const fn sampler(&self) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..) => Ok(n),
        _ => Err("a whole number of at least 1 is needed".into()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=MAX_THREADS) => Ok(n),
        _ => Err(format!("a whole number from 1 to {MAX_THREADS} is needed")),
    }
}

fn non_negative(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("a number of at least 0 is needed".into()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("a number between 0 and 1 is needed".into()),
    }
}

fn kernels(name: &str) -> Result<Kernels, String> {
    let isa = Isa::ALL.into_iter().find(|isa| isa.name() == name);
    isa.and_then(Kernels::for_isa).ok_or_else(|| {
        let names: Vec<_> = Kernels::available().map(|k| k.isa().name()).collect();
        format!("this machine has: {}", names.join(", "))
    })
}
