//! The definition of every kernel, as plain loops. Nothing here is tuned.

use core::ops::Range;

use bitnet_formats::float::{bf16_to_f32, f16_to_f32};
use bitnet_formats::ternary::{GROUP_ROWS, LINE_BYTES, LineCodes};
use bitnet_formats::{MatrixView, Row, TernaryView};

use super::{HeadInput, Isa, Kernels, Store, TernaryGemm};
use crate::math::sum16;

pub(super) const KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    ternary_gemm,
    ternary_f32,
    head,
};

fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut [f32]) {
    let rows = job.weights.rows;
    for group in job.groups.clone() {
        for (t, factor) in job.factors.iter().enumerate() {
            let acc = dot_group(&job.weights, group, job.activations.token(t));
            let first = t * rows + group * GROUP_ROWS;
            let out = &mut out[first..first + job.weights.group_rows(group)];
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
