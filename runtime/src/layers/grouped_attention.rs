//! Causal attention of one query head over cached keys and values (grouped-query, arXiv 2305.13245).

use crate::kernels::{CacheRows, Kernels};

/// `out = sum_j softmax_j(scale * q . k_j) v_j`, ascending.
///
/// `scores` has one element per key and value.
pub(crate) fn attend(
    kernels: &Kernels,
    query: &[f32],
    (keys, values): (CacheRows<'_>, CacheRows<'_>),
    scale: f32,
    scores: &mut [f32],
    out: &mut [f32],
) {
    kernels.scores(query, keys, scale, scores);
    kernels.softmax(scores);
    kernels.mix(values, scores, out);
}
