//! A `.btn` file back as a checkpoint (safetensors, config.json and what stood beside them) or as GGUF.
//!
//! Ternary matrices are written as packed codes with their scale, in the form that the public loaders
//! read for BitNet and Llama; other families have no packed form of their own and take the same. Nothing
//! is rounded: converting the checkpoint again gives the same codes, scales and norms.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use bitnet_formats::{
    Archive, Attention, Dtype, FormatError, Row, SectionKind, TensorClass, TensorRole,
};
use serde_json::{Map, json};

use crate::btn::{BtnSource, ViewRows};
use crate::checkpoint::Checkpoint;
use crate::config_json::CheckpointConfig;
use crate::error::ConvertError;
use crate::gguf::vocab_out::{Tokens, VocabOut};
use crate::gguf::write::{WriteGgufError, write_gguf};
use crate::gguf::{Gguf, GgufModel, GgufSource, I2sLayout, Kind};
use crate::groups::CodeRows;
use crate::names::CheckpointTensor;
use crate::output::PartialFile;
use crate::packed::stored_rows;
use crate::pages::Pages;
use crate::source::{CheckpointSource, Source};
use crate::tokenizer;
use crate::verify::verify;

/// A finished file that is to be given back.
#[derive(Clone, Copy)]
pub struct Export<'a, 'w> {
    /// The file.
    pub archive: &'a Archive<'w>,
    /// Tells its map that what was read is not needed soon.
    pub release: &'a dyn Fn(),
}

impl Export<'_, '_> {
    /// Writes a checkpoint: into the folder `output`, or, where `output` ends in `.safetensors`, as that
    /// file with the others beside it. None of the files may exist.
    ///
    /// Returns why the tokenizer is not among them, if so.
    ///
    /// # Errors
    ///
    /// The public files have no words for the model, or the output cannot be written.
    pub fn checkpoint(&self, output: &Path) -> Result<Option<&'static str>, ConvertError> {
        let parts = Parts::of(self.archive)?;
        self.checkpoint_of(&parts, output)?;
        Ok(parts.no_tokenizer)
    }

    fn checkpoint_of(&self, parts: &Parts, output: &Path) -> Result<(), ConvertError> {
        if output.extension().is_some_and(|e| e == "safetensors") {
            let dir = match output.parent() {
                Some(dir) if !dir.as_os_str().is_empty() => dir,
                _ => Path::new("."),
            };
            return parts.write(self, dir, output);
        }
        fs::create_dir_all(output).map_err(ConvertError::io("create", output))?;
        parts.write(self, output, &output.join("model.safetensors"))
    }

    /// Writes a GGUF file. Returns why the tokenizer could not go into it, if so.
    ///
    /// # Errors
    ///
    /// No architecture there runs the model, or the output cannot be written.
    pub fn gguf(&self, output: &Path, kind: Kind) -> Result<Option<&'static str>, ConvertError> {
        refuse_other_frequencies(self.archive)?;
        let (vocab, problem) = vocab_of(self.archive);
        let partial = PartialFile::create(output)?;
        let mut out = BufWriter::with_capacity(1 << 18, partial.file());
        let (source, pages) = (BtnSource(self.archive), Pages::new(self.release));
        let written = write_gguf(&mut out, &source, kind, &vocab, &pages);
        written
            .and_then(|()| Ok(out.flush()?))
            .map_err(|e| match e {
                WriteGgufError::Source(e) => e,
                WriteGgufError::Sink(e) => ConvertError::io("write", output)(e),
            })?;
        drop(out);
        self.compare_gguf(partial.path())?;
        partial.persist()?;
        Ok(problem)
    }

    /// Reads a GGUF file as a stranger's and compares every weight.
    fn compare_gguf(&self, path: &Path) -> Result<(), ConvertError> {
        let file = Gguf::open(path)?;
        let model = GgufModel::read(&file).map_err(|source| ConvertError::Gguf {
            path: path.to_owned(),
            source,
        })?;
        let source = GgufSource::new(&file, model, I2sLayout::default())?;
        self.compare(&source)
    }

    fn compare_checkpoint(
        &self,
        path: &Path,
        config: &CheckpointConfig,
    ) -> Result<(), ConvertError> {
        let checkpoint = Checkpoint::open(path)?;
        self.compare(&CheckpointSource::new(&checkpoint, config)?)
    }

    fn compare(&self, source: &dyn Source) -> Result<(), ConvertError> {
        if source.config() != self.archive.config() {
            return Err(ConvertError::ConfigDiffers);
        }
        verify(self.archive, source, &Pages::new(self.release))?;
        Ok(())
    }
}

