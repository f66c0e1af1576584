//! The whole way: source, packed file, self-test, check, final name.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::ops::{ControlFlow, Deref};
use std::path::Path;

use bitnet_formats::header::MAGIC;
use bitnet_formats::{Archive, Preset, SectionKind};

use crate::btn::BtnSource;
use crate::chat::ChatTemplateError;
use crate::checkpoint::Checkpoint;
use crate::config_json::CheckpointConfig;
use crate::dense::{self, DenseWeights};
use crate::dummy::DummySource;
use crate::error::ConvertError;
use crate::gguf::vocab::Vocab;
use crate::gguf::{Gguf, GgufModel, GgufSource, I2sLayout, Kind};
use crate::new_file::{NewFile, verify_bytes};
use crate::output::PartialFile;
use crate::prune::PrunedSource;
use crate::report::Report;
use crate::sections::Sections;
use crate::selftest::{self, Vector};
use crate::sidecar::Sidecars;
use crate::source::{CheckpointSource, Source};
use crate::verify::Verified;
use crate::write::{PackOptions, Progress};

/// The bytes of a file, however they came to be in memory.
pub trait FileView: Deref<Target = [u8]> {
    /// Tells that what was read so far is not needed soon. A memory map gives its pages back, so
    /// that the peak memory of a conversion does not grow with the file.
    fn release(&self) {}
}

impl FileView for Vec<u8> {}

/// A [`FileView`] of any kind.
pub type FileBytes = Box<dyn FileView>;

/// What a conversion needs besides its input.
pub struct Conversion<'p> {
    /// How tensors are stored.
    pub pack: PackOptions,
    /// How the input is read, where it does not say so itself.
    pub read: ReadOptions,
    /// True to leave out feed-forward neurons that are always zero.
    pub prune_dead: bool,
    /// True to compare the new file with the input, bit for bit.
    pub verify: bool,
    /// True to run the new file and store self-test vectors in it.
    pub self_test: bool,
    /// Gives the bytes of the new file for reading it back: [`load`], or a memory map.
    pub read_back: fn(&File) -> io::Result<FileBytes>,
    /// Hears of progress, and may stop the conversion.
    pub progress: Progress<'p>,
}

impl Default for Conversion<'_> {
    /// Nothing pruned, everything checked, the new file read back into memory, nobody listening.
    fn default() -> Self {
        Self {
            pack: PackOptions::default(),
            read: ReadOptions::default(),
            prune_dead: false,
            verify: true,
            self_test: true,
            read_back: load,
            // Of a closure without a size: nothing is allocated, so nothing leaks.
            progress: Box::leak(Box::new(|_: u64, _: u64| ControlFlow::Continue(()))),
        }
    }
}

/// How an input is read, where it does not say so itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// What to do with weights that are not ternary.
    pub dense: DenseWeights,
    /// Which values share a byte of an I2_S tensor of a GGUF file.
    pub i2s: I2sLayout,
}

/// What a conversion leaves to say.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The tensors.
    pub report: Report,
    /// Size of the new file.
    pub file_bytes: u64,
    /// False where only token ids can be fed to the model.
    pub has_tokenizer: bool,
    /// Why the chat template, which is kept, could not be compiled.
    pub chat_problem: Option<ChatTemplateError>,
    /// Feed-forward neurons that were left out, if that was asked for.
    pub pruned: Option<u64>,
    /// What was compared with the input, if it was asked for.
    pub verified: Option<Verified>,
}

/// Reads a file into memory.
///
/// # Errors
///
/// The system refuses.
pub fn load(mut file: &File) -> io::Result<FileBytes> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(Box::new(bytes))
}

/// Converts a checkpoint (a safetensors file, an index of shards, or a folder with one of them), a GGUF
/// file, or packs a `.btn` file again.
///
/// # Errors
///
/// The first thing that is wrong with the input or the output. No partial file remains.
pub fn convert(
    input: &Path,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    match InputKind::of(input)? {
        InputKind::Checkpoint => convert_checkpoint(input, output, conversion),
        InputKind::Gguf => convert_gguf(input, output, conversion),
        InputKind::Btn => repack(input, output, conversion),
    }
}

