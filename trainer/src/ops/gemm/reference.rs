//! Products by ndarray: for f64, for processors without a tile, and what tiles are tested against.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

use super::{ExactProduct, Operand, Product};
use crate::real::Real;

/// See [`Product`].
pub(crate) fn product<T: Real>(product: &Product<'_, T>, mut c: ArrayViewMut2<'_, T>) {
    let a = scaled(product.a, product.scales);
    let (alpha, beta) = (product.alpha, product.beta);
    match product.b {
        Operand::Values(b) => general_mat_mul(alpha, &a, &b, beta, &mut c),
        Operand::Codes(b) => general_mat_mul(alpha, &a, &values(b), beta, &mut c),
    }
}

/// See [`ExactProduct`]. Exact while partial sums stay below 2^24: up to 131,072 inputs.
pub(crate) fn exact_product<T: Real>(product: &ExactProduct<'_>, mut y: ArrayViewMut2<'_, T>) {
    let (x, w) = (values(product.x), values(product.w));
    general_mat_mul(T::one(), &x, &w.t(), T::zero(), &mut y);
    for (mut row, factor) in y.rows_mut().into_iter().zip(product.factors()) {
        let factor = T::from_f32(factor);
        row.mapv_inplace(|y| y * factor);
    }
}

pub(super) fn values<T: Real>(codes: ArrayView2<'_, i8>) -> Array2<T> {
    codes.mapv(|code| T::from_f32(f32::from(code)))
}

pub(super) fn scaled<'a, T: Real>(
    a: ArrayView2<'a, T>,
    scales: &[f32],
) -> ndarray::CowArray<'a, T, ndarray::Ix2> {
    if scales.is_empty() {
        return a.into();
    }
    let mut a = a.to_owned();
    for (mut column, scale) in a.axis_iter_mut(Axis(1)).zip(scales) {
        let factor = T::from_f32(1.0 / scale);
        column.mapv_inplace(|a| a * factor);
    }
    a.into()
}
