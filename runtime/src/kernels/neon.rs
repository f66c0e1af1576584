//! NEON as every AArch64 core has it: digits times activations in 16-bit lanes.
//!
//! A line is four registers of four rows. A row has four lanes there, one for each column of a plane;
//! they are added at the end. The widening product adds to 16-bit lanes, which take many lines
//! before they must be widened themselves, whatever the input.

use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

use bitnet_formats::{MatrixView, Row, TernaryLayout, TernaryView};

use super::aarch64::{self, prefetch_after};
use super::float::float_kernels;
use super::walk::{self, Line, Panel, Sums, Tile, lane, with_count};
use super::{HeadInput, Isa, Kernels, Output, TernaryGemm, coarse};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    aarch64::has!("neon").then_some(Kernels {
        isa: Isa::Neon,
        ternary_gemm,
        ternary_f32,
        head,
        coarse: coarse::dots,
        float: float_kernels!(
            #[target_feature(enable = "neon")]
            [dot_f32, dot_f16, dot_i8],
            widen_lanes
        ),
    })
}

/// Lines of T5 whose sums fit 16-bit lanes: `50 * 5 * 128 < 2^15`.
const T5_LINES: usize = 50;
/// Lines of T2 whose sums, of digits 0 to 2, fit 16-bit lanes: `31 * 4 * 256 < 2^15`.
const T2_LINES: usize = 31;
/// Planes of a panel: 24 lines of T5, 30 of T2, and `120 * 256 < 2^15`.
const PLANES: usize = 120;
/// Tokens of a tile: 24 sums of the 32 registers.
const TILE: usize = 3;
/// Planes of a panel for floats: there are several on the stack.
const F32_PLANES: usize = 40;

#[target_feature(enable = "neon")]
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    walk::ternary_gemm::<1, PLANES>(
        job,
        out,
        |lines, token, sum| match layout {
            TernaryLayout::T5R16 => dot_t5(lines, token),
            TernaryLayout::T2R16 => dot_t2(lines, token, sum),
        },
        |lines, panel| unpack(layout, lines, panel),
        TILE,
        |panels, tile, acc| {
            with_count!(acc.len(), [1 2 3], multiply(&panels[0], &tile, acc));
        },
    );
}

