//! One block: attention and feed-forward layer, each between norms, each added to the residual
//! stream.
//!
//! A part of a sequence goes through on its own, up to the heads of the attention and again after
//! them; `attend` runs the heads over the whole sequence.

use bitnet_formats::quant::NonFinite;
use bitnet_formats::{Activation, ModelConfig};
use ndarray::Array2;

use crate::model::attention::{AttentionGrads, AttentionLayer, AttentionTape};
use crate::model::input_norm::{InputNorm, NormTape};
use crate::ops::activation;
use crate::ops::bit_linear::{BitLinear, GradientJob};
use crate::ops::codes::Activations;
use crate::ops::dropout::{Dropout, Place};
use crate::ops::rope::Rope;
use crate::ops::simd::vectorized;
use crate::param::Param;
use crate::real::Real;
use crate::tensor::{add, copy, flat, flat_mut, zeros};

/// The parameters of a block.
#[derive(Clone, Debug)]
pub struct Block<T> {
    attn_norm: InputNorm<T>,
    attention: AttentionLayer<T>,
    attn_sub_norm: InputNorm<T>,
    o_proj: BitLinear<T>,
    ffn_norm: InputNorm<T>,
    gate_proj: BitLinear<T>,
    up_proj: BitLinear<T>,
    ffn_sub_norm: InputNorm<T>,
    down_proj: BitLinear<T>,
    activation: Activation,
    layer: usize,
}

/// What the forward pass of one part of a sequence leaves for its backward pass, besides its input.
#[derive(Clone, Debug)]
pub struct BlockTape<T> {
    /// Masks of the part.
    pub(crate) dropout: Dropout,
    attn_in: NormTape<T>,
    pub(crate) attention: AttentionTape<T>,
    attn_out: NormTape<T>,
    middle: Array2<T>,
    ffn_in: NormTape<T>,
    gate: Array2<T>,
    up: Array2<T>,
    product: Array2<T>,
    ffn_out: NormTape<T>,
}

/// Gradients of one part of a sequence within one block; every block uses the same.
#[derive(Clone, Debug)]
pub struct BlockGrads<T> {
    pub(crate) attention: AttentionGrads<T>,
    o: Array2<T>,
    gate: Array2<T>,
    up: Array2<T>,
    down: Array2<T>,
    product: Array2<T>,
    /// Of a normed input: hidden, heads or feed-forward wide.
    hidden_in: Array2<T>,
    heads_in: Array2<T>,
    ffn_in: Array2<T>,
}

impl<T: Real> BlockTape<T> {
    /// Room for `len` tokens.
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        Self {
            dropout: Dropout::OFF,
            attn_in: NormTape::new(len, hidden),
            attention: AttentionTape::new(config, len),
            attn_out: NormTape::new(len, config.attn_dim()),
            middle: zeros(len, hidden),
            ffn_in: NormTape::new(len, hidden),
            gate: zeros(len, ffn),
            up: zeros(len, ffn),
            product: zeros(len, ffn),
            ffn_out: NormTape::new(len, ffn),
        }
    }
}

impl<T: Real> BlockGrads<T> {
    /// Room for `len` tokens.
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        Self {
            attention: AttentionGrads::new(config, len),
            o: zeros(len, hidden),
            gate: zeros(len, ffn),
            up: zeros(len, ffn),
            down: zeros(len, hidden),
            product: zeros(len, ffn),
            hidden_in: zeros(len, hidden),
            heads_in: zeros(len, config.attn_dim()),
            ffn_in: zeros(len, ffn),
        }
    }
}

impl<T: Real> Block<T> {
    /// Block `layer` of a model; weights are zero until drawn.
    pub fn new(config: &ModelConfig, layer: usize) -> Self {
        let prefix = format!("model.layers.{layer}.");
        let (hidden, ffn, heads) = (
            config.hidden_size,
            config.intermediate_size,
            config.attn_dim(),
        );
        let linear = |name: &str, outputs, inputs| {
            BitLinear::new(format!("{prefix}{name}.weight"), outputs, inputs)
        };
        let norm = |present: bool, name: &str, width| match present {
            true => InputNorm::new(format!("{prefix}{name}.weight"), width, config.norms.eps),
            false => InputNorm::absent(width),
        };
        let norms = config.norms;
        Self {
            attn_norm: norm(true, "input_layernorm", hidden),
            attention: AttentionLayer::new(config, &format!("{prefix}self_attn.")),
            attn_sub_norm: norm(norms.attn_sub_norm, "self_attn.attn_sub_norm", heads),
            o_proj: linear("self_attn.o_proj", hidden, heads),
            ffn_norm: norm(true, "post_attention_layernorm", hidden),
            gate_proj: linear("mlp.gate_proj", ffn, hidden),
            up_proj: linear("mlp.up_proj", ffn, hidden),
            ffn_sub_norm: norm(norms.ffn_sub_norm, "mlp.ffn_sub_norm", ffn),
            down_proj: linear("mlp.down_proj", hidden, ffn),
            activation: config.activation,
            layer,
        }
    }

