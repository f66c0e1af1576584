//! How the numbers of a tensor are stored, and how many bytes that takes.

use crate::float::{bf16_to_f32, f16_to_f32};
use crate::schema::TensorClass;
use crate::ternary::TernaryLayout;

/// Alignment of every section and tensor in a file, in bytes.
pub const ALIGNMENT: usize = 64;

/// `n` rounded up to [`ALIGNMENT`], or `None` on overflow.
#[must_use]
pub const fn align_up(n: u64) -> Option<u64> {
    n.checked_next_multiple_of(ALIGNMENT as u64)
}

/// Storage of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Ternary codes in a row-group layout.
    Ternary(TernaryLayout),
    /// Ternary codes, entropy-coded: to be decoded into a row-group layout.
    Packed,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Int8 codes with an f32 scale per row: the scales, padding to 64 bytes, the codes.
    I8Rows,
}

impl Dtype {
    /// Every storage type.
    pub const ALL: [Self; 7] = [
        Self::Ternary(TernaryLayout::T5R16),
        Self::Ternary(TernaryLayout::T2R16),
        Self::Packed,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I8Rows,
    ];

    /// Its code in the tensor table.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ternary(TernaryLayout::T5R16) => 0,
            Self::Ternary(TernaryLayout::T2R16) => 1,
            Self::Packed => 2,
            Self::F32 => 16,
            Self::F16 => 17,
            Self::BF16 => 18,
            Self::I8Rows => 19,
        }
    }

    /// The type with this code, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.code() == code)
    }

    /// The name listings print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ternary(layout) => layout.name(),
            Self::Packed => "packed",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I8Rows => "i8",
        }
    }

    /// True where tensors of this class may be stored so.
    #[must_use]
    pub const fn fits(self, class: TensorClass) -> bool {
        match class {
            TensorClass::Ternary => matches!(self, Self::Ternary(_) | Self::Packed),
            TensorClass::Vector => matches!(self, Self::F32),
            TensorClass::Matrix => !matches!(self, Self::Ternary(_) | Self::Packed),
        }
    }

    /// Fewest bytes of a `[rows, cols]` tensor: all it takes, unless it is packed.
    ///
    /// No packed code has more than 1024 weights a byte, so that memory and time stay proportional to
    /// the file.
    #[must_use]
    pub const fn min_payload_bytes(self, rows: usize, cols: usize) -> u64 {
        match self {
            Self::Packed => (rows as u64 * cols as u64).div_ceil(1_024),
            _ => self.payload_bytes(rows, cols),
        }
    }

    /// Bytes of a `[rows, cols]` tensor, without padding after it; of a packed one, the most it can take.
    ///
    /// Exact for every shape within the caps of [`crate::config`].
    #[must_use]
    pub const fn payload_bytes(self, rows: usize, cols: usize) -> u64 {
        let n = rows as u64 * cols as u64;
        match self {
            Self::Ternary(layout) => layout.packed_bytes(rows, cols),
            // Real trits cost less than in T5; a head and the states of a coder come on top.
            Self::Packed => TernaryLayout::T5R16.packed_bytes(rows, cols) + ALIGNMENT as u64,
            Self::F32 => 4 * n,
            Self::F16 | Self::BF16 => 2 * n,
            Self::I8Rows => i8_codes_offset(rows) + n,
        }
    }
}

/// Where the codes of an int8 matrix begin: after `rows` scales, aligned.
const fn i8_codes_offset(rows: usize) -> u64 {
    (4 * rows as u64).next_multiple_of(ALIGNMENT as u64)
}

/// A vector of little-endian f32.
#[derive(Clone, Copy, Debug)]
pub struct VectorView<'w>(&'w [[u8; 4]]);

impl<'w> VectorView<'w> {
    /// A view of `bytes`; a last incomplete element is left out.
    #[must_use]
    pub fn new(bytes: &'w [u8]) -> Self {
        Self(bytes.as_chunks().0)
    }

    /// Number of elements.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// True for no elements.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Element `i`.
    ///
    /// # Panics
    ///
    /// If there is no such element.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, i: usize) -> f32 {
        f32::from_le_bytes(self.0[i])
    }

    /// The elements as they are stored.
    #[inline(always)]
    #[must_use]
    pub const fn as_bytes(&self) -> &'w [[u8; 4]] {
        self.0
    }

    /// The elements in order.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = f32> + 'w {
        self.0.iter().map(|bytes| f32::from_le_bytes(*bytes))
    }
}

