//! Which trits stand where in a packed payload: a function of the shape alone.

use core::ops::Range;

use crate::ternary::{GROUP_ROWS, MAX_BLOCK_COLS};

/// A chunk has at least this many trits, unless the matrix has fewer.
const CHUNK_TRITS: usize = 1 << 21;
/// Trits of a symbol.
pub(super) const TRITS: usize = 5;
/// The shape of a packed matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Shape {
    /// Lines of a group whose 20 columns all belong to the matrix.
    pub(super) const fn full_lines(self) -> usize {
        self.cols / MAX_BLOCK_COLS
    }

    /// Columns beyond the full lines.
    pub(super) const fn tail_cols(self) -> usize {
        self.cols % MAX_BLOCK_COLS
    }

    pub(super) const fn n_groups(self) -> usize {
        self.rows.div_ceil(GROUP_ROWS)
    }

    /// Rows of a group that belong to the matrix.
    pub(super) fn group_rows(self, group: usize) -> usize {
        GROUP_ROWS.min(self.rows - group * GROUP_ROWS)
    }

    /// Groups of every chunk but the last, which takes what remains as well.
    pub(super) const fn chunk_groups(self) -> usize {
        CHUNK_TRITS.div_ceil(GROUP_ROWS * self.cols)
    }

    pub(super) const fn n_chunks(self) -> usize {
        let chunks = self.n_groups() / self.chunk_groups();
        if chunks == 0 { 1 } else { chunks }
    }

    /// The row groups of a chunk.
    pub(super) const fn chunk(self, index: usize) -> Range<usize> {
        let first = index * self.chunk_groups();
        let end = if index + 1 < self.n_chunks() {
            first + self.chunk_groups()
        } else {
            self.n_groups()
        };
        first..end
    }

    /// Rows of the matrix in these groups.
    pub(super) fn rows_of(self, groups: &Range<usize>) -> usize {
        self.rows.min(groups.end * GROUP_ROWS) - groups.start * GROUP_ROWS
    }

    /// Symbols that hold the trits of these groups beyond the full lines.
    pub(super) fn tail_symbols(self, groups: &Range<usize>) -> usize {
        (self.rows_of(groups) * self.tail_cols()).div_ceil(TRITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_all_groups_in_order() {
        for (rows, cols) in [
            (1, 1),
            (17, 33),
            (1_024, 1_024),
            (5_632, 2_048),
            (128_256, 20),
            (40, 65_535),
        ] {
            let shape = Shape { rows, cols };
            let mut next = 0;
            for index in 0..shape.n_chunks() {
                let groups = shape.chunk(index);
                assert_eq!(groups.start, next);
                assert!(groups.end > next);
                let whole = groups.len() * GROUP_ROWS * cols;
                assert!(whole >= CHUNK_TRITS || shape.n_chunks() == 1);
                next = groups.end;
            }
            assert_eq!(next, shape.n_groups());
        }
    }
}
