//! Moving one head's columns between the matrices of a part, which hold all heads, and buffers that
//! hold one head of a whole sequence.

use ndarray::Array2;

use crate::ops::simd::vectorized;
use crate::real::Real;
use crate::tensor::{row, row_mut};

/// Where a block of columns begins: `(row, column)`.
pub(crate) type At = (usize, usize);

/// Copies a block of `(rows, columns)`.
pub(crate) fn copy_block<T: Real>(
    from: &Array2<T>,
    at: At,
    to: &mut Array2<T>,
    to_at: At,
    size: (usize, usize),
) {
    each_row(from, at, to, to_at, size, <[T]>::copy_from_slice);
}

/// Adds a block of `(rows, columns)`.
pub(crate) fn add_block<T: Real>(
    from: &Array2<T>,
    at: At,
    to: &mut Array2<T>,
    to_at: At,
    size: (usize, usize),
) {
    vectorized!(each_row(from, at, to, to_at, size, |to, from| {
        to.iter_mut().zip(from).for_each(|(y, x)| *y += *x);
    }));
}

#[inline(always)]
fn each_row<T: Real>(
    from: &Array2<T>,
    (from_row, from_column): At,
    to: &mut Array2<T>,
    (to_row, to_column): At,
    (rows, columns): (usize, usize),
    write: impl Fn(&mut [T], &[T]),
) {
    for t in 0..rows {
        let source = &row(from, from_row + t)[from_column..from_column + columns];
        let target = &mut row_mut(to, to_row + t)[to_column..to_column + columns];
        write(target, source);
    }
}

/// Copies columns `column..` of a part's `from`, all its rows, to the rows of `to` from `first` on.
pub(crate) fn gather<T: Real>(from: &Array2<T>, column: usize, to: &mut Array2<T>, first: usize) {
    let size = (from.nrows(), to.ncols());
    copy_block(from, (0, column), to, (first, 0), size);
}

/// The way back: the rows of `from` from `first` on, as many as `to` has, to columns `column..`.
pub(crate) fn scatter<T: Real>(from: &Array2<T>, first: usize, to: &mut Array2<T>, column: usize) {
    let size = (to.nrows(), from.ncols());
    copy_block(from, (first, 0), to, (0, column), size);
}

/// As [`scatter`], adding.
pub(crate) fn accumulate<T: Real>(
    from: &Array2<T>,
    first: usize,
    to: &mut Array2<T>,
    column: usize,
) {
    let size = (to.nrows(), from.ncols());
    add_block(from, (first, 0), to, (0, column), size);
}
