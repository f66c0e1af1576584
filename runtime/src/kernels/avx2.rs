//! AVX2: digits times activations in 16-bit lanes.
//!
//! The byte product of AVX2 adds pairs in 16 bits and saturates, so it is fed digits, never raw
//! bytes: a pair stays in `-512..=508`, and [`PLANES`] of them fit a lane before it must be widened.
//! A line is two registers of eight rows each.

use core::arch::x86_64::*;

use bitnet_formats::TernaryLayout;

use super::x86::{self, Line, Panel, Sums, Tile, lane, prefetch_after, with_count};
use super::{Isa, Kernels, TernaryGemm};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    x86::has!("avx2", "f16c").then_some(Kernels {
        isa: Isa::Avx2,
        ternary_gemm,
        ..super::portable::KERNELS
    })
}

/// Planes a 16-bit lane can take: `64 * -512 = -2^15`.
const PLANES: usize = 64;
/// Tokens of a tile: eight 16-bit sums, two registers of digits, one of activations.
const TILE: usize = 4;

#[target_feature(enable = "avx2")]
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut [f32]) {
    let layout = job.weights.layout;
    x86::ternary_gemm::<1, PLANES>(
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
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn next_fraction(x: __m256i) -> __m256i {
    _mm256_add_epi8(_mm256_add_epi8(x, x), x)
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
