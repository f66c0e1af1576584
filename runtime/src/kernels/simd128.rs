//! WebAssembly's 128-bit vectors, without the relaxed ones, whose results may differ by machine.
//!
//! There is no product of bytes, so bytes are widened to 16-bit lanes first. For one token no digit
//! is ever isolated. With `x` the unsigned byte of T5 and `D_q = floor(3^q x / 256)`, which is the
//! number that its first `q` digits write, digit `p` is `D_(p+1) - 3 D_p`, hence
//!
//! ```text
//! sum over p of d_p a_p = sum over q = 1..5 of D_q (a_(q-1) - 3 a_q),   a_5 = 0
//! ```
//!
//! A product and a shift make `D_q`, a product and an addition use it; the differences of activations
//! are taken once for many row groups. The same with `D_p = x >> 2 p` for T2: `d_p = D_p - 4 D_(p+1)`.
//! Lanes wrap, which is harmless: sums begin at minus the sum of the activations, so that they end
//! as `sum t a`, and that fits.
//!
//! A module either uses vectors or is refused by an engine without them, so there is nothing to
//! detect: this file is compiled where the target has the feature.

use core::arch::wasm32::*;
use core::ops::Range;

use bitnet_formats::{MatrixView, Row, TernaryLayout, TernaryView};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::float::float_kernels;
use super::walk::{self, Line, Panel, Sums, Tile, lane, store_group, with_count};
use super::{HeadInput, Isa, Kernels, Output, TernaryGemm};

pub(super) const KERNELS: Kernels = Kernels {
    isa: Isa::Simd128,
    ternary_gemm,
    ternary_f32,
    head,
    coarse: super::coarse::dots,
    float: float_kernels!(
        #[inline]
        [dot_f32, dot_f16, dot_i8],
        widen_lanes
    ),
};

/// Lines of one token whose sums fit a lane: `50 * 5 * 128 < 2^15`.
const LINES: usize = 50;
/// Row groups that share the differences of a token's activations.
const GROUPS: usize = 16;
/// Planes of a panel. A lane takes `60 * 2 * 128 < 2^15`.
const PLANES: usize = 60;
/// Tokens of a tile: eight sums, two registers of digits, one of activations.
const TILE: usize = 4;
/// Planes of a panel for floats: four of these panels are on the stack.
const F32_PLANES: usize = 20;

fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    match job.factors {
        [factor] => match layout {
            TernaryLayout::T5R16 => ternary_gemv(job, out, *factor, multipliers_t5, dot_t5),
            TernaryLayout::T2R16 => ternary_gemv(job, out, *factor, multipliers_t2, dot_t2),
        },
        _ => walk::ternary_panels::<1, PLANES>(
            job,
            out,
            |lines, panel| unpack(layout, lines, panel),
            TILE,
            |panels, tile, acc| {
                with_count!(acc.len(), [1 2 3 4], multiply(&panels[0], &tile, acc));
            },
        ),
    }
}

/// Sixteen bytes.
#[inline(always)]
fn load<T: IntoBytes + Immutable, const N: usize>(x: &[T; N]) -> v128 {
    const { assert!(size_of::<[T; N]>() == 16) }
    // SAFETY: 16 readable bytes, and the load asks for no alignment.
    unsafe { v128_load(x.as_ptr().cast()) }
}

#[inline(always)]
fn store<T: FromBytes, const N: usize>(to: &mut [T; N], x: v128) {
    const { assert!(size_of::<[T; N]>() == 16) }
    // SAFETY: 16 writable bytes of a type that any bytes are a value of, and the store asks for no
    // alignment.
    unsafe { v128_store(to.as_mut_ptr().cast(), x) }
}

/// Bytes 0 to 7 and 8 to 15 as 16-bit lanes: two rows of four columns each.
#[inline(always)]
fn widen(x: v128) -> [v128; 2] {
    [u16x8_extend_low_u8x16(x), u16x8_extend_high_u8x16(x)]
}

/// Four activations in 16-bit lanes, twice.
#[inline(always)]
fn broadcast(activations: &[i8; 4]) -> v128 {
    i16x8_extend_low_i8x16(i32x4_splat(lane(activations)))
}

