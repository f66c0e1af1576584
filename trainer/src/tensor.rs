//! Row-major matrices: rows are tokens or outputs, columns are features.

use ndarray::Array2;

use crate::ops::simd::vectorized;
use crate::real::Real;

/// A matrix of zeros.
pub fn zeros<T: Real>(rows: usize, cols: usize) -> Array2<T> {
    Array2::from_elem((rows, cols), T::zero())
}

/// The elements in row-major order.
///
/// # Panics
///
/// If the array was built in another order; none in this crate is.
#[inline(always)]
pub fn flat<T>(a: &Array2<T>) -> &[T] {
    a.as_slice().expect("owned matrices are row-major")
}

/// The elements in row-major order, to write.
///
/// # Panics
///
/// As [`flat`].
#[inline(always)]
pub fn flat_mut<T>(a: &mut Array2<T>) -> &mut [T] {
    a.as_slice_mut().expect("owned matrices are row-major")
}

/// Row `i`.
#[inline(always)]
pub fn row<T>(a: &Array2<T>, i: usize) -> &[T] {
    let cols = a.ncols();
    &flat(a)[i * cols..(i + 1) * cols]
}

/// Row `i`, to write.
#[inline(always)]
pub fn row_mut<T>(a: &mut Array2<T>, i: usize) -> &mut [T] {
    let cols = a.ncols();
    &mut flat_mut(a)[i * cols..(i + 1) * cols]
}

/// `y += x`, element by element.
pub fn add<T: Real>(y: &mut Array2<T>, x: &Array2<T>) {
    vectorized!({
        for (y, x) in flat_mut(y).iter_mut().zip(flat(x)) {
            *y += *x;
        }
    });
}

/// `y = x`, of equal shapes.
pub fn copy<T: Real>(y: &mut Array2<T>, x: &Array2<T>) {
    flat_mut(y).copy_from_slice(flat(x));
}
