//! Grouped-query attention; multi-head attention where every query head has its own key head.

use bitnet_formats::ModelConfig;
use ndarray::Array2;

use crate::model::attention::{AttentionGrads, AttentionTape, AttentionTerm};
use crate::model::heads::{accumulate, gather, scatter};
use crate::ops::attention::HeadBuffers;
use crate::ops::bit_linear::{BitLinear, GradientJob};
use crate::ops::codes::Activations;
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

    /// Project, rotate queries and keys, attend head by head.
    pub fn forward(
        &self,
        x: &Activations<T>,
        rope: &Rope<T>,
        tape: &mut AttentionTape<T>,
        head: &mut HeadBuffers<T>,
    ) {
        self.q_proj.forward(x, &mut tape.q);
        self.k_proj.forward(x, &mut tape.kv_a);
        self.v_proj.forward(x, &mut tape.kv_b);
        for matrix in [&mut tape.q, &mut tape.kv_a] {
            self.for_each_head(matrix, |pos, head| rope.rotate(pos, head));
        }
        let len = tape.heads.nrows();
        for h in 0..self.n_heads {
            self.gather_head(tape, h, head);
            head.forward(&mut tape.log_sum_exp[h * len..(h + 1) * len]);
            scatter(&head.out, &mut tape.heads, h * self.head_dim);
        }
    }

    /// The reverse of [`GroupedAttention::forward`]; query heads of a group add up.
    pub fn backward(
        &self,
        rope: &Rope<T>,
        tape: &AttentionTape<T>,
        head: &mut HeadBuffers<T>,
        grads: &mut AttentionGrads<T>,
        d_x: &mut Array2<T>,
    ) {
        grads.kv_a.fill(T::zero());
        grads.kv_b.fill(T::zero());
        let len = tape.heads.nrows();
        for h in 0..self.n_heads {
            self.gather_head(tape, h, head);
            gather(&tape.heads, h * self.head_dim, &mut head.out);
            gather(&grads.heads, h * self.head_dim, &mut head.d_out);
            head.backward(&tape.log_sum_exp[h * len..(h + 1) * len]);
            scatter(&head.d_q, &mut grads.q, h * self.head_dim);
            accumulate(&head.d_k, &mut grads.kv_a, self.kv_column(h));
            accumulate(&head.d_v, &mut grads.kv_b, self.kv_column(h));
        }
        for matrix in [&mut grads.q, &mut grads.kv_a] {
            self.for_each_head(matrix, |pos, head| rope.rotate_back(pos, head));
        }
        self.q_proj.backward_input(&grads.q, T::zero(), d_x);
        self.k_proj.backward_input(&grads.kv_a, T::one(), d_x);
        self.v_proj.backward_input(&grads.kv_b, T::one(), d_x);
    }

    /// Queues the weight gradients over the sequences of a batch.
    pub fn collect_gradients<'a>(
        &'a mut self,
        terms: &[AttentionTerm<'a, T>],
        jobs: &mut Vec<GradientJob<'a, T>>,
    ) {
        let [q, k, v] = self.linears_mut();
        q.gradient(terms.iter().map(|(x, _, g)| (&g.q, *x)), jobs);
        k.gradient(terms.iter().map(|(x, _, g)| (&g.kv_a, *x)), jobs);
        v.gradient(terms.iter().map(|(x, _, g)| (&g.kv_b, *x)), jobs);
    }

    fn gather_head(&self, tape: &AttentionTape<T>, h: usize, head: &mut HeadBuffers<T>) {
        gather(&tape.q, h * self.head_dim, &mut head.q);
        gather(&tape.kv_a, self.kv_column(h), &mut head.k);
        gather(&tape.kv_b, self.kv_column(h), &mut head.v);
    }

    /// First column of the key and value head that query head `h` reads.
    fn kv_column(&self, h: usize) -> usize {
        h / (self.n_heads / self.n_kv_heads) * self.head_dim
    }

    fn for_each_head(&self, matrix: &mut Array2<T>, turn: impl Fn(usize, &mut [T])) {
        vectorized!({
            for pos in 0..matrix.nrows() {
                let heads = row_mut(matrix, pos).chunks_exact_mut(self.head_dim);
                heads.for_each(|head| turn(pos, head));
            }
        });
    }
}
