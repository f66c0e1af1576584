//! Six bits of the codes of an int8 matrix, and their products with an int8 vector.
//!
//! Columns come in blocks of [`BLOCK`]. Four blocks are three lines of 64 bytes: the low six bits of
//! their bytes are the first three blocks, the high two bits of all three together the fourth. What
//! is left at the end of a row is a line for each block. A stored value is `q + 32`, where `q` is
//! the code divided by four, to the nearest.

use core::ops::Range;

pub(crate) use bitnet_formats::ternary::LINE_BYTES;

/// Columns of a block.
pub(crate) const BLOCK: usize = LINE_BYTES;
/// Blocks that share lines, and their lines.
const SHARING: usize = 4;
const SHARED_LINES: usize = 3;
/// What makes a stored value of `q`.
pub(super) const BIAS: i32 = 32;

pub(super) type Line = [u8; LINE_BYTES];
/// Lines that hold four blocks.
pub(super) type Shared = [Line; SHARED_LINES];

/// Lines of a row.
pub(crate) const fn row_lines(cols: usize) -> usize {
    let blocks = cols / BLOCK;
    blocks / SHARING * SHARED_LINES + blocks % SHARING
}

/// Rows of coarse codes.
#[derive(Clone, Copy, Debug)]
pub struct CoarseRows<'w> {
    lines: &'w [Line],
    cols: usize,
}

impl<'w> CoarseRows<'w> {
    pub(crate) const fn new(lines: &'w [Line], cols: usize) -> Self {
        Self { lines, cols }
    }

    /// Columns of a row.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Number of rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.lines.len() / row_lines(self.cols)
    }

    /// The lines of a row: those that are shared, and the others.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> (&'w [Shared], &'w [Line]) {
        let n = row_lines(self.cols);
        let shared = self.cols / BLOCK / SHARING * SHARED_LINES;
        let (shared, rest) = self.lines[r * n..][..n].split_at(shared);
        (shared.as_chunks().0, rest)
    }
}

/// Packs the codes of a row, and returns the sums of the squares of what the values leave of them
/// and of four times the values.
pub(crate) fn pack_row(codes: &[u8], lines: &mut [Line]) -> [u64; 2] {
    let blocks = codes.as_chunks::<BLOCK>().0;
    let n_shared = blocks.len() / SHARING;
    let (shared, rest) = lines.split_at_mut(n_shared * SHARED_LINES);
    let (four, others) = blocks.split_at(n_shared * SHARING);
    let four = four.as_chunks::<SHARING>().0;
    for (lines, blocks) in shared
        .as_chunks_mut::<SHARED_LINES>()
        .0
        .iter_mut()
        .zip(four)
    {
        let [a, b, c, last] = blocks.map(|block| block.map(value));
        for (i, (line, block)) in lines.iter_mut().zip([a, b, c]).enumerate() {
            for ((byte, value), last) in line.iter_mut().zip(block).zip(last) {
                *byte = value | (last >> (2 * i)) << 6;
            }
        }
    }
    for (line, block) in rest.iter_mut().zip(others) {
        *line = block.map(value);
    }
    squares(codes)
}

/// `q + 32`. The largest codes have no multiple of four above them.
fn value(code: u8) -> u8 {
    (quarter(code) + BIAS as i16) as u8
}

fn quarter(code: u8) -> i16 {
    ((i16::from(code as i8) + 2) >> 2).min(31)
}

fn squares(codes: &[u8]) -> [u64; 2] {
    let mut sums = [0u64; 2];
    for block in codes.as_chunks::<BLOCK>().0 {
        let mut sum = [0i32; 2];
        for code in block {
            let near = 4 * quarter(*code);
            let left = i16::from(*code as i8) - near;
            sum[0] += i32::from(left) * i32::from(left);
            sum[1] += i32::from(near) * i32::from(near);
        }
        sums[0] += sum[0] as u64;
        sums[1] += sum[1] as u64;
    }
    sums
}

/// The products of rows and a vector, written to be read: the definition.
pub(super) fn dots(rows: &CoarseRows<'_>, range: Range<usize>, x: &[i8], out: &mut [f32]) {
    if cfg!(all(small_core, not(test))) {
        unreachable!("machines without room for a coarse head do without its code");
    }
    for (r, out) in range.zip(out) {
        let (shared, rest) = rows.row(r);
        let (four, others) = x.split_at(shared.len() * SHARING * BLOCK);
        let four = four.as_chunks::<{ SHARING * BLOCK }>().0;
        let shared = shared
            .iter()
            .zip(four)
            .map(|(lines, x)| shared_dot(lines, x));
        let rest = rest.iter().zip(others.as_chunks::<BLOCK>().0);
        let rest = rest.map(|(line, x)| dot(*line, x));
        *out = (shared.sum::<i32>() + rest.sum::<i32>()) as f32;
    }
}

fn shared_dot(lines: &Shared, x: &[i8; SHARING * BLOCK]) -> i32 {
    let mut last = [0; BLOCK];
    for (i, line) in lines.iter().enumerate() {
        let bits = last.iter_mut().zip(line);
        bits.for_each(|(last, byte)| *last |= (byte >> 6) << (2 * i));
    }
    let [a, b, c] = lines.map(|line| line.map(|byte| byte & 0x3f));
    let x = x.as_chunks::<BLOCK>().0;
    [a, b, c, last]
        .into_iter()
        .zip(x)
        .map(|(values, x)| dot(values, x))
        .sum()
}

fn dot(values: Line, x: &[i8; BLOCK]) -> i32 {
    let terms = values.iter().zip(x);
    terms
        .map(|(value, x)| (i32::from(*value) - BIAS) * i32::from(*x))
        .sum()
}
