//! Matrix products on one thread. Every product of the trainer goes through here.
//!
//! Three products make up a step: activations times weights, output gradients times weights, and
//! output gradients times activations. Weights and activations are int8 codes where the network is
//! quantised, and stay so until a register tile reads them.
//!
//! Module `tiled` runs products of f32 on processors it has a tile for, `reference` everything else.
//! Which one runs depends on the processor, never on threads; and a row of a result depends on its
//! row of `a` alone, so products may be cut into blocks of rows at will.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod contiguous;
#[cfg(target_arch = "x86_64")]
mod pack;
pub(crate) mod reference;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod rows;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod tiled;

use std::ops::Range;

use bitnet_formats::WeightScale;
use bitnet_formats::quant;
use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};

use crate::real::Real;

/// A matrix as products read it.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a, T> {
    /// Values.
    Values(ArrayView2<'a, T>),
    /// Integers of one byte.
    Codes(ArrayView2<'a, i8>),
}

impl<'a, T> Operand<'a, T> {
    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::Values(view) => view.dim(),
            Self::Codes(view) => view.dim(),
        }
    }

    /// Some of its rows.
    #[must_use]
    pub fn rows(self, rows: Range<usize>) -> Self {
        match self {
            Self::Values(view) => Self::Values(view.slice_move(s![rows, ..])),
            Self::Codes(view) => Self::Codes(view.slice_move(s![rows, ..])),
        }
    }
}

impl<'a, T> From<ArrayView2<'a, T>> for Operand<'a, T> {
    fn from(view: ArrayView2<'a, T>) -> Self {
        Self::Values(view)
    }
}

/// How the factors of a product are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Values rounded to bf16; codes are exact in it. Sums are of f32.
    Bf16,
}

impl Precision {
    /// True if this machine has the instructions.
    #[must_use]
    pub fn is_supported(self) -> bool {
        match self {
            Self::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => avx512::Bf16::new().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bf16 => false,
        }
    }
}

/// `c = alpha * a . diag(1 / scales) . b + beta * c`.
///
/// With `beta == 0`, `c` is not read.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a, T> {
    /// Factor of the product.
    pub alpha: T,
    /// `[m, k]`, any strides.
    pub a: ArrayView2<'a, T>,
    /// Column `i` of `a` is divided by the `i`th of these; not at all where there are none.
    pub scales: &'a [f32],
    /// `[k, n]`, any strides.
    pub b: Operand<'a, T>,
    /// Factor of what `c` holds.
    pub beta: T,
    /// How `a` and `b` are read.
    pub precision: Precision,
}

/// Int8 tokens times ternary rows: `y[t][o] = (x_t . w_o) * factor[t]`, the sums exact.
#[derive(Clone, Copy, Debug)]
pub struct ExactProduct<'a> {
    /// `[tokens, inputs]`.
    pub x: ArrayView2<'a, i8>,
    /// What `x` was multiplied by, for each token.
    pub x_scales: &'a [f32],
    /// `[outputs, inputs]` of -1, 0 and 1.
    pub w: ArrayView2<'a, i8>,
    /// What `w` was multiplied by.
    pub w_scale: f32,
}

impl ExactProduct<'_> {
    /// What takes the sums of each token to its outputs.
    fn factors(&self) -> impl Iterator<Item = f32> {
        let factor = |s: &f32| quant::linear_factor(WeightScale::Divide, self.w_scale, *s);
        self.x_scales.iter().map(factor)
    }
}

/// `c = alpha * a . b + beta * c`; any strides. With `beta == 0`, `c` is not read.
pub fn gemm<'a, T: Real>(
    alpha: T,
    a: ArrayView2<'a, T>,
    b: impl Into<Operand<'a, T>>,
    beta: T,
    c: ArrayViewMut2<'_, T>,
) {
    let product = Product {
        alpha,
        a,
        scales: &[],
        b: b.into(),
        beta,
        precision: Precision::F32,
    };
    T::product(&product, c);
}

/// [`Product`] of f32 by the fastest means this machine has.
pub(crate) fn product_f32(product: &Product<'_, f32>, c: ArrayViewMut2<'_, f32>) {
    #[cfg(target_arch = "x86_64")]
    match product.precision {
        Precision::F32 => {
            if let Some(tile) = avx512::F32::new() {
                return tiled::product(tile, product, c);
            }
            if let Some(tile) = avx2::F32::new() {
                return tiled::product(tile, product, c);
            }
        }
        Precision::Bf16 => {
            let tile = avx512::Bf16::new().expect("the precision was checked");
            return tiled::product(tile, product, c);
        }
    }
    assert_eq!(
        product.precision,
        Precision::F32,
        "the precision was checked"
    );
    reference::product(product, c);
}

/// [`ExactProduct`] by the fastest means this machine has.
pub(crate) fn exact_product_f32(product: &ExactProduct<'_>, y: ArrayViewMut2<'_, f32>) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(tile) = avx512::Int8::new() {
            return tiled::exact_product(tile, product, y);
        }
        if let Some(tile) = avx2::Int8::new() {
            return tiled::exact_product(tile, product, y);
        }
    }
    reference::exact_product(product, y);
}