#[inline(always)]
fn add_products(acc: &mut v128, a: v128, b: v128) {
    *acc = i16x8_add(*acc, i16x8_mul(a, b));
}

/// What the quotients of up to [`LINES`] lines are multiplied by.
struct Multipliers {
    /// For each plane, the differences of four columns, twice.
    planes: [v128; 5 * LINES],
    /// Minus the sum of the activations, column by column, twice: where sums begin.
    start: v128,
}

/// `codes` are those of whole lines; `difference(a, p)` is the multiplier of plane `p` of a line.
#[inline(always)]
fn multipliers<const N: usize, const COLS: usize>(
    codes: &[i8],
    difference: impl Fn(&[v128; N], usize) -> v128,
) -> Multipliers {
    let mut planes = [i16x8_splat(0); 5 * LINES];
    let mut start = i16x8_splat(0);
    let lines = codes.as_chunks::<COLS>().0.iter();
    for (codes, planes) in lines.zip(planes.as_chunks_mut::<N>().0) {
        let a: [v128; N] = core::array::from_fn(|p| broadcast(&codes.as_chunks().0[p]));
        start = a.into_iter().fold(start, |start, a| i16x8_sub(start, a));
        *planes = core::array::from_fn(|p| difference(&a, p));
    }
    Multipliers { planes, start }
}

fn multipliers_t5(codes: &[i8]) -> Multipliers {
    multipliers::<5, 20>(codes, |a, p| match a.get(p + 1) {
        Some(next) => i16x8_sub(a[p], i16x8_mul(*next, i16x8_splat(3))),
        None => a[p],
    })
}

fn multipliers_t2(codes: &[i8]) -> Multipliers {
    multipliers::<4, 16>(codes, |a, p| match p.checked_sub(1) {
        Some(before) => i16x8_sub(a[p], i16x8_shl(a[before], 2)),
        None => a[p],
    })
}

/// One token: [`GROUPS`] row groups and [`LINES`] lines at a time.
#[inline(always)]
fn ternary_gemv(
    job: &TernaryGemm<'_>,
    out: &mut Output<'_>,
    factor: f32,
    multipliers: impl Fn(&[i8]) -> Multipliers,
    dot: impl Fn(&[Line], &Multipliers, &mut Sums),
) {
    let layout = job.weights.layout;
    let (n_lines, cols) = (layout.group_lines(job.weights.cols), layout.block_cols());
    let codes = &job.activations.token(0)[..n_lines * cols];
    for first in job.groups.clone().step_by(GROUPS) {
        let n = GROUPS.min(job.groups.end - first);
        let mut sums = [[0; 16]; GROUPS];
        for (chunk, codes) in codes.chunks(LINES * cols).enumerate() {
            let multipliers = multipliers(codes);
            let lines = chunk * LINES..chunk * LINES + codes.len() / cols;
            for (group, sums) in (first..).zip(&mut sums[..n]) {
                dot(&job.weights.group(group)[lines.clone()], &multipliers, sums);
            }
        }
        for (group, sums) in (first..).zip(&sums[..n]) {
            store_group(job, out, (group, 0), sums, factor);
        }
    }
}

/// Per 16 bytes: flip, 2 widenings, and twice 5 times product, shift, product, addition.
fn dot_t5(lines: &[Line], multipliers: &Multipliers, sums: &mut Sums) {
    const POWERS: [i16; 5] = [3, 9, 27, 81, 243];
    let quotient = |x, p: usize| u16x8_shr(i16x8_mul(x, i16x8_splat(POWERS[p])), 8);
    dot::<5>(lines, multipliers, sums, 0x80, quotient);
}

/// Per 16 bytes: 2 widenings, and twice 3 shifts, 4 products, 4 additions.
fn dot_t2(lines: &[Line], multipliers: &Multipliers, sums: &mut Sums) {
    let quotient = |x, p: usize| u16x8_shr(x, 2 * p as u32);
    dot::<4>(lines, multipliers, sums, 0, quotient);
}