/// Rows 0 to 3, 4 to 7, and so on: four columns of each.
pub(super) type Quarters = [int8x16_t; 4];
/// One integer per row.
pub(super) type Quarters32 = [int32x4_t; 4];
/// For each quarter its rows 0 and 1, and its rows 2 and 3: four columns of each.
type Eighths16 = [[int16x8_t; 2]; 4];

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_i8(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 readable bytes, and the load asks for no alignment.
    unsafe { vld1q_s8(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(line: &Line) -> Quarters {
    let load = |quarter: &[u8; 16]| {
        // SAFETY: 16 readable bytes, and the load asks for no alignment.
        unsafe { vld1q_s8(quarter.as_ptr().cast()) }
    };
    let (quarters, _) = line.as_chunks();
    [0, 1, 2, 3].map(|q| load(&quarters[q]))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store(line: &mut Line, x: Quarters) {
    for (quarter, x) in line.as_chunks_mut::<16>().0.iter_mut().zip(x) {
        // SAFETY: 16 writable bytes, and the store asks for no alignment.
        unsafe { vst1q_s8(quarter.as_mut_ptr().cast(), x) }
    }
}

/// Adds to sixteen sums.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_to(sums: &mut Sums, x: Quarters32) {
    for (quarter, x) in sums.as_chunks_mut::<4>().0.iter_mut().zip(x) {
        // SAFETY: four i32 are 16 readable bytes, and the load asks for no alignment.
        let before = unsafe { vld1q_s32(quarter.as_ptr()) };
        // SAFETY: four i32 are 16 writable bytes, and the store asks for no alignment.
        unsafe { vst1q_s32(quarter.as_mut_ptr(), vaddq_s32(before, x)) }
    }
}

/// Four activations in every lane of 32 bits.
///
/// The compiler, when it knows that the halves are alike, multiplies the upper half of the other
/// operand by the lower half here, and takes an instruction to bring it down. So this is hidden.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn broadcast(activations: &[i8; 4]) -> int8x16_t {
    let mut four = vreinterpretq_s8_s32(vdupq_n_s32(lane(activations)));
    // SAFETY: the text is a comment: nothing is executed, and the register keeps its value.
    unsafe { asm!("/* {0:v} */", inout(vreg) four, options(pure, nomem, nostack, preserves_flags)) }
    four
}

/// `3 x mod 256`: a T5 fraction without its first trit.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn next_fraction(x: int8x16_t) -> int8x16_t {
    vmulq_s8(x, vdupq_n_s8(3))
}

/// The trit of a stored T5 byte, a signed fraction: -1 below -42, 1 above 42.
#[inline]
#[target_feature(enable = "neon")]
fn t5_trit(x: int8x16_t) -> int8x16_t {
    let minus = vreinterpretq_s8_u8(vcltq_s8(x, vdupq_n_s8(-42)));
    let plus = vreinterpretq_s8_u8(vcgtq_s8(x, vdupq_n_s8(42)));
    vsubq_s8(minus, plus)
}

/// The digit, which is the trit plus one.
#[inline]
#[target_feature(enable = "neon")]
fn t5_digit(x: int8x16_t) -> int8x16_t {
    vaddq_s8(t5_trit(x), vdupq_n_s8(1))
}

/// The four 2-bit fields of every byte: the digits of four planes.
#[inline]
#[target_feature(enable = "neon")]
fn t2_digits(x: int8x16_t) -> [int8x16_t; 4] {
    let (x, low) = (vreinterpretq_u8_s8(x), vdupq_n_u8(3));
    let fields = [
        vandq_u8(x, low),
        vandq_u8(vshrq_n_u8::<2>(x), low),
        vandq_u8(vshrq_n_u8::<4>(x), low),
        vshrq_n_u8::<6>(x),
    ];
    fields.map(|field| vreinterpretq_s8_u8(field))
}

/// Adds digits times four activations.
#[inline]
#[target_feature(enable = "neon")]
fn add_products(acc: &mut [int16x8_t; 2], digits: int8x16_t, four: int8x16_t) {
    acc[0] = vmlal_s8(acc[0], vget_low_s8(digits), vget_low_s8(four));
    acc[1] = vmlal_high_s8(acc[1], digits, four);
}

#[inline]
#[target_feature(enable = "neon")]
fn zero16() -> Eighths16 {
    [[vdupq_n_s16(0); 2]; 4]
}

/// The four columns of every row, added in 32 bits.
#[inline]
#[target_feature(enable = "neon")]
fn add_columns_of_rows(acc: Eighths16) -> Quarters32 {
    acc.map(|[low, high]| vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
}

/// Per plane of a quarter: 2 comparisons, difference, 2 products; 4 times the next fraction.
#[target_feature(enable = "neon")]
fn dot_t5(lines: &[Line], token: &[i8]) -> Sums {
    let mut sums = [0; 16];
    let (tokens, _) = token.as_chunks::<20>();
    for (lines, tokens) in lines.chunks(T5_LINES).zip(tokens.chunks(T5_LINES)) {
        let mut acc = zero16();
        for (line, token) in lines.iter().zip(tokens) {
            prefetch_after(line);
            let mut x = load(line);
            for four in token.as_chunks().0 {
                let four = broadcast(four);
                for (acc, x) in acc.iter_mut().zip(&mut x) {
                    add_products(acc, t5_trit(*x), four);
                    *x = next_fraction(*x);
                }
            }
        }
        add_to(&mut sums, add_columns_of_rows(acc));
    }
    sums
}

/// Per quarter: 3 shifts, 3 masks, 8 products.
#[target_feature(enable = "neon")]
fn dot_t2(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut sums = [-sum; 16];
    let (tokens, _) = token.as_chunks::<16>();
    for (lines, tokens) in lines.chunks(T2_LINES).zip(tokens.chunks(T2_LINES)) {
        let mut acc = zero16();
        for (line, token) in lines.iter().zip(tokens) {
            prefetch_after(line);
            let fours = [0, 1, 2, 3].map(|p| broadcast(&token.as_chunks().0[p]));
            for (acc, x) in acc.iter_mut().zip(load(line)) {
                for (digits, four) in t2_digits(x).into_iter().zip(fours) {
                    add_products(acc, digits, four);
                }
            }
        }
        add_to(&mut sums, add_columns_of_rows(acc));
    }
    sums
}

/// Writes the digits of some lines.
#[target_feature(enable = "neon")]
pub(super) fn unpack<const N: usize>(layout: TernaryLayout, lines: &[Line], panel: &mut Panel<N>) {
    match layout {
        TernaryLayout::T5R16 => unpack_t5(lines, panel, |x| t5_digit(x)),
        TernaryLayout::T2R16 => unpack_t2(lines, panel, |digits| digits),
    }
}

/// Writes the trits of some lines.
#[target_feature(enable = "neon")]
fn unpack_trits<const N: usize>(layout: TernaryLayout, lines: &[Line], panel: &mut Panel<N>) {
    match layout {
        TernaryLayout::T5R16 => unpack_t5(lines, panel, |x| t5_trit(x)),
        TernaryLayout::T2R16 => unpack_t2(lines, panel, |d| vsubq_s8(d, vdupq_n_s8(1))),
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn unpack_t5<const N: usize>(
    lines: &[Line],
    panel: &mut Panel<N>,
    code: impl Fn(int8x16_t) -> int8x16_t,
) {
    for (line, planes) in lines.iter().zip(panel.0.as_chunks_mut::<5>().0) {
        prefetch_after(line);
        let mut x = load(line);
        for plane in planes {
            store(plane, x.map(&code));
            x = x.map(|x| next_fraction(x));
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn unpack_t2<const N: usize>(
    lines: &[Line],
    panel: &mut Panel<N>,
    code: impl Fn(int8x16_t) -> int8x16_t,
) {
    for (line, planes) in lines.iter().zip(panel.0.as_chunks_mut::<4>().0) {
        prefetch_after(line);
        let quarters = load(line).map(|x| t2_digits(x));
        for (p, plane) in planes.iter_mut().enumerate() {
            store(plane, quarters.map(|digits| code(digits[p])));
        }
    }
}

/// Adds a panel times tokens to the tokens' sums.
#[target_feature(enable = "neon")]
fn multiply<const N: usize>(panel: &Panel<PLANES>, tile: &Tile<'_>, acc: &mut [[Sums; 1]]) {
    let tokens = tile.tokens::<N>();
    let mut narrow = [zero16(); N];
    for (j, plane) in panel.0[..tile.fours.1].iter().enumerate() {
        let fours = tokens.map(|token| broadcast(&token[j]));
        for (q, digits) in load(plane).into_iter().enumerate() {
            for (narrow, four) in narrow.iter_mut().zip(fours) {
                add_products(&mut narrow[q], digits, four);
            }
        }
    }
    for ([sums], narrow) in acc.iter_mut().zip(narrow) {
        add_to(sums, add_columns_of_rows(narrow));
    }
}

#[target_feature(enable = "neon")]
fn ternary_f32(weights: &TernaryView<'_>, groups: Range<usize>, x: &[f32], out: &mut [f32]) {
    walk::ternary_f32::<F32_PLANES>(
        weights,
        groups,
        x,
        out,
        |lines, panel| unpack_trits(weights.layout, lines, panel),
        |panels, x, sums| {
            for (panels, sums) in panels.chunks(2).zip(sums.chunks_mut(2)) {
                with_count!(sums.len(), [1 2], add_columns(panels, x, sums));
            }
        },
    );
}

/// Adds `t[r][k] * x[k]` for ascending k to the sixteen sums of `N` groups.
///
/// A table lookup takes column `i` of four rows to the upper bytes of four lanes; an index out of
/// range leaves zero below. The conversion reads that as a number with 24 binary places.
#[target_feature(enable = "neon")]
fn add_columns<const N: usize>(panels: &[Panel<F32_PLANES>], x: &[f32], sums: &mut [[f32; 16]]) {
    let columns = [0, 1, 2, 3].map(|i| {
        let upper = [i, i + 4, i + 8, i + 12].map(|byte: u32| byte << 24 | 0xff_ffff);
        // SAFETY: four u32 are 16 readable bytes, and the load asks for no alignment.
        vreinterpretq_u8_u32(unsafe { vld1q_u32(upper.as_ptr()) })
    });
    let panels: [&Panel<F32_PLANES>; N] = core::array::from_fn(|n| &panels[n]);
    let mut acc: [Floats; N] = core::array::from_fn(|n| load_floats(&sums[n]));
    walk::for_each_four(x, |j, four| {
        let trits = panels.map(|panel| load(&panel.0[j]));
        for (column, x) in columns.into_iter().zip(four) {
            let rows = acc.as_flattened_mut().iter_mut();
            for (acc, trits) in rows.zip(trits.as_flattened()) {
                let upper = vreinterpretq_s32_s8(vqtbl1q_s8(*trits, column));
                let code = vcvtq_n_f32_s32::<24>(upper);
                *acc = vaddq_f32(*acc, vmulq_n_f32(code, x));
            }
        }
    });
    for (sums, acc) in sums.iter_mut().zip(acc) {
        *sums = to_lanes(acc);
    }
}

#[target_feature(enable = "neon")]
fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    let dot = |codes: &[u8], x: &[i16]| dot_i8_i16(codes, x);
    walk::head(matrix, rows, input, out, dot, |row, x| dense_dot(row, x));
}

/// Columns whose products fit the 32-bit lanes: a lane takes one of 16, `256 * 2^7 * 2^15 = 2^30`.
const I8_BLOCK: usize = 4_096;

/// An int8 row times int16 codes, both in 16 bits.
///
/// The codes could be split into two planes of int8 for the byte dot product of newer cores. Taking
/// them apart for every row costs what that would save.
#[target_feature(enable = "neon")]
fn dot_i8_i16(codes: &[u8], x: &[i16]) -> i64 {
    let mut total = 0;
    for (codes, x) in codes.chunks(I8_BLOCK).zip(x.chunks(I8_BLOCK)) {
        let (codes, codes_rest) = codes.as_chunks::<64>();
        let (x, x_rest) = x.as_chunks::<64>();
        let mut acc = [vdupq_n_s32(0); 4];
        for (codes, x) in codes.iter().zip(x) {
            prefetch_after(codes);
            for (w, x) in load(codes).into_iter().zip(x.as_chunks().0) {
                let (low, high) = (vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w));
                let [x_low, x_high] = load_i16(x);
                acc[0] = vmlal_s16(acc[0], vget_low_s16(low), vget_low_s16(x_low));
                acc[1] = vmlal_high_s16(acc[1], low, x_low);
                acc[2] = vmlal_s16(acc[2], vget_low_s16(high), vget_low_s16(x_high));
                acc[3] = vmlal_high_s16(acc[3], high, x_high);
            }
        }
        total += acc.into_iter().map(|acc| vaddlvq_s32(acc)).sum::<i64>();
        total += walk::dot_i8_rest(codes_rest, x_rest);
    }
    total
}

/// The sixteen-lane dot product of a row of a head.
#[target_feature(enable = "neon")]
fn dense_dot(row: Row<'_>, x: &[f32]) -> f32 {
    match row {
        Row::F32(w) => dot_lanes(w.as_bytes(), x, |w| load_f32(w)),
        Row::F16(w) => dot_lanes(w, x, |w| widen_f16(w)),
        Row::BF16(w) => dot_lanes(w, x, |w| widen_bf16(w)),
        Row::I8(..) => unreachable!("int8 rows take an int16 input"),
    }
}

#[target_feature(enable = "neon")]
fn dot_f32(a: &[f32], x: &[f32]) -> f32 {
    dot_lanes(walk::le_bytes(a), x, |a| load_f32(a))
}

#[target_feature(enable = "neon")]
fn dot_f16(a: &[u16], x: &[f32]) -> f32 {
    dot_lanes(walk::le_bytes(a), x, |a| widen_f16(a))
}

#[target_feature(enable = "neon")]
fn dot_i8(a: &[i8], x: &[f32]) -> f32 {
    dot_lanes(a, x, |a| widen_i8(a))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_lanes(halves: &[u16; 16]) -> [f32; 16] {
    to_lanes(widen_f16(&halves.map(u16::to_le_bytes)))
}

/// The sixteen lanes of a sum.
type Floats = [float32x4_t; 4];

/// The dot product in sixteen lanes of values that `widen` makes floats of, and floats.
#[inline]
#[target_feature(enable = "neon")]
fn dot_lanes<T: Copy + Default>(a: &[T], x: &[f32], widen: impl Fn(&[T; 16]) -> Floats) -> f32 {
    let (a, a_rest) = a.as_chunks();
    let (x, x_rest) = x.as_chunks();
    let mut acc = [vdupq_n_f32(0.0); 4];
    for (a, x) in a.iter().zip(x) {
        prefetch_after(a);
        acc = add_float_products(acc, widen(a), load_floats(x));
    }
    if !a_rest.is_empty() {
        let (a, x) = (walk::fill_lanes(a_rest), walk::fill_lanes(x_rest));
        acc = add_float_products(acc, widen(&a), load_floats(&x));
    }
    fold(acc)
}

/// A product and an addition, each rounded: `vmlaq_f32` would leave that to the compiler.
#[inline]
#[target_feature(enable = "neon")]
fn add_float_products(acc: Floats, a: Floats, x: Floats) -> Floats {
    [0, 1, 2, 3].map(|i| vaddq_f32(acc[i], vmulq_f32(a[i], x[i])))
}

/// Folds sixteen lanes 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "neon")]
fn fold([a, b, c, d]: Floats) -> f32 {
    let four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
    let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}

#[inline]
#[target_feature(enable = "neon")]
fn load_f32(x: &[[u8; 4]; 16]) -> Floats {
    let load = |quarter: &[[u8; 4]; 4]| {
        // SAFETY: 16 readable bytes, and the load asks for no alignment.
        vreinterpretq_f32_u8(unsafe { vld1q_u8(quarter.as_ptr().cast()) })
    };
    let (quarters, _) = x.as_chunks();
    [0, 1, 2, 3].map(|q| load(&quarters[q]))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_half(x: &[[u8; 2]; 8]) -> uint16x8_t {
    // SAFETY: 16 readable bytes, and the load asks for no alignment.
    vreinterpretq_u16_u8(unsafe { vld1q_u8(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(x: &[[u8; 2]; 16]) -> Floats {
    let (halves, _) = x.as_chunks();
    let [a, b] = [0, 1].map(|i| load_half(&halves[i]));
    [
        f16_to_f32(vget_low_u16(a)),
        f16_to_f32(vget_high_u16(a)),
        f16_to_f32(vget_low_u16(b)),
        f16_to_f32(vget_high_u16(b)),
    ]
}

/// Four f16 as f32: the instruction is in every core, its intrinsic not yet in the stable compiler.
#[inline]
#[target_feature(enable = "neon")]
fn f16_to_f32(x: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: from a register to a register, by an instruction that is part of NEON.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {x:v}.4h",
            wide = lateout(vreg) wide,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    wide
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_bf16(x: &[[u8; 2]; 16]) -> Floats {
    let (halves, _) = x.as_chunks();
    let [a, b] = [0, 1].map(|i| load_half(&halves[i]));
    let zero = vdupq_n_u16(0);
    let bits = [
        vzip1q_u16(zero, a),
        vzip2q_u16(zero, a),
        vzip1q_u16(zero, b),
        vzip2q_u16(zero, b),
    ];
    bits.map(|bits| vreinterpretq_f32_u16(bits))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_i8(x: &[i8; 16]) -> Floats {
    let codes = load_i8(x);
    let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
    let wide = [
        vmovl_s16(vget_low_s16(low)),
        vmovl_high_s16(low),
        vmovl_s16(vget_low_s16(high)),
        vmovl_high_s16(high),
    ];
    wide.map(|codes| vcvtq_f32_s32(codes))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i16(x: &[i16; 16]) -> [int16x8_t; 2] {
    let load = |half: &[i16; 8]| {
        // SAFETY: eight i16 are 16 readable bytes, and the load asks for no alignment.
        unsafe { vld1q_s16(half.as_ptr()) }
    };
    let (halves, _) = x.as_chunks();
    [load(&halves[0]), load(&halves[1])]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_floats(x: &[f32; 16]) -> Floats {
    let load = |quarter: &[f32; 4]| {
        // SAFETY: four readable f32, and the load asks for no alignment.
        unsafe { vld1q_f32(quarter.as_ptr()) }
    };
    let (quarters, _) = x.as_chunks();
    [0, 1, 2, 3].map(|q| load(&quarters[q]))
}

#[inline]
#[target_feature(enable = "neon")]
fn to_lanes(x: Floats) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    for (quarter, x) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(x) {
        // SAFETY: four writable f32, and the store asks for no alignment.
        unsafe { vst1q_f32(quarter.as_mut_ptr(), x) }
    }
    lanes
}
