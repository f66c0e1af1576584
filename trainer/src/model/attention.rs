//! Attention of a block: either kind, over one set of buffers. Projections go part by part of a
//! sequence, the heads over all of it.

use bitnet_formats::quant::NonFinite;
use bitnet_formats::{Attention, ModelConfig};
use ndarray::Array2;

use crate::model::grouped_attention::GroupedAttention;
use crate::model::input_norm::NormTape;
use crate::model::latent_attention::LatentAttention;
use crate::model::linear_input::{LinearInput, LinearInputGrads, LinearInputTape};
use crate::ops::attention::HeadBuffers;
use crate::ops::bit_linear::{BitLinear, GradientJob};
use crate::ops::rope::Rope;
use crate::param::Param;
use crate::real::Real;
use crate::tensor::zeros;

/// The projections of one of the two kinds, without `o_proj`, which both share.
#[derive(Clone, Debug)]
pub enum AttentionLayer<T> {
    /// Grouped-query and multi-head.
    Grouped(GroupedAttention<T>),
    /// Multi-head latent.
    Latent(LatentAttention<T>),
}

/// Widths of a layer's buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widths {
    pub(crate) q: usize,
    pub(crate) kv_a: usize,
    pub(crate) latent: usize,
    pub(crate) kv_b: usize,
    pub(crate) heads: usize,
}

/// Activations of a part of a sequence, `len` rows.
#[derive(Clone, Debug)]
pub struct AttentionTape<T> {
    /// Rotated queries, `[len, n_heads * qk_head_dim]`.
    pub q: Array2<T>,
    /// Grouped: rotated keys. Latent: the latent, then the rotated shared key.
    pub kv_a: Array2<T>,
    /// Latent: the normed latent, input of `kv_b_proj`. Grouped: of width 0.
    pub latent: NormTape<T>,
    /// Grouped: values. Latent: per head, keys without position, then values.
    pub kv_b: Array2<T>,
    /// Concatenated head outputs, `[len, n_heads * v_head_dim]`: the layer's result.
    pub heads: Array2<T>,
}

/// Gradients of a part of a sequence, of the shapes of [`AttentionTape`]'s fields of the same name.
#[derive(Clone, Debug)]
pub struct AttentionGrads<T> {
    /// Of the queries.
    pub q: Array2<T>,
    /// Of `kv_a`.
    pub kv_a: Array2<T>,
    /// Of the normed latent.
    pub latent: Array2<T>,
    /// Of `kv_b`.
    pub kv_b: Array2<T>,
    /// Of the head outputs: where the backward pass starts.
    pub heads: Array2<T>,
}

/// `(input, activations, gradients)` of a part, as weight gradients need them.
pub type AttentionTerm<'a, T> = (
    &'a LinearInputTape<T>,
    &'a AttentionTape<T>,
    &'a AttentionGrads<T>,
);

/// The way of gradients back through the projections, to their common input.
#[derive(Debug)]
pub struct ToInput<'a, T> {
    /// The norms before the projections.
    pub input: &'a LinearInput<T>,
    /// What they left.
    pub tape: &'a mut LinearInputTape<T>,
    /// Where gradients come together.
    pub grads: &'a mut LinearInputGrads<T>,
}

impl<T: Real> ToInput<'_, T> {
    /// See [`LinearInput::backward_linear`].
    pub(crate) fn add(&mut self, place: usize, linear: &BitLinear<T>, d_y: &Array2<T>) {
        self.input
            .backward_linear(place, linear, d_y, self.tape, self.grads);
    }
}

impl<T: Real> AttentionTape<T> {
    /// Room for `len` tokens of a model.
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        let widths = Widths::of(config);
        Self {
            q: zeros(len, widths.q),
            kv_a: zeros(len, widths.kv_a),
            latent: NormTape::new(len, widths.latent),
            kv_b: zeros(len, widths.kv_b),
            heads: zeros(len, widths.heads),
        }
    }
}

impl<T: Real> AttentionGrads<T> {
    /// Room for `len` tokens of a model.
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        let widths = Widths::of(config);
        Self {
            q: zeros(len, widths.q),
            kv_a: zeros(len, widths.kv_a),
            latent: zeros(len, widths.latent),
            kv_b: zeros(len, widths.kv_b),
            heads: zeros(len, widths.heads),
        }
    }
}

impl Widths {
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let (kv_a, latent, kv_b) = match config.attention {
            Attention::Grouped {
                n_kv_heads,
                head_dim,
            } => (n_kv_heads * head_dim, 0, n_kv_heads * head_dim),
            Attention::Latent {
                kv_lora_rank: rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => {
                let kv_b = config.n_heads * (qk_nope_head_dim + v_head_dim);
                (rank + qk_rope_head_dim, rank, kv_b)
            }
        };
        Self {
            q: config.q_dim(),
            kv_a,
            latent,
            kv_b,
            heads: config.attn_dim(),
        }
    }
}

