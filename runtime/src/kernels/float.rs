//! The float operations, one source for every vector set.
//!
//! NUMERICS.md fixes sixteen lanes and no fused operations, which is what vector units do anyway:
//! written over fixed arrays of sixteen, the same lines compile to full registers of whatever set
//! the caller is compiled for, and to the same bits. Two things the compiler does not find, so a set
//! passes them in: dot products, whose sixteen sums it would keep one by one, and widening f16.
//! Quantising and narrowing are the plain loops of `portable` and `scalar`.
//!
//! [`float_kernels`] makes the functions of a set.

use bitnet_formats::quant::NonFinite;
use bitnet_formats::{Activation, VectorView};

use super::{CacheRows, Latents};
use crate::math::{LANES, exp, fold_lanes, silu, sqrt, squared_relu};

/// Elements of an output that stay in registers while the positions go by.
const BLOCK: usize = 64;

/// The table of a set: its target features; its dot products of f32, of f16 and of int8 with
/// f32; and how it widens sixteen f16.
macro_rules! float_kernels {
    (#[$features:meta] [$dot_f32:path, $dot_f16:path, $dot_i8:path], $widen:path) => {{
        use bitnet_formats::quant::NonFinite;
        use bitnet_formats::{Activation, VectorView};
        use $crate::kernels::{CacheRows, FloatKernels, Latents, float, portable, scalar};

        #[$features]
        fn rms_norm(
            x: &[f32],
            gain: &VectorView<'_>,
            eps: f32,
            out: &mut [f32],
        ) -> Result<(), NonFinite> {
            float::rms_norm(x, gain, eps, out, |a, x| $dot_f32(a, x))
        }
        #[$features]
        fn quantize(x: &[f32], codes: &mut [i8]) -> Result<f32, NonFinite> {
            portable::quantize(x, codes)
        }
        #[$features]
        fn softmax(scores: &mut [f32]) {
            float::softmax(scores);
        }
        #[$features]
        fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
            float::gated(activation, gate, up);
        }
        #[$features]
        fn narrow(x: &[f32], out: &mut [u16]) {
            scalar::narrow(x, out);
        }
        #[$features]
        fn scores_of(
            queries: &[&[f32]],
            keys: CacheRows<'_>,
            scale: f32,
            scores: &mut [f32],
            stride: usize,
        ) {
            for (query, scores) in queries.iter().zip(scores.chunks_mut(stride)) {
                let dots = (
                    |a: &[f32], x: &[f32]| $dot_f32(a, x),
                    |a: &[u16], x: &[f32]| $dot_f16(a, x),
                );
                float::scores(query, keys, scale, scores, dots);
            }
        }
        #[$features]
        fn add_mixes(
            values: CacheRows<'_>,
            weights: &[f32],
            stride: usize,
            outs: &mut [f32],
            width: usize,
        ) {
            for (out, weights) in outs.chunks_exact_mut(width).zip(weights.chunks(stride)) {
                float::add_mix(values, weights, out, |halves| $widen(halves));
            }
        }
        #[$features]
        fn latent_scores(
            query: [&[f32]; 2],
            latents: &Latents<'_>,
            scale: f32,
            scores: &mut [f32],
        ) {
            let dots = (
                |a: &[f32], x: &[f32]| $dot_f32(a, x),
                |a: &[i8], x: &[f32]| $dot_i8(a, x),
            );
            float::latent_scores(query, latents, scale, scores, dots);
        }
        #[$features]
        fn latent_mix(latents: &Latents<'_>, weights: &[f32], out: &mut [f32]) {
            float::latent_mix(latents, weights, out);
        }
        FloatKernels {
            rms_norm,
            quantize,
            softmax,
            gated,
            narrow,
            scores_of,
            add_mixes,
            latent_scores,
            latent_mix,
        }
    }};
}
pub(super) use float_kernels;

/// `out += sum of weight * row`, rows in ascending order; as many rows as weights or values.
#[inline(always)]
fn add_rows<T: Copy + Default>(
    rows: &[T],
    weights: impl Iterator<Item = f32> + Clone,
    out: &mut [f32],
    widen: impl Fn(&[T; LANES]) -> [f32; LANES],
) {
    let width = out.len();
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    let n_blocks = blocks.len();
    for (b, block) in blocks.iter_mut().enumerate() {
        add_columns(rows, width, b * BLOCK, weights.clone(), block, &widen);
    }
    let (lanes, rest) = rest.as_chunks_mut::<LANES>();
    let first = n_blocks * BLOCK;
    for (b, block) in lanes.iter_mut().enumerate() {
        add_columns(
            rows,
            width,
            first + b * LANES,
            weights.clone(),
            block,
            &widen,
        );
    }
    if !rest.is_empty() {
        let columns = width - rest.len()..width;
        for (row, weight) in rows.chunks_exact(width).zip(weights) {
            let mut sixteen = [T::default(); LANES];
            sixteen[..rest.len()].copy_from_slice(&row[columns.clone()]);
            let row = widen(&sixteen);
            rest.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
        }
    }
}

