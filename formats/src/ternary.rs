//! Ternary layouts: rows of {-1, 0, 1} packed sixteen at a time into 64-byte lines.
//!
//! A matrix is a sequence of *row groups* of 16 rows; a group is a sequence of *lines* of 64 bytes;
//! a line holds 16 rows by [`TernaryLayout::block_cols`] columns. Byte `4 r + i` of a line belongs
//! to row `r`; its trits are columns `i`, `4 + i`, `8 + i`, ... of the block. Rows and columns
//! beyond the matrix are zero trits.
//!
//! Reading a matrix front to back is one linear stream, sixteen lanes wide, and one activation
//! feeds a whole lane vector: no horizontal sums, no per-architecture repacking.

mod t2;
mod t5;

pub use t5::{NOT_A_CODE as T5_NOT_A_CODE, digits as t5_digits};

/// Rows of a row group.
pub const GROUP_ROWS: usize = 16;
/// Bytes of a line.
pub const LINE_BYTES: usize = 64;
/// Most columns of a line, over all layouts.
pub const MAX_BLOCK_COLS: usize = 20;

/// A line, decoded: `[column of the block][row of the group]`; only the first `block_cols` count.
pub type LineCodes = [[i8; GROUP_ROWS]; MAX_BLOCK_COLS];

/// How ternary codes are packed into lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TernaryLayout {
    /// Five trits a byte, 20 columns a line: 1.6 bits per weight.
    T5R16,
    /// Four trits a byte, 16 columns a line: 2 bits per weight.
    T2R16,
}

impl TernaryLayout {
    /// Both layouts.
    pub const ALL: [Self; 2] = [Self::T5R16, Self::T2R16];

    /// Columns of a line.
    #[inline(always)]
    #[must_use]
    pub const fn block_cols(self) -> usize {
        4 * self.planes()
    }

    /// Trits of a byte.
    #[inline(always)]
    #[must_use]
    pub const fn planes(self) -> usize {
        match self {
            Self::T5R16 => 5,
            Self::T2R16 => 4,
        }
    }

    /// The name users type and listings print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::T5R16 => "t5",
            Self::T2R16 => "t2",
        }
    }

    /// Lines of one row group.
    #[inline]
    #[must_use]
    pub const fn group_lines(self, cols: usize) -> usize {
        cols.div_ceil(self.block_cols())
    }

    /// Bytes of one row group.
    #[inline]
    #[must_use]
    pub const fn group_bytes(self, cols: usize) -> usize {
        self.group_lines(cols) * LINE_BYTES
    }

    /// Bytes of a matrix. Exact for every shape within the caps of [`crate::config`].
    #[inline]
    #[must_use]
    pub const fn packed_bytes(self, rows: usize, cols: usize) -> u64 {
        rows.div_ceil(GROUP_ROWS) as u64 * self.group_bytes(cols) as u64
    }

    /// Packs one line.
    pub fn pack_line(self, codes: &LineCodes, line: &mut [u8; LINE_BYTES]) {
        for (row, bytes) in line.as_chunks_mut().0.iter_mut().enumerate() {
            *bytes = self.pack_row(&codes.map(|column| column[row]));
        }
    }

    /// The four bytes of one row in a line.
    #[inline]
    fn pack_row(self, codes: &[i8; MAX_BLOCK_COLS]) -> [u8; 4] {
        [0, 1, 2, 3].map(|i| match self {
            Self::T5R16 => t5::encode([0, 1, 2, 3, 4].map(|p| codes[4 * p + i])),
            Self::T2R16 => t2::encode([0, 1, 2, 3].map(|p| codes[4 * p + i])),
        })
    }

    /// Unpacks one line. Bytes that are no code decode to some trits, never to anything else.
    #[inline(always)]
    pub fn unpack_line(self, line: &[u8; LINE_BYTES], codes: &mut LineCodes) {
        match self {
            Self::T5R16 => t5::unpack_line(line, codes),
            Self::T2R16 => t2::unpack_line(line, codes),
        }
    }

    /// True where the byte is the code of some trits.
    #[must_use]
    pub const fn is_code(self, byte: u8) -> bool {
        match self {
            Self::T5R16 => t5::is_code(byte),
            Self::T2R16 => t2::is_code(byte),
        }
    }

    /// Packs up to 16 rows into a row group.
    ///
    /// `codes` is `[rows, cols]` row-major with values in -1..=1; `group` is
    /// [`group_bytes`](Self::group_bytes) long.
    ///
    /// # Panics
    ///
    /// If a length does not fit the shape.
    pub fn pack_group(self, codes: &[i8], cols: usize, group: &mut [u8]) {
        assert!(codes.len().is_multiple_of(cols) && codes.len() <= GROUP_ROWS * cols);
        assert_eq!(group.len(), self.group_bytes(cols));
        let (lines, _) = group.as_chunks_mut::<LINE_BYTES>();
        let mut rows = codes.chunks_exact(cols);
        for row in 0..GROUP_ROWS {
            let codes = rows.next().unwrap_or_default();
            let mut parts = codes.chunks(self.block_cols());
            for line in lines.iter_mut() {
                let part = parts.next().unwrap_or_default();
                let mut padded = [0; MAX_BLOCK_COLS];
                padded[..part.len()].copy_from_slice(part);
                line.as_chunks_mut().0[row] = self.pack_row(&padded);
            }
        }
    }

    /// Unpacks the rows of a row group: the inverse of [`pack_group`](Self::pack_group).
    ///
    /// # Panics
    ///
    /// If a length does not fit the shape.
    pub fn unpack_group(self, group: &[u8], cols: usize, codes: &mut [i8]) {
        assert!(codes.len().is_multiple_of(cols) && codes.len() <= GROUP_ROWS * cols);
        assert_eq!(group.len(), self.group_bytes(cols));
        let (lines, _) = group.as_chunks::<LINE_BYTES>();
        let mut block_codes = LineCodes::default();
        for (block, line) in lines.iter().enumerate() {
            self.unpack_line(line, &mut block_codes);
            let first = block * self.block_cols();
            for (row, codes) in codes.chunks_exact_mut(cols).enumerate() {
                let part = &mut codes[first..cols.min(first + self.block_cols())];
                part.iter_mut()
                    .zip(&block_codes)
                    .for_each(|(code, column)| *code = column[row]);
            }
        }
    }
}

