//! AVX2: digits times activations in 16-bit lanes.
//!
//! The byte product of AVX2 adds pairs in 16 bits and saturates, so it is fed digits, never raw
//! bytes: a pair stays in `-512..=508`, and [`PLANES`] of them fit a lane before it must be widened.
//! A line is two registers of eight rows each.

use core::arch::asm;
use core::arch::x86_64::*;
use core::ops::Range;

use bitnet_formats::{MatrixView, Row, TernaryLayout, TernaryView};

use super::float::float_kernels;
use super::walk::{self, Line, Panel, Sums, Tile, lane, with_count};
use super::x86::{self, prefetch_after};
use super::{HeadInput, Isa, Kernels, Output, TernaryGemm, x86coarse};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    x86::has!("avx2", "f16c").then_some(Kernels {
        isa: Isa::Avx2,
        ternary_gemm,
        ternary_f32,
        head,
        coarse: x86coarse::avx2,
        float: float_kernels!(
            #[target_feature(enable = "avx2,f16c")]
            [dot_f32, dot_f16, dot_i8],
            widen_lanes
        ),
    })
}

/// Planes a 16-bit lane can take: `64 * -512 = -2^15`.
const PLANES: usize = 64;
/// Tokens of a tile: eight 16-bit sums, two registers of digits, one of activations.
const TILE: usize = 4;

#[target_feature(enable = "avx2")]
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    walk::ternary_gemm::<1, PLANES>(
        job,
        out,
        |lines, token, sum| match layout {
            TernaryLayout::T5R16 => dot_t5(lines, token, sum),
            TernaryLayout::T2R16 => dot_t2(lines, token, sum),
        },
        |lines, panel| match layout {
            TernaryLayout::T5R16 => unpack_t5(lines, panel),
            TernaryLayout::T2R16 => unpack_t2(lines, panel),
        },
        TILE,
        |panels, tile, acc| {
            with_count!(acc.len(), [1 2 3 4], multiply(&panels[0], &tile, acc));
        },
    );
}

/// Rows 0 to 7, and 8 to 15.
pub(super) type Halves = [__m256i; 2];

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn zero() -> Halves {
    [_mm256_setzero_si256(); 2]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(line: &Line) -> Halves {
    let load = |half: &[u8; 32]| {
        // SAFETY: half a line is 32 readable bytes, and the load asks for no alignment.
        unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
    };
    let (halves, _) = line.as_chunks();
    [load(&halves[0]), load(&halves[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(line: &mut Line, x: Halves) {
    for (half, x) in line.as_chunks_mut::<32>().0.iter_mut().zip(x) {
        // SAFETY: half a line is 32 writable bytes, and the store asks for no alignment.
        unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), x) }
    }
}

/// Adds to sixteen sums.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_to(sums: &mut Sums, x: Halves) {
    for (half, x) in sums.as_chunks_mut::<8>().0.iter_mut().zip(x) {
        // SAFETY: eight i32 are 32 readable bytes, and the load asks for no alignment.
        let before = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
        let total = _mm256_add_epi32(before, x);
        // SAFETY: eight i32 are 32 writable bytes, and the store asks for no alignment.
        unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), total) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn broadcast(activations: &[i8; 4]) -> __m256i {
    _mm256_set1_epi32(lane(activations))
}

/// `3 x mod 256`: a T5 fraction without its first trit.
///
/// The compiler knows that these additions in a row are multiplications by 9, 27 and 81, and would
/// multiply; bytes have no multiplication, and what stands in for it is several times dearer. So the
/// sum between the two is hidden from it.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn next_fraction(x: __m256i) -> __m256i {
    let mut twice = _mm256_add_epi8(x, x);
    // SAFETY: the text is a comment: nothing is executed, and the register keeps its value.
    unsafe {
        asm!("/* {0} */", inout(ymm_reg) twice, options(pure, nomem, nostack, preserves_flags))
    }
    _mm256_add_epi8(twice, x)
}

/// The digit of a stored T5 byte, a signed fraction: one from -42 on and two from 43 on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn t5_digit(x: __m256i) -> __m256i {
    let from_one = _mm256_cmpgt_epi8(x, _mm256_set1_epi8(-43));
    let from_two = _mm256_cmpgt_epi8(x, _mm256_set1_epi8(42));
    _mm256_abs_epi8(_mm256_add_epi8(from_one, from_two))
}

