//! Writing a GGUF file.
//!
//! A matrix of a `.btn` file has one f32 scale; a TQ block has an f16 scale. The `bitnet` architectures
//! have a tensor for the scale of each matrix, so their blocks hold 1 and nothing is rounded; `llama` has
//! none, and its blocks hold the scale as f16. In both cases the scales themselves, in their own
//! convention, are written as metadata of this project, so that a file read back is the file it was.

use std::io::{self, Write};

use bitnet_formats::float::{f32_to_bf16, f32_to_f16};
use bitnet_formats::quant::linear_factor;
use bitnet_formats::{
    Activation, Attention, Dtype, ModelConfig, Norms, Output, RopePairing, TensorClass, TensorRole,
    TensorSpec, WeightScale,
};

use crate::error::ConvertError;
use crate::gguf::kinds::{Kind, tq1_0_block, tq2_0_block};
use crate::gguf::model::tensor_stem;
use crate::gguf::vocab_out::VocabOut;
use crate::groups::TernaryGroups;
use crate::pages::Pages;
use crate::source::Source;

/// Key of the convention in which [`SCALES_KEY`] holds scales: `multiply` or `divide`.
pub const CONVENTION_KEY: &str = "bitnet_btn.weight_scale";
/// Key of the scales of all ternary matrices, in the order of a `.btn` file.
pub const SCALES_KEY: &str = "bitnet_btn.scales";
const ALIGNMENT: u64 = 32;
/// Its bits are all zero in an f16 below the normal numbers, all one beyond them.
const F16_EXPONENT: u16 = 0x7c00;

/// What the sink or the source did.
#[derive(Debug, thiserror::Error)]
pub enum WriteGgufError {
    /// The source failed, or the model has no place in a GGUF file.
    #[error(transparent)]
    Source(#[from] ConvertError),
    /// The sink failed.
    #[error(transparent)]
    Sink(#[from] io::Error),
}

/// The architecture that runs such a model.
///
/// # Errors
///
/// [`ConvertError::NoGguf`] where none does.
pub fn arch_for(config: &ModelConfig) -> Result<&'static str, ConvertError> {
    let no = |reason| Err(ConvertError::NoGguf { reason });
    if let Attention::Latent { .. } = config.attention {
        return no("no architecture there has latent attention over a quantised cache");
    }
    if config.qk_latent_dim.is_some() || config.output != Output::Logits {
        return no(
            "no architecture there has projected heads, a ternary head or embeddings as output",
        );
    }
    if config.rope.pairing != RopePairing::HalfRotation {
        return no("models whose rotary pairs are interleaved are not written");
    }
    if config.pruned_ffn {
        return no("its blocks have pruned neurons; convert the source again without pruning");
    }
    let sub_ln = config.norms == Norms::sub_ln(config.norms.eps);
    match (sub_ln, config.activation) {
        (true, _) if !config.tie_embeddings => no("architecture bitnet has its embedding as head"),
        (true, Activation::Silu) => Ok("bitnet"),
        (true, Activation::SquaredRelu) => Ok("bitnet-b1.58"),
        (false, Activation::Silu) if config.norms == Norms::pre(config.norms.eps) => Ok("llama"),
        (false, _) => no("no architecture there has these norms with this activation"),
    }
}

/// A tensor to be written.
#[derive(Clone, Copy)]
struct Planned {
    spec: TensorSpec,
    kind: Kind,
    /// True for the scale beside a ternary matrix.
    is_scale: bool,
    offset: u64,
    bytes: u64,
}

impl Planned {
    fn of(
        source: &dyn Source,
        spec: TensorSpec,
        ternary: Kind,
        offset: u64,
    ) -> Result<Self, ConvertError> {
        let kind = match spec.role.class() {
            TensorClass::Ternary => ternary,
            TensorClass::Matrix => dense_kind(source.rows(&spec)?.dtype()),
            TensorClass::Vector => Kind::F32,
        };
        let reason = "its ternary types take rows of a multiple of 256";
        let bytes = kind.bytes(spec.rows, spec.cols);
        Ok(Self {
            spec,
            kind,
            is_scale: false,
            offset,
            bytes: bytes.ok_or(ConvertError::NoGguf { reason })?,
        })
    }