    /// Parameters, in file order.
    pub fn params(&self) -> Vec<&Param<T>> {
        let mut params: Vec<_> = self.attn_norm.params().collect();
        params.extend(self.attention.params());
        params.extend(self.attn_sub_norm.params());
        params.push(&self.o_proj.weight);
        params.extend(self.ffn_norm.params());
        params.extend([&self.gate_proj.weight, &self.up_proj.weight]);
        params.extend(self.ffn_sub_norm.params());
        params.push(&self.down_proj.weight);
        params
    }

    /// As [`Block::params`], to write.
    pub fn params_mut(&mut self) -> Vec<&mut Param<T>> {
        let mut params: Vec<_> = self.attn_norm.params_mut().collect();
        params.extend(self.attention.params_mut());
        params.extend(self.attn_sub_norm.params_mut());
        params.push(&mut self.o_proj.weight);
        params.extend(self.ffn_norm.params_mut());
        params.extend([&mut self.gate_proj.weight, &mut self.up_proj.weight]);
        params.extend(self.ffn_sub_norm.params_mut());
        params.push(&mut self.down_proj.weight);
        params
    }

    /// Every BitLinear.
    pub fn linears(&self) -> Vec<&BitLinear<T>> {
        let mut linears: Vec<_> = self.attention.linears().into();
        linears.extend([
            &self.o_proj,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ]);
        linears
    }

    /// As [`Block::linears`], to write.
    pub fn linears_mut(&mut self) -> Vec<&mut BitLinear<T>> {
        let mut linears: Vec<_> = self.attention.linears_mut().into();
        linears.extend([&mut self.o_proj, &mut self.gate_proj]);
        linears.extend([&mut self.up_proj, &mut self.down_proj]);
        linears
    }

    /// The layer whose heads `attend` runs.
    pub const fn attention(&self) -> &AttentionLayer<T> {
        &self.attention
    }

    /// From the residual stream `input` of a part, `[rows, hidden_size]`, whose first position is
    /// `first`, to its queries, keys and values.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from a quantiser.
    pub fn before_heads(
        &self,
        input: &Array2<T>,
        rope: &Rope<T>,
        first: usize,
        quantize: bool,
        tape: &mut BlockTape<T>,
    ) -> Result<(), NonFinite> {
        self.attn_norm.forward(input, quantize, &mut tape.attn_in)?;
        let x = &tape.attn_in.activations;
        self.attention
            .project(x, rope, first, quantize, &mut tape.attention)
    }

    /// From the outputs of the heads to the input of `down_proj`: all that the backward pass needs.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from a quantiser.
    pub fn after_heads(
        &self,
        input: &Array2<T>,
        quantize: bool,
        tape: &mut BlockTape<T>,
    ) -> Result<(), NonFinite> {
        self.attn_sub_norm
            .forward(&tape.attention.heads, quantize, &mut tape.attn_out)?;
        self.o_proj
            .forward(&tape.attn_out.activations, &mut tape.middle);
        self.drop_out(&tape.dropout, Place::Attention, &mut tape.middle);
        add(&mut tape.middle, input);

        self.ffn_norm
            .forward(&tape.middle, quantize, &mut tape.ffn_in)?;
        self.gate_proj
            .forward(&tape.ffn_in.activations, &mut tape.gate);
        self.up_proj.forward(&tape.ffn_in.activations, &mut tape.up);
        let (gate, up) = (flat(&tape.gate), flat(&tape.up));
        let product = flat_mut(&mut tape.product);
        vectorized!(activation::forward(self.activation, gate, up, product));
        self.ffn_sub_norm
            .forward(&tape.product, quantize, &mut tape.ffn_out)
    }

    /// The residual stream after the block, into `h`.
    pub fn output(&self, tape: &BlockTape<T>, h: &mut Array2<T>) {
        self.down_proj.forward(&tape.ffn_out.activations, h);
        self.drop_out(&tape.dropout, Place::FeedForward, h);
        add(h, &tape.middle);
    }

    fn drop_out(&self, dropout: &Dropout, place: Place, x: &mut Array2<T>) {
        dropout.apply(self.layer, place, x);
    }

