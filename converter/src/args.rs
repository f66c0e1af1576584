//! The command line, from flags to a validated command.

use std::path::PathBuf;

use bitnet_converter::gguf::{I2sLayout, Kind};
use bitnet_converter::{
    DenseWeights, EmbeddingType, PackOptions, ReadOptions, TernaryType, TokenizerStore,
};
use bitnet_formats::Preset;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// Packs a ternary checkpoint into one .btn file, and gives it back.
///
/// IN is a safetensors file, an index of shards (model.safetensors.index.json), a folder with one of
/// them, a GGUF file, or a .btn file to be packed again. config.json must stand beside safetensors;
/// tokenizer.json, generation_config.json, the chat template and a LICENSE file go into the output
/// where they are there. OUT.btn is replaced if it exists, and only by a complete file that has been
/// read back.
///
/// Where IN is a .btn file and OUT ends in .gguf, OUT is a GGUF file; where it ends otherwise than
/// .btn, OUT is a new folder with a checkpoint, or a .safetensors file with config.json beside it.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    override_usage = "bitnet-convert [OPTIONS] IN OUT.btn\n       \
                      bitnet-convert IN.btn OUT.gguf|OUT.safetensors|FOLDER\n       \
                      bitnet-convert [OPTIONS] --dummy PRESET OUT.btn\n       \
                      bitnet-convert --inspect FILE.btn [--json]"
)]
struct Args {
    /// IN and OUT; OUT alone with --dummy.
    #[arg(value_name = "FILE", required_unless_present = "inspect")]
    files: Vec<PathBuf>,

    /// How embedding and head are stored; "source" keeps the type of the checkpoint.
    #[arg(long, value_name = "TYPE", default_value = "i8")]
    embedding: Embedding,

    /// How ternary matrices are stored: t5 is 1.6 bits per weight, t2 is 2 bits and faster to
    /// decode. Matrices of few columns are stored as t2 where that is no larger. packed is entropy
    /// coding, at most 1.585 bits and fewer where weights are skewed; it cannot run in place and is
    /// decoded to memory when it is loaded, by the self-test at the end of a conversion too.
    #[arg(long, value_name = "LAYOUT", default_value = "t5")]
    pack: Pack,

    /// What becomes of tokenizer.json: tables the runtime works with, the file as it is for programs
    /// that bring a tokenizer of their own, or nothing.
    #[arg(long, value_name = "HOW", default_value = "tables")]
    tokenizer: Tokenizer,

    /// Writes a model of this shape with random weights, for benchmarks: nano, tiny, small,
    /// bitnet-700m, bitnet-large or bitnet-2b4t.
    #[arg(long, value_name = "PRESET", value_parser = preset)]
    dummy: Option<Preset>,

    /// Seed of the random weights.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "dummy")]
    seed: u64,

    /// Takes the weights of a checkpoint that does not say so for masters of a ternary model:
    /// onebitllms quantises them in bf16 arithmetic, as its exporter does (Falcon-E, revision
    /// prequantized).
    #[arg(long, value_name = "KIND", conflicts_with_all = ["dummy", "force_ternarise"])]
    masters: Option<Masters>,

    /// Makes the weights of a model ternary that was not trained so. It will write noise.
    #[arg(long, conflicts_with = "dummy")]
    force_ternarise: bool,