impl<T: Real> AttentionLayer<T> {
    /// The layer `config` asks for; its tensors are named `prefix` + `q_proj.weight` and so on.
    pub fn new(config: &ModelConfig, prefix: &str) -> Self {
        match config.attention {
            Attention::Grouped {
                n_kv_heads,
                head_dim,
            } => Self::Grouped(GroupedAttention::new(config, n_kv_heads, head_dim, prefix)),
            Attention::Latent { .. } => Self::Latent(LatentAttention::new(config, prefix)),
        }
    }

    /// The projections, in file order.
    pub fn linears_mut(&mut self) -> [&mut BitLinear<T>; 3] {
        match self {
            Self::Grouped(layer) => layer.linears_mut(),
            Self::Latent(layer) => layer.linears_mut(),
        }
    }

    /// As [`AttentionLayer::linears_mut`], to read.
    pub fn linears(&self) -> [&BitLinear<T>; 3] {
        match self {
            Self::Grouped(layer) => layer.linears(),
            Self::Latent(layer) => layer.linears(),
        }
    }

    /// Parameters, in file order.
    pub fn params_mut(&mut self) -> Vec<&mut Param<T>> {
        match self {
            Self::Grouped(layer) => layer.params_mut(),
            Self::Latent(layer) => layer.params_mut(),
        }
    }

    /// As [`AttentionLayer::params_mut`], to read.
    pub fn params(&self) -> Vec<&Param<T>> {
        match self {
            Self::Grouped(layer) => layer.params(),
            Self::Latent(layer) => layer.params(),
        }
    }

    /// From the normed input of the part that begins at position `first` to queries, keys and values.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from a quantiser.
    pub fn project(
        &self,
        x: &LinearInputTape<T>,
        rope: &Rope<T>,
        first: usize,
        quantize: bool,
        tape: &mut AttentionTape<T>,
    ) -> Result<(), NonFinite> {
        match self {
            Self::Grouped(layer) => {
                layer.project(x, rope, first, tape);
                Ok(())
            }
            Self::Latent(layer) => layer.project(x, rope, first, quantize, tape),
        }
    }

    /// Brings queries, keys and values of head `h` from a part to `head`.
    pub fn gather_head(
        &self,
        tape: &AttentionTape<T>,
        first: usize,
        h: usize,
        head: &mut HeadBuffers<T>,
    ) {
        match self {
            Self::Grouped(layer) => layer.gather_head(tape, first, h, head),
            Self::Latent(layer) => layer.gather_head(tape, first, h, head),
        }
    }

    /// Makes `grads` ready for [`AttentionLayer::scatter_gradients`] of all heads.
    pub fn begin_gradients(&self, grads: &mut AttentionGrads<T>) {
        grads.kv_a.fill(T::zero());
        if let Self::Grouped(_) = self {
            grads.kv_b.fill(T::zero());
        }
    }

    /// Brings gradients of queries, keys and values from `head` to a part. What heads share adds up,
    /// so heads must come in order.
    pub fn scatter_gradients(
        &self,
        head: &HeadBuffers<T>,
        first: usize,
        h: usize,
        grads: &mut AttentionGrads<T>,
    ) {
        match self {
            Self::Grouped(layer) => layer.scatter_gradients(head, first, h, grads),
            Self::Latent(layer) => layer.scatter_gradients(head, first, h, grads),
        }
    }

    /// From gradients of queries, keys and values to that of the normed input.
    ///
    /// Leaves in `grads` the output gradients, which weight gradients want.
    pub fn backward(
        &self,
        rope: &Rope<T>,
        first: usize,
        tape: &mut AttentionTape<T>,
        grads: &mut AttentionGrads<T>,
        to: ToInput<'_, T>,
    ) {
        match self {
            Self::Grouped(layer) => layer.backward(rope, first, grads, to),
            Self::Latent(layer) => layer.backward(rope, first, tape, grads, to),
        }
    }

    /// Queues the weight gradients and adds the norms', over the parts of a batch.
    pub fn collect_gradients<'a>(
        &'a mut self,
        terms: &[AttentionTerm<'a, T>],
        jobs: &mut Vec<GradientJob<'a, T>>,
    ) {
        match self {
            Self::Grouped(layer) => layer.collect_gradients(terms, jobs),
            Self::Latent(layer) => layer.collect_gradients(terms, jobs),
        }
    }
}
