//! Causal attention of one head over one sequence.
//!
//! Scores are never kept: the forward pass stores the log-sum-exp of each row, and the backward
//! pass makes the probabilities again from it. Queries go in tiles of `TILE` rows, each against
//! the keys up to its last row, so that the masked half costs little.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, s};

use crate::ops::gemm::gemm;
use crate::ops::reduce::{dot, maximum, sum};
use crate::ops::simd::vectorized;
use crate::real::Real;
use crate::tensor::{row, row_mut, zeros};

/// Query rows per tile.
const TILE: usize = 64;

/// Rows of the two tiles of scores of a sequence of `len` tokens.
pub const fn score_rows(len: usize) -> usize {
    if len < TILE { len } else { TILE }
}

/// Buffers of one head of one sequence: its operands, gathered, and two tiles of scores.
#[derive(Clone, Debug)]
pub struct HeadBuffers<T> {
    /// Queries and keys, `[len, qk_head_dim]`, rotated.
    pub q: Array2<T>,
    /// See `q`.
    pub k: Array2<T>,
    /// Values, `[len, v_head_dim]`.
    pub v: Array2<T>,
    /// Outputs, `[len, v_head_dim]`.
    pub out: Array2<T>,
    /// Gradients of the four, of the same shapes.
    pub d_q: Array2<T>,
    /// See `d_q`.
    pub d_k: Array2<T>,
    /// See `d_q`.
    pub d_v: Array2<T>,
    /// See `d_q`.
    pub d_out: Array2<T>,
    /// `[len]`: the first position that each position sees; 0 but where a text before it ended.
    pub first_seen: Vec<usize>,
    scores: Array2<T>,
    d_scores: Array2<T>,
}

impl<T: Real> HeadBuffers<T> {
    /// Buffers for sequences of `len` tokens.
    pub fn new(len: usize, qk_head_dim: usize, v_head_dim: usize) -> Self {
        let tile = score_rows(len);
        Self {
            q: zeros(len, qk_head_dim),
            k: zeros(len, qk_head_dim),
            v: zeros(len, v_head_dim),
            out: zeros(len, v_head_dim),
            d_q: zeros(len, qk_head_dim),
            d_k: zeros(len, qk_head_dim),
            d_v: zeros(len, v_head_dim),
            d_out: zeros(len, v_head_dim),
            first_seen: vec![0; len],
            scores: zeros(tile, len),
            d_scores: zeros(tile, len),
        }
    }

    /// `1 / sqrt(qk_head_dim)`.
    fn scale(&self) -> T {
        T::one() / T::from_f64(self.q.ncols() as f64).sqrt()
    }

    /// `out = softmax(q k^T * scale, causal) v`; writes each row's log-sum-exp of scaled scores.
    pub fn forward(&mut self, log_sum_exp: &mut [T]) {
        let len = self.q.nrows();
        for start in (0..len).step_by(TILE) {
            let end = len.min(start + TILE);
            self.tile_scores(start, end);
            for (i, lse) in (start..end).zip(&mut log_sum_exp[start..end]) {
                let scores = &mut row_mut(&mut self.scores, i - start)[..end];
                let seen = self.first_seen[i]..i + 1;
                *lse = vectorized!(softmax_of(scores, seen));
            }
            let p = self.scores.slice(s![..end - start, ..end]);
            let out = self.out.slice_mut(s![start..end, ..]);
            gemm(T::one(), p, self.v.slice(s![..end, ..]), T::zero(), out);
        }
    }

    /// Fills `d_q`, `d_k`, `d_v` from `d_out`, with `q`, `k`, `v`, `out` and the log-sum-exps as
    /// [`HeadBuffers::forward`] had and left them.
    ///
    /// `dV = P^T dO`, `dS = P * (dO V^T - rowsum(dO * O))`, `dQ = scale dS K`,
    /// `dK = scale dS^T Q`.
    pub fn backward(&mut self, log_sum_exp: &[T]) {
        self.d_k.fill(T::zero());
        self.d_v.fill(T::zero());
        let len = self.q.nrows();
        for start in (0..len).step_by(TILE) {
            let end = len.min(start + TILE);
            self.tile_scores(start, end);
            self.tile_d_probabilities(start, end);
            vectorized!({
                for (i, lse) in (start..end).zip(&log_sum_exp[start..end]) {
                    self.row_d_scores(start, i, end, *lse);
                }
            });
            self.tile_gradients(start, end);
        }
    }

