//! Norms with a learned gain, and scaling to length one.

use bitnet_formats::quant::NonFinite;
use bitnet_formats::{ModelConfig, NormKind, VectorView};

use crate::kernels::Kernels;
use crate::math::{sqrt, sum16};

/// A norm of one place of a model.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) kind: NormKind,
    pub(crate) gain: VectorView<'a>,
    pub(crate) eps: f32,
    /// What the sum of squares is divided by: as many as there are, but for blocks with neurons pruned.
    pub(crate) width: usize,
}

impl<'a> Norm<'a> {
    /// A norm with the model's kind and epsilon.
    pub(crate) const fn new(
        kernels: &'a Kernels,
        config: &ModelConfig,
        gain: VectorView<'a>,
    ) -> Self {
        let (kind, eps) = (config.norms.kind, config.norms.eps);
        Self {
            kernels,
            kind,
            gain,
            eps,
            width: gain.len(),
        }
    }

    /// The norm inside a linear.
    pub(crate) fn in_linear(
        kernels: &'a Kernels,
        config: &ModelConfig,
        gain: VectorView<'a>,
    ) -> Self {
        let eps = config.norms.in_linear.unwrap_or(config.norms.eps);
        Self {
            eps,
            ..Self::new(kernels, config, gain)
        }
    }

    /// The same norm over what was `width` elements before those that are always zero went.
    pub(crate) const fn over(self, width: usize) -> Self {
        Self { width, ..self }
    }

    /// The norm of `x`, as long as its gain.
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32]) -> Result<(), NonFinite> {
        match self.kind {
            NormKind::Rms if self.width != x.len() => {
                rms_norm_over(x, self.width, &self.gain, self.eps, out)
            }
            NormKind::Rms => self.kernels.rms_norm(x, &self.gain, self.eps, out),
            NormKind::Layer => layer_norm(x, &self.gain, self.eps, out),
        }
    }
}

/// [`Kernels::rms_norm`] with another divisor than the number of elements.
fn rms_norm_over(
    x: &[f32],
    width: usize,
    gain: &VectorView<'_>,
    eps: f32,
    out: &mut [f32],
) -> Result<(), NonFinite> {
    let squares = sum16(x.len(), |i| x[i] * x[i]);
    if !squares.is_finite() {
        return Err(NonFinite);
    }
    let r = 1.0 / sqrt(squares / width as f32 + eps);
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain.iter()) {
        *out = (x * r) * gain;
    }
    Ok(())
}

/// LayerNorm without a bias (arXiv 1607.06450): `out = ((x - mean) * r) * gain`, with
/// `r = 1 / sqrt(mean((x - mean)^2) + eps)`. One definition serves every set of kernels.
fn layer_norm(
    x: &[f32],
    gain: &VectorView<'_>,
    eps: f32,
    out: &mut [f32],
) -> Result<(), NonFinite> {
    let n = x.len() as f32;
    let mean = sum16(x.len(), |i| x[i]) / n;
    let squares = sum16(x.len(), |i| (x[i] - mean) * (x[i] - mean));
    if !squares.is_finite() {
        return Err(NonFinite);
    }
    let r = 1.0 / sqrt(squares / n + eps);
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain.iter()) {
        *out = ((x - mean) * r) * gain;
    }
    Ok(())
}

/// `out = x / max(|x|, 1e-12)`: a vector of length one, but for one that is nearly zero.
pub(crate) fn unit_length(x: &[f32], out: &mut [f32]) -> Result<(), NonFinite> {
    let squares = sum16(x.len(), |i| x[i] * x[i]);
    if !squares.is_finite() {
        return Err(NonFinite);
    }
    let length = sqrt(squares).max(1e-12);
    out.iter_mut().zip(x).for_each(|(out, x)| *out = x / length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_centres_and_scales() {
        let gain: Vec<u8> = [1.0f32, 2.0, 1.0, 1.0]
            .iter()
            .flat_map(|g| g.to_le_bytes())
            .collect();
        let mut out = [0.0; 4];
        let x = [1.0, 3.0, 5.0, 7.0]; // mean 4, variance 5
        layer_norm(&x, &VectorView::new(&gain), 4.0, &mut out).unwrap();
        assert_eq!(out, [-1.0, -2.0 / 3.0, 1.0 / 3.0, 1.0].map(|v: f32| v));
        for bad in [f32::NAN, f32::INFINITY, 3e38] {
            let x = [bad, -bad, 0.0, 0.0];
            let result = layer_norm(&x, &VectorView::new(&gain), 1e-6, &mut out);
            assert_eq!(result, Err(NonFinite), "{bad}");
        }
    }

    /// With its own length as divisor it is the kernels' norm.
    #[test]
    fn the_divisor_is_all_that_differs() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 - 17.3) * 0.21).collect();
        let gain: Vec<u8> = x.iter().flat_map(|g| (g + 9.0).to_le_bytes()).collect();
        let gain = VectorView::new(&gain);
        let (mut a, mut b) = ([0.0; 37], [0.0; 37]);
        rms_norm_over(&x, 37, &gain, 1e-5, &mut a).unwrap();
        for kernels in Kernels::available() {
            kernels.rms_norm(&x, &gain, 1e-5, &mut b).unwrap();
            assert_eq!(a, b, "{kernels:?}");
        }
        rms_norm_over(&x, 74, &gain, 1e-5, &mut b).unwrap();
        assert!(b[0] / a[0] > 1.4 && b[0] / a[0] < 1.42);
    }

    #[test]
    fn embeddings_have_length_one() {
        let mut out = [0.0; 2];
        unit_length(&[3.0, -4.0], &mut out).unwrap();
        assert_eq!(out, [0.6, -0.8]);
        unit_length(&[0.0, 0.0], &mut out).unwrap();
        assert_eq!(out, [0.0, 0.0]);
        assert_eq!(unit_length(&[1e30, 0.0], &mut out), Err(NonFinite));
    }
}