/// What a GGUF file is to say about text, and why it cannot have the tokenizer, if so.
fn vocab_of(archive: &Archive<'_>) -> (VocabOut, Option<&'static str>) {
    let vocab_size = archive.config().vocab_size;
    let json = tokenizer_json(archive).and_then(|json| json.ok_or("the file has none"));
    let tokens = json.and_then(|json| Tokens::of_json(&json, vocab_size));
    let problem = tokens.as_ref().err().copied();
    let special = archive.special_tokens();
    let vocab = VocabOut {
        bos: special.and_then(|tokens| tokens.bos),
        stop_ids: special.map_or(Vec::new(), |tokens| tokens.stop_ids().collect()),
        chat_template: archive.text(SectionKind::ChatTemplate).map(str::to_owned),
        tokens: tokens.ok(),
    };
    (vocab, problem)
}

/// The tokenizer as a tokenizer.json, where the file has one; or why it cannot be said as one.
fn tokenizer_json(archive: &Archive<'_>) -> Result<Option<String>, &'static str> {
    if let Some(json) = archive.text(SectionKind::TokenizerJson) {
        return Ok(Some(json.to_owned()));
    }
    let Some(section) = archive.section(SectionKind::Tokenizer) else {
        return Ok(None);
    };
    let json = tokenizer::json(section);
    json.map(Some)
        .map_err(|_| "its tables have no equal as a tokenizer.json")
}

/// What a checkpoint consists of, but for the weights.
struct Parts {
    config: CheckpointConfig,
    tensors: Vec<Stored>,
    /// Name and content.
    files: Vec<(&'static str, Vec<u8>)>,
    /// Why there is no tokenizer among them, though the file has one.
    no_tokenizer: Option<&'static str>,
}

/// A tensor of the safetensors file.
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
    content: Content,
}

enum Content {
    Packed(CheckpointTensor),
    Scale(f32),
    Dense(CheckpointTensor),
}

impl Parts {
    fn of(archive: &Archive<'_>) -> Result<Self, ConvertError> {
        let model = *archive.config();
        let config = |source| ConvertError::Export { source };
        let mut config = CheckpointConfig::packed(model).map_err(config)?;
        if let Some(tokens) = archive.special_tokens() {
            config.bos_token_id = tokens.bos;
            config.eos_token_ids = tokens.stop_ids().collect();
        }
        refuse_other_frequencies(archive)?;
        let mut tensors = Vec::new();
        for tensor in config.family.naming().checkpoint_tensors(&model) {
            describe(archive, tensor, &mut tensors)?;
        }
        let mut files = sidecars(archive, &config);
        let (tokenizer, no_tokenizer) = match tokenizer_json(archive) {
            Ok(json) => (json, None),
            Err(reason) => (None, Some(reason)),
        };
        files.extend(tokenizer.map(|json| ("tokenizer.json", json.into_bytes())));
        Ok(Self {
            config,
            tensors,
            files,
            no_tokenizer,
        })
    }

    fn write(
        &self,
        export: &Export<'_, '_>,
        dir: &Path,
        weights: &Path,
    ) -> Result<(), ConvertError> {
        let paths = self.files.iter().map(|(name, _)| dir.join(name));
        let mut all = paths.chain([weights.to_owned()]);
        if let Some(path) = all.find(|path| path.exists()) {
            let reason = "exists; name a new folder or file";
            return Err(ConvertError::Output { path, reason });
        }
        let partial = PartialFile::create(weights)?;
        self.write_weights(export, &partial)
            .map_err(ConvertError::io("write", weights))?;
        export.compare_checkpoint(partial.path(), &self.config)?;
        for (name, content) in &self.files {
            write_file(&dir.join(name), content)?;
        }
        partial.persist()
    }

    fn write_weights(&self, export: &Export<'_, '_>, file: &PartialFile) -> std::io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 18, file.file());
        let header = self.header();
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        let pages = Pages::new(export.release);
        for tensor in &self.tensors {
            tensor.write(export.archive, &pages, &mut out)?;
        }
        out.flush()
    }

    /// The JSON part, padded with spaces to a multiple of eight bytes.
    fn header(&self) -> String {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut start = 0;
        for tensor in &self.tensors {
            let end = start + tensor.bytes;
            let entry = json!({
                "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end],
            });
            header.insert(tensor.name.clone(), entry);
            start = end;
        }
        let mut text = serde_json::Value::Object(header).to_string();
        let padded = text.len().next_multiple_of(8);
        text.extend(std::iter::repeat_n(' ', padded - text.len()));
        text
    }
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), ConvertError> {
    let partial = PartialFile::create(path)?;
    let mut file = partial.file();
    file.write_all(content)
        .map_err(ConvertError::io("write", path))?;
    partial.persist()
}