    /// The scale behind a ternary matrix.
    const fn scale(&self) -> Self {
        Self {
            kind: Kind::F32,
            is_scale: true,
            offset: self.end(),
            bytes: 4,
            ..*self
        }
    }

    /// Where the next tensor begins.
    const fn end(&self) -> u64 {
        (self.offset + self.bytes).next_multiple_of(ALIGNMENT)
    }

    fn name(&self) -> String {
        let stem = tensor_stem(self.spec.role, self.spec.layer).unwrap_or_default();
        let part = if self.is_scale { "scale" } else { "weight" };
        format!("{stem}.{part}")
    }

    /// Dimensions as the file gives them, fastest first.
    fn dims(&self) -> Vec<u64> {
        match (self.is_scale, self.spec.role.class()) {
            (true, _) => vec![1],
            (false, TensorClass::Vector) => vec![self.spec.cols as u64],
            (false, _) => vec![self.spec.cols as u64, self.spec.rows as u64],
        }
    }
}

/// Writes the model of `source` with ternary matrices as `kind`, TQ1_0 or TQ2_0.
///
/// # Errors
///
/// No architecture runs the model, rows are no whole blocks, or reading or writing fails.
pub fn write_gguf(
    out: &mut impl Write,
    source: &dyn Source,
    kind: Kind,
    vocab: &VocabOut,
    pages: &Pages<'_>,
) -> Result<(), WriteGgufError> {
    let arch = arch_for(source.config())?;
    let planned = plan(source, arch, kind)?;
    let scales = scales(source)?;
    let mut header = Header::new();
    header.model(source.config(), arch, kind);
    header.scales(source.config().weight_scale, &scales);
    vocab.write(&mut header);
    let bytes = header.finish(&planned);
    out.write_all(&bytes)?;
    let mut position = pad(out, bytes.len() as u64)?;
    for tensor in &planned {
        write_tensor(out, source, arch, tensor, pages)?;
        position = pad(out, position + tensor.bytes)?;
    }
    Ok(())
}

/// Zeros up to the next multiple of the alignment; returns the new position.
fn pad(out: &mut impl Write, position: u64) -> io::Result<u64> {
    let end = position.next_multiple_of(ALIGNMENT);
    out.write_all(&[0; ALIGNMENT as usize][..(end - position) as usize])?;
    Ok(end)
}

/// Everything that is to be written, at its place.
fn plan(source: &dyn Source, arch: &str, kind: Kind) -> Result<Vec<Planned>, ConvertError> {
    let mut planned = Vec::new();
    let mut offset = 0;
    let stored = |spec: &TensorSpec| spec.role != TensorRole::RopeInvFreq;
    for spec in source.config().tensors().filter(stored) {
        let scale = has_scale_tensors(arch) && spec.role.class() == TensorClass::Ternary;
        let tensor = Planned::of(source, spec, kind, offset)?;
        offset = tensor.end();
        let scale = scale.then(|| tensor.scale());
        planned.push(tensor);
        if let Some(scale) = scale {
            offset = scale.end();
            planned.push(scale);
        }
    }
    Ok(planned)
}

fn has_scale_tensors(arch: &str) -> bool {
    arch != "llama"
}

/// Int8 rows have no type there that keeps them: they are written as the numbers they stand for.
const fn dense_kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F16 => Kind::F16,
        Dtype::BF16 => Kind::BF16,
        _ => Kind::F32,
    }
}

