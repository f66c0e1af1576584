//! AVX-512 with VNNI: a line is one register, and one instruction multiplies and adds its 64 bytes.
//!
//! T5 by one token needs no digits. With `x` the fraction of a byte and `x'` its next one,
//! `3 x = 256 d + x'`, hence `256 sum d a = 3 sum x a - sum x' a`: two dot products of raw bytes per
//! plane. Both sums may wrap; the difference of [`finish_t5`] fits an i32 and is exact.

use core::arch::asm;
use core::arch::x86_64::*;
use core::ops::Range;

use bitnet_formats::{MatrixView, Row, TernaryLayout, TernaryView};

use super::float::float_kernels;
use super::walk::{self, Line, Panel, Sums, Tile, lane, with_count};
use super::x86::{self, prefetch_after, prefetch_ahead};
use super::{FloatKernels, HeadInput, Isa, Kernels, Output, TernaryGemm};
use super::{avx2, avx512attention, x86coarse};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    x86::has!("avx512f", "avx512bw", "avx512vl", "avx512vnni").then_some(Kernels {
        isa: Isa::Avx512Vnni,
        ternary_gemm,
        ternary_f32,
        head,
        coarse: x86coarse::avx512,
        float: FloatKernels {
            scores_of: avx512attention::scores_of,
            add_mixes: avx512attention::add_mixes,
            ..float_kernels!(
                #[target_feature(enable = "avx512f,avx512bw")]
                [dot_f32, dot_f16, dot_i8],
                widen_lanes
            )
        },
    })
}

/// Row groups that share a broadcast of activations.
pub(super) const GROUPS: usize = 4;
/// Planes of a panel: 16 lines of T5, 20 of T2; the panels and the activations stay in L1.
pub(super) const PLANES: usize = 80;
/// Tokens of a tile: 24 sums, the digits of [`GROUPS`] groups and a broadcast fill the registers.
pub(super) const TILE: usize = 6;

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    walk::ternary_gemm::<GROUPS, PLANES>(
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
        |panels, tile, acc| multiply(panels, &tile, acc),
    );
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 readable bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(line: &mut Line, x: __m512i) {
    // SAFETY: a line is 64 writable bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_sums(sums: &Sums) -> __m512i {
    // SAFETY: sixteen readable i32 are 64 bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_sums(sums: &mut Sums, x: __m512i) {
    // SAFETY: sixteen writable i32 are 64 bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn broadcast(activations: &[i8; 4]) -> __m512i {
    _mm512_set1_epi32(lane(activations))
}

/// The fractions of a T5 line, as unsigned bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fractions(line: &Line) -> __m512i {
    _mm512_xor_si512(load(line), _mm512_set1_epi8(-128))
}

/// `3 x mod 256`: the fraction without its first trit. As in [`avx2::next_fraction`], the compiler is
/// kept from making multiplications of it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn next_fraction(x: __m512i) -> __m512i {
    let mut twice = _mm512_add_epi8(x, x);
    // SAFETY: the text is a comment: nothing is executed, and the register keeps its value.
    unsafe {
        asm!("/* {0} */", inout(zmm_reg) twice, options(pure, nomem, nostack, preserves_flags))
    }
    _mm512_add_epi8(twice, x)
}

/// Per line: 1 xor, 10 additions, 10 dot products. Three sums each way keep a chain shorter than
/// the line's work.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_t5(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut here = [_mm512_setzero_si512(); 3];
    let mut next = here;
    for (line, token) in lines.iter().zip(token.as_chunks::<20>().0) {
        prefetch_after(line);
        let mut x = fractions(line);
        for (p, four) in token.as_chunks().0.iter().enumerate() {
            let four = broadcast(four);
            here[p % 3] = _mm512_dpbusd_epi32(here[p % 3], x, four);
            x = next_fraction(x);
            next[p % 3] = _mm512_dpbusd_epi32(next[p % 3], x, four);
        }
    }
    finish_t5(add3(here), add3(next), sum)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add3([a, b, c]: [__m512i; 3]) -> __m512i {
    _mm512_add_epi32(_mm512_add_epi32(a, b), c)
}

