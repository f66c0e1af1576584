//! Ternary codes by row group, in the order in which a `.btn` file stores them.

use bitnet_formats::quant::{
    AbsMean, ternary_code, ternary_code_bf16, weight_scale, weight_scale_bf16,
};
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{Attention, ModelConfig, TensorRole, TensorSpec};

use crate::error::ConvertError;
use crate::rows::WeightRows;

/// A ternary matrix as its source holds it.
pub trait CodeRows {
    /// Reads the codes of whole rows from row `first` on; `out` is `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// The source cannot be read, or holds what is no code.
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError>;
}

/// In which arithmetic master weights become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32, as in training.
    F32,
    /// bf16, as the onebitllms exporter.
    BF16,
}

impl Arithmetic {
    fn scale(self, absmean: f32) -> f32 {
        match self {
            Self::F32 => weight_scale(absmean),
            Self::BF16 => weight_scale_bf16(absmean),
        }
    }

    fn quantize(self, weights: &[f32], scale: f32, codes: &mut [i8]) {
        let pairs = codes.iter_mut().zip(weights);
        match self {
            Self::F32 => pairs.for_each(|(code, w)| *code = ternary_code(*w, scale)),
            Self::BF16 => pairs.for_each(|(code, w)| *code = ternary_code_bf16(*w, scale)),
        }
    }
}

/// Master weights, quantised as they are read.
pub struct QuantizedRows<R> {
    weights: R,
    scale: f32,
    arithmetic: Arithmetic,
    buf: Vec<f32>,
}

impl<R: WeightRows> QuantizedRows<R> {
    /// Reads the whole `[rows, cols]` matrix once for the scale, `1 / mean|w|`.
    ///
    /// # Errors
    ///
    /// The weights cannot be read, or one is not finite.
    pub fn new(
        mut weights: R,
        (rows, cols): (usize, usize),
        arithmetic: Arithmetic,
    ) -> Result<Self, ConvertError> {
        let mut mean = AbsMean::default();
        for_each_block(&mut weights, rows, cols, |_, block| {
            mean.update(block);
            Ok(())
        })?;
        Ok(Self {
            weights,
            scale: arithmetic.scale(mean.mean()),
            arithmetic,
            buf: Vec::new(),
        })
    }

    /// The multiplier that took weights to codes.
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.scale
    }
}

impl<R: WeightRows> CodeRows for QuantizedRows<R> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        self.buf.resize(out.len(), 0.0);
        self.weights.read(first, &mut self.buf)?;
        self.arithmetic.quantize(&self.buf, self.scale, out);
        Ok(())
    }
}

/// Weights that are all -a, 0 or a: `a` is the scale and the signs are the codes. Nothing is rounded.
pub struct DequantizedRows<R> {
    weights: R,
    size: f32,
    buf: Vec<f32>,
}

impl<R: WeightRows> DequantizedRows<R> {
    /// Reads the whole `[rows, cols]` matrix once to find `a`, and to see that there is no other size.
    ///
    /// # Errors
    ///
    /// The weights cannot be read, or two sizes are found: [`ConvertError::NotTernary`] with `name`.
    pub fn new(
        mut weights: R,
        (rows, cols): (usize, usize),
        name: &str,
    ) -> Result<Self, ConvertError> {
        let mut size = 0.0;
        for_each_block(&mut weights, rows, cols, |first, block| {
            match one_size(block, size) {
                Ok(found) => size = found,
                Err(at) => return Err(not_ternary(name, first * cols + at, block[at], size)),
            }
            Ok(())
        })?;
        // A matrix of zeros has any size.
        let size = if size == 0.0 { 1.0 } else { size };
        Ok(Self {
            weights,
            size,
            buf: Vec::new(),
        })
    }

    /// What the codes are multiplied by.
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.size
    }
}

impl<R: WeightRows> CodeRows for DequantizedRows<R> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        self.buf.resize(out.len(), 0.0);
        self.weights.read(first, &mut self.buf)?;
        let sign = |w: &f32| i8::from(*w > 0.0) - i8::from(*w < 0.0);
        out.iter_mut()
            .zip(&self.buf)
            .for_each(|(c, w)| *c = sign(w));
        Ok(())
    }
}