fn scales(source: &dyn Source) -> Result<Vec<f32>, ConvertError> {
    let ternary = |spec: &TensorSpec| spec.role.class() == TensorClass::Ternary;
    let specs = source.config().tensors().filter(ternary);
    specs
        .map(|spec| Ok(source.ternary(&spec)?.scale()))
        .collect()
}

fn write_tensor(
    out: &mut impl Write,
    source: &dyn Source,
    arch: &str,
    tensor: &Planned,
    pages: &Pages<'_>,
) -> Result<(), WriteGgufError> {
    if tensor.spec.role.class() != TensorClass::Ternary {
        return write_rows(out, source, tensor, pages);
    }
    let groups = source.ternary(&tensor.spec)?;
    // What multiplies the codes, whatever the convention.
    let scale = linear_factor(source.config().weight_scale, groups.scale(), 1.0);
    if tensor.is_scale {
        return Ok(out.write_all(&scale.to_le_bytes())?);
    }
    let blocks = Blocks {
        kind: tensor.kind,
        scale: block_scale(if has_scale_tensors(arch) { 1.0 } else { scale })?,
        cols: tensor.spec.cols,
        pages,
    };
    match head_rows(source.config(), arch, &tensor.spec) {
        Some(rows) => blocks.write_heads(out, groups, rows),
        None => blocks.write(out, groups),
    }
}

/// Rows whose order changes together: a head of q or k, where the architecture rotates interleaved
/// pairs.
fn head_rows(config: &ModelConfig, arch: &str, spec: &TensorSpec) -> Option<usize> {
    let is_qk = matches!(spec.role, TensorRole::Q | TensorRole::K);
    (arch == "llama" && is_qk).then(|| config.qk_head_dim())
}

fn block_scale(scale: f32) -> Result<u16, ConvertError> {
    let scale = f32_to_f16(scale);
    let reason = "a scale is too small or too large for the f16 that its blocks have";
    match scale & F16_EXPONENT {
        0 | F16_EXPONENT => Err(ConvertError::NoGguf { reason }),
        _ => Ok(scale),
    }
}

/// How the rows of a ternary matrix become blocks.
struct Blocks<'p> {
    kind: Kind,
    scale: u16,
    cols: usize,
    pages: &'p Pages<'p>,
}

impl Blocks<'_> {
    fn write(
        &self,
        out: &mut impl Write,
        mut groups: TernaryGroups<'_>,
    ) -> Result<(), WriteGgufError> {
        while let Some(codes) = groups.next_group()? {
            self.codes(out, codes)?;
        }
        Ok(())
    }

    /// Writes the rows of each head in the order of interleaved pairs: pair `j` of that order is the
    /// elements `j` and `j + rows / 2` of one that is rotated by halves.
    fn write_heads(
        &self,
        out: &mut impl Write,
        mut groups: TernaryGroups<'_>,
        rows: usize,
    ) -> Result<(), WriteGgufError> {
        let mut waiting: Vec<i8> = Vec::new();
        while let Some(codes) = groups.next_group()? {
            waiting.extend_from_slice(codes);
            while waiting.len() >= rows * self.cols {
                for row in 0..rows {
                    let from = row / 2 + row % 2 * (rows / 2);
                    self.codes(out, &waiting[from * self.cols..][..self.cols])?;
                }
                waiting.drain(..rows * self.cols);
            }
        }
        Ok(())
    }

    fn codes(&self, out: &mut impl Write, codes: &[i8]) -> io::Result<()> {
        self.pages.read(codes.len() as u64 / 4);
        for block in codes.as_chunks::<256>().0 {
            match self.kind {
                Kind::TQ1_0 => out.write_all(&tq1_0_block(block, self.scale))?,
                _ => out.write_all(&tq2_0_block(block, self.scale))?,
            }
        }
        Ok(())
    }
}