/// What an input is, by how it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// A safetensors file, an index, or a folder.
    Checkpoint,
    /// A GGUF file.
    Gguf,
    /// A `.btn` file.
    Btn,
}

impl InputKind {
    /// Looks at the first bytes of a file; a folder is a checkpoint.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn of(path: &Path) -> Result<Self, ConvertError> {
        if path.is_dir() {
            return Ok(Self::Checkpoint);
        }
        let file = File::open(path).map_err(ConvertError::io("open", path))?;
        let mut first = Vec::new();
        file.take(MAGIC.len() as u64)
            .read_to_end(&mut first)
            .map_err(ConvertError::io("read", path))?;
        if first.starts_with(b"GGUF") {
            return Ok(Self::Gguf);
        }
        match first == MAGIC {
            true => Ok(Self::Btn),
            false => Ok(Self::Checkpoint),
        }
    }
}

fn convert_checkpoint(
    input: &Path,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    let checkpoint = Checkpoint::open(input)?;
    refuse_overwriting(checkpoint.paths(), output)?;
    let mut sidecars = Sidecars::read(&checkpoint)?;
    dense::decide(&checkpoint, &mut sidecars.config, conversion.read.dense)?;
    let source = CheckpointSource::new(&checkpoint, &sidecars.config)?;
    let mut sections = Sections::of_sidecars(&sidecars);
    if let Some(json) = &sidecars.tokenizer {
        let added = sections.tokenizer(json, conversion.pack.tokenizer);
        let path = || checkpoint.dir().join("tokenizer.json");
        added.map_err(|source| ConvertError::Tokenizer {
            path: path(),
            source,
        })?;
    }
    let chat_problem = sidecars.chat().and_then(|chat| sections.chat(&chat));
    sections.provenance(&provenance(&source, &sidecars.config)?);
    let mut outcome = write(&source, sections, output, conversion)?;
    outcome.chat_problem = chat_problem;
    Ok(outcome)
}

fn convert_gguf(
    input: &Path,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    let file = Gguf::open(input)?;
    refuse_overwriting([input].into_iter(), output)?;
    let wrong = |source| ConvertError::Gguf {
        path: input.to_owned(),
        source,
    };
    let model = GgufModel::read(&file).map_err(wrong)?;
    let vocab = Vocab::read(&file, model.config.vocab_size).map_err(wrong)?;
    let source = GgufSource::new(&file, model, conversion.read.i2s)?;
    let embedding = source.embedding_kind().map_or("?", Kind::name);
    let mut sections = Sections::of_vocab(&vocab);
    sections.provenance(&format!(
        "architecture: GGUF {:?}\nweights: {}\nembedding: {embedding}\n",
        model.arch,
        source.weights_kind().map_or("?", Kind::name),
    ));
    if let Some(json) = &vocab.tokenizer {
        let added = sections.tokenizer(json, conversion.pack.tokenizer);
        added.map_err(|source| ConvertError::Tokenizer {
            path: input.to_owned(),
            source,
        })?;
    }
    let chat_problem = vocab.chat().and_then(|chat| sections.chat(&chat));
    let mut outcome = write(&source, sections, output, conversion)?;
    outcome.chat_problem = chat_problem;
    Ok(outcome)
}

/// Packs the tensors of a `.btn` file as the options say; everything else stays.
fn repack(
    input: &Path,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    refuse_overwriting([input].into_iter(), output)?;
    let file = File::open(input).map_err(ConvertError::io("open", input))?;
    let bytes = (conversion.read_back)(&file).map_err(ConvertError::io("read", input))?;
    let archive = open_verified(&bytes, input)?;
    let sections = Sections::of_archive(&archive);
    write(&BtnSource(&archive), sections, output, conversion)
}

/// Opens a `.btn` file and checks every byte of it.
///
/// # Errors
///
/// [`ConvertError::Btn`] with what is wrong.
pub fn open_verified<'w>(bytes: &'w FileBytes, path: &Path) -> Result<Archive<'w>, ConvertError> {
    let wrong = |source| ConvertError::Btn {
        path: path.to_owned(),
        source,
    };
    let archive = Archive::open(bytes).map_err(wrong)?;
    verify_bytes(&archive, bytes).map_err(wrong)?;
    Ok(archive)
}