/// Field `p` of four 2-bit fields.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn t2_digit<const BITS: i32>(x: __m256i) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi16::<BITS>(x), _mm256_set1_epi8(3))
}

/// Adds digits times four activations, in pairs.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(acc: &mut __m256i, digits: __m256i, four: __m256i) {
    *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(digits, four));
}

/// The two pairs of every row, added in 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(pairs: Halves) -> Halves {
    pairs.map(|pairs| _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Per half line: 5 times 2 comparisons, add, abs, product, add; 4 times 2 additions.
#[target_feature(enable = "avx2")]
fn dot_t5(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut sums = [-sum; 16];
    let (tokens, _) = token.as_chunks::<20>();
    for (lines, tokens) in lines.chunks(PLANES / 5).zip(tokens.chunks(PLANES / 5)) {
        let mut pairs = zero();
        for (line, token) in lines.iter().zip(tokens) {
            prefetch_after(line);
            let mut x = load(line);
            for four in token.as_chunks().0 {
                let four = broadcast(four);
                for (pairs, x) in pairs.iter_mut().zip(&mut x) {
                    add_pairs(pairs, t5_digit(*x), four);
                    *x = next_fraction(*x);
                }
            }
        }
        add_to(&mut sums, widen(pairs));
    }
    sums
}

/// Per half line: 3 shifts, 4 times mask, product, add.
#[target_feature(enable = "avx2")]
fn dot_t2(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut sums = [-sum; 16];
    let (tokens, _) = token.as_chunks::<16>();
    for (lines, tokens) in lines.chunks(PLANES / 4).zip(tokens.chunks(PLANES / 4)) {
        let mut pairs = zero();
        for (line, token) in lines.iter().zip(tokens) {
            prefetch_after(line);
            let fours = [0, 1, 2, 3].map(|p| broadcast(&token.as_chunks().0[p]));
            for (pairs, x) in pairs.iter_mut().zip(load(line)) {
                add_pairs(pairs, t2_digit::<0>(x), fours[0]);
                add_pairs(pairs, t2_digit::<2>(x), fours[1]);
                add_pairs(pairs, t2_digit::<4>(x), fours[2]);
                add_pairs(pairs, t2_digit::<6>(x), fours[3]);
            }
        }
        add_to(&mut sums, widen(pairs));
    }
    sums
}

#[target_feature(enable = "avx2")]
pub(super) fn unpack_t5<const N: usize>(lines: &[Line], panel: &mut Panel<N>) {
    for (line, planes) in lines.iter().zip(panel.0.as_chunks_mut::<5>().0) {
        prefetch_after(line);
        let mut x = load(line);
        for plane in planes {
            store(plane, x.map(|x| t5_digit(x)));
            x = x.map(|x| next_fraction(x));
        }
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn unpack_t2<const N: usize>(lines: &[Line], panel: &mut Panel<N>) {
    for (line, [a, b, c, d]) in lines.iter().zip(panel.0.as_chunks_mut::<4>().0) {
        prefetch_after(line);
        let x = load(line);
        store(a, x.map(|x| t2_digit::<0>(x)));
        store(b, x.map(|x| t2_digit::<2>(x)));
        store(c, x.map(|x| t2_digit::<4>(x)));
        store(d, x.map(|x| t2_digit::<6>(x)));
    }
}

/// Adds a panel times tokens to the tokens' sums.
#[target_feature(enable = "avx2")]
fn multiply<const N: usize>(panel: &Panel<PLANES>, tile: &Tile<'_>, acc: &mut [[Sums; 1]]) {
    let tokens = tile.tokens::<N>();
    let mut pairs = [zero(); N];
    for (j, plane) in panel.0[..tile.fours.1].iter().enumerate() {
        let digits = load(plane);
        for (pairs, token) in pairs.iter_mut().zip(tokens) {
            let four = broadcast(&token[j]);
            add_pairs(&mut pairs[0], digits[0], four);
            add_pairs(&mut pairs[1], digits[1], four);
        }
    }
    for ([sums], pairs) in acc.iter_mut().zip(pairs) {
        add_to(sums, widen(pairs));
    }
}

#[target_feature(enable = "avx2")]
fn ternary_f32(weights: &TernaryView<'_>, groups: Range<usize>, x: &[f32], out: &mut [f32]) {
    walk::ternary_f32::<PLANES>(
        weights,
        groups,
        x,
        out,
        |lines, panel| match weights.layout {
            TernaryLayout::T5R16 => unpack_t5(lines, panel),
            TernaryLayout::T2R16 => unpack_t2(lines, panel),
        },
        |panels, x, sums| {
            with_count!(sums.len(), [1 2 3 4], add_columns(panels, x, sums));
        },
    );
}

/// Adds `t[r][k] * x[k]` for ascending k to the sixteen sums of `N` groups.
///
/// Byte `i` of a lane is the digit of column `i`: shifted down, it picks -1, 0 or 1 from a register.
#[target_feature(enable = "avx2")]
fn add_columns<const N: usize>(panels: &[Panel<PLANES>], x: &[f32], sums: &mut [[f32; 16]]) {
    let codes = _mm256_setr_ps(-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    let panels: [&Panel<PLANES>; N] = core::array::from_fn(|n| &panels[n]);
    let mut acc: [[__m256; 2]; N] = core::array::from_fn(|n| load_floats(&sums[n]));
    walk::for_each_four(x, |j, four| {
        let mut digits = panels.map(|panel| load(&panel.0[j]));
        for x in four {
            let x = _mm256_set1_ps(x);
            for (acc, digits) in acc
                .as_flattened_mut()
                .iter_mut()
                .zip(digits.as_flattened_mut())
            {
                let code = _mm256_permutevar8x32_ps(codes, *digits);
                *acc = _mm256_add_ps(*acc, _mm256_mul_ps(code, x));
                *digits = _mm256_srli_epi32::<8>(*digits);
            }
        }
    });
    for (sums, acc) in sums.iter_mut().zip(acc) {
        *sums = to_lanes(acc);
    }
}

#[target_feature(enable = "avx2,f16c")]
fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    let add_pairs = |acc, w, x| _mm256_add_epi32(acc, _mm256_madd_epi16(w, x));
    let dot = |codes: &[u8], x: &[i16]| dot_i8_i16(codes, x, add_pairs);
    walk::head(matrix, rows, input, out, dot, |row, x| dense_dot(row, x));
}

/// Columns whose products fit the 32-bit lanes: 128 pairs of at most `2^7 * 2^15` each.
const I8_BLOCK: usize = 2_048;

/// An int8 row times int16 codes, widened: `add_pairs` adds products in pairs.
///
/// The codes could be split into two planes of int8 for the byte dot product. Widening the row
/// instead costs an instruction per register and saves the planes, their buffer and two
/// corrections; the loop stays far ahead of memory either way.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn dot_i8_i16(
    codes: &[u8],
    x: &[i16],
    add_pairs: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) -> i64 {
    let mut total = 0;
    for (codes, x) in codes.chunks(I8_BLOCK).zip(x.chunks(I8_BLOCK)) {
        let (codes, codes_rest) = codes.as_chunks::<64>();
        let (x, x_rest) = x.as_chunks::<64>();
        let mut acc = [_mm256_setzero_si256(); 4];
        for (codes, x) in codes.iter().zip(x) {
            prefetch_after(codes);
            for (i, acc) in acc.iter_mut().enumerate() {
                let w = load_i8(&codes.as_chunks().0[i]);
                *acc = add_pairs(*acc, w, load_i16(&x.as_chunks().0[i]));
            }
        }
        let mut sums = [0i32; 8];
        let pairs = [0, 2].map(|i| _mm256_add_epi32(acc[i], acc[i + 1]));
        store_i32(&mut sums, _mm256_add_epi32(pairs[0], pairs[1]));
        total += sums.iter().map(|sum| i64::from(*sum)).sum::<i64>();
        total += walk::dot_i8_rest(codes_rest, x_rest);
    }
    total
}

/// The sixteen-lane dot product of a row of a head.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn dense_dot(row: Row<'_>, x: &[f32]) -> f32 {
    match row {
        Row::F32(w) => dot_lanes(w.as_bytes(), x, |w| load_f32(w)),
        Row::F16(w) => dot_lanes(w, x, |w| widen_f16(w)),
        Row::BF16(w) => dot_lanes(w, x, |w| widen_bf16(w)),
        Row::I8(..) => unreachable!("int8 rows take an int16 input"),
    }
}

#[target_feature(enable = "avx2,f16c")]
fn dot_f32(a: &[f32], x: &[f32]) -> f32 {
    dot_lanes(walk::le_bytes(a), x, |a| load_f32(a))
}

#[target_feature(enable = "avx2,f16c")]
fn dot_f16(a: &[u16], x: &[f32]) -> f32 {
    dot_lanes(walk::le_bytes(a), x, |a| widen_f16(a))
}

#[target_feature(enable = "avx2,f16c")]
fn dot_i8(a: &[i8], x: &[f32]) -> f32 {
    dot_lanes(a, x, |a| widen_i8(a))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen_lanes(halves: &[u16; 16]) -> [f32; 16] {
    to_lanes(widen_f16(&halves.map(u16::to_le_bytes)))
}

/// The dot product in sixteen lanes of values that `widen` makes floats of, and floats.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dot_lanes<T: Copy + Default>(
    a: &[T],
    x: &[f32],
    widen: impl Fn(&[T; 16]) -> [__m256; 2],
) -> f32 {
    let (a, a_rest) = a.as_chunks();
    let (x, x_rest) = x.as_chunks();
    let mut acc = [_mm256_setzero_ps(); 2];
    for (a, x) in a.iter().zip(x) {
        prefetch_after(a);
        acc = add_products(acc, widen(a), load_floats(x));
    }
    if !a_rest.is_empty() {
        let (a, x) = (walk::fill_lanes(a_rest), walk::fill_lanes(x_rest));
        acc = add_products(acc, widen(&a), load_floats(&x));
    }
    fold(acc)
}

/// Folds sixteen lanes 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fold(x: [__m256; 2]) -> f32 {
    let eight = _mm256_add_ps(x[0], x[1]);
    let upper = _mm256_extractf128_ps::<1>(eight);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), upper);
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_products(acc: [__m256; 2], a: [__m256; 2], x: [__m256; 2]) -> [__m256; 2] {
    [0, 1].map(|i| _mm256_add_ps(acc[i], _mm256_mul_ps(a[i], x[i])))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f32(x: &[[u8; 4]; 16]) -> [__m256; 2] {
    let load = |half: &[[u8; 4]; 8]| {
        // SAFETY: 32 readable bytes, and the load asks for no alignment.
        unsafe { _mm256_loadu_ps(half.as_ptr().cast()) }
    };
    let (halves, _) = x.as_chunks();
    [load(&halves[0]), load(&halves[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_half(x: &[[u8; 2]; 8]) -> __m128i {
    // SAFETY: 16 readable bytes, and the load asks for no alignment.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen_f16(x: &[[u8; 2]; 16]) -> [__m256; 2] {
    let (halves, _) = x.as_chunks();
    [0, 1].map(|i| _mm256_cvtph_ps(load_half(&halves[i])))
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_bf16(x: &[[u8; 2]; 16]) -> [__m256; 2] {
    let (halves, _) = x.as_chunks();
    [0, 1].map(|i| {
        let bits = _mm256_cvtepu16_epi32(load_half(&halves[i]));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_i8(x: &[i8; 16]) -> [__m256; 2] {
    // SAFETY: 16 readable bytes, and the load asks for no alignment.
    let codes = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
    [codes, _mm_srli_si128::<8>(codes)].map(|half| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_i8(codes: &[u8; 16]) -> __m256i {
    // SAFETY: 16 readable bytes, and the load asks for no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_i16(x: &[i16; 16]) -> __m256i {
    // SAFETY: sixteen i16 are 32 readable bytes, and the load asks for no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_i32(sums: &mut [i32; 8], x: __m256i) {
    // SAFETY: eight i32 are 32 writable bytes, and the store asks for no alignment.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(x: &[f32; 16]) -> [__m256; 2] {
    let load = |half: &[f32; 8]| {
        // SAFETY: eight readable f32, and the load asks for no alignment.
        unsafe { _mm256_loadu_ps(half.as_ptr()) }
    };
    let (halves, _) = x.as_chunks();
    [load(&halves[0]), load(&halves[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn to_lanes(x: [__m256; 2]) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    for (half, x) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(x) {
        // SAFETY: eight writable f32, and the store asks for no alignment.
        unsafe { _mm256_storeu_ps(half.as_mut_ptr(), x) }
    }
    lanes
}