/// The `N` columns from `first` on, which stay in registers while the rows go by.
#[inline(always)]
fn add_columns<T, const N: usize>(
    rows: &[T],
    width: usize,
    first: usize,
    weights: impl Iterator<Item = f32>,
    out: &mut [f32; N],
    widen: &impl Fn(&[T; LANES]) -> [f32; LANES],
) {
    let mut sums = *out;
    for (row, weight) in rows.chunks_exact(width).zip(weights) {
        let row = row[first..first + N].as_chunks().0;
        for (sums, row) in sums.as_chunks_mut().0.iter_mut().zip(row) {
            add_products(sums, &[weight; LANES], &widen(row));
        }
    }
    *out = sums;
}

#[inline(always)]
fn add_products(sums: &mut [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) {
    for i in 0..LANES {
        sums[i] += a[i] * b[i];
    }
}

#[inline(always)]
fn widen_codes(codes: &[i8; LANES]) -> [f32; LANES] {
    codes.map(f32::from)
}

#[inline(always)]
pub(super) fn rms_norm(
    x: &[f32],
    gain: &VectorView<'_>,
    eps: f32,
    out: &mut [f32],
    dot_f32: impl Fn(&[f32], &[f32]) -> f32,
) -> Result<(), NonFinite> {
    let squares = dot_f32(x, x);
    if !squares.is_finite() {
        return Err(NonFinite);
    }
    let r = 1.0 / sqrt(squares / x.len() as f32 + eps);
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain.iter()) {
        *out = (x * r) * gain;
    }
    Ok(())
}

#[inline(always)]
pub(super) fn softmax(scores: &mut [f32]) {
    let max = maximum(scores);
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    let inverse = 1.0 / sum(scores);
    scores.iter_mut().for_each(|s| *s *= inverse);
}

/// The largest score: exact, so the order does not matter.
#[inline(always)]
fn maximum(scores: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    let all = lanes.iter().chain(rest).copied();
    all.fold(f32::NEG_INFINITY, larger)
}

/// The sum in sixteen lanes.
#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += x);
    fold_lanes(lanes)
}

#[inline(always)]
pub(super) fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    let pairs = gate.iter_mut().zip(up);
    match activation {
        Activation::SquaredRelu => pairs.for_each(|(g, u)| *g = squared_relu(*g) * u),
        Activation::Silu => pairs.for_each(|(g, u)| *g = silu(*g) * u),
    }
}

#[inline(always)]
pub(super) fn scores(
    query: &[f32],
    keys: CacheRows<'_>,
    scale: f32,
    scores: &mut [f32],
    (dot_f32, dot_f16): (
        impl Fn(&[f32], &[f32]) -> f32,
        impl Fn(&[u16], &[f32]) -> f32,
    ),
) {
    let width = query.len();
    match keys {
        CacheRows::F32(keys) => {
            for (score, key) in scores.iter_mut().zip(keys.chunks_exact(width)) {
                *score = dot_f32(key, query) * scale;
            }
        }
        CacheRows::F16(keys) => {
            for (score, key) in scores.iter_mut().zip(keys.chunks_exact(width)) {
                *score = dot_f16(key, query) * scale;
            }
        }
    }
}

#[inline(always)]
pub(super) fn add_mix(
    values: CacheRows<'_>,
    weights: &[f32],
    out: &mut [f32],
    widen: impl Fn(&[u16; LANES]) -> [f32; LANES],
) {
    let weights = weights.iter().copied();
    match values {
        CacheRows::F32(values) => add_rows(values, weights, out, |row| *row),
        CacheRows::F16(values) => add_rows(values, weights, out, widen),
    }
}

#[inline(always)]
pub(super) fn latent_scores(
    [q_latent, q_rope]: [&[f32]; 2],
    latents: &Latents<'_>,
    scale: f32,
    scores: &mut [f32],
    (dot_f32, dot_i8): (
        impl Fn(&[f32], &[f32]) -> f32,
        impl Fn(&[i8], &[f32]) -> f32,
    ),
) {
    let codes = latents.codes.chunks_exact(q_latent.len());
    let keys = latents.rope_keys.chunks_exact(q_rope.len());
    let positions = codes.zip(latents.factors).zip(keys);
    for (score, ((codes, factor), key)) in scores.iter_mut().zip(positions) {
        let content = dot_i8(codes, q_latent);
        *score = scale * (factor * content + dot_f32(key, q_rope));
    }
}

#[inline(always)]
pub(super) fn latent_mix(latents: &Latents<'_>, weights: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    let weights = weights.iter().zip(latents.factors).map(|(p, f)| p * f);
    add_rows(latents.codes, weights, out, widen_codes);
}