/// Writes a file of this shape with random weights.
///
/// # Errors
///
/// The output cannot be written. No partial file remains.
pub fn convert_dummy(
    preset: Preset,
    seed: u64,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    let source = DummySource::new(preset.config(), seed);
    let mut sections = Sections::default();
    let name = preset.name();
    sections.provenance(&format!("weights: random, preset {name}, seed {seed}\n"));
    write(&source, sections, output, conversion)
}

/// The output must not be a file the weights are read from.
fn refuse_overwriting<'p>(
    mut inputs: impl Iterator<Item = &'p Path>,
    output: &Path,
) -> Result<(), ConvertError> {
    // An output that has no canonical path does not exist yet.
    let Ok(target) = fs::canonicalize(output) else {
        return Ok(());
    };
    let is_target = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path == target);
    if !inputs.any(is_target) {
        return Ok(());
    }
    Err(ConvertError::Output {
        path: output.to_owned(),
        reason: "is part of the input; name another file",
    })
}

/// Writes the model whole, or without its dead neurons.
fn write(
    source: &dyn Source,
    sections: Sections,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    if !conversion.prune_dead {
        return write_file(source, sections, output, conversion, None);
    }
    let pruned = PrunedSource::new(source)?;
    let neurons = |source: &dyn Source| source.ffn_widths().into_iter().sum::<usize>();
    let gone = neurons(source) - neurons(&pruned);
    let expected = hashes_of_whole(source, &conversion, output)?;
    let mut outcome = write_file(&pruned, sections, output, conversion, Some(&expected))?;
    outcome.pruned = Some(gone as u64);
    Ok(outcome)
}

/// What the self-test's prompts give before anything is taken out: the proof that pruning is exact.
fn hashes_of_whole(
    source: &dyn Source,
    conversion: &Conversion<'_>,
    output: &Path,
) -> Result<Vec<Vector>, ConvertError> {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".whole");
    let whole = output.with_file_name(name);
    let partial = PartialFile::create(&whole)?;
    let file = NewFile::new(&partial, &whole, conversion.read_back);
    let silent = &mut |_, _| ControlFlow::Continue(());
    file.pack(source, &Sections::default(), &conversion.pack, silent)?;
    file.hashes(source.config())
}

/// Packs, tests, checks and names the file; `expected` is what the self-test's prompts must give.
fn write_file(
    source: &dyn Source,
    mut sections: Sections,
    output: &Path,
    conversion: Conversion<'_>,
    expected: Option<&[Vector]>,
) -> Result<Outcome, ConvertError> {
    let mut vectors = Vec::new();
    if conversion.self_test {
        vectors = selftest::prompts(source.config());
        sections.add(SectionKind::SelfTest, selftest::encode(&vectors));
    }
    let partial = PartialFile::create(output)?;
    let file = NewFile::new(&partial, output, conversion.read_back);
    let (finished, report) = file.pack(source, &sections, &conversion.pack, conversion.progress)?;
    if conversion.self_test {
        file.self_test(finished, &mut vectors)?;
    }
    let file_bytes = file.check()?;
    if let Some(expected) = expected
        && file.hashes(source.config())? != expected
    {
        return Err(ConvertError::PruneDiffers);
    }
    let verified = conversion.verify.then(|| file.verify(source)).transpose()?;
    partial.persist()?;
    Ok(Outcome {
        report,
        file_bytes,
        has_tokenizer: sections.has(SectionKind::Tokenizer),
        chat_problem: None,
        pruned: None,
        verified,
    })
}

/// What the source was, without paths or times: equal input gives equal bytes.
fn provenance(
    source: &CheckpointSource<'_>,
    config: &CheckpointConfig,
) -> Result<String, ConvertError> {
    let architecture = config.family.architecture();
    let weights = config.weights.name();
    let embedding = source.embedding_dtype()?;
    Ok(format!(
        "architecture: {architecture}\nweights: {weights}\nembedding: {embedding}\n"
    ))
}
