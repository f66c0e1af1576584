//! The definition rearranged so that compilers vectorise it on any target.
//!
//! The plain loop walks a group column by column. Here the 64 bytes of a line stay where they are:
//!
//! 1. A line is 64 lanes of u16, each the fraction of one byte; one plane (4 columns of 16 rows) is
//!    peeled off all lanes at once: multiply by 3, the high byte is the digit.
//! 2. Lane `4 r + i` multiplies activation `i` of the plane, so the same four activations repeat
//!    across the lanes and products are added lane by lane, without a horizontal sum.
//! 3. Lanes are i16: a line adds at most 5 * 128 to a lane, so [`FLUSH_LINES`] lines fit before the
//!    lanes are widened to i32. The four lanes of a row are added once, at the end.
//! 4. A line is decoded once for a tile of [`TILE`] tokens.
//!
//! Integer sums do not depend on order, so the result is the definition's.

use core::ops::Range;

use bitnet_formats::quant::{self, NonFinite};
use bitnet_formats::ternary::{LINE_BYTES, TernaryLayout};
use bitnet_formats::{MatrixView, Row};

use super::scalar::{self, dense_dot, i8_logit, store, ternary_f32};
use super::{Activations, FloatKernels, HeadInput, Isa, Kernels, Output, TernaryGemm};

pub(super) const KERNELS: Kernels = Kernels {
    isa: Isa::Portable,
    ternary_gemm,
    ternary_f32,
    head,
    coarse: super::coarse::dots,
    float: FloatKernels {
        quantize,
        ..scalar::KERNELS.float
    },
};

/// Tokens that share one decoding.
const TILE: usize = 4;
/// Lines a lane can take: 50 * 5 * 128 < 2^15.
const FLUSH_LINES: usize = 50;
/// Columns of an int8 row whose products fit an i32, whatever the codes: 2^8 * 2^7 * 2^15 = 2^30.
const I8_BLOCK: usize = 256;

type Lanes16 = [i16; LINE_BYTES];
type Lanes32 = [i32; LINE_BYTES];

fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    match job.weights.layout {
        TernaryLayout::T5R16 => gemm::<5>(job, out, |x, digit| {
            let tripled = x * 3;
            *digit = (tripled >> 8) as i16 - 1;
            tripled & 0xff
        }),
        TernaryLayout::T2R16 => gemm::<4>(job, out, |x, digit| {
            *digit = (x & 3) as i16 - 1;
            x >> 2
        }),
    }
}

/// `peel` takes the next digit off a lane and returns what is left.
#[inline(always)]
fn gemm<const PLANES: usize>(
    job: &TernaryGemm<'_>,
    out: &mut Output<'_>,
    peel: impl Fn(u16, &mut i16) -> u16 + Copy,
) {
    for group in job.groups.clone() {
        let mut t = 0;
        while t < job.factors.len() {
            let n = TILE.min(job.factors.len() - t);
            let lines = job.weights.group(group);
            let mut acc = [[0; LINE_BYTES]; TILE];
            match n {
                1 => dot_tile::<PLANES, 1>(lines, &job.activations, t, &mut acc, peel),
                2 => dot_tile::<PLANES, 2>(lines, &job.activations, t, &mut acc, peel),
                3 => dot_tile::<PLANES, 3>(lines, &job.activations, t, &mut acc, peel),
                _ => dot_tile::<PLANES, TILE>(lines, &job.activations, t, &mut acc, peel),
            }
            for (t, acc) in (t..t + n).zip(&acc) {
                let out = out.slice(t, job.rows(group));
                for (out, lanes) in out.iter_mut().zip(acc.as_chunks::<4>().0) {
                    store(out, lanes.iter().sum(), job.factors[t], job.store);
                }
            }
            t += n;
        }
    }
}

#[inline(always)]
fn dot_tile<const PLANES: usize, const N: usize>(
    lines: &[[u8; LINE_BYTES]],
    activations: &Activations<'_>,
    first_token: usize,
    acc: &mut [Lanes32; TILE],
    peel: impl Fn(u16, &mut i16) -> u16 + Copy,
) {
    let flip = if PLANES == 5 { 0x80 } else { 0 };
    let tokens: [&[i8]; N] = core::array::from_fn(|n| activations.token(first_token + n));
    let mut block = 0;
    for lines in lines.chunks(FLUSH_LINES) {
        let mut narrow = [[0i16; LINE_BYTES]; N];
        for line in lines {
            let mut fractions: [u16; LINE_BYTES] = line.map(|byte| u16::from(byte ^ flip));
            for plane in 0..PLANES {
                let mut digits: Lanes16 = [0; LINE_BYTES];
                for (x, digit) in fractions.iter_mut().zip(&mut digits) {
                    *x = peel(*x, digit);
                }
                let k = block + 4 * plane;
                for (narrow, token) in narrow.iter_mut().zip(tokens) {
                    add_products(narrow, &digits, &token[k..k + 4]);
                }
            }
            block += 4 * PLANES;
        }
        for (acc, narrow) in acc.iter_mut().zip(&narrow) {
            acc.iter_mut()
                .zip(narrow)
                .for_each(|(acc, n)| *acc += i32::from(*n));
        }
    }
}

#[inline(always)]
fn add_products(acc: &mut Lanes16, digits: &Lanes16, activations: &[i8]) {
    let repeated: [i16; 16] = core::array::from_fn(|i| i16::from(activations[i % 4]));
    let (acc, digits) = (acc.as_chunks_mut::<16>().0, digits.as_chunks::<16>().0);
    for (acc, digits) in acc.iter_mut().zip(digits) {
        for i in 0..16 {
            acc[i] += digits[i] * repeated[i];
        }
    }
}

fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    for (r, out) in rows.zip(out) {
        *out = match (matrix.row(r), input) {
            (Row::I8(codes, scale), HeadInput::I16(x, inverse)) => {
                let blocks = codes.chunks(I8_BLOCK).zip(x.chunks(I8_BLOCK));
                i8_logit(
                    blocks.map(|(w, x)| i64::from(i8_block(w, x))).sum(),
                    scale,
                    inverse,
                )
            }
            (row, HeadInput::F32(x)) => dense_dot(row, x),
            _ => unreachable!("checked by Kernels::head"),
        };
    }
}

#[inline(always)]
fn i8_block(codes: &[u8], x: &[i16]) -> i32 {
    let terms = codes
        .iter()
        .zip(x)
        .map(|(w, x)| i32::from(i16::from(*w as i8)) * i32::from(*x));
    terms.sum()
}

#[inline(always)]
pub(super) fn quantize(x: &[f32], codes: &mut [i8]) -> Result<f32, NonFinite> {
    let scale = quant::activation_scale(quant::absmax(x)?);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = activation_code(*x, scale);
    }
    Ok(scale)
}

/// [`quant::activation_code`] without a conversion: after the addition that rounds, the low byte of
/// the float is the integer.
#[inline(always)]
fn activation_code(x: f32, scale: f32) -> i8 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    ((x * scale).clamp(-128.0, 127.0) + ROUND).to_bits() as i8
}
