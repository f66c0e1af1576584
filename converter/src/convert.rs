//! The whole way: source, packed file, self-test, check, final name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::ops::Deref;
use std::path::Path;

use bitnet_formats::metadata::encode_special_tokens;
use bitnet_formats::{
    Archive, ArchiveWriter, FinishedArchive, Preset, SectionKind, TokenizerTables,
};

use crate::chat::{self, ChatTemplateError};
use crate::checkpoint::Checkpoint;
use crate::config_json::CheckpointConfig;
use crate::dense::{self, DenseWeights};
use crate::dummy::DummySource;
use crate::error::ConvertError;
use crate::output::PartialFile;
use crate::report::Report;
use crate::selftest::{self, Vector};
use crate::sidecar::Sidecars;
use crate::source::{CheckpointSource, Source};
use crate::tokenizer;
use crate::write::{PackOptions, Progress, TokenizerStore, WriteError, write_tensors};

/// The bytes of a file, however they came to be in memory.
pub trait FileView: Deref<Target = [u8]> {
    /// Tells that what was read so far is not needed soon. A memory map gives its pages back, so
    /// that the peak memory of a conversion does not grow with the file.
    fn release(&self) {}
}

impl FileView for Vec<u8> {}

/// A [`FileView`] of any kind.
pub type FileBytes = Box<dyn FileView>;

/// Bytes of the new file that may be in memory while it is checked.
const MOST_HELD: usize = 16 << 20;

/// What a conversion needs besides its input.
pub struct Conversion<'p> {
    /// How tensors are stored.
    pub pack: PackOptions,
    /// What to do with weights that are not ternary.
    pub dense: DenseWeights,
    /// True to run the new file and store self-test vectors in it.
    pub self_test: bool,
    /// Gives the bytes of the new file for reading it back: [`load`], or a memory map.
    pub read_back: fn(&File) -> io::Result<FileBytes>,
    /// Hears of progress, and may stop the conversion.
    pub progress: Progress<'p>,
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

/// Converts a checkpoint: a safetensors file, an index of shards, or a folder with one of them.
///
/// # Errors
///
/// The first thing that is wrong with the checkpoint or the output. No partial file remains.
pub fn convert(
    input: &Path,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    let checkpoint = Checkpoint::open(input)?;
    refuse_overwriting(&checkpoint, output)?;
    let mut sidecars = Sidecars::read(&checkpoint)?;
    dense::decide(&checkpoint, &mut sidecars.config, conversion.dense)?;
    let source = CheckpointSource::new(&checkpoint, &sidecars.config)?;
    let mut sections = Sections::of_sidecars(&sidecars);
    if let Some(json) = &sidecars.tokenizer {
        let path = checkpoint.dir().join("tokenizer.json");
        sections.tokenizer(json, &path, conversion.pack.tokenizer)?;
    }
    let chat_problem = sections.chat(&sidecars);
    sections.provenance(&provenance(&source, &sidecars.config)?);
    let mut outcome = write(&source, sections, output, conversion)?;
    outcome.chat_problem = chat_problem;
    Ok(outcome)
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
fn refuse_overwriting(checkpoint: &Checkpoint, output: &Path) -> Result<(), ConvertError> {
    // An output that has no canonical path does not exist yet.
    let Ok(target) = fs::canonicalize(output) else {
        return Ok(());
    };
    let is_target = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path == target);
    if !checkpoint.paths().any(is_target) {
        return Ok(());
    }
    Err(ConvertError::Output {
        path: output.to_owned(),
        reason: "is part of the input; name another file",
    })
}

/// Packs, tests, checks and names the file.
fn write(
    source: &dyn Source,
    mut sections: Sections,
    output: &Path,
    conversion: Conversion<'_>,
) -> Result<Outcome, ConvertError> {
    let mut vectors = Vec::new();
    if conversion.self_test {
        vectors = selftest::prompts(source.config());
        sections.add(SectionKind::SelfTest, selftest::encode(&vectors));
    }
    let partial = PartialFile::create(output)?;
    let file = NewFile {
        file: partial.file(),
        output,
        read_back: conversion.read_back,
    };
    let (finished, report) = file.pack(source, &sections, &conversion.pack, conversion.progress)?;
    if conversion.self_test {
        file.self_test(finished, &mut vectors)?;
    }
    let file_bytes = file.check()?;
    partial.persist()?;
    Ok(Outcome {
        report,
        file_bytes,
        has_tokenizer: sections.has(SectionKind::Tokenizer),
        chat_problem: None,
    })
}

/// The temporary file, and the name that errors give it.
struct NewFile<'f> {
    file: &'f File,
    output: &'f Path,
    read_back: fn(&File) -> io::Result<FileBytes>,
}

