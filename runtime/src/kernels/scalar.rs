//! The definition of every kernel, as plain loops. Nothing here is tuned.

use core::ops::Range;

use bitnet_formats::float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use bitnet_formats::quant::{NonFinite, quantize_activations};
use bitnet_formats::ternary::{GROUP_ROWS, LINE_BYTES, LineCodes};
use bitnet_formats::{Activation, MatrixView, Row, TernaryView, VectorView};

use super::{
    CacheRows, FloatKernels, HeadInput, Isa, Kernels, Latents, Output, Store, TernaryGemm,
};
use crate::math::{dot16, exp, silu, sqrt, squared_relu, sum16};

pub(super) const KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    ternary_gemm,
    ternary_f32,
    head,
    coarse: super::coarse::dots,
    float: FloatKernels {
        rms_norm,
        quantize: quantize_activations,
        softmax,
        gated,
        narrow,
        scores_of,
        add_mixes,
        latent_scores,
        latent_mix,
    },
};

fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    for group in job.groups.clone() {
        for (t, factor) in job.factors.iter().enumerate() {
            let acc = dot_group(&job.weights, group, job.activations.token(t));
            let out = out.slice(t, job.rows(group));
            for (out, acc) in out.iter_mut().zip(acc) {
                store(out, acc, *factor, job.store);
            }
        }
    }
}

/// The output of one row: an exact integer, one rounding to f32, one multiplication.
#[inline(always)]
pub(super) fn store(out: &mut f32, acc: i32, factor: f32, store: Store) {
    let y = acc as f32 * factor;
    match store {
        Store::Set => *out = y,
        Store::Add => *out += y,
    }
}

fn dot_group(weights: &TernaryView<'_>, group: usize, token: &[i8]) -> [i32; GROUP_ROWS] {
    let mut acc = [0; GROUP_ROWS];
    for_each_column(weights, weights.group(group), |k, column| {
        for (acc, code) in acc.iter_mut().zip(column) {
            *acc += i32::from(*code) * i32::from(token[k]);
        }
    });
    acc
}

/// The sixteen codes of each column of a row group, ascending.
#[inline(always)]
pub(super) fn for_each_column(
    weights: &TernaryView<'_>,
    lines: &[[u8; LINE_BYTES]],
    mut f: impl FnMut(usize, &[i8; GROUP_ROWS]),
) {
    let block_cols = weights.layout.block_cols();
    let mut codes = LineCodes::default();
    for (block, line) in lines.iter().enumerate() {
        weights.layout.unpack_line(line, &mut codes);
        let first = block * block_cols;
        let n = block_cols.min(weights.cols - first);
        codes[..n]
            .iter()
            .enumerate()
            .for_each(|(i, column)| f(first + i, column));
    }
}

pub(super) fn ternary_f32(
    weights: &TernaryView<'_>,
    groups: Range<usize>,
    x: &[f32],
    out: &mut [f32],
) {
    for (group, out) in groups.zip(out.chunks_exact_mut(GROUP_ROWS)) {
        let mut acc = [0.0f32; GROUP_ROWS];
        for_each_column(weights, weights.group(group), |k, column| {
            for (acc, code) in acc.iter_mut().zip(column) {
                *acc += f32::from(*code) * x[k];
            }
        });
        out.copy_from_slice(&acc);
    }
}

fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    for (r, out) in rows.zip(out) {
        *out = match (matrix.row(r), input) {
            (Row::I8(codes, scale), HeadInput::I16(x, inverse)) => {
                let terms = codes
                    .iter()
                    .zip(x)
                    .map(|(w, x)| i64::from(*w as i8) * i64::from(*x));
                i8_logit(terms.sum(), scale, inverse)
            }
            (row, HeadInput::F32(x)) => dense_dot(row, x),
            _ => unreachable!("checked by Kernels::head"),
        };
    }
}

/// An exact integer, one rounding to f32, one multiplication by the row's and token's factor.
#[inline(always)]
pub(super) fn i8_logit(acc: i64, scale: f32, inverse: f32) -> f32 {
    acc as f32 * (scale * inverse)
}

