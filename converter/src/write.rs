//! Packing: every tensor of a source, in file order, through the archive writer.

use std::io::{self, BufWriter, Seek, Write};
use std::ops::ControlFlow;

use bitnet_formats::float::{f32_to_bf16, f32_to_f16};
use bitnet_formats::quant::quantize_row;
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{
    ArchiveWriter, Dtype, ModelConfig, TensorClass, TensorRole, TensorSpec, TernaryLayout,
    TernaryView, packed,
};

use crate::error::ConvertError;
use crate::groups::TernaryGroups;
use crate::names::tensor_name;
use crate::report::Report;
use crate::rows::WeightRows;
use crate::source::Source;

/// How embedding and head are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EmbeddingType {
    /// As in the source.
    Source,
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    BF16,
    /// int8 codes with a scale per row.
    #[default]
    I8,
}

impl EmbeddingType {
    /// The storage type, given that of the source.
    #[must_use]
    pub const fn dtype(self, source: Dtype) -> Dtype {
        match self {
            Self::Source => source,
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
            Self::I8 => Dtype::I8Rows,
        }
    }
}

/// What becomes of a tokenizer.json.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerStore {
    /// Tables that the runtime encodes and decodes with.
    #[default]
    Tables,
    /// The file as it is, for programs that bring a tokenizer of their own.
    Json,
    /// Nothing: the model takes token ids.
    None,
}

/// How ternary matrices are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TernaryType {
    /// T5, or T2 where that is no larger: few columns fill a line of 20 badly, and T2 is then the
    /// cheaper one to decode.
    #[default]
    T5,
    /// T2.
    T2,
    /// Entropy-coded: the smallest file, decoded when it is loaded.
    Packed,
}

impl TernaryType {
    /// The storage type of a matrix of this many columns.
    const fn dtype(self, cols: usize) -> Dtype {
        let (t5, t2) = (TernaryLayout::T5R16, TernaryLayout::T2R16);
        match self {
            Self::T5 if t2.group_bytes(cols) > t5.group_bytes(cols) => Dtype::Ternary(t5),
            Self::T5 | Self::T2 => Dtype::Ternary(t2),
            Self::Packed => Dtype::Packed,
        }
    }
}

/// How a file is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Embedding and head.
    pub embedding: EmbeddingType,
    /// Ternary matrices.
    pub ternary: TernaryType,
    /// What becomes of tokenizer.json.
    pub tokenizer: TokenizerStore,
}

/// Called with the weights packed so far, and with all there are; may ask to stop.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Counts weights for a [`Progress`].
struct Meter<'p> {
    done: u64,
    total: u64,
    progress: Progress<'p>,
}

impl Meter<'_> {
    fn advance(&mut self, weights: usize) -> Result<(), WriteError> {
        self.done += weights as u64;
        match (self.progress)(self.done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ConvertError::Stopped.into()),
        }
    }
}

/// Bytes gathered before they go to the file.
const BUFFER_BYTES: usize = 1 << 18;

/// Writes every tensor of `source`.
///
/// # Errors
///
/// A tensor cannot be read or stored, writing fails, or `progress` asks to stop.
pub fn write_tensors<W: Write + Seek>(
    writer: &mut ArchiveWriter<W>,
    source: &dyn Source,
    options: &PackOptions,
    progress: Progress<'_>,
) -> Result<Report, WriteError> {
    let mut packer = Packer {
        writer,
        source,
        options,
        meter: Meter {
            done: 0,
            total: total_weights(source.config()),
            progress,
        },
        report: Report::default(),
        dead: Vec::new(),
    };
    while let Some(spec) = packer.writer.next_tensor() {
        packer.tensor(&spec)?;
    }
    Ok(packer.report)
}

