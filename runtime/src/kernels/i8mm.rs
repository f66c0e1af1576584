//! The int8 matrix product of cores since Armv8.6: two rows times two columns of eight terms.
//!
//! More tokens take two at a time as the columns. One token makes two columns as well: the sums
//! `x a` and `x' a` of [`super::dotprod`] meet the same fractions with the activations of one plane
//! and of the plane before,
//!
//! ```text
//! sum over p = 0..4 of x_p a_p       and       sum over p = 1..5 of x_p a_(p-1)
//! ```
//!
//! so six products of a line's fractions replace ten.
//!
//! Eight terms of a row are its columns in two planes, or in the same plane of two lines: zipped
//! together, they leave two rows in a register. The intrinsics of this product are not yet in the
//! stable compiler: [`product`] is the instruction.

use core::arch::aarch64::*;
use core::arch::asm;

use bitnet_formats::TernaryLayout;

use super::aarch64::{self, prefetch_after};
use super::dotprod::{self, PLANES, dot_t2, finish_t5};
use super::neon::{self, Quarters, add_to, load, load_i8, next_fraction, store};
use super::walk::{self, Line, Panel, Sums, Tile, with_count};
use super::{Isa, Kernels, Output, TernaryGemm};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    aarch64::has!("i8mm").then_some(Kernels {
        isa: Isa::I8mm,
        ternary_gemm,
        ..dotprod::kernels()?
    })
}

/// Tokens of a tile: 16 sums of two rows by two tokens, 2 registers of activations, 8 of digits.
const TILE: usize = 4;

#[target_feature(enable = "neon,dotprod,i8mm")]
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    walk::ternary_gemm::<1, PLANES>(
        job,
        out,
        |lines, token, sum| match layout {
            TernaryLayout::T5R16 => dot_t5(lines, token),
            TernaryLayout::T2R16 => dot_t2(lines, token, sum),
        },
        |lines, panel| {
            neon::unpack(layout, lines, panel);
            zip_planes(lines.len() * layout.planes(), panel);
        },
        TILE,
        |panels, tile, acc| {
            with_count!(acc.len().div_ceil(2), [1 2], multiply(&panels[0], &tile, acc));
        },
    );
}

/// Adds two rows times two columns: `acc[2 r + c] += rows[8 r ..] . columns[8 c ..]`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn product(acc: &mut int32x4_t, rows: int8x16_t, columns: int8x16_t) {
    // SAFETY: from registers to a register; this function runs where the instruction exists.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {rows:v}.16b, {columns:v}.16b",
            acc = inout(vreg) *acc,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Lanes of 32 bits of both, alternating: the first halves, and the second.
#[inline]
#[target_feature(enable = "neon")]
fn zip(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
    [vzip1q_s32(a, b), vzip2q_s32(a, b)].map(|x| vreinterpretq_s8_s32(x))
}

/// Two planes as eight registers of two rows, which have eight columns each.
#[inline]
#[target_feature(enable = "neon")]
fn zip_rows(a: Quarters, b: Quarters) -> [int8x16_t; 8] {
    let [w, x, y, z] = [0, 1, 2, 3].map(|q| zip(a[q], b[q]));
    [w[0], w[1], x[0], x[1], y[0], y[1], z[0], z[1]]
}

/// Two lines at a time. Per pair of quarters: 2 zips, 10 products by three, 12 matrix products.
#[target_feature(enable = "neon,i8mm")]
fn dot_t5(lines: &[Line], token: &[i8]) -> Sums {
    let mut acc = [vdupq_n_s32(0); 8];
    let (pairs, last) = lines.as_chunks::<2>();
    let tokens = &token.as_chunks::<20>().0[..lines.len()];
    for ([a, b], [token_a, token_b]) in pairs.iter().zip(tokens.as_chunks::<2>().0) {
        prefetch_after(a);
        prefetch_after(b);
        add_lines(
            &mut acc,
            zip_rows(load(a), load(b)),
            columns_t5(token_a, token_b),
        );
    }
    if let ([line], [.., token]) = (last, tokens) {
        let x = load(line);
        add_lines(&mut acc, zip_rows(x, x), columns_t5(token, &[0; 20]));
    }
    let quarters: [[int32x4_t; 2]; 4] = core::array::from_fn(|q| [acc[2 * q], acc[2 * q + 1]]);
    let next = quarters.map(|[a, b]| vuzp1q_s32(a, b));
    let here = quarters.map(|[a, b]| vuzp2q_s32(a, b));
    finish_t5(here, next)
}