/// A packed ternary matrix.
#[derive(Clone, Copy, Debug)]
pub struct TernaryView<'w> {
    /// How it is packed.
    pub layout: TernaryLayout,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Scale of the whole matrix, in the convention of [`crate::WeightScale`].
    pub scale: f32,
    bytes: &'w [u8],
}

impl<'w> TernaryView<'w> {
    /// A view of packed bytes, or `None` where their number does not fit the shape.
    #[must_use]
    pub fn new(
        layout: TernaryLayout,
        (rows, cols): (usize, usize),
        scale: f32,
        bytes: &'w [u8],
    ) -> Option<Self> {
        let fits = bytes.len() as u64 == layout.packed_bytes(rows, cols);
        fits.then_some(Self {
            layout,
            rows,
            cols,
            scale,
            bytes,
        })
    }

    /// The packed bytes.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> &'w [u8] {
        self.bytes
    }

    /// Number of row groups.
    #[inline]
    #[must_use]
    pub const fn n_groups(&self) -> usize {
        self.rows.div_ceil(GROUP_ROWS)
    }

    /// Rows of a group that belong to the matrix: 16, or fewer in the last.
    #[inline]
    #[must_use]
    pub fn group_rows(&self, group: usize) -> usize {
        GROUP_ROWS.min(self.rows - group * GROUP_ROWS)
    }

    /// The lines of one row group.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    #[inline]
    #[must_use]
    pub fn group(&self, group: usize) -> &'w [[u8; LINE_BYTES]] {
        let bytes = self.layout.group_bytes(self.cols);
        self.bytes[group * bytes..][..bytes].as_chunks().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(layout: TernaryLayout, codes: &[i8], cols: usize) -> Vec<u8> {
        let group = layout.group_bytes(cols);
        let mut packed = vec![0; layout.packed_bytes(codes.len() / cols, cols) as usize];
        for (rows, bytes) in codes
            .chunks(GROUP_ROWS * cols)
            .zip(packed.chunks_mut(group))
        {
            layout.pack_group(rows, cols, bytes);
        }
        packed
    }

    proptest! {
        #[test]
        fn unpack_inverts_pack(rows in 1usize..40, cols in 1usize..90, seed: u64) {
            let mut state = seed | 1;
            let codes: Vec<i8> = (0..rows * cols).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((state >> 33) % 3) as i8 - 1
            }).collect();
            for layout in TernaryLayout::ALL {
                let packed = pack(layout, &codes, cols);
                prop_assert!(packed.iter().all(|b| layout.is_code(*b)));
                let mut back = vec![9; codes.len()];
                let groups = packed.chunks(layout.group_bytes(cols));
                for (bytes, rows) in groups.zip(back.chunks_mut(GROUP_ROWS * cols)) {
                    layout.unpack_group(bytes, cols, rows);
                }
                prop_assert_eq!(&back, &codes);
            }
        }
    }

    /// The one line that SPEC.md spells out.
    #[test]
    fn t5_line_is_the_documented_one() {
        let mut codes = LineCodes::default();
        codes[0][0] = 1; // row 0, column 0: the most significant trit of byte 0
        codes[17][2] = -1; // row 2, column 17 = 4 * 4 + 1: the least significant trit of byte 9
        let mut line = [0xaa; LINE_BYTES];
        TernaryLayout::T5R16.pack_line(&codes, &mut line);
        let mut expected = [0u8; LINE_BYTES];
        expected[0] = 213 ^ 0x80; // u = 121 + 81, ceil(202 * 256 / 243) = 213
        expected[9] = 127 ^ 0x80; // u = 121 - 1, ceil(120 * 256 / 243) = 127
        assert_eq!(line, expected);
    }

    #[test]
    fn sizes() {
        assert_eq!(
            TernaryLayout::T5R16.packed_bytes(2_048, 2_048),
            128 * 103 * 64
        );
        assert_eq!(TernaryLayout::T2R16.packed_bytes(17, 17), 2 * 2 * 64);
        let max = TernaryLayout::T2R16.packed_bytes(1 << 22, 65_535);
        assert!(max < u64::MAX / 2);
    }

    #[test]
    fn a_view_checks_its_length() {
        let bytes = [0; 128];
        assert!(TernaryView::new(TernaryLayout::T5R16, (16, 40), 1.0, &bytes).is_some());
        assert!(TernaryView::new(TernaryLayout::T5R16, (16, 41), 1.0, &bytes).is_none());
        assert!(TernaryView::new(TernaryLayout::T5R16, (17, 40), 1.0, &bytes).is_none());
    }
}