/// The source failed, or the sink did: only the caller knows the name of the sink.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The source.
    #[error(transparent)]
    Source(#[from] ConvertError),
    /// The sink.
    #[error(transparent)]
    Sink(#[from] io::Error),
}

struct Packer<'a, W> {
    writer: &'a mut ArchiveWriter<W>,
    source: &'a dyn Source,
    options: &'a PackOptions,
    meter: Meter<'a>,
    report: Report,
    /// Neurons of the block whose row of gate is zero.
    dead: Vec<bool>,
}

impl<W: Write + Seek> Packer<'_, W> {
    fn tensor(&mut self, spec: &TensorSpec) -> Result<(), WriteError> {
        match spec.role.class() {
            TensorClass::Ternary => self.ternary(spec),
            TensorClass::Matrix => self.matrix(spec),
            TensorClass::Vector => self.vector(spec),
        }
    }

    fn ternary(&mut self, spec: &TensorSpec) -> Result<(), WriteError> {
        let source = self.source;
        let groups = source.ternary(spec)?;
        let dtype = self.options.ternary.dtype(spec.cols);
        let (bytes, matrix) = match dtype {
            Dtype::Ternary(layout) => self.in_layout(groups, layout, spec)?,
            _ => self.packed(groups, spec)?,
        };
        self.report.add(spec, dtype, bytes, Some(matrix.counts));
        self.note_dead(spec, matrix.zero_rows);
        Ok(())
    }

    fn in_layout(
        &mut self,
        groups: TernaryGroups<'_>,
        layout: TernaryLayout,
        spec: &TensorSpec,
    ) -> Result<(u64, PackedMatrix), WriteError> {
        let dtype = Dtype::Ternary(layout);
        self.writer.begin_tensor(dtype, groups.scale())?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, &mut *self.writer);
        let matrix = pack_groups(groups, layout, spec.cols, &mut self.meter, &mut out)?;
        out.flush()?;
        Ok((dtype.payload_bytes(spec.rows, spec.cols), matrix))
    }

    /// Entropy coding looks at a whole matrix before it writes a byte: one is held in memory, as T5.
    fn packed(
        &mut self,
        groups: TernaryGroups<'_>,
        spec: &TensorSpec,
    ) -> Result<(u64, PackedMatrix), WriteError> {
        let (layout, scale) = (TernaryLayout::T5R16, groups.scale());
        let mut t5 = Vec::with_capacity(layout.packed_bytes(spec.rows, spec.cols) as usize);
        let matrix = pack_groups(groups, layout, spec.cols, &mut self.meter, &mut t5)?;
        let view = TernaryView::new(layout, (spec.rows, spec.cols), scale, &t5);
        let payload = packed::encode(&view.expect("all groups are packed"));
        self.writer.begin_packed(payload.len() as u64, scale)?;
        self.writer.write_all(&payload)?;
        Ok((payload.len() as u64, matrix))
    }

    /// A neuron is dead where its row of gate or its row of up is zero; gate comes first.
    fn note_dead(&mut self, spec: &TensorSpec, zero_rows: Vec<bool>) {
        match spec.role {
            TensorRole::Gate => self.dead = zero_rows,
            TensorRole::Up => {
                let dead = self.dead.iter().zip(&zero_rows).filter(|(a, b)| **a || **b);
                let (dead, all) = (dead.count() as u64, zero_rows.len() as u64);
                self.report.add_neurons(dead, all);
            }
            _ => (),
        }
    }

    fn matrix(&mut self, spec: &TensorSpec) -> Result<(), WriteError> {
        let source = self.source;
        let mut rows = source.rows(spec)?;
        let dtype = self.options.embedding.dtype(rows.dtype());
        self.writer.begin_tensor(dtype, 0.0)?;
        match dtype {
            Dtype::I8Rows => self.i8_rows(rows.as_mut(), spec)?,
            _ => self.float_rows(rows.as_mut(), spec, dtype)?,
        }
        let bytes = dtype.payload_bytes(spec.rows, spec.cols);
        self.report.add(spec, dtype, bytes, None);
        Ok(())
    }

    fn float_rows(
        &mut self,
        rows: &mut dyn WeightRows,
        spec: &TensorSpec,
        dtype: Dtype,
    ) -> Result<(), WriteError> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, &mut *self.writer);
        let mut bytes = Vec::new();
        for_each_block(rows, spec, |first, block| {
            bytes.clear();
            encode(dtype, block, &mut bytes)
                .map_err(|at| does_not_fit(spec, dtype, first, at, block))?;
            out.write_all(&bytes)?;
            self.meter.advance(block.len())
        })?;
        Ok(out.flush()?)
    }

    /// Two passes: the scales of all rows stand before the codes.
    fn i8_rows(&mut self, rows: &mut dyn WeightRows, spec: &TensorSpec) -> Result<(), WriteError> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, &mut *self.writer);
        let mut codes = vec![0i8; spec.cols];
        for_each_block(rows, spec, |_, block| {
            for row in block.chunks_exact(spec.cols) {
                out.write_all(&int8_row(row, &mut codes).to_le_bytes())?;
            }
            self.meter.advance(0)
        })?;
        let scales = 4 * spec.rows;
        out.write_all(&vec![0; scales.next_multiple_of(64) - scales])?;
        for_each_block(rows, spec, |_, block| {
            for row in block.chunks_exact(spec.cols) {
                int8_row(row, &mut codes);
                out.write_all(&codes.iter().map(|c| *c as u8).collect::<Vec<_>>())?;
            }
            self.meter.advance(block.len())
        })?;
        Ok(out.flush()?)
    }

    fn vector(&mut self, spec: &TensorSpec) -> Result<(), WriteError> {
        let values = match spec.role {
            TensorRole::RopeInvFreq => self.source.inv_freq(spec.cols),
            _ => {
                let mut values = vec![0.0; spec.cols];
                self.source.rows(spec)?.read(0, &mut values)?;
                values
            }
        };
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.writer.begin_tensor(Dtype::F32, 0.0)?;
        self.writer.write_all(&bytes)?;
        self.report.add(spec, Dtype::F32, bytes.len() as u64, None);
        self.meter.advance(spec.cols)
    }
}