    /// Carries the gradient of a part's residual stream, `d_h`, back to the outputs of the heads.
    pub fn backward_to_heads(
        &self,
        d_h: &mut Array2<T>,
        tape: &mut BlockTape<T>,
        grads: &mut BlockGrads<T>,
    ) {
        self.backward_feed_forward(d_h, tape, grads);
        let zero = T::zero();
        copy(&mut grads.o, d_h);
        self.drop_out(&tape.dropout, Place::Attention, &mut grads.o);
        self.o_proj
            .backward_input(&grads.o, zero, &mut grads.heads_in);
        grads.attention.heads.fill(zero);
        self.attn_sub_norm.backward(
            &tape.attention.heads,
            &grads.heads_in,
            &mut tape.attn_out,
            &mut grads.attention.heads,
        );
        self.attention.begin_gradients(&mut grads.attention);
    }

    /// From gradients of queries, keys and values to that of `input`, in `d_h`.
    ///
    /// Leaves in `grads` and `tape` what [`Block::collect_gradients`] needs.
    pub fn backward_from_heads(
        &self,
        d_h: &mut Array2<T>,
        input: &Array2<T>,
        rope: &Rope<T>,
        first: usize,
        tape: &mut BlockTape<T>,
        grads: &mut BlockGrads<T>,
    ) {
        let d_x = &mut grads.hidden_in;
        let (attention, d_attention) = (&mut tape.attention, &mut grads.attention);
        self.attention
            .backward(rope, first, attention, d_attention, d_x);
        self.attn_norm.backward(input, d_x, &mut tape.attn_in, d_h);
    }

    fn backward_feed_forward(
        &self,
        d_h: &mut Array2<T>,
        tape: &mut BlockTape<T>,
        grads: &mut BlockGrads<T>,
    ) {
        let zero = T::zero();
        copy(&mut grads.down, d_h);
        self.drop_out(&tape.dropout, Place::FeedForward, &mut grads.down);
        self.down_proj
            .backward_input(&grads.down, zero, &mut grads.ffn_in);
        grads.product.fill(zero);
        let (x, d_y, d_x) = (&tape.product, &grads.ffn_in, &mut grads.product);
        self.ffn_sub_norm.backward(x, d_y, &mut tape.ffn_out, d_x);

        let inputs = (flat(&tape.gate), flat(&tape.up));
        let outputs = (flat_mut(&mut grads.gate), flat_mut(&mut grads.up));
        let d_product = flat(&grads.product);
        vectorized!(activation::backward(
            self.activation,
            inputs,
            d_product,
            outputs
        ));
        let (gate, up, d_x) = (&mut grads.gate, &mut grads.up, &mut grads.hidden_in);
        self.gate_proj.backward_input(gate, zero, d_x);
        self.up_proj.backward_input(up, T::one(), d_x);
        self.ffn_norm
            .backward(&tape.middle, d_x, &mut tape.ffn_in, d_h);
    }

    /// Queues the weight gradients and adds the norms', over the parts of a batch in order.
    pub fn collect_gradients<'a>(
        &'a mut self,
        terms: &[(&'a BlockTape<T>, &'a BlockGrads<T>)],
        jobs: &mut Vec<GradientJob<'a, T>>,
    ) {
        let tapes = || terms.iter().map(|(tape, _)| *tape);
        self.attn_norm.collect_gradient(tapes().map(|t| &t.attn_in));
        self.attn_sub_norm
            .collect_gradient(tapes().map(|t| &t.attn_out));
        self.ffn_norm.collect_gradient(tapes().map(|t| &t.ffn_in));
        self.ffn_sub_norm
            .collect_gradient(tapes().map(|t| &t.ffn_out));
        let of_attention: Vec<_> = terms
            .iter()
            .map(|(t, g)| (&t.attn_in.activations, &t.attention, &g.attention))
            .collect();
        self.attention.collect_gradients(&of_attention, jobs);
        type Term<'a, T> = (&'a BlockTape<T>, &'a BlockGrads<T>);
        type Of<T> = for<'t> fn(&Term<'t, T>) -> (&'t Array2<T>, &'t Activations<T>);
        let linears: [(&'a mut BitLinear<T>, Of<T>); 4] = [
            (&mut self.o_proj, |(t, g)| (&g.o, &t.attn_out.activations)),
            (&mut self.gate_proj, |(t, g)| {
                (&g.gate, &t.ffn_in.activations)
            }),
            (&mut self.up_proj, |(t, g)| (&g.up, &t.ffn_in.activations)),
            (&mut self.down_proj, |(t, g)| {
                (&g.down, &t.ffn_out.activations)
            }),
        ];
        for (linear, of) in linears {
            linear.gradient(terms.iter().map(of), jobs);
        }
    }
}
