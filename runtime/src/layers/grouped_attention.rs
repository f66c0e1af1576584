//! Causal attention of query heads over cached keys and values (grouped-query, arXiv 2305.13245).

use crate::kernels::{CacheRows, Kernels};

/// A few queries that attend to the same key and value head, in the order of their tokens.
pub(crate) struct Tile<'a> {
    /// `[head_dim]` each.
    pub(crate) queries: &'a [&'a [f32]],
    /// Positions each query sees: not fewer than the one before it.
    pub(crate) lengths: &'a [usize],
    /// Keys and values of all positions that the last query sees.
    pub(crate) cached: [CacheRows<'a>; 2],
    /// `1 / sqrt(head_dim)`.
    pub(crate) scale: f32,
}

impl Tile<'_> {
    /// `out[i] = sum_j softmax_j(scale * q_i . k_j) v_j`, ascending; `out` is `[n_queries, width]`.
    ///
    /// `scores` holds as many for each query as the last one sees. What all queries see is read once
    /// for all of them, the few positions after that for each.
    pub(crate) fn attend(&self, kernels: &Kernels, scores: &mut [f32], out: &mut [f32]) {
        let ([keys, values], scale) = (self.cached, self.scale);
        let (common, stride) = (self.lengths[0], self.lengths[self.lengths.len() - 1]);
        let (head_dim, width) = (self.queries[0].len(), out.len() / self.queries.len());
        let shared = keys.slice(0..common, head_dim);
        kernels.scores(self.queries, shared, scale, scores, stride);
        let rows = scores.chunks_mut(stride).zip(self.lengths);
        for (query, (row, n)) in self.queries.chunks(1).zip(rows) {
            let rest = keys.slice(common..*n, head_dim);
            kernels.scores(query, rest, scale, &mut row[common..], stride);
            kernels.softmax(&mut row[..*n]);
        }
        out.fill(0.0);
        let shared = values.slice(0..common, width);
        kernels.add_mixes(shared, scores, stride, out, width);
        let rows = scores.chunks(stride).zip(self.lengths);
        for (out, (row, n)) in out.chunks_exact_mut(width).zip(rows) {
            let rest = values.slice(common..*n, width);
            kernels.add_mixes(rest, &row[common..], stride, out, width);
        }
    }
}