fn write_rows(
    out: &mut impl Write,
    source: &dyn Source,
    tensor: &Planned,
    pages: &Pages<'_>,
) -> Result<(), WriteGgufError> {
    let mut rows = source.rows(&tensor.spec)?;
    let mut values = vec![0.0f32; tensor.spec.cols];
    let mut bytes = Vec::new();
    for row in 0..tensor.spec.rows {
        rows.read(row, &mut values)?;
        bytes.clear();
        for value in &values {
            // The type is the source's own, so nothing is rounded.
            match tensor.kind {
                Kind::F16 => bytes.extend(f32_to_f16(*value).to_le_bytes()),
                Kind::BF16 => bytes.extend(f32_to_bf16(*value).to_le_bytes()),
                _ => bytes.extend(value.to_le_bytes()),
            }
        }
        out.write_all(&bytes)?;
        pages.read(bytes.len() as u64);
    }
    Ok(())
}

/// Metadata on its way into a file.
pub(crate) struct Header {
    keys: Vec<u8>,
    n_keys: u64,
}

impl Header {
    const fn new() -> Self {
        Self {
            keys: Vec::new(),
            n_keys: 0,
        }
    }

    fn string(out: &mut Vec<u8>, text: &[u8]) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text);
    }

    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.n_keys += 1;
        Self::string(&mut self.keys, key.as_bytes());
        self.keys.extend(kind.to_le_bytes());
        &mut self.keys
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4).extend(value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend(value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7).push(u8::from(value));
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        Self::string(self.key(key, 8), value.as_bytes());
    }

    fn list(&mut self, key: &str, kind: u32, len: usize) -> &mut Vec<u8> {
        let out = self.key(key, 9);
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
        out
    }

    pub(crate) fn texts<'t>(&mut self, key: &str, texts: impl ExactSizeIterator<Item = &'t str>) {
        let out = self.list(key, 8, texts.len());
        texts.for_each(|text| Self::string(out, text.as_bytes()));
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        let out = self.list(key, 5, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) {
        let out = self.list(key, 6, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    fn model(&mut self, config: &ModelConfig, arch: &str, kind: Kind) {
        const FILE_TYPE_TQ1_0: u32 = 36;
        const FILE_TYPE_TQ2_0: u32 = 37;
        let file_type = match kind {
            Kind::TQ1_0 => FILE_TYPE_TQ1_0,
            _ => FILE_TYPE_TQ2_0,
        };
        let n_kv_heads = match config.attention {
            Attention::Grouped { n_kv_heads, .. } => n_kv_heads,
            Attention::Latent { .. } => config.n_heads,
        };
        self.text("general.architecture", arch);
        self.u32("general.file_type", file_type);
        self.u32("general.quantization_version", 2);
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("context_length", config.max_seq_len),
            ("embedding_length", config.hidden_size),
            ("block_count", config.n_layers),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.n_heads),
            ("attention.head_count_kv", n_kv_heads),
            ("attention.key_length", config.qk_head_dim()),
            ("attention.value_length", config.v_head_dim()),
            ("rope.dimension_count", config.rope_dim()),
        ];
        for (key, value) in sizes {
            self.u32(&format!("{arch}.{key}"), value as u32);
        }
        let eps = config.norms.eps;
        self.f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), eps);
        self.f32(&format!("{arch}.rope.freq_base"), config.rope.theta);
    }

    fn scales(&mut self, convention: WeightScale, scales: &[f32]) {
        let name = match convention {
            WeightScale::Multiply => "multiply",
            WeightScale::Divide => "divide",
        };
        self.text(CONVENTION_KEY, name);
        self.f32s(SCALES_KEY, scales);
    }

    fn finish(self, tensors: &[Planned]) -> Vec<u8> {
        const VERSION: u32 = 3;
        let mut out = b"GGUF".to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.to_le_bytes());
        out.extend(self.keys);
        for tensor in tensors {
            let dims = tensor.dims();
            Self::string(&mut out, tensor.name().as_bytes());
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.code().to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out
    }
}