/// The size all values but zeros have, where `size` is that of the values before (zero for none yet);
/// or the place of the first that has another.
pub(crate) fn one_size(values: &[f32], size: f32) -> Result<f32, usize> {
    let mut size = size;
    for (at, value) in values.iter().enumerate() {
        let found = value.abs();
        if found != 0.0 && size == 0.0 {
            size = found;
        } else if found != 0.0 && found != size {
            return Err(at);
        }
    }
    Ok(size)
}

fn not_ternary(tensor: &str, index: usize, value: f32, size: f32) -> ConvertError {
    ConvertError::NotTernary {
        tensor: tensor.to_owned(),
        index: index as u64,
        value,
        size,
    }
}

/// Visits a matrix sixteen rows at a time, with the first row's number.
fn for_each_block(
    weights: &mut impl WeightRows,
    rows: usize,
    cols: usize,
    mut visit: impl FnMut(usize, &[f32]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let mut buf = Vec::new();
    for first in (0..rows).step_by(GROUP_ROWS) {
        buf.resize(GROUP_ROWS.min(rows - first) * cols, 0.0);
        weights.read(first, &mut buf)?;
        visit(first, &buf)?;
    }
    Ok(())
}

/// The row groups of one tensor of a `.btn` file.
///
/// ```text
/// while let Some(codes) = groups.next_group()? { ... }   // codes: [up to 16, cols]
/// ```
pub struct TernaryGroups<'c> {
    source: Box<dyn CodeRows + 'c>,
    order: RowOrder,
    scale: f32,
    rows: usize,
    cols: usize,
    next_row: usize,
    group: Vec<i8>,
    /// Key half only: the codes of the current head, `[qk_nope, kv_lora_rank]`.
    head: Vec<i8>,
}

impl<'c> TernaryGroups<'c> {
    /// Orders the rows of `source` as `spec` wants them.
    #[must_use]
    pub fn new(
        source: Box<dyn CodeRows + 'c>,
        scale: f32,
        config: &ModelConfig,
        spec: &TensorSpec,
    ) -> Self {
        Self {
            source,
            order: RowOrder::of(config, spec.role),
            scale,
            rows: spec.rows,
            cols: spec.cols,
            next_row: 0,
            group: Vec::new(),
            head: Vec::new(),
        }
    }

    /// Rows that are in the order of `spec` already.
    #[must_use]
    pub fn as_stored(source: Box<dyn CodeRows + 'c>, scale: f32, spec: &TensorSpec) -> Self {
        Self {
            source,
            order: RowOrder::AsStored,
            scale,
            rows: spec.rows,
            cols: spec.cols,
            next_row: 0,
            group: Vec::new(),
            head: Vec::new(),
        }
    }

    /// Scale of the matrix, in the convention of its checkpoint.
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.scale
    }

    /// The codes of the next 16 rows, or of the fewer that are left; `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// The source cannot be read, or holds what cannot be packed.
    pub fn next_group(&mut self) -> Result<Option<&[i8]>, ConvertError> {
        let rows = GROUP_ROWS.min(self.rows - self.next_row);
        if rows == 0 {
            return Ok(None);
        }
        self.group.resize(rows * self.cols, 0);
        match self.order {
            RowOrder::AsStored => self.source.read(self.next_row, &mut self.group)?,
            RowOrder::ValueHalf { nope, v } => {
                let (head, row) = (self.next_row / v, self.next_row % v);
                let first = head * (nope + v) + nope + row;
                self.source.read(first, &mut self.group)?;
            }
            RowOrder::KeyHalf { rank, v } => self.key_group(rank, v)?,
        }
        self.next_row += rows;
        Ok(Some(&self.group))
    }

    /// Rows `head * rank + latent..` of the key half: columns `latent..` of the head's key rows.
    fn key_group(&mut self, rank: usize, v: usize) -> Result<(), ConvertError> {
        let (nope, latent) = (self.cols, self.next_row % rank);
        if latent == 0 {
            self.head.resize(nope * rank, 0);
            let head = self.next_row / rank;
            self.source.read(head * (nope + v), &mut self.head)?;
        }
        for (row, codes) in self.group.chunks_exact_mut(nope).enumerate() {
            let column = self.head.iter().skip(latent + row).step_by(rank);
            codes.iter_mut().zip(column).for_each(|(out, c)| *out = *c);
        }
        Ok(())
    }
}