/// Adds up to [`LINES`] lines to the sums of a group. Half a line at a time: its four sums, its four
/// registers of bytes and a multiplier are what a machine of sixteen registers can hold.
#[inline(always)]
fn dot<const N: usize>(
    lines: &[Line],
    multipliers: &Multipliers,
    sums: &mut Sums,
    flip: u8,
    quotient: impl Fn(v128, usize) -> v128,
) {
    for (half, sums) in sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let mut acc = [multipliers.start; 4];
        for (line, multipliers) in lines.iter().zip(multipliers.planes.as_chunks::<N>().0) {
            let bytes: &[u8; 32] = &line.as_chunks().0[half];
            let quarters = [0, 1].map(|i| load::<u8, 16>(&bytes.as_chunks().0[i]));
            let x = quarters.map(|x| widen(v128_xor(x, u8x16_splat(flip))));
            for (p, multiplier) in multipliers.iter().enumerate() {
                for (acc, x) in acc.iter_mut().zip(x.as_flattened()) {
                    add_products(acc, quotient(*x, p), *multiplier);
                }
            }
        }
        for (sums, acc) in sums
            .as_chunks_mut::<4>()
            .0
            .iter_mut()
            .zip(acc.as_chunks().0)
        {
            add_to(sums, fold_rows(acc));
        }
    }
}

/// Sums of four rows from two registers of two rows by four columns.
#[inline(always)]
fn fold_rows(x: &[v128; 2]) -> v128 {
    let [a, b] = x.map(|x| i32x4_extadd_pairwise_i16x8(x));
    let left = i32x4_shuffle::<0, 2, 4, 6>(a, b);
    i32x4_add(left, i32x4_shuffle::<1, 3, 5, 7>(a, b))
}

#[inline(always)]
fn add_to(sums: &mut [i32; 4], x: v128) {
    let total = i32x4_add(load(sums), x);
    store(sums, total);
}

/// The digit of a stored T5 byte, a signed fraction: one from -42 on and two from 43 on.
#[inline(always)]
fn t5_digit(x: v128) -> v128 {
    let from_one = i8x16_gt(x, i8x16_splat(-43));
    let from_two = i8x16_gt(x, i8x16_splat(42));
    i8x16_neg(i8x16_add(from_one, from_two))
}

/// Writes the digits of some lines.
fn unpack<const N: usize>(layout: TernaryLayout, lines: &[Line], panel: &mut Panel<N>) {
    match layout {
        TernaryLayout::T5R16 => unpack_t5(lines, panel),
        TernaryLayout::T2R16 => unpack_t2(lines, panel),
    }
}

fn unpack_t5<const N: usize>(lines: &[Line], panel: &mut Panel<N>) {
    for (line, planes) in lines.iter().zip(panel.0.as_chunks_mut::<5>().0) {
        for (i, bytes) in line.as_chunks::<16>().0.iter().enumerate() {
            let mut x = load(bytes);
            for plane in &mut *planes {
                store(&mut plane.as_chunks_mut::<16>().0[i], t5_digit(x));
                x = i8x16_add(i8x16_add(x, x), x);
            }
        }
    }
}

fn unpack_t2<const N: usize>(lines: &[Line], panel: &mut Panel<N>) {
    for (line, planes) in lines.iter().zip(panel.0.as_chunks_mut::<4>().0) {
        for (i, bytes) in line.as_chunks::<16>().0.iter().enumerate() {
            let x = load(bytes);
            for (p, plane) in planes.iter_mut().enumerate() {
                let digit = v128_and(u8x16_shr(x, 2 * p as u32), u8x16_splat(3));
                store(&mut plane.as_chunks_mut::<16>().0[i], digit);
            }
        }
    }
}

/// Adds a panel times tokens to the tokens' sums, four rows at a time.
fn multiply<const N: usize>(panel: &Panel<PLANES>, tile: &Tile<'_>, acc: &mut [[Sums; 1]]) {
    let tokens = tile.tokens::<N>();
    for rows in 0..4 {
        let mut pairs = [[i16x8_splat(0); 2]; N];
        for (j, plane) in panel.0[..tile.fours.1].iter().enumerate() {
            let digits = widen(load::<u8, 16>(&plane.as_chunks().0[rows]));
            for (pairs, token) in pairs.iter_mut().zip(tokens) {
                let four = broadcast(&token[j]);
                add_products(&mut pairs[0], digits[0], four);
                add_products(&mut pairs[1], digits[1], four);
            }
        }
        for ([sums], pairs) in acc.iter_mut().zip(&pairs) {
            add_to(&mut sums.as_chunks_mut().0[rows], fold_rows(pairs));
        }
    }
}

