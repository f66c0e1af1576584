//! One block: attention and feed-forward layer, each between norms, each added to the residual
//! stream.
//!
//! A part of a sequence goes through on its own, up to the heads of the attention and again after
//! them; `attend` runs the heads over the whole sequence.

use bitnet_converter::names::tensor_name;
use bitnet_formats::quant::NonFinite;
use bitnet_formats::{Activation, ModelConfig, TensorRole};
use ndarray::Array2;

use crate::model::attention::{AttentionGrads, AttentionLayer, AttentionTape, ToInput};
use crate::model::input_norm::InputNorm;
use crate::model::linear_input::{LinearInput, LinearInputGrads, LinearInputTape, OwnNorms};
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
    attn_in: LinearInput<T>,
    attention: AttentionLayer<T>,
    attn_out: LinearInput<T>,
    o_proj: BitLinear<T>,
    ffn_in: LinearInput<T>,
    gate_proj: BitLinear<T>,
    up_proj: BitLinear<T>,
    ffn_out: LinearInput<T>,
    down_proj: BitLinear<T>,
    activation: Activation,
    layer: usize,
}

/// What the forward pass of one part of a sequence leaves for its backward pass, besides its input.
#[derive(Clone, Debug)]
pub struct BlockTape<T> {
    /// Masks of the part.
    pub(crate) dropout: Dropout,
    attn_in: LinearInputTape<T>,
    pub(crate) attention: AttentionTape<T>,
    attn_out: LinearInputTape<T>,
    middle: Array2<T>,
    ffn_in: LinearInputTape<T>,
    gate: Array2<T>,
    up: Array2<T>,
    product: Array2<T>,
    ffn_out: LinearInputTape<T>,
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
    hidden_in: LinearInputGrads<T>,
    heads_in: LinearInputGrads<T>,
    ffn_in: LinearInputGrads<T>,
}

impl<T: Real> BlockTape<T> {
    /// Room for `len` tokens.
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let own = OwnNorms::of(config);
        Self {
            dropout: Dropout::OFF,
            attn_in: LinearInputTape::new(len, hidden, own.attention),
            attention: AttentionTape::new(config, len),
            attn_out: LinearInputTape::new(len, config.attn_dim(), own.o),
            middle: zeros(len, hidden),
            ffn_in: LinearInputTape::new(len, hidden, own.ffn),
            gate: zeros(len, ffn),
            up: zeros(len, ffn),
            product: zeros(len, ffn),
            ffn_out: LinearInputTape::new(len, ffn, own.down),
        }
    }
}

impl<T: Real> BlockGrads<T> {
    /// Room for `len` tokens.
    pub fn new(config: &ModelConfig, len: usize) -> Self {
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let own = OwnNorms::of(config);
        Self {
            attention: AttentionGrads::new(config, len),
            o: zeros(len, hidden),
            gate: zeros(len, ffn),
            up: zeros(len, ffn),
            down: zeros(len, hidden),
            product: zeros(len, ffn),
            hidden_in: LinearInputGrads::new(len, hidden, own.attention),
            heads_in: LinearInputGrads::new(len, config.attn_dim(), own.o),
            ffn_in: LinearInputGrads::new(len, ffn, own.down),
        }
    }
}

impl<T: Real> Block<T> {
    /// Block `layer` of a model; weights are zero until drawn.
    pub fn new(config: &ModelConfig, layer: usize) -> Self {
        use TensorRole as R;
        let name = |role| tensor_name(role, Some(layer)).expect("a tensor of a block");
        let linear = |role| {
            let (outputs, inputs) = config.shape(role);
            BitLinear::new(name(role), outputs, inputs)
        };
        let norm = |role, eps| match (config.has(role), config.shape(role)) {
            (true, (_, width)) => InputNorm::new(name(role), width, eps),
            (false, (_, width)) => InputNorm::absent(width),
        };
        let input = |shared, readers: &[R]| {
            let inner = |role| Some(norm(role, config.norms.in_linear?));
            let own = readers.iter().filter_map(|role| inner(*role)).collect();
            LinearInput::new(norm(shared, config.norms.eps), own)
        };
        Self {
            attn_in: input(R::AttnNorm, &[R::QInputNorm, R::KInputNorm, R::VInputNorm]),
            attention: AttentionLayer::new(config, &format!("model.layers.{layer}.self_attn.")),
            attn_out: input(R::AttnSubNorm, &[R::OInputNorm]),
            o_proj: linear(R::O),
            ffn_in: input(R::FfnNorm, &[R::GateInputNorm, R::UpInputNorm]),
            gate_proj: linear(R::Gate),
            up_proj: linear(R::Up),
            ffn_out: input(R::FfnSubNorm, &[R::DownInputNorm]),
            down_proj: linear(R::Down),
            activation: config.activation,
            layer,
        }
    }

    /// Parameters, in the order in which the forward pass needs them.
    pub fn params(&self) -> Vec<&Param<T>> {
        let mut params: Vec<_> = self.attn_in.params().collect();
        params.extend(self.attention.params());
        params.extend(self.attn_out.params());
        params.push(&self.o_proj.weight);
        params.extend(self.ffn_in.params());
        params.extend([&self.gate_proj.weight, &self.up_proj.weight]);
        params.extend(self.ffn_out.params());
        params.push(&self.down_proj.weight);
        params
    }

