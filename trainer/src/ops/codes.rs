//! What products read: integer codes, or values where a matrix is not quantised.

use bitnet_formats::quant::{self, NonFinite};
use ndarray::Array2;

use crate::ops::gemm::Operand;
use crate::real::Real;
use crate::tensor::{row_mut, zeros};

/// A matrix of codes in a byte each, or of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Codes<T> {
    /// Quantised.
    Int8(Array2<i8>),
    /// As they are.
    Values(Array2<T>),
}

impl<T: Real> Codes<T> {
    /// Codes of zero.
    #[must_use]
    pub fn int8(rows: usize, cols: usize) -> Self {
        Self::Int8(Array2::zeros((rows, cols)))
    }

    /// Values of zero.
    #[must_use]
    pub fn values(rows: usize, cols: usize) -> Self {
        Self::Values(zeros(rows, cols))
    }

    /// Rows and columns.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        self.operand().dim()
    }

    /// As products read it.
    #[must_use]
    pub fn operand(&self) -> Operand<'_, T> {
        match self {
            Self::Int8(codes) => Operand::Codes(codes.view()),
            Self::Values(values) => Operand::Values(values.view()),
        }
    }

    /// Codes if `quantize`, else values: zeros where that is another kind than before.
    pub fn set_kind(&mut self, quantize: bool) {
        let (rows, cols) = self.dim();
        match self {
            Self::Int8(_) if !quantize => *self = Self::values(rows, cols),
            Self::Values(_) if quantize => *self = Self::int8(rows, cols),
            _ => {}
        }
    }
}

/// Activations as a BitLinear reads them, and a scale for each token.
#[derive(Clone, Debug)]
pub struct Activations<T> {
    /// `[len, width]`.
    pub codes: Codes<T>,
    /// `[len]`: a value is about its code divided by this; 1 where codes are values.
    pub scales: Vec<f32>,
}

impl<T: Real> Activations<T> {
    /// Room for `len` quantised tokens.
    #[must_use]
    pub fn new(len: usize, width: usize) -> Self {
        Self {
            codes: Codes::int8(len, width),
            scales: vec![1.0; len],
        }
    }

    /// Room for `len` tokens that are not quantised.
    #[must_use]
    pub fn of_values(len: usize, width: usize) -> Self {
        Self {
            codes: Codes::values(len, width),
            scales: vec![1.0; len],
        }
    }

    /// Sets token `t` to these values or to their codes; as many as the width.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from the quantiser.
    #[inline(always)]
    pub fn set(
        &mut self,
        t: usize,
        values: impl Iterator<Item = T> + Clone,
    ) -> Result<(), NonFinite> {
        match &mut self.codes {
            Codes::Int8(codes) => {
                self.scales[t] = quantize(values.map(T::narrow), row_mut(codes, t))?;
            }
            Codes::Values(all) => {
                let row = row_mut(all, t).iter_mut().zip(values);
                row.for_each(|(y, x)| *y = x);
            }
        }
        Ok(())
    }
}

/// [`quant::quantize_activations`] of values that are made as they are read, twice.
#[inline(always)]
fn quantize(values: impl Iterator<Item = f32> + Clone, codes: &mut [i8]) -> Result<f32, NonFinite> {
    // Magnitudes of floats order like their bits.
    let magnitudes = values.clone().map(|x| x.to_bits() & 0x7fff_ffff);
    let max = f32::from_bits(magnitudes.fold(0, u32::max));
    let scale = quant::activation_scale(quant::absmax(&[max])?);
    for (code, x) in codes.iter_mut().zip(values) {
        *code = quant::activation_code(x, scale);
    }
    Ok(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::normals;
    use crate::tensor::row;

    /// Every length around the vectors, both widths of float, against the definition.
    #[test]
    fn tokens_are_quantised_by_the_definition() {
        for n in 1..70 {
            let wide = normals(n as u64, n);
            let narrow: Vec<f32> = wide.iter().map(|x| *x as f32).collect();
            let mut expected = vec![0; n];
            let scale = quant::quantize_activations(&narrow, &mut expected).unwrap();
            let (mut a, mut b) = (Activations::new(2, n), Activations::new(2, n));
            a.set(1, narrow.iter().copied()).unwrap();
            b.set(1, wide.iter().copied()).unwrap();
            assert_eq!((a.scales[1], b.scales[1]), (scale, scale));
            let (Codes::Int8(a), Codes::Int8(b)) = (a.codes, b.codes) else {
                panic!("not quantised");
            };
            assert_eq!((row(&a, 1), row(&b, 1)), (&expected[..], &expected[..]));
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let mut tokens = Activations::<f32>::new(1, 2);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(tokens.set(0, [1.0, bad].into_iter()), Err(NonFinite));
        }
    }

    #[test]
    fn values_pass_as_they_are() {
        let mut tokens = Activations::new(1, 2);
        tokens.codes.set_kind(false);
        tokens.set(0, [0.3f32, -7.0].into_iter()).unwrap();
        assert_eq!(tokens.codes, Codes::Values(ndarray::array![[0.3, -7.0]]));
        assert_eq!(tokens.scales, [1.0]);
    }
}
