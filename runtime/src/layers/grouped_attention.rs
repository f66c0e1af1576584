//! Causal attention of one query head over cached keys and values (grouped-query, arXiv 2305.13245).

use core::ops::Range;

use crate::buffers::KvRows;
use crate::layers::softmax::softmax;

/// `out = sum_j softmax_j(scale * q . k_j) v_j` over the cache rows `rows`, ascending.
///
/// `scores` has one element per row.
pub(crate) fn attend(
    query: &[f32],
    (keys, values): (&KvRows<'_>, &KvRows<'_>),
    rows: Range<usize>,
    scale: f32,
    scores: &mut [f32],
    out: &mut [f32],
) {
    for (score, row) in scores.iter_mut().zip(rows.clone()) {
        *score = keys.dot(row, query) * scale;
    }
    softmax(scores);
    out.fill(0.0);
    for (p, row) in scores.iter().zip(rows) {
        values.add_to(row, *p, out);
    }
}
