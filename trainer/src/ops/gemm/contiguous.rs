//! Copies of operands that no tile reads as they lie.

use ndarray::{Array2, ArrayView2};

use super::reference::{scaled, values};
use super::{Operand, Product};

/// Copies of operands whose rows are contiguous, scales applied.
pub(crate) struct Contiguous {
    a: Array2<f32>,
    b: Array2<f32>,
}

/// Of both operands of `p`.
pub(crate) fn contiguous(p: &Product<'_, f32>) -> Contiguous {
    let owned = |view: ArrayView2<'_, f32>| view.as_standard_layout().into_owned();
    Contiguous {
        a: owned(scaled(p.a, p.scales).view()),
        b: match p.b {
            Operand::Values(b) => owned(b),
            Operand::Codes(b) => owned(values(b).view()),
        },
    }
}

impl Contiguous {
    /// The product `p` of these.
    pub(crate) fn as_product(&self, p: &Product<'_, f32>) -> Product<'_, f32> {
        Product {
            a: self.a.view(),
            b: Operand::Values(self.b.view()),
            scales: &[],
            ..*p
        }
    }
}