/// The sixteen-lane dot product of a float row.
#[inline(always)]
pub(super) fn dense_dot(row: Row<'_>, x: &[f32]) -> f32 {
    match row {
        Row::F32(w) => sum16(x.len(), |i| w.get(i) * x[i]),
        Row::F16(w) => sum16(x.len(), |i| f16_to_f32(u16::from_le_bytes(w[i])) * x[i]),
        Row::BF16(w) => sum16(x.len(), |i| bf16_to_f32(u16::from_le_bytes(w[i])) * x[i]),
        Row::I8(..) => unreachable!("int8 rows take an int16 input"),
    }
}

/// RmsNorm (arXiv 1910.07467).
fn rms_norm(x: &[f32], gain: &VectorView<'_>, eps: f32, out: &mut [f32]) -> Result<(), NonFinite> {
    let squares = sum16(x.len(), |i| x[i] * x[i]);
    if !squares.is_finite() {
        return Err(NonFinite);
    }
    let r = 1.0 / sqrt(squares / x.len() as f32 + eps);
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain.iter()) {
        *out = (x * r) * gain;
    }
    Ok(())
}

/// Exact maximum, `exp(s - max)`, sum by position mod 16, then one multiplication by the
/// reciprocal of the sum.
fn softmax(scores: &mut [f32]) {
    let max = scores
        .iter()
        .fold(f32::NEG_INFINITY, |max, s| if *s > max { *s } else { max });
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    let inverse = 1.0 / sum16(scores.len(), |i| scores[i]);
    scores.iter_mut().for_each(|s| *s *= inverse);
}

fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = u * match activation {
            Activation::SquaredRelu => squared_relu(*g),
            Activation::Silu => silu(*g),
        };
    }
}

#[inline(always)]
pub(super) fn narrow(x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f32_to_f16(*x);
    }
}

fn scores_of(
    queries: &[&[f32]],
    keys: CacheRows<'_>,
    scale: f32,
    scores: &mut [f32],
    stride: usize,
) {
    for (query, row) in queries.iter().zip(scores.chunks_mut(stride)) {
        let n = keys.len() / query.len();
        self::scores(query, keys, scale, &mut row[..n]);
    }
}

fn scores(query: &[f32], keys: CacheRows<'_>, scale: f32, scores: &mut [f32]) {
    let n = query.len();
    for (j, score) in scores.iter_mut().enumerate() {
        *score = scale
            * match keys {
                CacheRows::F32(keys) => dot16(&keys[j * n..][..n], query),
                CacheRows::F16(keys) => sum16(n, |i| f16_to_f32(keys[j * n + i]) * query[i]),
            };
    }
}

fn add_mixes(
    values: CacheRows<'_>,
    weights: &[f32],
    stride: usize,
    outs: &mut [f32],
    width: usize,
) {
    let n = values.len() / width;
    for (out, weights) in outs.chunks_mut(width).zip(weights.chunks(stride)) {
        add_mix(values, &weights[..n], out);
    }
}

fn add_mix(values: CacheRows<'_>, weights: &[f32], out: &mut [f32]) {
    let n = out.len();
    for (j, weight) in weights.iter().enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            *out += weight
                * match values {
                    CacheRows::F32(values) => values[j * n + i],
                    CacheRows::F16(values) => f16_to_f32(values[j * n + i]),
                };
        }
    }
}

fn latent_scores(
    [q_latent, q_rope]: [&[f32]; 2],
    latents: &Latents<'_>,
    scale: f32,
    scores: &mut [f32],
) {
    let (rank, rope) = (q_latent.len(), q_rope.len());
    for (j, score) in scores.iter_mut().enumerate() {
        let codes = &latents.codes[j * rank..][..rank];
        let content = sum16(rank, |l| q_latent[l] * f32::from(codes[l]));
        let key = &latents.rope_keys[j * rope..][..rope];
        *score = scale * (latents.factors[j] * content + dot16(q_rope, key));
    }
}

fn latent_mix(latents: &Latents<'_>, weights: &[f32], out: &mut [f32]) {
    let rank = out.len();
    out.fill(0.0);
    for (j, p) in weights.iter().enumerate() {
        let weight = p * latents.factors[j];
        for (l, out) in out.iter_mut().enumerate() {
            *out += weight * f32::from(latents.codes[j * rank + l]);
        }
    }
}