/// Readers compute the rotary frequencies from their base, so only such can be given back.
fn refuse_other_frequencies(archive: &Archive<'_>) -> Result<(), ConvertError> {
    let stored = archive.vector(TensorRole::RopeInvFreq, None);
    let same = stored.is_some_and(|stored| {
        let computed = archive.config().rope.inv_freq(stored.len());
        stored
            .iter()
            .map(f32::to_bits)
            .eq(computed.iter().map(|f| f.to_bits()))
    });
    match same {
        true => Ok(()),
        false => Err(ConvertError::NoCheckpoint {
            reason: "its rotary frequencies do not follow from their base",
        }),
    }
}

fn describe(
    archive: &Archive<'_>,
    tensor: CheckpointTensor,
    out: &mut Vec<Stored>,
) -> Result<(), ConvertError> {
    match tensor.role.class() {
        TensorClass::Ternary => out.extend(packed_and_scale(archive, tensor)?),
        _ => out.push(dense(archive, tensor)),
    }
    Ok(())
}

fn dense(archive: &Archive<'_>, tensor: CheckpointTensor) -> Stored {
    let (dtype, width) = match archive.matrix(tensor.role).map(|m| m.dtype) {
        Some(Dtype::F16) => ("F16", 2),
        Some(Dtype::BF16) => ("BF16", 2),
        // Norms, and int8 rows as the numbers they stand for.
        _ => ("F32", 4),
    };
    Stored {
        name: tensor.name.clone(),
        dtype,
        shape: tensor.shape(),
        bytes: width * tensor.rows as u64 * tensor.cols as u64,
        content: Content::Dense(tensor),
    }
}

fn packed_and_scale(
    archive: &Archive<'_>,
    tensor: CheckpointTensor,
) -> Result<[Stored; 2], ConvertError> {
    let stored = stored_rows(&tensor.name, tensor.rows)?;
    let shape_and_scale = archive.ternary_shape(tensor.role, tensor.layer);
    let (_, scale) = shape_and_scale.expect(PRESENT);
    let scale = Stored {
        name: format!("{}_scale", tensor.name),
        dtype: "F32",
        shape: vec![1],
        bytes: 4,
        content: Content::Scale(scale),
    };
    let packed = Stored {
        name: tensor.name.clone(),
        dtype: "U8",
        shape: vec![stored, tensor.cols],
        bytes: stored as u64 * tensor.cols as u64,
        content: Content::Packed(tensor),
    };
    Ok([packed, scale])
}

impl Stored {
    fn write(
        &self,
        archive: &Archive<'_>,
        pages: &Pages<'_>,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        match &self.content {
            Content::Scale(scale) => out.write_all(&scale.to_le_bytes()),
            Content::Dense(tensor) => write_dense(archive, tensor, pages, out),
            Content::Packed(tensor) => write_packed(archive, tensor, pages, out),
        }
    }
}

fn write_dense(
    archive: &Archive<'_>,
    tensor: &CheckpointTensor,
    pages: &Pages<'_>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    if tensor.role.class() == TensorClass::Vector {
        let vector = archive.vector(tensor.role, tensor.layer).expect(PRESENT);
        return out.write_all(vector.as_bytes().as_flattened());
    }
    let matrix = archive.matrix(tensor.role).expect(PRESENT);
    let mut values = vec![0.0; matrix.cols];
    for row in 0..matrix.rows {
        pages.read(matrix.dtype.payload_bytes(1, matrix.cols));
        match matrix.row(row) {
            Row::F32(row) => out.write_all(row.as_bytes().as_flattened())?,
            Row::F16(row) | Row::BF16(row) => out.write_all(row.as_flattened())?,
            row @ Row::I8(..) => {
                row.to_f32(&mut values);
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                out.write_all(&bytes)?;
            }
        }
    }
    Ok(())
}