    /// Scaled scores of queries `start..end` with keys `0..end`.
    fn tile_scores(&mut self, start: usize, end: usize) {
        let scale = self.scale();
        let q = self.q.slice(s![start..end, ..]);
        let k = self.k.slice(s![..end, ..]);
        let scores = tile(&mut self.scores, start, end);
        gemm(scale, q, k.t(), T::zero(), scores);
    }

    /// `dP = dO V^T` of a tile, into `d_scores`.
    fn tile_d_probabilities(&mut self, start: usize, end: usize) {
        let d_out = self.d_out.slice(s![start..end, ..]);
        let v = self.v.slice(s![..end, ..]);
        let d_p = tile(&mut self.d_scores, start, end);
        gemm(T::one(), d_out, v.t(), T::zero(), d_p);
    }

    /// Row `i`: scores become probabilities, `dP` becomes `dS`; both zero where nothing is seen.
    #[inline(always)]
    fn row_d_scores(&mut self, start: usize, i: usize, end: usize, log_sum_exp: T) {
        let first = self.first_seen[i];
        let pull = dot(row(&self.d_out, i), row(&self.out, i));
        let p = &mut row_mut(&mut self.scores, i - start)[..end];
        let d = &mut row_mut(&mut self.d_scores, i - start)[..end];
        for (p, d) in p[first..=i].iter_mut().zip(&mut d[first..=i]) {
            let difference = *p - log_sum_exp;
            *p = if difference > T::zero() {
                T::one()
            } else {
                difference.exp_negative()
            };
            *d = *p * (*d - pull);
        }
        for masked in [0..first, i + 1..end] {
            p[masked.clone()].fill(T::zero());
            d[masked].fill(T::zero());
        }
    }

    fn tile_gradients(&mut self, start: usize, end: usize) {
        let (one, scale) = (T::one(), self.scale());
        let p = self.scores.slice(s![..end - start, ..end]);
        let d_s = self.d_scores.slice(s![..end - start, ..end]);
        let d_out = self.d_out.slice(s![start..end, ..]);
        let q = self.q.slice(s![start..end, ..]);
        let k = self.k.slice(s![..end, ..]);
        gemm(one, p.t(), d_out, one, self.d_v.slice_mut(s![..end, ..]));
        gemm(scale, d_s.t(), q, one, self.d_k.slice_mut(s![..end, ..]));
        gemm(
            scale,
            d_s,
            k,
            T::zero(),
            self.d_q.slice_mut(s![start..end, ..]),
        );
    }
}

fn tile<T>(buffer: &mut Array2<T>, start: usize, end: usize) -> ArrayViewMut2<'_, T> {
    buffer.slice_mut(s![..end - start, ..end])
}

