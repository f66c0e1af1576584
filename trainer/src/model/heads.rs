//! Moving one head's columns in and out of a matrix of all heads.

use ndarray::Array2;

use crate::real::Real;
use crate::tensor::{row, row_mut};

/// Copies columns `column..` of `from` into all of `to`.
pub(crate) fn gather<T: Real>(from: &Array2<T>, column: usize, to: &mut Array2<T>) {
    let width = to.ncols();
    gather_at(from, column, to, 0, width);
}

/// Copies `width` columns from `column` of `from` to `at` of `to`.
pub(crate) fn gather_at<T: Real>(
    from: &Array2<T>,
    column: usize,
    to: &mut Array2<T>,
    at: usize,
    width: usize,
) {
    for t in 0..from.nrows() {
        let source = &row(from, t)[column..column + width];
        row_mut(to, t)[at..at + width].copy_from_slice(source);
    }
}

/// Copies all of `from` to columns `column..` of `to`.
pub(crate) fn scatter<T: Real>(from: &Array2<T>, to: &mut Array2<T>, column: usize) {
    gather_at(from, 0, to, column, from.ncols());
}

/// Adds all of `from` to columns `column..` of `to`.
pub(crate) fn accumulate<T: Real>(from: &Array2<T>, to: &mut Array2<T>, column: usize) {
    accumulate_at(from, 0, to, column, from.ncols());
}

/// Adds `width` columns from `column` of `from` to `at` of `to`.
pub(crate) fn accumulate_at<T: Real>(
    from: &Array2<T>,
    column: usize,
    to: &mut Array2<T>,
    at: usize,
    width: usize,
) {
    for t in 0..from.nrows() {
        let source = &row(from, t)[column..column + width];
        let target = &mut row_mut(to, t)[at..at + width];
        target.iter_mut().zip(source).for_each(|(y, x)| *y += *x);
    }
}
