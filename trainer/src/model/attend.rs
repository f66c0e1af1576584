//! The heads of one layer over one sequence, several at a time.
//!
//! A thread owns a head. What comes back from heads is added in the order of heads, after all of a
//! round are done, so the number of buffers changes no bit.

use rayon::prelude::*;

use crate::model::attention::AttentionLayer;
use crate::model::heads::{gather, scatter};
use crate::model::sequence::{Part, PartGrads};
use crate::ops::attention::HeadBuffers;
use crate::real::Real;

/// Heads of `layer`: queries, keys and values of tape `tape` of all parts become outputs.
///
/// `log_sum_exp` holds that of head `h` at `[h * len..][..len]`.
pub(crate) fn forward<T: Real>(
    layer: &AttentionLayer<T>,
    parts: &mut [Part<T>],
    tape: usize,
    heads: &mut [HeadBuffers<T>],
    log_sum_exp: &mut [T],
) {
    let len = heads[0].q.nrows();
    let width = heads[0].v.ncols();
    let rounds = log_sum_exp.chunks_mut(heads.len() * len);
    for (first, round) in (0..).step_by(heads.len()).zip(rounds) {
        let jobs = heads.par_iter_mut().zip(round.par_chunks_mut(len));
        jobs.enumerate().for_each(|(i, (head, log_sum_exp))| {
            gather_head(layer, parts, tape, first + i, head);
            head.forward(log_sum_exp);
        });
        for (i, head) in heads.iter().take(round.len() / len).enumerate() {
            for part in parts.iter_mut() {
                let to = &mut part.tapes[tape].attention.heads;
                scatter(&head.out, part.first, to, (first + i) * width);
            }
        }
    }
}

/// The reverse of [`forward`]: gradients of outputs become those of queries, keys and values.
pub(crate) fn backward<T: Real>(
    layer: &AttentionLayer<T>,
    parts: &[Part<T>],
    grads: &mut [PartGrads<T>],
    tape: usize,
    heads: &mut [HeadBuffers<T>],
    log_sum_exp: &[T],
) {
    let len = heads[0].q.nrows();
    let width = heads[0].v.ncols();
    let rounds = log_sum_exp.chunks(heads.len() * len);
    for (first, round) in (0..).step_by(heads.len()).zip(rounds) {
        let jobs = heads.par_iter_mut().zip(round.par_chunks(len));
        jobs.enumerate().for_each(|(i, (head, log_sum_exp))| {
            let h = first + i;
            gather_head(layer, parts, tape, h, head);
            for (part, grads) in parts.iter().zip(grads.iter()) {
                let (out, d_out) = (&part.tapes[tape].attention.heads, &grads.block.attention);
                gather(out, h * width, &mut head.out, part.first);
                gather(&d_out.heads, h * width, &mut head.d_out, part.first);
            }
            head.backward(log_sum_exp);
        });
        for (i, head) in heads.iter().take(round.len() / len).enumerate() {
            for (part, grads) in parts.iter().zip(grads.iter_mut()) {
                let to = &mut grads.block.attention;
                layer.scatter_gradients(head, part.first, first + i, to);
            }
        }
    }
}

fn gather_head<T: Real>(
    layer: &AttentionLayer<T>,
    parts: &[Part<T>],
    tape: usize,
    h: usize,
    head: &mut HeadBuffers<T>,
) {
    for part in parts {
        layer.gather_head(&part.tapes[tape].attention, part.first, h, head);
    }
}