/// Adds `x_p a_(p-1)` and `x_p a_p` for every plane of two lines.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn add_lines(acc: &mut [int32x4_t; 8], mut x: [int8x16_t; 8], columns: [int8x16_t; 6]) {
    for (p, columns) in columns.into_iter().enumerate() {
        for (acc, x) in acc.iter_mut().zip(&mut x) {
            if p > 0 {
                *x = next_fraction(*x);
            }
            product(acc, *x, columns);
        }
    }
}

/// The activations of plane `p - 1` and of plane `p`, for `p = 0..=5`; there are none before the first
/// and after the last. Eight each: four of either line.
#[inline]
#[target_feature(enable = "neon")]
fn columns_t5(a: &[i8; 20], b: &[i8; 20]) -> [int8x16_t; 6] {
    let from_0 = [a, b].map(|token| load_i8(token.first_chunk().unwrap()));
    let from_1 = [a, b].map(|token| load_i8(token.last_chunk().unwrap()));
    let ([c1, c3], [c2, c4]) = (zip(from_0[0], from_0[1]), zip(from_1[0], from_1[1]));
    let none = vdupq_n_s8(0);
    [
        vextq_s8::<8>(none, c1),
        c1,
        c2,
        c3,
        c4,
        vextq_s8::<8>(c4, none),
    ]
}

/// Puts planes together two by two; the last of an odd number meets zeros.
#[target_feature(enable = "neon")]
fn zip_planes(n: usize, panel: &mut Panel<PLANES>) {
    if n % 2 == 1 {
        panel.0[n] = [0; 64];
    }
    for [a, b] in &mut panel.0.as_chunks_mut::<2>().0[..n.div_ceil(2)] {
        let rows = zip_rows(load(a), load(b));
        store(a, *rows.first_chunk().unwrap());
        store(b, *rows.last_chunk().unwrap());
    }
}

/// Adds a panel of zipped planes times `PAIRS` pairs of tokens to the tokens' sums; an odd last token
/// is its own partner.
#[target_feature(enable = "neon,i8mm")]
fn multiply<const PAIRS: usize>(panel: &Panel<PLANES>, tile: &Tile<'_>, acc: &mut [[Sums; 1]]) {
    let (start, len) = tile.fours;
    let n = len.div_ceil(2);
    let eights = |t: usize| {
        let token = tile.activations.token(tile.first + t.min(acc.len() - 1));
        &token.as_chunks::<8>().0[start / 2..][..n]
    };
    let tokens: [_; PAIRS] = core::array::from_fn(|c| [eights(2 * c), eights(2 * c + 1)]);
    let mut sums = [[vdupq_n_s32(0); 8]; PAIRS];
    for (j, planes) in panel.0.as_chunks::<2>().0[..n].iter().enumerate() {
        let columns = tokens.map(|[a, b]| vcombine_s8(load_eight(&a[j]), load_eight(&b[j])));
        let rows = [load(&planes[0]), load(&planes[1])];
        for (i, rows) in rows.as_flattened().iter().enumerate() {
            for (sums, columns) in sums.iter_mut().zip(columns) {
                product(&mut sums[i], *rows, columns);
            }
        }
    }
    for (acc, sums) in acc.chunks_mut(2).zip(sums) {
        let quarters: [[int32x4_t; 2]; 4] =
            core::array::from_fn(|q| [sums[2 * q], sums[2 * q + 1]]);
        add_to(&mut acc[0][0], quarters.map(|[a, b]| vuzp1q_s32(a, b)));
        if let [_, [second]] = acc {
            add_to(second, quarters.map(|[a, b]| vuzp2q_s32(a, b)));
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_eight(x: &[i8; 8]) -> int8x8_t {
    // SAFETY: 8 readable bytes, and the load asks for no alignment.
    unsafe { vld1_s8(x.as_ptr()) }
}