/// `(3 here - next) / 256 - sum`. What is shifted is `256 sum t a`, below 2^31 for 65,535 columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn finish_t5(here: __m512i, next: __m512i, sum: i32) -> Sums {
    let tripled = _mm512_add_epi32(_mm512_slli_epi32::<1>(here), here);
    let shifted_sum = _mm512_set1_epi32(sum.wrapping_mul(256));
    let scaled = _mm512_sub_epi32(_mm512_sub_epi32(tripled, next), shifted_sum);
    let mut sums = [0; 16];
    store_sums(&mut sums, _mm512_srai_epi32::<8>(scaled));
    sums
}

/// Adds the products of a byte's four 2-bit fields where they stand: field `p` of the result is
/// too large by `4^p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dot_fields(acc: &mut [__m512i; 4], fields: __m512i, fours: &[[i8; 4]; 4]) {
    for (p, (acc, four)) in acc.iter_mut().zip(fours).enumerate() {
        let digits = _mm512_and_si512(fields, _mm512_set1_epi8((3u8 << (2 * p)) as i8));
        *acc = _mm512_dpbusd_epi32(*acc, digits, broadcast(four));
    }
}

/// The sum of what [`dot_fields`] added, each field divided by its `4^p`: exact, since every
/// product had the factor.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn add_fields([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
    let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
    _mm512_add_epi32(low, high)
}

/// Per line: 4 masks, 4 dot products. Lines alternate between two sets of sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dot_t2(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut acc = [[_mm512_setzero_si512(); 4]; 2];
    let (fours, _) = token.as_chunks::<4>().0.as_chunks::<4>();
    let (pairs, last) = lines.as_chunks::<2>();
    let (four_pairs, _) = fours.as_chunks::<2>();
    for (pair, fours) in pairs.iter().zip(four_pairs) {
        for i in 0..2 {
            prefetch_after(&pair[i]);
            dot_fields(&mut acc[i], load(&pair[i]), &fours[i]);
        }
    }
    for (line, fours) in last.iter().zip(&fours[2 * pairs.len()..]) {
        dot_fields(&mut acc[0], load(line), fours);
    }
    let total = _mm512_add_epi32(add_fields(acc[0]), add_fields(acc[1]));
    let mut sums = [0; 16];
    store_sums(&mut sums, _mm512_sub_epi32(total, _mm512_set1_epi32(sum)));
    sums
}