impl<'f> NewFile<'f> {
    fn pack(
        &self,
        source: &dyn Source,
        sections: &Sections,
        options: &PackOptions,
        progress: Progress<'_>,
    ) -> Result<(FinishedArchive<&'f File>, Report), ConvertError> {
        write_archive(self.file, source, sections, options, progress).map_err(|e| match e {
            WriteError::Source(e) => e,
            WriteError::Sink(e) => ConvertError::io("write", self.output)(e),
        })
    }

    /// Runs the file and replaces its zero hashes by the true ones.
    fn self_test(
        &self,
        mut finished: FinishedArchive<&'f File>,
        vectors: &mut [Vector],
    ) -> Result<(), ConvertError> {
        let bytes = self.bytes()?;
        selftest::run(&Archive::open(&bytes)?, vectors, &|| bytes.release())?;
        drop(bytes);
        finished
            .replace_section(SectionKind::SelfTest, &selftest::encode(vectors))
            .map_err(ConvertError::io("write", self.output))
    }

    /// Reads every byte as a user of the file would; returns its size.
    fn check(&self) -> Result<u64, ConvertError> {
        let bytes = self.bytes()?;
        let mut held = 0;
        Archive::open(&bytes)?.verify_with(|read| {
            held += read;
            if held >= MOST_HELD {
                bytes.release();
                held = 0;
            }
        })?;
        Ok(bytes.len() as u64)
    }

    fn bytes(&self) -> Result<FileBytes, ConvertError> {
        (self.read_back)(self.file).map_err(ConvertError::io("read", self.output))
    }
}

fn write_archive<W: Write + Seek>(
    sink: W,
    source: &dyn Source,
    sections: &Sections,
    options: &PackOptions,
    progress: Progress<'_>,
) -> Result<(FinishedArchive<W>, Report), WriteError> {
    let mut writer = ArchiveWriter::new(sink, source.config(), &sections.list())?;
    let report = write_tensors(&mut writer, source, options, progress)?;
    Ok((writer.finish()?, report))
}

/// The small sections of a file, in file order.
#[derive(Debug, Default)]
struct Sections(Vec<(SectionKind, Vec<u8>)>);

impl Sections {
    fn of_sidecars(sidecars: &Sidecars) -> Self {
        let mut sections = Self::default();
        let texts = [
            (SectionKind::ChatTemplate, &sidecars.chat_template),
            (SectionKind::Licence, &sidecars.licence),
        ];
        for (kind, text) in texts {
            if let Some(text) = text {
                sections.add(kind, text.clone().into_bytes());
            }
        }
        let bos = sidecars.config.bos_token_id;
        if bos.is_some() || !sidecars.stop_ids.is_empty() {
            let bytes = encode_special_tokens(bos, &sidecars.stop_ids);
            sections.add(SectionKind::SpecialTokens, bytes);
        }
        sections
    }

    fn tokenizer(
        &mut self,
        json: &str,
        path: &Path,
        store: TokenizerStore,
    ) -> Result<(), ConvertError> {
        match store {
            TokenizerStore::Tables => {
                let in_file = |source| ConvertError::Tokenizer {
                    path: path.to_owned(),
                    source,
                };
                let section = tokenizer::section(json).map_err(in_file)?;
                self.add(SectionKind::Tokenizer, section);
            }
            TokenizerStore::Json => self.add(SectionKind::TokenizerJson, json.into()),
            TokenizerStore::None => (),
        }
        Ok(())
    }

    /// Adds the compiled chat template; says why if it cannot be compiled.
    fn chat(&mut self, sidecars: &Sidecars) -> Option<ChatTemplateError> {
        let tables = self.get(SectionKind::Tokenizer).map(TokenizerTables::open);
        match chat::section(sidecars, tables.and_then(Result::ok).as_ref()) {
            Ok(section) => {
                if let Some(section) = section {
                    self.add(SectionKind::Chat, section);
                }
                None
            }
            Err(problem) => Some(problem),
        }
    }

    fn provenance(&mut self, source: &str) {
        const TOOL: &str = concat!("tool: bitnet-convert ", env!("CARGO_PKG_VERSION"), "\n");
        self.add(
            SectionKind::Provenance,
            format!("{TOOL}{source}").into_bytes(),
        );
    }

    fn add(&mut self, kind: SectionKind, bytes: Vec<u8>) {
        self.0.push((kind, bytes));
        self.0.sort_by_key(|(kind, _)| *kind as u32);
    }

    fn has(&self, kind: SectionKind) -> bool {
        self.get(kind).is_some()
    }

    fn get(&self, kind: SectionKind) -> Option<&[u8]> {
        let section = self.0.iter().find(|(k, _)| *k == kind);
        section.map(|(_, bytes)| &bytes[..])
    }

    fn list(&self) -> Vec<(SectionKind, &[u8])> {
        let sections = self.0.iter();
        sections.map(|(kind, bytes)| (*kind, &bytes[..])).collect()
    }
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
