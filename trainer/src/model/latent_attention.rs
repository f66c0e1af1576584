//! Multi-head latent attention (DeepSeek-V2, section 2.1), without the low-rank query.
//!
//! Keys and values of all heads are made from one narrow latent per token; position enters by a
//! rotary key shared by all heads:
//!
//! ```text
//! q      = q_proj x                     per head [q_nope | q_rope], q_rope rotated
//! c, k_r = kv_a_proj_with_mqa x         k_r rotated
//! k, v   = kv_b_proj kv_a_layernorm(c)  per head [k_nope | v]
//! score  = (q_nope . k_nope + q_rope . k_r) / sqrt(qk_nope_head_dim + qk_rope_head_dim)
//! ```
//!
//! Training computes this as it stands; the runtime absorbs `kv_b_proj` into queries and outputs,
//! which is the same map.

use bitnet_formats::quant::NonFinite;
use bitnet_formats::{Attention, ModelConfig};
use ndarray::Array2;

use crate::model::attention::{AttentionGrads, AttentionTape, AttentionTerm, ToInput, Widths};
use crate::model::heads::{add_block, copy_block, gather, scatter};
use crate::model::input_norm::InputNorm;
use crate::model::linear_input::LinearInputTape;
use crate::ops::attention::HeadBuffers;
use crate::ops::bit_linear::{BitLinear, GradientJob};
use crate::ops::rope::Rope;
use crate::ops::simd::vectorized;
use crate::param::Param;
use crate::real::Real;
use crate::tensor::row_mut;

/// Projections of multi-head latent attention.
#[derive(Clone, Debug)]
pub struct LatentAttention<T> {
    q_proj: BitLinear<T>,
    kv_a_proj: BitLinear<T>,
    kv_a_norm: InputNorm<T>,
    kv_b_proj: BitLinear<T>,
    rank: usize,
    nope: usize,
    rope: usize,
    v: usize,
}

impl<T: Real> LatentAttention<T> {
    /// A layer whose tensors are named `prefix` + `q_proj.weight` and so on.
    ///
    /// # Panics
    ///
    /// If `config` asks for another kind of attention.
    pub fn new(config: &ModelConfig, prefix: &str) -> Self {
        let Attention::Latent {
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
        } = config.attention
        else {
            panic!("the configuration has no latent attention");
        };
        let widths = Widths::of(config);
        let linear = |name: &str, outputs, inputs| {
            BitLinear::new(format!("{prefix}{name}.weight"), outputs, inputs)
        };
        let norm_name = format!("{prefix}kv_a_layernorm.weight");
        Self {
            q_proj: linear("q_proj", widths.q, config.hidden_size),
            kv_a_proj: linear("kv_a_proj_with_mqa", widths.kv_a, config.hidden_size),
            kv_a_norm: InputNorm::new(norm_name, kv_lora_rank, config.norms.eps),
            kv_b_proj: linear("kv_b_proj", widths.kv_b, kv_lora_rank),
            rank: kv_lora_rank,
            nope: qk_nope_head_dim,
            rope: qk_rope_head_dim,
            v: v_head_dim,
        }
    }

    /// The projections, in file order.
    pub fn linears(&self) -> [&BitLinear<T>; 3] {
        [&self.q_proj, &self.kv_a_proj, &self.kv_b_proj]
    }

    /// As [`LatentAttention::linears`], to write.
    pub fn linears_mut(&mut self) -> [&mut BitLinear<T>; 3] {
        [&mut self.q_proj, &mut self.kv_a_proj, &mut self.kv_b_proj]
    }

    /// Parameters, in file order.
    pub fn params(&self) -> Vec<&Param<T>> {
        let mut params = vec![&self.q_proj.weight, &self.kv_a_proj.weight];
        params.extend(self.kv_a_norm.params());
        params.push(&self.kv_b_proj.weight);
        params
    }

    /// As [`LatentAttention::params`], to write.
    pub fn params_mut(&mut self) -> Vec<&mut Param<T>> {
        let mut params = vec![&mut self.q_proj.weight, &mut self.kv_a_proj.weight];
        params.extend(self.kv_a_norm.params_mut());
        params.push(&mut self.kv_b_proj.weight);
        params
    }