/// Packs the row groups, and counts what is in them.
fn pack_groups(
    mut groups: TernaryGroups<'_>,
    layout: TernaryLayout,
    cols: usize,
    meter: &mut Meter<'_>,
    out: &mut impl Write,
) -> Result<PackedMatrix, WriteError> {
    let mut packed = vec![0; layout.group_bytes(cols)];
    let mut matrix = PackedMatrix::default();
    while let Some(codes) = groups.next_group()? {
        layout.pack_group(codes, cols, &mut packed);
        out.write_all(&packed)?;
        matrix.count(codes, cols);
        meter.advance(codes.len())?;
    }
    Ok(matrix)
}

/// What a ternary matrix holds.
#[derive(Default)]
struct PackedMatrix {
    /// How many codes are -1, 0 and 1.
    counts: [u64; 3],
    /// True for rows of zeros alone.
    zero_rows: Vec<bool>,
}

impl PackedMatrix {
    fn count(&mut self, codes: &[i8], cols: usize) {
        for row in codes.chunks_exact(cols) {
            let (plus, minus) = (
                count_if(row, |code| code > 0),
                count_if(row, |code| code < 0),
            );
            let zero = cols - plus - minus;
            let found = [minus, zero, plus].map(|n| n as u64);
            self.counts
                .iter_mut()
                .zip(found)
                .for_each(|(sum, n)| *sum += n);
            self.zero_rows.push(zero == cols);
        }
    }
}

/// How many codes pass. Counted in bytes as long as those cannot overflow: sixteen at a time.
fn count_if(codes: &[i8], pass: impl Fn(i8) -> bool) -> usize {
    let count = |block: &[i8]| block.iter().map(|code| u8::from(pass(*code))).sum::<u8>();
    codes
        .chunks(usize::from(u8::MAX))
        .map(|block| usize::from(count(block)))
        .sum()
}

