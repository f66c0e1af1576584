//! Packed matrices of public checkpoints: four codes in a byte, a quarter of the rows apart.
//!
//! With `R` stored rows, byte `[r, c]` holds the codes of rows `r`, `R + r`, `2R + r` and `3R + r`
//! at column `c`, lowest bits first, as `code + 1`.

use crate::checkpoint::TensorRef;
use crate::error::ConvertError;
use crate::groups::CodeRows;

/// Rows that one stored row holds.
pub const ROWS_PER_BYTE: usize = 4;

/// Stored rows of a packed matrix of `rows` rows.
///
/// # Errors
///
/// [`ConvertError::PackedRows`] where four do not divide them: the packer would round up and the
/// loading class down, so such a file loads nowhere.
pub fn stored_rows(tensor: &str, rows: usize) -> Result<usize, ConvertError> {
    if rows.is_multiple_of(ROWS_PER_BYTE) {
        return Ok(rows / ROWS_PER_BYTE);
    }
    let tensor = tensor.to_owned();
    Err(ConvertError::PackedRows { tensor, rows })
}

/// The codes of a packed tensor.
#[derive(Debug)]
pub struct PackedRows<'c> {
    tensor: TensorRef<'c>,
    stored_rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl<'c> PackedRows<'c> {
    /// Prepares to read the codes of a `[rows, cols]` matrix.
    ///
    /// # Errors
    ///
    /// [`ConvertError::Dtype`] unless the tensor holds bytes, [`ConvertError::PackedRows`] where
    /// the rows do not divide by four.
    pub fn new(tensor: TensorRef<'c>, rows: usize, cols: usize) -> Result<Self, ConvertError> {
        if tensor.info.dtype != safetensors::Dtype::U8 {
            return Err(ConvertError::Dtype {
                tensor: tensor.info.name.clone(),
                expected: "U8 (packed codes)",
                found: tensor.info.dtype,
            });
        }
        Ok(Self {
            stored_rows: stored_rows(&tensor.info.name, rows)?,
            tensor,
            cols,
            bytes: vec![0; cols],
        })
    }

    fn read_row(&mut self, row: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        let (quarter, stored) = (row / self.stored_rows, row % self.stored_rows);
        let start = stored as u64 * self.cols as u64;
        self.tensor.read(start, &mut self.bytes)?;
        let bits = |byte: u8| (byte >> (2 * quarter)) & 3;
        out.iter_mut()
            .zip(&self.bytes)
            .for_each(|(code, byte)| *code = bits(*byte) as i8 - 1);
        match out.iter().fold(-1, |most: i8, code| most.max(*code)) {
            2 => Err(self.not_a_code(row, out)),
            _ => Ok(()),
        }
    }

    fn not_a_code(&self, row: usize, codes: &[i8]) -> ConvertError {
        let col = codes.iter().position(|code| *code == 2);
        ConvertError::NotACode {
            tensor: self.tensor.info.name.clone(),
            row,
            col: col.expect("a code is not one"),
        }
    }
}

impl CodeRows for PackedRows<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        for (i, row) in out.chunks_exact_mut(self.cols).enumerate() {
            self.read_row(first + i, row)?;
        }
        Ok(())
    }
}