fn ternary_f32(weights: &TernaryView<'_>, groups: Range<usize>, x: &[f32], out: &mut [f32]) {
    walk::ternary_f32::<F32_PLANES>(
        weights,
        groups,
        x,
        out,
        |lines, panel| unpack(weights.layout, lines, panel),
        |panels, x, sums| {
            for (panel, sums) in panels.iter().zip(sums) {
                add_columns(panel, x, sums);
            }
        },
    );
}

/// Adds `t[r][k] * x[k]` for ascending k to the sixteen sums of a group.
///
/// Byte `i` of a 32-bit lane is the digit of column `i`: less one and shifted there and back, it is
/// the lane's -1, 0 or 1.
fn add_columns(panel: &Panel<F32_PLANES>, x: &[f32], sums: &mut [f32; 16]) {
    let mut acc = load_floats(sums);
    walk::for_each_four(x, |j, four| {
        let digits = panel.0[j].as_chunks::<16>().0;
        for (acc, digits) in acc.iter_mut().zip(digits) {
            let codes = i8x16_sub(load(digits), i8x16_splat(1));
            for (i, x) in four.into_iter().enumerate() {
                let code = i32x4_shr(i32x4_shl(codes, 24 - 8 * i as u32), 24);
                let product = f32x4_mul(f32x4_convert_i32x4(code), f32x4_splat(x));
                *acc = f32x4_add(*acc, product);
            }
        }
    });
    *sums = to_lanes(acc);
}

fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    walk::head(matrix, rows, input, out, dot_i8_i16, dense_dot);
}

/// Columns whose products fit the 32-bit lanes: 64 of at most `2^7 * 2^15` in each of four sums,
/// which are then added.
const I8_BLOCK: usize = 1_024;

/// An int8 row times int16 codes, widened and multiplied in pairs.
fn dot_i8_i16(codes: &[u8], x: &[i16]) -> i64 {
    let mut total = 0;
    for (codes, x) in codes.chunks(I8_BLOCK).zip(x.chunks(I8_BLOCK)) {
        let (codes, codes_rest) = codes.as_chunks::<32>();
        let (x, x_rest) = x.as_chunks::<32>();
        let mut acc = [i32x4_splat(0); 4];
        for (codes, x) in codes.iter().zip(x) {
            for (i, acc) in acc.iter_mut().enumerate() {
                let w = extend_codes(&codes.as_chunks().0[i]);
                *acc = i32x4_add(
                    *acc,
                    i32x4_dot_i16x8(w, load::<i16, 8>(&x.as_chunks().0[i])),
                );
            }
        }
        let mut sums = [0i32; 4];
        let pairs = [0, 2].map(|i| i32x4_add(acc[i], acc[i + 1]));
        store(&mut sums, i32x4_add(pairs[0], pairs[1]));
        total += sums.iter().map(|sum| i64::from(*sum)).sum::<i64>();
        total += walk::dot_i8_rest(codes_rest, x_rest);
    }
    total
}

#[inline(always)]
fn extend_codes(codes: &[u8; 8]) -> v128 {
    // SAFETY: eight readable bytes, and the load asks for no alignment.
    unsafe { i16x8_load_extend_i8x8(codes.as_ptr().cast()) }
}

/// The sixteen-lane dot product of a row of a head.
fn dense_dot(row: Row<'_>, x: &[f32]) -> f32 {
    match row {
        Row::F32(w) => dot_lanes(w.as_bytes(), x, load_f32),
        Row::F16(w) => dot_lanes(w, x, widen_f16),
        Row::BF16(w) => dot_lanes(w, x, widen_bf16),
        Row::I8(..) => unreachable!("int8 rows take an int16 input"),
    }
}

fn dot_f32(a: &[f32], x: &[f32]) -> f32 {
    dot_lanes(a, x, load_floats)
}

fn dot_f16(a: &[u16], x: &[f32]) -> f32 {
    dot_lanes(walk::le_bytes(a), x, widen_f16)
}

fn dot_i8(a: &[i8], x: &[f32]) -> f32 {
    dot_lanes(a, x, widen_i8)
}