    /// Projects a part that begins at position `first`, rotates, norms the latent and expands it.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from the latent's quantiser.
    pub fn project(
        &self,
        x: &LinearInputTape<T>,
        rope: &Rope<T>,
        first: usize,
        quantize: bool,
        tape: &mut AttentionTape<T>,
    ) -> Result<(), NonFinite> {
        self.q_proj.forward(x.of(0), &mut tape.q);
        self.kv_a_proj.forward(x.of(1), &mut tape.kv_a);
        self.rotate(&mut tape.q, &mut tape.kv_a, |t, part| {
            rope.rotate(first + t, part);
        });
        self.kv_a_norm
            .forward(&tape.kv_a, quantize, &mut tape.latent)?;
        self.kv_b_proj
            .forward(&tape.latent.activations, &mut tape.kv_b);
        Ok(())
    }

    /// Brings a part's share of head `h` to the rows of `head` from `first` on.
    pub fn gather_head(
        &self,
        tape: &AttentionTape<T>,
        first: usize,
        h: usize,
        head: &mut HeadBuffers<T>,
    ) {
        let (rows, in_kv_b) = (tape.q.nrows(), h * (self.nope + self.v));
        let (nope, shared) = ((rows, self.nope), (rows, self.rope));
        gather(&tape.q, h * (self.nope + self.rope), &mut head.q, first);
        copy_block(&tape.kv_b, (0, in_kv_b), &mut head.k, (first, 0), nope);
        let to = (first, self.nope);
        copy_block(&tape.kv_a, (0, self.rank), &mut head.k, to, shared);
        gather(&tape.kv_b, in_kv_b + self.nope, &mut head.v, first);
    }

    /// Brings the gradients of head `h` back to a part. The shared rotary key sums over heads, in the
    /// order of calls.
    pub fn scatter_gradients(
        &self,
        head: &HeadBuffers<T>,
        first: usize,
        h: usize,
        grads: &mut AttentionGrads<T>,
    ) {
        let (rows, in_kv_b) = (grads.q.nrows(), h * (self.nope + self.v));
        let (nope, shared) = ((rows, self.nope), (rows, self.rope));
        scatter(&head.d_q, first, &mut grads.q, h * (self.nope + self.rope));
        copy_block(&head.d_k, (first, 0), &mut grads.kv_b, (0, in_kv_b), nope);
        let from = (first, self.nope);
        add_block(&head.d_k, from, &mut grads.kv_a, (0, self.rank), shared);
        scatter(&head.d_v, first, &mut grads.kv_b, in_kv_b + self.nope);
    }

    /// The reverse of [`LatentAttention::project`]. The latent gets its gradient through keys and
    /// values alike.
    pub fn backward(
        &self,
        rope: &Rope<T>,
        first: usize,
        tape: &mut AttentionTape<T>,
        grads: &mut AttentionGrads<T>,
        mut to: ToInput<'_, T>,
    ) {
        self.rotate(&mut grads.q, &mut grads.kv_a, |t, part| {
            rope.rotate_back(first + t, part);
        });
        self.backward_latent(tape, grads);
        to.add(0, &self.q_proj, &grads.q);
        to.add(1, &self.kv_a_proj, &grads.kv_a);
    }

    fn backward_latent(&self, tape: &mut AttentionTape<T>, grads: &mut AttentionGrads<T>) {
        self.kv_b_proj
            .backward_input(&grads.kv_b, T::zero(), &mut grads.latent);
        self.kv_a_norm
            .backward(&tape.kv_a, &grads.latent, &mut tape.latent, &mut grads.kv_a);
    }

    /// Queues the weight gradients and adds the norm's, over the parts of a batch.
    pub fn collect_gradients<'a>(
        &'a mut self,
        terms: &[AttentionTerm<'a, T>],
        jobs: &mut Vec<GradientJob<'a, T>>,
    ) {
        self.kv_a_norm
            .collect_gradient(terms.iter().map(|(_, tape, _)| &tape.latent));
        let [q, kv_a, kv_b] = self.linears_mut();
        q.gradient(terms.iter().map(|(x, _, g)| (&g.q, x.of(0))), jobs);
        kv_a.gradient(terms.iter().map(|(x, _, g)| (&g.kv_a, x.of(1))), jobs);
        let of_latent = |(_, tape, g): &AttentionTerm<'a, T>| (&g.kv_b, &tape.latent.activations);
        kv_b.gradient(terms.iter().map(of_latent), jobs);
    }

    /// Turns the rotary part of every query head and of the shared key.
    fn rotate(&self, q: &mut Array2<T>, kv_a: &mut Array2<T>, turn: impl Fn(usize, &mut [T])) {
        vectorized!({
            for t in 0..q.nrows() {
                for head in row_mut(q, t).chunks_exact_mut(self.nope + self.rope) {
                    turn(t, &mut head[self.nope..]);
                }
                turn(t, &mut row_mut(kv_a, t)[self.rank..]);
            }
        });
    }
}
