//! AVX2 with VNNI in 256 bits: the byte dot product of recent small cores.
//!
//! T5 by one token goes as in [`super::avx512vnni`]: dot products of raw fractions, no digits.

use core::arch::x86_64::*;
use core::ops::Range;

use bitnet_formats::{MatrixView, TernaryLayout};

use super::avx2::{self, Halves, add_to, broadcast, load, next_fraction, zero};
use super::walk::{self, Line, Panel, Sums, Tile, with_count};
use super::x86::{self, prefetch_after};
use super::{HeadInput, Isa, Kernels, Output, TernaryGemm};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    x86::has!("avxvnni").then_some(Kernels {
        isa: Isa::AvxVnni,
        ternary_gemm,
        head,
        ..avx2::kernels()?
    })
}

/// Planes of a panel: 16 lines of T5, 20 of T2.
const PLANES: usize = 80;
/// Tokens of a tile: twelve sums, two registers of digits, one of activations.
const TILE: usize = 6;

#[target_feature(enable = "avx2,avxvnni")]
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
            TernaryLayout::T5R16 => avx2::unpack_t5(lines, panel),
            TernaryLayout::T2R16 => avx2::unpack_t2(lines, panel),
        },
        TILE,
        |panels, tile, acc| {
            with_count!(acc.len(), [1 2 3 4 5 6], multiply(&panels[0], &tile, acc));
        },
    );
}

/// Per half line: 1 xor, 10 additions, 10 dot products.
#[target_feature(enable = "avx2,avxvnni")]
fn dot_t5(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut here = [zero(); 2];
    let mut next = [zero(); 2];
    for (line, token) in lines.iter().zip(token.as_chunks::<20>().0) {
        prefetch_after(line);
        let mut x = load(line).map(|x| _mm256_xor_si256(x, _mm256_set1_epi8(-128)));
        for (p, four) in token.as_chunks().0.iter().enumerate() {
            let four = broadcast(four);
            for half in 0..2 {
                let (here, next) = (&mut here[p % 2][half], &mut next[p % 2][half]);
                *here = _mm256_dpbusd_avx_epi32(*here, x[half], four);
                x[half] = next_fraction(x[half]);
                *next = _mm256_dpbusd_avx_epi32(*next, x[half], four);
            }
        }
    }
    let mut sums = [0; 16];
    add_to(&mut sums, finish_t5(add(here), add(next), sum));
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn add([a, b]: [Halves; 2]) -> Halves {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
}

/// `(3 here - next) / 256 - sum`. What is shifted is `256 sum t a`, below 2^31 for 65,535 columns.
#[inline]
#[target_feature(enable = "avx2")]
fn finish_t5(here: Halves, next: Halves, sum: i32) -> Halves {
    let shifted_sum = _mm256_set1_epi32(sum.wrapping_mul(256));
    [0, 1].map(|half| {
        let tripled = _mm256_add_epi32(_mm256_slli_epi32::<1>(here[half]), here[half]);
        let scaled = _mm256_sub_epi32(_mm256_sub_epi32(tripled, next[half]), shifted_sum);
        _mm256_srai_epi32::<8>(scaled)
    })
}

/// Per half line: 4 masks, 4 dot products; field `p` of the sums is too large by `4^p` to the end.
#[target_feature(enable = "avx2,avxvnni")]
fn dot_t2(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut acc = [zero(); 4];
    for (line, token) in lines.iter().zip(token.as_chunks::<16>().0) {
        prefetch_after(line);
        let x = load(line);
        for (p, (acc, four)) in acc.iter_mut().zip(token.as_chunks().0).enumerate() {
            let (mask, four) = (_mm256_set1_epi8((3u8 << (2 * p)) as i8), broadcast(four));
            for (acc, x) in acc.iter_mut().zip(x) {
                *acc = _mm256_dpbusd_avx_epi32(*acc, _mm256_and_si256(x, mask), four);
            }
        }
    }
    let [a, b, c, d] = acc;
    let mut sums = [-sum; 16];
    add_to(&mut sums, a);
    add_to(&mut sums, b.map(|b| _mm256_srai_epi32::<2>(b)));
    add_to(&mut sums, c.map(|c| _mm256_srai_epi32::<4>(c)));
    add_to(&mut sums, d.map(|d| _mm256_srai_epi32::<6>(d)));
    sums
}

/// Adds a panel times tokens to the tokens' sums.
#[target_feature(enable = "avx2,avxvnni")]
fn multiply<const N: usize>(panel: &Panel<PLANES>, tile: &Tile<'_>, acc: &mut [[Sums; 1]]) {
    let tokens = tile.tokens::<N>();
    let mut sums = [zero(); N];
    for (j, plane) in panel.0[..tile.fours.1].iter().enumerate() {
        let digits = load(plane);
        for (sums, token) in sums.iter_mut().zip(tokens) {
            let four = broadcast(&token[j]);
            sums[0] = _mm256_dpbusd_avx_epi32(sums[0], digits[0], four);
            sums[1] = _mm256_dpbusd_avx_epi32(sums[1], digits[1], four);
        }
    }
    for ([acc], sums) in acc.iter_mut().zip(sums) {
        add_to(acc, sums);
    }
}

#[target_feature(enable = "avx2,f16c,avxvnni")]
fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    let add_pairs = |acc, w, x| _mm256_dpwssd_avx_epi32(acc, w, x);
    let dot = |codes: &[u8], x: &[i16]| avx2::dot_i8_i16(codes, x, add_pairs);
    walk::head(matrix, rows, input, out, dot, |row, x| {
        avx2::dense_dot(row, x)
    });
}
