//! Grouped-query attention; multi-head attention where every query head has its own key head.

use bitnet_formats::ModelConfig;
use ndarray::Array2;

use crate::model::attention::{AttentionGrads, AttentionTape, AttentionTerm, ToInput};
use crate::model::heads::{accumulate, gather, scatter};
use crate::model::linear_input::LinearInputTape;
use crate::ops::attention::HeadBuffers;
use crate::ops::bit_linear::{BitLinear, GradientJob};
use crate::ops::rope::Rope;
use crate::ops::simd::vectorized;
use crate::param::Param;
use crate::real::Real;
use crate::tensor::row_mut;

/// Projections of grouped-query attention.
#[derive(Clone, Debug)]
pub struct GroupedAttention<T> {
    q_proj: BitLinear<T>,
    k_proj: BitLinear<T>,
    v_proj: BitLinear<T>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl<T: Real> GroupedAttention<T> {
    /// A layer whose tensors are named `prefix` + `q_proj.weight` and so on.
    pub fn new(config: &ModelConfig, n_kv_heads: usize, head_dim: usize, prefix: &str) -> Self {
        let linear = |name: &str, heads: usize| {
            let name = format!("{prefix}{name}.weight");
            BitLinear::new(name, heads * head_dim, config.hidden_size)
        };
        Self {
            q_proj: linear("q_proj", config.n_heads),
            k_proj: linear("k_proj", n_kv_heads),
            v_proj: linear("v_proj", n_kv_heads),
            n_heads: config.n_heads,
            n_kv_heads,
            head_dim,
        }
    }

    /// The projections, in file order.
    pub fn linears(&self) -> [&BitLinear<T>; 3] {
        [&self.q_proj, &self.k_proj, &self.v_proj]
    }

    /// As [`GroupedAttention::linears`], to write.
    pub fn linears_mut(&mut self) -> [&mut BitLinear<T>; 3] {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj]
    }

    /// Parameters, in file order.
    pub fn params(&self) -> Vec<&Param<T>> {
        self.linears().map(|linear| &linear.weight).into()
    }

    /// As [`GroupedAttention::params`], to write.
    pub fn params_mut(&mut self) -> Vec<&mut Param<T>> {
        self.linears_mut().map(|linear| &mut linear.weight).into()
    }

    /// Projects a part that begins at position `first`, and rotates queries and keys.
    pub fn project(
        &self,
        x: &LinearInputTape<T>,
        rope: &Rope<T>,
        first: usize,
        tape: &mut AttentionTape<T>,
    ) {
        self.q_proj.forward(x.of(0), &mut tape.q);
        self.k_proj.forward(x.of(1), &mut tape.kv_a);
        self.v_proj.forward(x.of(2), &mut tape.kv_b);
        for matrix in [&mut tape.q, &mut tape.kv_a] {
            self.for_each_head(matrix, |t, head| rope.rotate(first + t, head));
        }
    }

    /// Brings a part's share of head `h` to the rows of `head` from `first` on.
    pub fn gather_head(
        &self,
        tape: &AttentionTape<T>,
        first: usize,
        h: usize,
        head: &mut HeadBuffers<T>,
    ) {
        gather(&tape.q, h * self.head_dim, &mut head.q, first);
        gather(&tape.kv_a, self.kv_column(h), &mut head.k, first);
        gather(&tape.kv_b, self.kv_column(h), &mut head.v, first);
    }

    /// Brings the gradients of head `h` back to a part; query heads of a group add up, in the order
    /// of calls.
    pub fn scatter_gradients(
        &self,
        head: &HeadBuffers<T>,
        first: usize,
        h: usize,
        grads: &mut AttentionGrads<T>,
    ) {
        scatter(&head.d_q, first, &mut grads.q, h * self.head_dim);
        accumulate(&head.d_k, first, &mut grads.kv_a, self.kv_column(h));
        accumulate(&head.d_v, first, &mut grads.kv_b, self.kv_column(h));
    }

    /// The reverse of [`GroupedAttention::project`].
    pub fn backward(
        &self,
        rope: &Rope<T>,
        first: usize,
        grads: &mut AttentionGrads<T>,
        mut to: ToInput<'_, T>,
    ) {
        for matrix in [&mut grads.q, &mut grads.kv_a] {
            self.for_each_head(matrix, |t, head| rope.rotate_back(first + t, head));
        }
        to.add(0, &self.q_proj, &grads.q);
        to.add(1, &self.k_proj, &grads.kv_a);
        to.add(2, &self.v_proj, &grads.kv_b);
    }

    /// Queues the weight gradients over the parts of a batch.
    pub fn collect_gradients<'a>(
        &'a mut self,
        terms: &[AttentionTerm<'a, T>],
        jobs: &mut Vec<GradientJob<'a, T>>,
    ) {
        let [q, k, v] = self.linears_mut();
        q.gradient(terms.iter().map(|(x, _, g)| (&g.q, x.of(0))), jobs);
        k.gradient(terms.iter().map(|(x, _, g)| (&g.kv_a, x.of(1))), jobs);
        v.gradient(terms.iter().map(|(x, _, g)| (&g.kv_b, x.of(2))), jobs);
    }

    /// First column of the key and value head that query head `h` reads.
    fn kv_column(&self, h: usize) -> usize {
        h / (self.n_heads / self.n_kv_heads) * self.head_dim
    }

    fn for_each_head(&self, matrix: &mut Array2<T>, turn: impl Fn(usize, &mut [T])) {
        vectorized!({
            for t in 0..matrix.nrows() {
                let heads = row_mut(matrix, t).chunks_exact_mut(self.head_dim);
                heads.for_each(|head| turn(t, head));
            }
        });
    }
}
