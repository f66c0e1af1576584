//! What some models do besides: norms inside linears, norms and projections of single heads, other
//! outputs than the logits of a dense head.

use core::ops::Range;

use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{TernaryView, VectorView};

use crate::buffers::Workspace;
use crate::error::{RunError, at_layer};
use crate::forward::Forward;
use crate::kernels::{Kernels, Output, Store};
use crate::layers::bit_linear::{BitLinear, quantize_token};
use crate::layers::norm::{Norm, unit_length};
use crate::model::{Block, Model};
use crate::parts::{Groups, Rows, Split};
use crate::plan::{PLANES, code_stride};

/// Gains of the norms inside the linears that read one input, in their order; none where they read it
/// as it is.
pub(crate) type Gains<'w> = [Option<VectorView<'w>>; PLANES];

/// Quantised tokens of one linear, or of all that read the same: codes, and their scale.
pub(crate) struct Plane<'a> {
    codes: Rows<'a, i8>,
    scales: Rows<'a, f32>,
}

impl Split for Plane<'_> {
    fn split_at(self, unit: usize) -> (Self, Self) {
        let (codes, more_codes) = self.codes.split_at(unit);
        let (scales, more_scales) = self.scales.split_at(unit);
        let plane = |codes, scales| Self { codes, scales };
        (plane(codes, scales), plane(more_codes, more_scales))
    }
}

/// The planes of a chunk of `n` tokens; a model that needs one has two empty ones besides.
pub(crate) fn planes<'a>(
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    n: usize,
    stride: usize,
) -> [Plane<'a>; PLANES] {
    let (mut codes, mut scales) = (codes.chunks_mut(n * stride), scales.chunks_mut(n));
    core::array::from_fn(|_| Plane {
        codes: Rows::new(codes.next().unwrap_or_default(), stride),
        scales: Rows::new(scales.next().unwrap_or_default(), 1),
    })
}

/// The same, to be read.
pub(crate) struct Inputs<'s> {
    model: &'s Model<'s>,
    codes: &'s [i8],
    scales: &'s [f32],
    n: usize,
}

impl<'s> Inputs<'s> {
    pub(crate) fn new(model: &'s Model<'_>, codes: &'s [i8], scales: &'s [f32], n: usize) -> Self {
        Self {
            model,
            codes,
            scales,
            n,
        }
    }

    /// The linear at this place among those that read the same input.
    pub(crate) fn linear(&self, place: usize) -> BitLinear<'_> {
        let stride = code_stride(self.model.config());
        let plane = if self.scales.len() > self.n { place } else { 0 };
        let codes = &self.codes[plane * self.n * stride..][..self.n * stride];
        let scales = &self.scales[plane * self.n..][..self.n];
        BitLinear::new(self.model, codes, scales)
    }
}

/// What comes before a BitLinear: a norm, where the model has one there, the norms inside the linears
/// that read the result, and the quantiser.
pub(crate) struct LinearInput<'i> {
    pub(crate) kernels: &'i Kernels,
    pub(crate) norm: Option<Norm<'i>>,
    pub(crate) inner: [Option<Norm<'i>>; PLANES],
    pub(crate) layer: usize,
}

impl LinearInput<'_> {
    /// The same with norms over what was `width` elements: [`Norm::over`].
    pub(crate) fn over(self, width: usize) -> Self {
        Self {
            norm: self.norm.map(|norm| norm.over(width)),
            inner: self.inner.map(|norm| norm.map(|norm| norm.over(width))),
            ..self
        }
    }

    /// Quantises one token, once or for each linear that has a norm.
    pub(crate) fn quantize(
        &self,
        token: usize,
        x: &[f32],
        normed: &mut [f32],
        planes: &mut [Plane<'_>; PLANES],
    ) -> Result<(), RunError> {
        if self.inner[0].is_none() {
            let scale = self.quantize_once(x, normed, planes[0].codes.row(token))?;
            planes[0].scales.row(token)[0] = scale;
            return Ok(());
        }
        let (normed, twice) = halves(normed);
        let x = self.normed(x, normed)?;
        let twice = &mut twice[..x.len()];
        for (norm, plane) in self.inner.iter().flatten().zip(planes) {
            let scale = norm
                .apply(x, twice)
                .and_then(|()| quantize_token(self.kernels, twice, plane.codes.row(token)));
            plane.scales.row(token)[0] = scale.map_err(at_layer(self.layer))?;
        }
        Ok(())
    }

    /// Quantises one token without norms inside linears, and returns the scale.
    pub(crate) fn quantize_once(
        &self,
        x: &[f32],
        normed: &mut [f32],
        codes: &mut [i8],
    ) -> Result<f32, RunError> {
        let x = self.normed(x, normed)?;
        quantize_token(self.kernels, x, codes).map_err(at_layer(self.layer))
    }

    fn normed<'x>(&self, x: &'x [f32], normed: &'x mut [f32]) -> Result<&'x [f32], RunError> {
        let Some(norm) = &self.norm else { return Ok(x) };
        let normed = &mut normed[..x.len()];
        norm.apply(x, normed).map_err(at_layer(self.layer))?;
        Ok(normed)
    }
}

/// What happens to query heads (0) and key heads (1) beside their rotation.
pub(crate) struct HeadWork<'s> {
    model: &'s Model<'s>,
    norms: Option<[Norm<'s>; 2]>,
    projections: Option<[(TernaryView<'s>, Option<Norm<'s>>); 2]>,
    layer: usize,
}

