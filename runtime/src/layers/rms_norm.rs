//! RmsNorm (arXiv 1910.07467).

use bitnet_formats::VectorView;
use bitnet_formats::quant::NonFinite;

use crate::math::{sqrt, sum16};

/// `out = (x * r) * gain`, `r = 1 / sqrt(mean(x^2) + eps)`.
///
/// # Errors
///
/// The sum of squares is not finite.
pub(crate) fn rms_norm(
    x: &[f32],
    gain: &VectorView<'_>,
    eps: f32,
    out: &mut [f32],
) -> Result<(), NonFinite> {
    let squares = sum16(x.len(), |i| x[i] * x[i]);
    if !squares.is_finite() {
        return Err(NonFinite);
    }
    let r = 1.0 / sqrt(squares / x.len() as f32 + eps);
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain.iter()) {
        *out = (x * r) * gain;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_vector_becomes_its_gain() {
        let gain: Vec<u8> = [2.0f32, -3.0]
            .iter()
            .flat_map(|g| g.to_le_bytes())
            .collect();
        let mut out = [0.0; 2];
        rms_norm(&[4.0, 4.0], &VectorView::new(&gain), 1e-12, &mut out).unwrap();
        assert_eq!(out, [2.0, -3.0]);
        let huge = rms_norm(&[1e20, 1.0], &VectorView::new(&gain), 1e-5, &mut out);
        assert_eq!(huge, Err(NonFinite));
    }
}