/// How rows of a `.btn` tensor follow from rows of the source.
///
/// The halves of `kv_b_proj` come from one matrix whose rows are, per head, `nope` key rows and
/// then `v` value rows. A head starts on a row group in both halves ([`ModelConfig::validate`]).
#[derive(Clone, Copy, Debug)]
enum RowOrder {
    AsStored,
    /// Key rows of each head, transposed.
    KeyHalf {
        rank: usize,
        v: usize,
    },
    /// Value rows of each head.
    ValueHalf {
        nope: usize,
        v: usize,
    },
}

impl RowOrder {
    fn of(config: &ModelConfig, role: TensorRole) -> Self {
        match (config.attention, role) {
            (
                Attention::Latent {
                    kv_lora_rank,
                    v_head_dim,
                    ..
                },
                TensorRole::KvBKey,
            ) => Self::KeyHalf {
                rank: kv_lora_rank,
                v: v_head_dim,
            },
            (
                Attention::Latent {
                    qk_nope_head_dim,
                    v_head_dim,
                    ..
                },
                TensorRole::KvBValue,
            ) => Self::ValueHalf {
                nope: qk_nope_head_dim,
                v: v_head_dim,
            },
            _ => Self::AsStored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::{Dtype, Preset};

    /// A matrix in memory.
    struct Memory {
        cols: usize,
        values: Vec<f32>,
    }

    impl WeightRows for Memory {
        fn dtype(&self) -> Dtype {
            Dtype::F32
        }

        fn read(&mut self, first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
            out.copy_from_slice(&self.values[first * self.cols..][..out.len()]);
            Ok(())
        }
    }

    fn random(rows: usize, cols: usize) -> Memory {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let values = (0..rows * cols).map(|_| next()).collect();
        Memory { cols, values }
    }

    fn collect(mut groups: TernaryGroups<'_>) -> Vec<i8> {
        let mut all = Vec::new();
        while let Some(codes) = groups.next_group().unwrap() {
            all.extend_from_slice(codes);
        }
        all
    }

    fn groups(source: Memory, rows: usize, config: &ModelConfig, spec: &TensorSpec) -> Vec<i8> {
        let cols = source.cols;
        let source = QuantizedRows::new(source, (rows, cols), Arithmetic::F32).unwrap();
        let scale = source.scale();
        collect(TernaryGroups::new(Box::new(source), scale, config, spec))
    }

    #[test]
    fn the_last_group_may_be_short() {
        let config = Preset::Nano.config();
        let spec = TensorSpec {
            role: TensorRole::Q,
            layer: Some(0),
            rows: 37,
            cols: 5,
        };
        let source = random(37, 5);
        let mean: f64 = source
            .values
            .iter()
            .map(|w| f64::from(w.abs()))
            .sum::<f64>()
            / 185.0;
        let expected: Vec<i8> = source
            .values
            .iter()
            .map(|w| (f64::from(*w) / mean).round().clamp(-1.0, 1.0) as i8)
            .collect();
        assert_eq!(groups(source, 37, &config, &spec), expected);
    }

    /// Both halves against their definitions, element by element.
    #[test]
    fn the_halves_of_kv_b_are_where_they_belong() {
        let config = Preset::Nano.config();
        let (n_heads, rank, nope, v) = (4, 64, 32, 32);
        let rows = n_heads * (nope + v);
        let whole = TensorSpec {
            role: TensorRole::Q,
            layer: Some(0),
            rows,
            cols: rank,
        };
        let w = groups(random(rows, rank), rows, &config, &whole);
        let at = |row: usize, col: usize| w[row * rank + col];
        let half = |role| {
            let spec = config.tensors().find(|t| t.role == role).unwrap();
            groups(random(rows, rank), rows, &config, &spec)
        };
        let (key, value) = (half(TensorRole::KvBKey), half(TensorRole::KvBValue));
        assert_eq!(key.len() + value.len(), w.len());
        for h in 0..n_heads {
            for l in 0..rank {
                for n in 0..nope {
                    let expected = at(h * (nope + v) + n, l);
                    assert_eq!(key[(h * rank + l) * nope + n], expected, "{h} {l} {n}");
                }
                for j in 0..v {
                    let expected = at(h * (nope + v) + nope + j, l);
                    assert_eq!(value[(h * v + j) * rank + l], expected, "{h} {l} {j}");
                }
            }
        }
    }
}