impl<'s> HeadWork<'s> {
    pub(crate) fn new(model: &'s Model<'_>, block: &Block<'s>, layer: usize) -> Self {
        let (kernels, config) = (model.kernels(), model.config());
        let norm = |gain| Norm::new(kernels, config, gain);
        let in_linear = |gain: Option<_>| gain.map(|gain| Norm::in_linear(kernels, config, gain));
        let projection = |(weights, gain)| (weights, in_linear(gain));
        Self {
            model,
            norms: block.qk_norm.map(|gains| gains.map(norm)),
            projections: block.qk_latent.map(|both| both.map(projection)),
            layer,
        }
    }

    /// Norms each head of a token, in place.
    pub(crate) fn norm(
        &self,
        which: usize,
        heads: &mut [f32],
        normed: &mut [f32],
    ) -> Result<(), RunError> {
        let Some(norms) = &self.norms else {
            return Ok(());
        };
        let width = self.model.config().qk_head_dim();
        let normed = &mut normed[..width];
        for head in heads.chunks_exact_mut(width) {
            let done = norms[which].apply(head, normed);
            done.map_err(at_layer(self.layer))?;
            head.copy_from_slice(normed);
        }
        Ok(())
    }

    /// Takes each head of a token through its BitLinear. The narrower results stand end to end where
    /// the heads stood.
    pub(crate) fn project(
        &self,
        which: usize,
        heads: &mut [f32],
        codes: &mut [i8],
        space: &mut Workspace<'_>,
    ) -> Result<(), RunError> {
        let Some(projections) = &self.projections else {
            return Ok(());
        };
        let (weights, norm) = &projections[which];
        let config = self.model.config();
        let (width, dim) = (config.qk_head_dim(), config.score_dim());
        let (projected, normed) = halves(space.normed);
        let projected = &mut projected[..dim];
        for head in 0..heads.len() / width {
            let input = LinearInput {
                kernels: self.model.kernels(),
                norm: *norm,
                inner: [None; PLANES],
                layer: self.layer,
            };
            let scale = input.quantize_once(&heads[head * width..][..width], normed, codes)?;
            let mut out = Output::new(projected, weights.rows);
            BitLinear::new(self.model, codes, &[scale]).forward(
                *weights,
                0..weights.n_groups(),
                Store::Set,
                space.factors,
                &mut out,
            );
            // A result ends before the next head begins: it is not wider.
            heads[head * dim..][..dim].copy_from_slice(projected);
        }
        Ok(())
    }
}

impl Forward<'_, '_> {
    /// Quantises the normed hidden state, which waits in the residual stream, for a ternary head.
    pub(crate) fn ternary_head_in(&mut self) -> Result<(), RunError> {
        let (config, token) = (self.config, self.head_token);
        let gain = self.model.ternary_head().and_then(|(_, gain)| gain);
        let kernels = self.model.kernels();
        let input = LinearInput {
            kernels,
            norm: gain.map(|gain| Norm::in_linear(kernels, config, gain)),
            inner: [None; PLANES],
            layer: config.n_layers,
        };
        let stride = code_stride(config);
        let scratch = &mut self.scratch;
        let hidden = &scratch.residual[token * config.hidden_size..][..config.hidden_size];
        let codes = &mut scratch.codes[token * stride..][..stride];
        let normed = scratch.spaces.first().normed;
        scratch.act_scales[token] = input.quantize_once(hidden, normed, codes)?;
        Ok(())
    }

    /// Row groups of a ternary head.
    pub(crate) fn ternary_head(&mut self, units: Range<usize>) -> Result<(), RunError> {
        let Some((weights, _)) = self.model.ternary_head() else {
            unreachable!("the output follows the configuration");
        };
        let (config, model, token) = (self.config, self.model, self.head_token);
        let stride = code_stride(config);
        let scratch = &mut self.scratch;
        let codes = &scratch.codes[token * stride..][..stride];
        let linear = BitLinear::new(model, codes, &scratch.act_scales[token..=token]);
        let rows = units.start * GROUP_ROWS..weights.rows.min(units.end * GROUP_ROWS);
        let out = Groups::new(scratch.logits, weights.rows, 0);
        let spaces = &mut scratch.spaces;
        self.workers
            .run(units, out, spaces, |units, mut out, space| {
                let groups = out.groups(&units, weights.n_groups());
                linear.forward(weights, groups, Store::Set, space.factors, &mut out.output);
                Ok(())
            })?;
        let finite = bitnet_formats::quant::absmax(&self.scratch.logits[rows]).map(|_| ());
        finite.map_err(at_layer(config.n_layers))
    }

    /// The normed hidden state, which waits in the residual stream, scaled to length one.
    pub(crate) fn embedding(&mut self) -> Result<(), RunError> {
        let width = self.config.hidden_size;
        let hidden = &self.scratch.residual[self.head_token * width..][..width];
        let done = unit_length(hidden, self.scratch.logits);
        done.map_err(at_layer(self.config.n_layers))
    }
}

/// The two rooms of `normed`, where it has two.
fn halves(normed: &mut [f32]) -> (&mut [f32], &mut [f32]) {
    normed.split_at_mut(normed.len() / 2)
}