#[inline(always)]
fn widen_lanes(halves: &[u16; 16]) -> [f32; 16] {
    to_lanes(widen_f16(&halves.map(u16::to_le_bytes)))
}

/// The dot product in sixteen lanes of values that `widen` makes floats of, and floats.
#[inline(always)]
fn dot_lanes<T: Copy + Default>(a: &[T], x: &[f32], widen: impl Fn(&[T; 16]) -> [v128; 4]) -> f32 {
    let (a, a_rest) = a.as_chunks();
    let (x, x_rest) = x.as_chunks();
    let mut acc = [f32x4_splat(0.0); 4];
    let mut add = |a: &[T; 16], x: &[f32; 16]| {
        let products = widen(a).into_iter().zip(load_floats(x));
        for (acc, (a, x)) in acc.iter_mut().zip(products) {
            *acc = f32x4_add(*acc, f32x4_mul(a, x));
        }
    };
    a.iter().zip(x).for_each(|(a, x)| add(a, x));
    if !a_rest.is_empty() {
        add(&walk::fill_lanes(a_rest), &walk::fill_lanes(x_rest));
    }
    fold(acc)
}

/// Folds sixteen lanes 8, 4, 2, 1.
#[inline(always)]
fn fold(x: [v128; 4]) -> f32 {
    let eight = [f32x4_add(x[0], x[2]), f32x4_add(x[1], x[3])];
    let four = f32x4_add(eight[0], eight[1]);
    let two = f32x4_add(four, i32x4_shuffle::<2, 3, 2, 3>(four, four));
    f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
}

#[inline(always)]
fn load_f32(x: &[[u8; 4]; 16]) -> [v128; 4] {
    core::array::from_fn(|i| load::<[u8; 4], 4>(&x.as_chunks().0[i]))
}

#[inline(always)]
fn load_floats(x: &[f32; 16]) -> [v128; 4] {
    core::array::from_fn(|i| load::<f32, 4>(&x.as_chunks().0[i]))
}

/// Sixteen 16-bit values in 32-bit lanes.
#[inline(always)]
fn load_halves(x: &[[u8; 2]; 16]) -> [v128; 4] {
    let [a, b] = [0, 1].map(|i| load::<[u8; 2], 8>(&x.as_chunks().0[i]));
    let both = |x| [u32x4_extend_low_u16x8(x), u32x4_extend_high_u16x8(x)];
    let ([a, b], [c, d]) = (both(a), both(b));
    [a, b, c, d]
}

/// [`bitnet_formats::float::f16_to_f32`]: exponent and fraction are put in place and the exponent is
/// biased again by a product, which is exact and makes subnormals normal.
#[inline(always)]
fn widen_f16(x: &[[u8; 2]; 16]) -> [v128; 4] {
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23); // 2^112
    load_halves(x).map(|half| {
        let magnitude = v128_and(half, i32x4_splat(0x7fff));
        let sign = i32x4_shl(v128_and(half, i32x4_splat(0x8000)), 16);
        let shifted = i32x4_shl(magnitude, 13);
        let finite = f32x4_mul(shifted, f32x4_splat(REBIAS));
        let infinite = v128_or(shifted, i32x4_splat(0x7f80_0000));
        let is_infinite = i32x4_ge(magnitude, i32x4_splat(0x7c00));
        v128_or(sign, v128_bitselect(infinite, finite, is_infinite))
    })
}

#[inline(always)]
fn widen_bf16(x: &[[u8; 2]; 16]) -> [v128; 4] {
    load_halves(x).map(|bits| i32x4_shl(bits, 16))
}

#[inline(always)]
fn widen_i8(x: &[i8; 16]) -> [v128; 4] {
    let x = load(x);
    let both = |x| [i32x4_extend_low_i16x8(x), i32x4_extend_high_i16x8(x)];
    let ([a, b], [c, d]) = (
        both(i16x8_extend_low_i8x16(x)),
        both(i16x8_extend_high_i8x16(x)),
    );
    [a, b, c, d].map(|x| f32x4_convert_i32x4(x))
}

#[inline(always)]
fn to_lanes(x: [v128; 4]) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    for (lanes, x) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(x) {
        store(lanes, x);
    }
    lanes
}
