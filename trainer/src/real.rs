//! The scalar of the network: f32 to train with, f64 to check gradients with.

use ndarray::{ArrayViewMut2, NdFloat};

use crate::ops::gemm::{self, ExactProduct, Product};

/// A float the network can be built over.
///
/// Training is f32 throughout. The f64 build exists for finite differences, which in f32 would
/// drown in rounding.
pub trait Real: NdFloat + Default {
    /// The value nearest to `x`.
    fn from_f64(x: f64) -> Self;

    /// The value as f64, exact.
    fn widen(self) -> f64;

    /// The value as f32, rounded once for f64.
    fn narrow(self) -> f32;

    /// `e^self` for `self <= 0`, written so that a loop over a row vectorises.
    fn exp_negative(self) -> Self;

    /// `c = alpha * a . b + beta * c`; see [`Product`].
    fn product(product: &Product<'_, Self>, c: ArrayViewMut2<'_, Self>);

    /// Int8 tokens times ternary rows; see [`ExactProduct`].
    fn exact_product(product: &ExactProduct<'_>, y: ArrayViewMut2<'_, Self>);

    /// The value nearest to `x`; exact for f32 and for every integer code.
    fn from_f32(x: f32) -> Self {
        Self::from_f64(f64::from(x))
    }
}

impl Real for f32 {
    fn from_f64(x: f64) -> Self {
        x as Self
    }

    fn widen(self) -> f64 {
        f64::from(self)
    }

    fn narrow(self) -> f32 {
        self
    }

    fn from_f32(x: f32) -> Self {
        x
    }

    /// Range reduction to `2^n * e^r`, `|r| <= ln 2 / 2`, and the Taylor polynomial of degree 6:
    /// within 2 units in the last place. Below -87 the result is that of -87, about 1e-38.
    #[inline(always)]
    fn exp_negative(self) -> Self {
        // ln 2 in two parts, the first with trailing zeros, so that n * LN2_HIGH is exact.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let x = if self < -87.0 { -87.0 } else { self };
        let n = bitnet_formats::float::round_half_even(x * std::f32::consts::LOG2_E);
        let r = (x - n * LN2_HIGH) - n * LN2_LOW;
        let tail = r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0)));
        let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + tail)));
        let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
        p * power
    }

    fn product(product: &Product<'_, Self>, c: ArrayViewMut2<'_, Self>) {
        gemm::product_f32(product, c);
    }

    fn exact_product(product: &ExactProduct<'_>, y: ArrayViewMut2<'_, Self>) {
        gemm::exact_product_f32(product, y);
    }
}

impl Real for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }

    fn widen(self) -> f64 {
        self
    }

    fn narrow(self) -> f32 {
        self as f32
    }

    fn exp_negative(self) -> Self {
        self.exp()
    }

    fn product(product: &Product<'_, Self>, c: ArrayViewMut2<'_, Self>) {
        gemm::reference::product(product, c);
    }

    fn exact_product(product: &ExactProduct<'_>, y: ArrayViewMut2<'_, Self>) {
        gemm::reference::exact_product(product, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(x.exp_negative()) - exact).abs() / exact);
        }
        assert!(worst < 2.5e-7, "relative error {worst:e}");
        assert_eq!(0.0f32.exp_negative(), 1.0);
        assert!(f32::NEG_INFINITY.exp_negative() < 2e-38);
    }
}