/// One row of a dense matrix, as stored.
#[derive(Clone, Copy, Debug)]
pub enum Row<'w> {
    /// f32.
    F32(VectorView<'w>),
    /// f16, little-endian.
    F16(&'w [[u8; 2]]),
    /// bf16, little-endian.
    BF16(&'w [[u8; 2]]),
    /// Int8 codes and the scale that multiplies them.
    I8(&'w [u8], f32),
}

impl Row<'_> {
    /// Columns `start..start + len` of the row.
    ///
    /// # Panics
    ///
    /// If the row has no such columns.
    #[must_use]
    pub fn part(&self, start: usize, len: usize) -> Self {
        match *self {
            Self::F32(row) => Self::F32(VectorView(&row.0[start..][..len])),
            Self::F16(row) => Self::F16(&row[start..][..len]),
            Self::BF16(row) => Self::BF16(&row[start..][..len]),
            Self::I8(row, scale) => Self::I8(&row[start..][..len], scale),
        }
    }

    /// Writes the row as f32; exact for all but int8, where each value is `code * scale`.
    ///
    /// # Panics
    ///
    /// If `out` is not as long as the row.
    pub fn to_f32(&self, out: &mut [f32]) {
        fn copy<T>(out: &mut [f32], row: impl ExactSizeIterator<Item = T>, f: impl Fn(T) -> f32) {
            assert_eq!(out.len(), row.len());
            out.iter_mut().zip(row).for_each(|(out, v)| *out = f(v));
        }
        match *self {
            Self::F32(row) => copy(out, row.iter(), |v| v),
            Self::F16(row) => copy(out, row.iter(), |v| f16_to_f32(u16::from_le_bytes(*v))),
            Self::BF16(row) => copy(out, row.iter(), |v| bf16_to_f32(u16::from_le_bytes(*v))),
            Self::I8(row, scale) => copy(out, row.iter(), |v| f32::from(*v as i8) * scale),
        }
    }
}

/// A dense matrix: embedding or head.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'w> {
    /// Storage; never ternary.
    pub dtype: Dtype,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    bytes: &'w [u8],
}

impl<'w> MatrixView<'w> {
    /// A view of stored bytes, or `None` where their number or the type does not fit.
    #[must_use]
    pub fn new(dtype: Dtype, (rows, cols): (usize, usize), bytes: &'w [u8]) -> Option<Self> {
        let fits = dtype.fits(TensorClass::Matrix)
            && bytes.len() as u64 == dtype.payload_bytes(rows, cols);
        fits.then_some(Self {
            dtype,
            rows,
            cols,
            bytes,
        })
    }

    /// The stored bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'w [u8] {
        self.bytes
    }

    /// Row `r`.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[inline]
    #[must_use]
    pub fn row(&self, r: usize) -> Row<'w> {
        let part = |start: usize, width: usize| {
            &self.bytes[start + r * self.cols * width..][..self.cols * width]
        };
        match self.dtype {
            Dtype::F16 => Row::F16(part(0, 2).as_chunks().0),
            Dtype::BF16 => Row::BF16(part(0, 2).as_chunks().0),
            Dtype::I8Rows => {
                let codes = part(i8_codes_offset(self.rows) as usize, 1);
                Row::I8(codes, VectorView::new(&self.bytes[..4 * self.rows]).get(r))
            }
            Dtype::F32 | Dtype::Ternary(_) | Dtype::Packed => Row::F32(VectorView::new(part(0, 4))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_invert() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_code(dtype.code()), Some(dtype));
        }
        assert_eq!(Dtype::from_code(3), None);
    }

    #[test]
    fn rows_of_every_type_read_back() {
        let mut i8_rows = vec![0u8; 64 + 4];
        i8_rows[..8].copy_from_slice(&[0, 0, 0, 63, 0, 0, 0, 64]); // scales 0.5 and 2
        i8_rows[64..].copy_from_slice(&[2, 0xfe, 3, 0xfd]);
        let f32s: Vec<u8> = [1.0f32, -1.0, 6.0, -6.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let f16s: Vec<u8> = [0x3c00u16, 0xbc00, 0x4600, 0xc600]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let bf16s: Vec<u8> = [0x3f80u16, 0xbf80, 0x40c0, 0xc0c0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let cases = [
            (Dtype::I8Rows, i8_rows),
            (Dtype::F32, f32s),
            (Dtype::F16, f16s),
            (Dtype::BF16, bf16s),
        ];
        for (dtype, bytes) in cases {
            let view = MatrixView::new(dtype, (2, 2), &bytes).unwrap();
            let mut row = [0.0; 2];
            view.row(0).to_f32(&mut row);
            assert_eq!(row, [1.0, -1.0], "{dtype:?}");
            view.row(1).to_f32(&mut row);
            assert_eq!(row, [6.0, -6.0], "{dtype:?}");
            assert!(MatrixView::new(dtype, (2, 3), &bytes).is_none());
        }
    }
}