/// Visits a matrix sixteen rows at a time, with the first row's number.
fn for_each_block(
    rows: &mut dyn WeightRows,
    spec: &TensorSpec,
    mut visit: impl FnMut(usize, &[f32]) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let mut block = Vec::new();
    for first in (0..spec.rows).step_by(GROUP_ROWS) {
        block.resize(GROUP_ROWS.min(spec.rows - first) * spec.cols, 0.0);
        rows.read(first, &mut block)?;
        visit(first, &block)?;
    }
    Ok(())
}

/// Quantises a row of finite values; [`WeightRows::read`] gives no others.
///
/// A row that was written out from int8 gets the codes and the scale it had, so that nothing is rounded
/// twice: codes come from the largest value, and the scale may be off by the rounding of one product.
pub(crate) fn int8_row(row: &[f32], codes: &mut [i8]) -> f32 {
    let scale = quantize_row(row, codes).expect("rows are read as finite values");
    let gives_back = |scale: &f32| {
        let mut pairs = codes.iter().zip(row);
        pairs.all(|(code, w)| f32::from(*code) * scale == *w)
    };
    let near = [scale, scale.next_up(), scale.next_down()];
    near.into_iter().find(gives_back).unwrap_or(scale)
}

/// Appends values as `dtype`, or gives the place of the first that is too large for it.
fn encode(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
    const F16_INFINITY: u16 = 0x7c00;
    const BF16_INFINITY: u16 = 0x7f80;
    match dtype {
        Dtype::F16 => encode_halves(values, f32_to_f16, F16_INFINITY, out),
        Dtype::BF16 => encode_halves(values, f32_to_bf16, BF16_INFINITY, out),
        _ => {
            out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            Ok(())
        }
    }
}

fn encode_halves(
    values: &[f32],
    narrow: impl Fn(f32) -> u16,
    infinity: u16,
    out: &mut Vec<u8>,
) -> Result<(), usize> {
    for (at, value) in values.iter().enumerate() {
        let half = narrow(*value);
        if half & 0x7fff == infinity {
            return Err(at);
        }
        out.extend(half.to_le_bytes());
    }
    Ok(())
}

fn does_not_fit(
    spec: &TensorSpec,
    dtype: Dtype,
    first: usize,
    at: usize,
    block: &[f32],
) -> ConvertError {
    ConvertError::DoesNotFit {
        tensor: tensor_name(spec.role, spec.layer).unwrap_or_default(),
        index: (first * spec.cols + at) as u64,
        value: block[at],
        dtype: dtype.name(),
    }
}

/// Weights of all tensors.
fn total_weights(config: &ModelConfig) -> u64 {
    let elements = |t: TensorSpec| t.rows as u64 * t.cols as u64;
    config.tensors().map(elements).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t5_gives_way_where_it_is_not_smaller() {
        let [t5, t2] = [TernaryLayout::T5R16, TernaryLayout::T2R16].map(Dtype::Ternary);
        for (cols, expected) in [
            (16, t2),
            (20, t5),
            (32, t2),
            (40, t5),
            (64, t2),
            (1_536, t5),
        ] {
            assert_eq!(TernaryType::T5.dtype(cols), expected, "{cols}");
            assert_eq!(TernaryType::T2.dtype(cols), t2, "{cols}");
            assert_eq!(TernaryType::Packed.dtype(cols), Dtype::Packed, "{cols}");
        }
    }

    #[test]
    fn halves_that_overflow_are_found() {
        let mut out = Vec::new();
        assert_eq!(encode(Dtype::F16, &[1.0, -65_519.9], &mut out), Ok(()));
        assert_eq!(out, [0x00, 0x3c, 0xff, 0xfb]);
        assert_eq!(encode(Dtype::F16, &[1.0, -65_520.0], &mut out), Err(1));
        assert_eq!(encode(Dtype::BF16, &[f32::MAX], &mut out), Err(0));
        assert_eq!(encode(Dtype::F32, &[f32::MAX], &mut out), Ok(()));
    }
}