/// Four rows in one, a quarter of the matrix apart: see [`crate::packed`].
fn write_packed(
    archive: &Archive<'_>,
    tensor: &CheckpointTensor,
    pages: &Pages<'_>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let stored = tensor.rows / 4;
    let open = || rows_of(archive, tensor).map_err(std::io::Error::other);
    let mut quarters = [open()?, open()?, open()?, open()?];
    let mut codes = vec![0i8; tensor.cols];
    for row in 0..stored {
        // Four rows of 1.6 or 2 bits a weight.
        pages.read(tensor.cols as u64);
        let mut bytes = vec![0u8; tensor.cols];
        for (quarter, rows) in quarters.iter_mut().enumerate() {
            rows.read(quarter * stored + row, &mut codes)
                .expect("rows in memory can be read");
            let pairs = bytes.iter_mut().zip(&codes);
            pairs.for_each(|(byte, code)| *byte |= ((code + 1) as u8) << (2 * quarter));
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// The rows as checkpoints hold them: `kv_b_proj` is one matrix there.
fn rows_of<'w>(
    archive: &Archive<'w>,
    tensor: &CheckpointTensor,
) -> Result<Box<dyn CodeRows + 'w>, FormatError> {
    let rows = |role| ViewRows::of(archive, role, tensor.layer);
    Ok(match (tensor.role, archive.config().attention) {
        (
            TensorRole::KvBKey,
            Attention::Latent {
                kv_lora_rank,
                qk_nope_head_dim,
                v_head_dim,
                ..
            },
        ) => Box::new(KvB {
            key: rows(TensorRole::KvBKey)?,
            value: rows(TensorRole::KvBValue)?,
            rank: kv_lora_rank,
            nope: qk_nope_head_dim,
            v: v_head_dim,
            head: None,
            keys: Vec::new(),
        }),
        (role, _) => Box::new(rows(role)?),
    })
}

/// `kv_b_proj` from its halves.
struct KvB<'w> {
    key: ViewRows<'w>,
    value: ViewRows<'w>,
    rank: usize,
    nope: usize,
    v: usize,
    /// The head that `keys` holds, `[rank, nope]`.
    head: Option<usize>,
    keys: Vec<i8>,
}

impl CodeRows for KvB<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        for (i, out) in out.chunks_exact_mut(self.rank).enumerate() {
            let (head, row) = (
                (first + i) / (self.nope + self.v),
                (first + i) % (self.nope + self.v),
            );
            if row >= self.nope {
                self.value.read(head * self.v + row - self.nope, out)?;
                continue;
            }
            if self.head != Some(head) {
                self.keys.resize(self.rank * self.nope, 0);
                self.key.read(head * self.rank, &mut self.keys)?;
                self.head = Some(head);
            }
            let column = self.keys.iter().skip(row).step_by(self.nope);
            out.iter_mut()
                .zip(column)
                .for_each(|(out, code)| *out = *code);
        }
        Ok(())
    }
}

const PRESENT: &str = "opened archives have every tensor";

/// What a checkpoint says of the texts that end an answer.
fn stop_strings(archive: &Archive<'_>) -> Option<Vec<u8>> {
    let chat = archive.chat().ok().flatten()?;
    let strings: Vec<&str> = chat.stop_strings().collect();
    let json = serde_json::json!({ "stop_strings": strings });
    (!strings.is_empty()).then(|| format!("{json:#}\n").into_bytes())
}

fn sidecars(archive: &Archive<'_>, config: &CheckpointConfig) -> Vec<(&'static str, Vec<u8>)> {
    let dtype = match archive.matrix(TensorRole::Embedding).map(|m| m.dtype) {
        Some(Dtype::F16) => "float16",
        Some(Dtype::BF16) => "bfloat16",
        _ => "float32",
    };
    let json = format!("{:#}\n", config.to_json(dtype));
    let mut files = vec![("config.json", json.into_bytes())];
    files.extend(stop_strings(archive).map(|json| ("generation_config.json", json)));
    for (kind, name) in [
        (SectionKind::ChatTemplate, "chat_template.jinja"),
        (SectionKind::Licence, "LICENSE"),
    ] {
        if let Some(text) = archive.text(kind) {
            files.push((name, text.as_bytes().to_vec()));
        }
    }
    files
}