/// `d = floor(3 x / 256)` is one from 86 on and two from 171 on.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_t5(lines: &[Line], panel: &mut Panel<PLANES>) {
    let one = _mm512_set1_epi8(1);
    for (line, planes) in lines.iter().zip(panel.0.as_chunks_mut::<5>().0) {
        prefetch_ahead(line, PLANES / 5);
        let mut x = fractions(line);
        for plane in planes {
            let from_one = _mm512_cmpge_epu8_mask(x, _mm512_set1_epi8(86));
            let from_two = _mm512_cmpge_epu8_mask(x, _mm512_set1_epi8(171u8 as i8));
            let digits = _mm512_maskz_mov_epi8(from_one, one);
            store(plane, _mm512_mask_add_epi8(digits, from_two, digits, one));
            x = next_fraction(x);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack_t2<const N: usize>(lines: &[Line], panel: &mut Panel<N>) {
    for (line, planes) in lines.iter().zip(panel.0.as_chunks_mut::<4>().0) {
        prefetch_ahead(line, N / 4);
        unpack_fields(load(line), planes);
    }
}

/// The four 2-bit fields of every byte, a plane each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack_fields(fields: __m512i, planes: &mut [Line; 4]) {
    let low = _mm512_set1_epi8(3);
    let shifted = [
        fields,
        _mm512_srli_epi16::<2>(fields),
        _mm512_srli_epi16::<4>(fields),
        _mm512_srli_epi16::<6>(fields),
    ];
    for (plane, shifted) in planes.iter_mut().zip(shifted) {
        store(plane, _mm512_and_si512(shifted, low));
    }
}

/// Adds panels times tokens to the tokens' sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn multiply(panels: &[Panel<PLANES>], tile: &Tile<'_>, acc: &mut [[Sums; GROUPS]]) {
    match panels {
        [a] => multiply_groups([a], tile, acc),
        [a, b] => multiply_groups([a, b], tile, acc),
        [a, b, c] => multiply_groups([a, b, c], tile, acc),
        [a, b, c, d] => multiply_groups([a, b, c, d], tile, acc),
        _ => unreachable!("one to four groups"),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_groups<const G: usize>(
    panels: [&Panel<PLANES>; G],
    tile: &Tile<'_>,
    acc: &mut [[Sums; GROUPS]],
) {
    with_count!(acc.len(), [1 2 3 4 5 6], multiply_tile<G>(panels, tile, acc));
}

/// Each broadcast meets `G` groups: `G` loads and `N` broadcasts for `G N` dot products.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_tile<const N: usize, const G: usize>(
    panels: [&Panel<PLANES>; G],
    tile: &Tile<'_>,
    acc: &mut [[Sums; GROUPS]],
) {
    let tokens = tile.tokens::<N>();
    let n = tile.fours.1;
    let mut sums = [[_mm512_setzero_si512(); G]; N];
    assert!(n <= PLANES);
    for j in 0..n {
        let mut digits = [_mm512_setzero_si512(); G];
        for (digits, panel) in digits.iter_mut().zip(panels) {
            *digits = load(&panel.0[j]);
        }
        for (sums, token) in sums.iter_mut().zip(tokens) {
            let four = broadcast(&token[j]);
            for (sum, digits) in sums.iter_mut().zip(digits) {
                *sum = _mm512_dpbusd_epi32(*sum, digits, four);
            }
        }
    }
    for (acc, sums) in acc.iter_mut().zip(sums) {
        for (acc, sum) in acc.iter_mut().zip(sums) {
            add_to(acc, sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_to(acc: &mut Sums, sums: __m512i) {
    let total = _mm512_add_epi32(load_sums(acc), sums);
    store_sums(acc, total);
}

#[target_feature(enable = "avx512f,avx512bw")]
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
#[target_feature(enable = "avx512f")]
fn add_columns<const N: usize>(panels: &[Panel<PLANES>], x: &[f32], sums: &mut [[f32; 16]]) {
    let codes = _mm512_setr4_ps(-1.0, 0.0, 1.0, 0.0);
    let panels: [&Panel<PLANES>; N] = core::array::from_fn(|n| &panels[n]);
    let mut acc: [__m512; N] = core::array::from_fn(|n| load_floats(&sums[n]));
    walk::for_each_four(x, |j, four| {
        let mut digits = panels.map(|panel| load(&panel.0[j]));
        for x in four {
            let x = _mm512_set1_ps(x);
            for (acc, digits) in acc.iter_mut().zip(&mut digits) {
                let code = _mm512_permutexvar_ps(*digits, codes);
                *acc = _mm512_add_ps(*acc, _mm512_mul_ps(code, x));
                *digits = _mm512_srli_epi32::<8>(*digits);
            }
        }
    });
    for (sums, acc) in sums.iter_mut().zip(acc) {
        *sums = to_lanes(acc);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    let dot = |codes: &[u8], x: &[i16]| dot_i8_i16(codes, x);
    walk::head(matrix, rows, input, out, dot, |row, x| dense_dot(row, x));
}

/// Columns whose products fit the 32-bit lanes: 128 pairs of at most `2^7 * 2^15` each.
const I8_BLOCK: usize = 4_096;

/// As [`avx2::dot_i8_i16`], twice as wide.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_i8_i16(codes: &[u8], x: &[i16]) -> i64 {
    let mut total = 0;
    for (codes, x) in codes.chunks(I8_BLOCK).zip(x.chunks(I8_BLOCK)) {
        let (codes, codes_rest) = codes.as_chunks::<128>();
        let (x, x_rest) = x.as_chunks::<128>();
        let mut acc = [_mm512_setzero_si512(); 4];
        for (codes, x) in codes.iter().zip(x) {
            prefetch_after(codes);
            prefetch_after(&codes[64]);
            for (i, acc) in acc.iter_mut().enumerate() {
                let w = load_i8(&codes.as_chunks().0[i]);
                *acc = _mm512_dpwssd_epi32(*acc, w, load_i16(&x.as_chunks().0[i]));
            }
        }
        let pairs = [0, 2].map(|i| _mm512_add_epi32(acc[i], acc[i + 1]));
        let mut sums = [0; 16];
        store_sums(&mut sums, _mm512_add_epi32(pairs[0], pairs[1]));
        total += sums.iter().map(|sum| i64::from(*sum)).sum::<i64>();
        total += walk::dot_i8_rest(codes_rest, x_rest);
    }
    total
}

/// The sixteen-lane dot product of a row of a head.
#[target_feature(enable = "avx512f")]
fn dense_dot(row: Row<'_>, x: &[f32]) -> f32 {
    match row {
        Row::F32(w) => dot_lanes(w.as_bytes(), x, |w| load_f32(w)),
        Row::F16(w) => dot_lanes(w, x, |w| widen_f16(w)),
        Row::BF16(w) => dot_lanes(w, x, |w| widen_bf16(w)),
        Row::I8(..) => unreachable!("int8 rows take an int16 input"),
    }
}

#[target_feature(enable = "avx512f")]
fn dot_f32(a: &[f32], x: &[f32]) -> f32 {
    dot_lanes(walk::le_bytes(a), x, |a| load_f32(a))
}

#[target_feature(enable = "avx512f")]
fn dot_f16(a: &[u16], x: &[f32]) -> f32 {
    dot_lanes(walk::le_bytes(a), x, |a| widen_f16(a))
}

#[target_feature(enable = "avx512f")]
fn dot_i8(a: &[i8], x: &[f32]) -> f32 {
    dot_lanes(a, x, |a| widen_i8(a))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_lanes(halves: &[u16; 16]) -> [f32; 16] {
    to_lanes(widen_f16(&halves.map(u16::to_le_bytes)))
}

/// The dot product in sixteen lanes of values that `widen` makes floats of, and floats: one register
/// is the sixteen lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn dot_lanes<T: Copy + Default>(a: &[T], x: &[f32], widen: impl Fn(&[T; 16]) -> __m512) -> f32 {
    let (a, a_rest) = a.as_chunks();
    let (x, x_rest) = x.as_chunks();
    let mut acc = _mm512_setzero_ps();
    for (a, x) in a.iter().zip(x) {
        prefetch_after(a);
        acc = _mm512_add_ps(acc, _mm512_mul_ps(widen(a), load_floats(x)));
    }
    if !a_rest.is_empty() {
        let (a, x) = (walk::fill_lanes(a_rest), walk::fill_lanes(x_rest));
        acc = _mm512_add_ps(acc, _mm512_mul_ps(widen(&a), load_floats(&x)));
    }
    let upper = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(acc));
    avx2::fold([_mm512_castps512_ps256(acc), _mm256_castpd_ps(upper)])
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(x: &[[u8; 4]; 16]) -> __m512 {
    // SAFETY: 64 readable bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_halves(x: &[[u8; 2]; 16]) -> __m256i {
    // SAFETY: 32 readable bytes, and the load asks for no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_f16(x: &[[u8; 2]; 16]) -> __m512 {
    _mm512_cvtph_ps(load_halves(x))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_bf16(x: &[[u8; 2]; 16]) -> __m512 {
    let bits = _mm512_cvtepu16_epi32(load_halves(x));
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_i8(x: &[i8; 16]) -> __m512 {
    // SAFETY: 16 readable bytes, and the load asks for no alignment.
    let codes = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_i8(codes: &[u8; 32]) -> __m512i {
    // SAFETY: 32 readable bytes, and the load asks for no alignment.
    _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i16(x: &[i16; 32]) -> __m512i {
    // SAFETY: 32 i16 are 64 readable bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(x: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen readable f32, and the load asks for no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_lanes(x: __m512) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: sixteen writable f32, and the store asks for no alignment.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), x) }
    lanes
}
