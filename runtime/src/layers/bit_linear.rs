//! BitLinear: int8 activations times ternary weights (arXiv 2402.17764).

use core::ops::Range;

use bitnet_formats::quant::{NonFinite, linear_factor};
use bitnet_formats::{TernaryView, WeightScale};

use crate::kernels::{Activations, Kernels, Output, Store, TernaryGemm};
use crate::model::Model;
use crate::plan::code_stride;

/// Quantises one token and clears its padding; returns the scale.
pub(crate) fn quantize_token(
    kernels: &Kernels,
    x: &[f32],
    codes: &mut [i8],
) -> Result<f32, NonFinite> {
    let (used, padding) = codes.split_at_mut(x.len());
    padding.fill(0);
    kernels.quantize(x, used)
}

/// A linear layer over quantised tokens.
pub(crate) struct BitLinear<'a> {
    kernels: &'a Kernels,
    convention: WeightScale,
    activations: Activations<'a>,
    /// Scales of the tokens, `[n]`.
    act_scales: &'a [f32],
}

impl<'a> BitLinear<'a> {
    /// `codes` is `[n, code_stride]`.
    pub(crate) fn new(model: &'a Model<'_>, codes: &'a [i8], act_scales: &'a [f32]) -> Self {
        let config = model.config();
        Self {
            kernels: model.kernels(),
            convention: config.weight_scale,
            activations: Activations::new(codes, code_stride(config)),
            act_scales,
        }
    }

    /// Computes the rows of some groups for all tokens: `out[t][row] (+)= W x_t`.
    pub(crate) fn forward(
        &self,
        weights: TernaryView<'_>,
        groups: Range<usize>,
        store: Store,
        factors: &mut [f32],
        out: &mut Output<'_>,
    ) {
        for (factor, act_scale) in factors.iter_mut().zip(self.act_scales) {
            *factor = linear_factor(self.convention, weights.scale, *act_scale);
        }
        let activations = self.activations;
        let job = TernaryGemm {
            weights,
            groups,
            activations,
            factors,
            store,
        };
        self.kernels.ternary_gemm_into(&job, out);
    }
}