/// Softmax over the scores that are seen, zeros elsewhere; returns the log-sum-exp.
#[inline(always)]
fn softmax_of<T: Real>(scores: &mut [T], seen: Range<usize>) -> T {
    scores[..seen.start].fill(T::zero());
    scores[seen.end..].fill(T::zero());
    let seen = &mut scores[seen];
    let max = maximum(seen);
    for x in seen.iter_mut() {
        *x = (*x - max).exp_negative();
    }
    let sum = sum(seen);
    for x in seen {
        *x /= sum;
    }
    max + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_gradient, dot, normals};
    use crate::tensor::{flat, flat_mut};

    fn head(len: usize, q: &[f64], k: &[f64], v: &[f64]) -> (HeadBuffers<f64>, Vec<f64>) {
        let mut head = HeadBuffers::new(len, q.len() / len, v.len() / len);
        flat_mut(&mut head.q).copy_from_slice(q);
        flat_mut(&mut head.k).copy_from_slice(k);
        flat_mut(&mut head.v).copy_from_slice(v);
        let mut log_sum_exp = vec![0.0; len];
        head.forward(&mut log_sum_exp);
        (head, log_sum_exp)
    }

    /// One tile, and a length that needs a second, partial one.
    #[test]
    fn gradients_match_finite_differences() {
        for (len, qk, vd) in [(5, 4, 3), (TILE + 3, 2, 2)] {
            let (q, k, v) = (
                normals(1, len * qk),
                normals(2, len * qk),
                normals(3, len * vd),
            );
            let weights = normals(4, len * vd);
            let loss =
                |q: &[f64], k: &[f64], v: &[f64]| dot(&weights, flat(&head(len, q, k, v).0.out));
            let (mut at, log_sum_exp) = head(len, &q, &k, &v);
            flat_mut(&mut at.d_out).copy_from_slice(&weights);
            at.backward(&log_sum_exp);
            assert_gradient("q", &q, flat(&at.d_q), |q| loss(q, &k, &v));
            assert_gradient("k", &k, flat(&at.d_k), |k| loss(&q, k, &v));
            assert_gradient("v", &v, flat(&at.d_v), |v| loss(&q, &k, v));
        }
    }

    /// Two texts in one sequence give what each gives alone, forward and backward.
    #[test]
    fn texts_behind_each_other_do_not_meet() {
        let (a, b, dim) = (TILE - 9, TILE + 20, 3);
        let len = a + b;
        let all: Vec<_> = (1..=4).map(|seed| normals(seed, len * dim)).collect();
        let run = |rows: Range<usize>, first_seen: Vec<usize>| {
            let part = |i: usize| &all[i][rows.start * dim..rows.end * dim];
            let mut head = HeadBuffers::new(rows.len(), dim, dim);
            flat_mut(&mut head.q).copy_from_slice(part(0));
            flat_mut(&mut head.k).copy_from_slice(part(1));
            flat_mut(&mut head.v).copy_from_slice(part(2));
            flat_mut(&mut head.d_out).copy_from_slice(part(3));
            head.first_seen = first_seen;
            let mut log_sum_exp = vec![0.0; rows.len()];
            head.forward(&mut log_sum_exp);
            head.backward(&log_sum_exp);
            head
        };
        let packed = run(0..len, [vec![0; a], vec![a; b]].concat());
        let alone = [run(0..a, vec![0; a]), run(a..len, vec![0; b])];
        let of = |pick: fn(&HeadBuffers<f64>) -> &Array2<f64>| {
            let parts = [flat(pick(&alone[0])), flat(pick(&alone[1]))].concat();
            let apart = flat(pick(&packed)).iter().zip(&parts);
            apart.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
        };
        let apart = [
            of(|h| &h.out),
            of(|h| &h.d_q),
            of(|h| &h.d_k),
            of(|h| &h.d_v),
        ];
        assert!(apart.iter().all(|x| *x < 1e-12), "{apart:?}");
    }

    /// The plain definition, row by row.
    #[test]
    fn equals_the_definition() {
        let (len, dim) = (2 * TILE + 1, 4);
        let (q, k, v) = (
            normals(1, len * dim),
            normals(2, len * dim),
            normals(3, len * dim),
        );
        let (fast, _) = head(len, &q, &k, &v);
        let at = |a: &[f64], i: usize| a[i * dim..(i + 1) * dim].to_vec();
        for i in 0..len {
            let p: Vec<f64> = (0..=i)
                .map(|j| (dot(&at(&q, i), &at(&k, j)) / 2.0).exp())
                .collect();
            let sum: f64 = p.iter().sum();
            for c in 0..dim {
                let plain: f64 = (0..=i).map(|j| p[j] / sum * v[j * dim + c]).sum();
                assert!((plain - fast.out[[i, c]]).abs() < 1e-12, "row {i}");
            }
        }
    }
}