    /// As [`Block::params`], to write.
    pub fn params_mut(&mut self) -> Vec<&mut Param<T>> {
        let mut params: Vec<_> = self.attn_in.params_mut().collect();
        params.extend(self.attention.params_mut());
        params.extend(self.attn_out.params_mut());
        params.push(&mut self.o_proj.weight);
        params.extend(self.ffn_in.params_mut());
        params.extend([&mut self.gate_proj.weight, &mut self.up_proj.weight]);
        params.extend(self.ffn_out.params_mut());
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
        self.attn_in.forward(input, quantize, &mut tape.attn_in)?;
        let x = &tape.attn_in;
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
        self.attn_out
            .forward(&tape.attention.heads, quantize, &mut tape.attn_out)?;
        self.o_proj.forward(tape.attn_out.of(0), &mut tape.middle);
        self.drop_out(&tape.dropout, Place::Attention, &mut tape.middle);
        add(&mut tape.middle, input);

        self.ffn_in
            .forward(&tape.middle, quantize, &mut tape.ffn_in)?;
        self.gate_proj.forward(tape.ffn_in.of(0), &mut tape.gate);
        self.up_proj.forward(tape.ffn_in.of(1), &mut tape.up);
        let (gate, up) = (flat(&tape.gate), flat(&tape.up));
        let product = flat_mut(&mut tape.product);
        vectorized!(activation::forward(self.activation, gate, up, product));
        self.ffn_out
            .forward(&tape.product, quantize, &mut tape.ffn_out)
    }

    /// The residual stream after the block, into `h`.
    pub fn output(&self, tape: &BlockTape<T>, h: &mut Array2<T>) {
        self.down_proj.forward(tape.ffn_out.of(0), h);
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
        copy(&mut grads.o, d_h);
        self.drop_out(&tape.dropout, Place::Attention, &mut grads.o);
        let (to, x_tape) = (&mut grads.heads_in, &mut tape.attn_out);
        self.attn_out
            .backward_linear(0, &self.o_proj, &grads.o, x_tape, to);
        grads.attention.heads.fill(T::zero());
        let (x, d_x) = (&tape.attention.heads, &mut grads.attention.heads);
        self.attn_out.backward(x, x_tape, to, d_x);
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
        let to = ToInput {
            input: &self.attn_in,
            tape: &mut tape.attn_in,
            grads: &mut grads.hidden_in,
        };
        let (attention, d_attention) = (&mut tape.attention, &mut grads.attention);
        self.attention
            .backward(rope, first, attention, d_attention, to);
        self.attn_in
            .backward(input, &mut tape.attn_in, &grads.hidden_in, d_h);
    }

    fn backward_feed_forward(
        &self,
        d_h: &mut Array2<T>,
        tape: &mut BlockTape<T>,
        grads: &mut BlockGrads<T>,
    ) {
        copy(&mut grads.down, d_h);
        self.drop_out(&tape.dropout, Place::FeedForward, &mut grads.down);
        let (to, x_tape) = (&mut grads.ffn_in, &mut tape.ffn_out);
        self.ffn_out
            .backward_linear(0, &self.down_proj, &grads.down, x_tape, to);
        grads.product.fill(T::zero());
        self.ffn_out
            .backward(&tape.product, x_tape, to, &mut grads.product);

        let inputs = (flat(&tape.gate), flat(&tape.up));
        let outputs = (flat_mut(&mut grads.gate), flat_mut(&mut grads.up));
        let d_product = flat(&grads.product);
        vectorized!(activation::backward(
            self.activation,
            inputs,
            d_product,
            outputs
        ));
        let (to, x_tape) = (&mut grads.hidden_in, &mut tape.ffn_in);
        self.ffn_in
            .backward_linear(0, &self.gate_proj, &grads.gate, x_tape, to);
        self.ffn_in
            .backward_linear(1, &self.up_proj, &grads.up, x_tape, to);
        self.ffn_in.backward(&tape.middle, x_tape, to, d_h);
    }

    /// Queues the weight gradients and adds the norms', over the parts of a batch in order.
    pub fn collect_gradients<'a>(
        &'a mut self,
        terms: &[(&'a BlockTape<T>, &'a BlockGrads<T>)],
        jobs: &mut Vec<GradientJob<'a, T>>,
    ) {
        let tapes = || terms.iter().map(|(tape, _)| *tape);
        self.attn_in.collect_gradient(tapes().map(|t| &t.attn_in));
        self.attn_out.collect_gradient(tapes().map(|t| &t.attn_out));
        self.ffn_in.collect_gradient(tapes().map(|t| &t.ffn_in));
        self.ffn_out.collect_gradient(tapes().map(|t| &t.ffn_out));
        let of_attention: Vec<_> = terms
            .iter()
            .map(|(t, g)| (&t.attn_in, &t.attention, &g.attention))
            .collect();
        self.attention.collect_gradients(&of_attention, jobs);
        type Term<'a, T> = (&'a BlockTape<T>, &'a BlockGrads<T>);
        type Of<T> = for<'t> fn(&Term<'t, T>) -> (&'t Array2<T>, &'t Activations<T>);
        let linears: [(&'a mut BitLinear<T>, Of<T>); 4] = [
            (&mut self.o_proj, |(t, g)| (&g.o, t.attn_out.of(0))),
            (&mut self.gate_proj, |(t, g)| (&g.gate, t.ffn_in.of(0))),
            (&mut self.up_proj, |(t, g)| (&g.up, t.ffn_in.of(1))),
            (&mut self.down_proj, |(t, g)| (&g.down, t.ffn_out.of(0))),
        ];
        for (linear, of) in linears {
            linear.gradient(terms.iter().map(of), jobs);
        }
    }
}
