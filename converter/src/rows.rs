//! Rows of a dense tensor as f32, whatever float type stores them.

use bitnet_formats::Dtype;
use bitnet_formats::float::{bf16_to_f32, f16_to_f32};
use bitnet_formats::quant::absmax;

use crate::checkpoint::TensorRef;
use crate::error::ConvertError;

/// A matrix (or a vector, as one row) whose rows can be had as f32, in any order and repeatedly.
pub trait WeightRows {
    /// Type in which the source stores it: f32, f16 or bf16.
    fn dtype(&self) -> Dtype;

    /// Reads whole rows from row `first` on; `out` is `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// The source cannot be read, or a value is not finite.
    fn read(&mut self, first: usize, out: &mut [f32]) -> Result<(), ConvertError>;
}

/// A float tensor of a checkpoint, read row by row.
#[derive(Debug)]
pub struct StoredRows<'c> {
    tensor: TensorRef<'c>,
    dtype: Dtype,
    cols: usize,
    bytes: Vec<u8>,
}

impl<'c> StoredRows<'c> {
    /// Prepares to read rows of `cols` elements.
    ///
    /// # Errors
    ///
    /// [`ConvertError::Dtype`] unless the tensor holds f32, f16 or bf16.
    pub fn new(tensor: TensorRef<'c>, cols: usize) -> Result<Self, ConvertError> {
        Ok(Self {
            tensor,
            dtype: float_dtype(tensor)?,
            cols,
            bytes: Vec::new(),
        })
    }

    fn check_finite(&self, first: usize, values: &[f32]) -> Result<(), ConvertError> {
        if absmax(values).is_ok() {
            return Ok(());
        }
        let place = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        Err(ConvertError::NonFinite {
            tensor: self.tensor.info.name.clone(),
            index: first as u64 * self.cols as u64 + place as u64,
            value: values[place],
        })
    }
}

impl WeightRows for StoredRows<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn read(&mut self, first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
        let width = element_bytes(self.dtype);
        self.bytes.resize(out.len() * width, 0);
        let start = first as u64 * (self.cols * width) as u64;
        self.tensor.read(start, &mut self.bytes)?;
        decode(self.dtype, &self.bytes, out);
        self.check_finite(first, out)
    }
}

/// The float type of a tensor.
fn float_dtype(tensor: TensorRef<'_>) -> Result<Dtype, ConvertError> {
    match tensor.info.dtype {
        safetensors::Dtype::F32 => Ok(Dtype::F32),
        safetensors::Dtype::F16 => Ok(Dtype::F16),
        safetensors::Dtype::BF16 => Ok(Dtype::BF16),
        found => Err(ConvertError::Dtype {
            tensor: tensor.info.name.clone(),
            expected: "F32, F16 or BF16",
            found,
        }),
    }
}

const fn element_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => 4,
        _ => 2,
    }
}

fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let halves = || bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
    match dtype {
        Dtype::F16 => fill(out, halves().map(f16_to_f32)),
        Dtype::BF16 => fill(out, halves().map(bf16_to_f32)),
        _ => fill(
            out,
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)),
        ),
    }
}

fn fill(out: &mut [f32], values: impl Iterator<Item = f32>) {
    out.iter_mut().zip(values).for_each(|(out, v)| *out = v);
}