    /// Which values share a byte of an I2_S tensor of a GGUF file, which does not say: x86 is what
    /// public files have, arm what some were written as.
    #[arg(
        long,
        value_name = "LAYOUT",
        default_value = "x86",
        conflicts_with = "dummy"
    )]
    i2s: I2s,

    /// How a GGUF file stores ternary matrices: tq1_0 is 1.69 bits per weight, tq2_0 is 2.06.
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "tq2_0",
        conflicts_with = "dummy"
    )]
    gguf: GgufType,

    /// Leaves out feed-forward neurons that are zero for every input, and proves by the logits of the
    /// self-test prompts that no bit changes. Holds one feed-forward matrix in memory, a byte a weight.
    #[arg(long, conflicts_with = "dummy")]
    prune_dead: bool,

    /// Reads input and output once more and compares every weight, scale and norm, bit for bit.
    #[arg(long, conflicts_with = "dummy")]
    verify: bool,

    /// Leaves the self-test vectors out: the new file is checked but not run.
    #[arg(long)]
    no_self_test: bool,

    /// Prints header, sections and tensors of a .btn file, after reading every byte of it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "dummy"])]
    inspect: Option<PathBuf>,

    /// Prints results as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Embedding {
    Source,
    F32,
    F16,
    Bf16,
    I8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum I2s {
    X86,
    Arm,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GgufType {
    #[value(name = "tq1_0")]
    Tq1_0,
    #[value(name = "tq2_0")]
    Tq2_0,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Masters {
    #[value(name = "onebitllms")]
    OneBitLlms,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pack {
    T5,
    T2,
    Packed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tokenizer {
    Tables,
    Json,
    None,
}

/// What to do, and how to print the result.
#[derive(Debug)]
pub(crate) struct Command {
    /// What to do.
    pub(crate) action: Action,
    /// True to print JSON.
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// List a file.
    Inspect(PathBuf),
    /// Write one.
    Write(Job),
}

/// What to write, and how.
#[derive(Debug)]
pub(crate) struct Job {
    /// From what.
    pub(crate) from: Input,
    /// The output.
    pub(crate) output: PathBuf,
    /// How tensors are stored.
    pub(crate) pack: PackOptions,
    /// How the input is read.
    pub(crate) read: ReadOptions,
    /// How a GGUF file stores ternary matrices.
    pub(crate) gguf: Kind,
    /// True to leave out dead neurons.
    pub(crate) prune_dead: bool,
    /// True to compare the output with the input.
    pub(crate) verify: bool,
    /// True to run the new file.
    pub(crate) self_test: bool,
}

/// Where the weights come from.
#[derive(Debug)]
pub(crate) enum Input {
    /// A checkpoint.
    Checkpoint(PathBuf),
    /// A shape and a seed.
    Dummy(Preset, u64),
}

impl Command {
    /// Parses the process's arguments; leaves with status 2 where they make no sense.
    pub(crate) fn from_env() -> Self {
        let args = Args::parse();
        let json = args.json;
        match args.action() {
            Ok(action) => Self { action, json },
            Err(message) => Args::command()
                .error(ErrorKind::WrongNumberOfValues, message)
                .exit(),
        }
    }
}

impl Args {
    fn action(self) -> Result<Action, &'static str> {
        if let Some(file) = self.inspect {
            return Ok(Action::Inspect(file));
        }
        let pack = PackOptions {
            embedding: self.embedding.into(),
            ternary: self.pack.into(),
            tokenizer: self.tokenizer.into(),
        };
        let dense = match (self.masters, self.force_ternarise) {
            (Some(Masters::OneBitLlms), _) => DenseWeights::OneBitLlms,
            (None, true) => DenseWeights::ForceTernarise,
            (None, false) => DenseWeights::Refuse,
        };
        let (from, output) = input_and_output(self.dummy, self.seed, self.files)?;
        Ok(Action::Write(Job {
            from,
            output,
            pack,
            read: ReadOptions {
                dense,
                i2s: match self.i2s {
                    I2s::X86 => I2sLayout::X86,
                    I2s::Arm => I2sLayout::Arm,
                },
            },
            gguf: match self.gguf {
                GgufType::Tq1_0 => Kind::TQ1_0,
                GgufType::Tq2_0 => Kind::TQ2_0,
            },
            prune_dead: self.prune_dead,
            verify: self.verify,
            self_test: !self.no_self_test,
        }))
    }
}

fn input_and_output(
    dummy: Option<Preset>,
    seed: u64,
    files: Vec<PathBuf>,
) -> Result<(Input, PathBuf), &'static str> {
    let mut files = files.into_iter();
    match (dummy, files.next(), files.next(), files.next()) {
        (Some(preset), Some(output), None, None) => Ok((Input::Dummy(preset, seed), output)),
        (Some(_), ..) => Err("--dummy takes one file, the output"),
        (None, Some(input), Some(output), None) => Ok((Input::Checkpoint(input), output)),
        (None, ..) => Err("expected two files, input and output"),
    }
}

fn preset(name: &str) -> Result<Preset, String> {
    Preset::from_name(name).ok_or_else(|| {
        let names = Preset::ALL.map(Preset::name).join(", ");
        format!("presets are {names}")
    })
}

impl From<Embedding> for EmbeddingType {
    fn from(embedding: Embedding) -> Self {
        match embedding {
            Embedding::Source => Self::Source,
            Embedding::F32 => Self::F32,
            Embedding::F16 => Self::F16,
            Embedding::Bf16 => Self::BF16,
            Embedding::I8 => Self::I8,
        }
    }
}

impl From<Tokenizer> for TokenizerStore {
    fn from(tokenizer: Tokenizer) -> Self {
        match tokenizer {
            Tokenizer::Tables => Self::Tables,
            Tokenizer::Json => Self::Json,
            Tokenizer::None => Self::None,
        }
    }
}

impl From<Pack> for TernaryType {
    fn from(pack: Pack) -> Self {
        match pack {
            Pack::T5 => Self::T5,
            Pack::T2 => Self::T2,
            Pack::Packed => Self::Packed,
        }
    }
}
