//! The byte dot product of cores since Cortex-A55 and A75: a line is four instructions.
//!
//! T5 by one token needs no trits. With `x` the signed fraction of a byte and `x'` its next one,
//! `3 x = 256 t + x'`, hence `256 sum t a = 3 sum x a - sum x' a`: two dot products of raw bytes per
//! plane. Both sums may wrap; the difference of [`finish_t5`] fits an i32 and is exact.
//!
//! The intrinsics of this product are not yet in the stable compiler: [`dot`] is the instruction.

use core::arch::aarch64::*;
use core::arch::asm;

use bitnet_formats::TernaryLayout;

use super::aarch64::{self, prefetch_after};
use super::neon::{self, Quarters32, add_to, load, load_i8, next_fraction};
use super::walk::{self, Line, Panel, Sums, Tile, with_count};
use super::{Isa, Kernels, Output, TernaryGemm};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    aarch64::has!("dotprod").then_some(Kernels {
        isa: Isa::DotProd,
        ternary_gemm,
        ..neon::kernels()?
    })
}

/// Planes of a panel: 16 lines of T5, 20 of T2.
pub(super) const PLANES: usize = 80;
/// Tokens of a tile: 16 sums, 4 registers of activations, 4 of digits.
const TILE: usize = 4;

#[target_feature(enable = "neon,dotprod")]
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    walk::ternary_gemm::<1, PLANES>(
        job,
        out,
        |lines, token, sum| match layout {
            TernaryLayout::T5R16 => dot_t5(lines, token),
            TernaryLayout::T2R16 => dot_t2(lines, token, sum),
        },
        |lines, panel| neon::unpack(layout, lines, panel),
        TILE,
        |panels, tile, acc| {
            with_count!(acc.len(), [1 2 3 4], multiply(&panels[0], &tile, acc));
        },
    );
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn zero() -> Quarters32 {
    [vdupq_n_s32(0); 4]
}

/// Adds to each row the products of its four codes and activations `4 P .. 4 P + 4`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const P: usize>(acc: &mut int32x4_t, codes: int8x16_t, activations: int8x16_t) {
    // SAFETY: from registers to a register; this function runs where the instruction exists.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {codes:v}.16b, {activations:v}.4b[{p}]",
            acc = inout(vreg) *acc,
            codes = in(vreg) codes,
            activations = in(vreg) activations,
            p = const P,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Sums of `x a` and of `x' a`.
struct Telescope {
    here: Quarters32,
    next: Quarters32,
}

impl Telescope {
    /// Takes one plane, and leaves the fractions of the next.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn plane<const P: usize>(&mut self, x: &mut neon::Quarters, activations: int8x16_t) {
        for (q, x) in x.iter_mut().enumerate() {
            dot::<P>(&mut self.here[q], *x, activations);
            *x = next_fraction(*x);
            dot::<P>(&mut self.next[q], *x, activations);
        }
    }
}

/// Per quarter: 5 products by three, 10 dot products.
#[target_feature(enable = "neon,dotprod")]
fn dot_t5(lines: &[Line], token: &[i8]) -> Sums {
    let mut sums = Telescope {
        here: zero(),
        next: zero(),
    };
    for (line, token) in lines.iter().zip(token.as_chunks::<20>().0) {
        prefetch_after(line);
        let mut x = load(line);
        let first = load_i8(token.first_chunk().unwrap());
        let last = load_i8(token.last_chunk().unwrap());
        sums.plane::<0>(&mut x, first);
        sums.plane::<1>(&mut x, first);
        sums.plane::<2>(&mut x, first);
        sums.plane::<3>(&mut x, first);
        sums.plane::<3>(&mut x, last);
    }
    finish_t5(sums.here, sums.next)
}

/// `(3 here - next) / 256`. What is shifted is `256 sum t a`, below 2^31 for 65,535 columns.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn finish_t5(here: Quarters32, next: Quarters32) -> Sums {
    let mut sums = [0; 16];
    let quarters = [0, 1, 2, 3].map(|q| {
        let tripled = vmulq_n_s32(here[q], 3);
        vshrq_n_s32::<8>(vsubq_s32(tripled, next[q]))
    });
    add_to(&mut sums, quarters);
    sums
}

/// Per quarter: 3 masks, 1 shift, 4 dot products; but for the last, field `p` of the sums is too large
/// by `4^p` to the end.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot_t2(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let mut acc = [zero(); 4];
    let field = |x, p: u32| vandq_s8(x, vdupq_n_s8(3 << (2 * p)));
    for (line, token) in lines.iter().zip(token.as_chunks::<16>().0) {
        prefetch_after(line);
        let a = load_i8(token);
        for (q, x) in load(line).into_iter().enumerate() {
            let upper = vshrq_n_u8::<6>(vreinterpretq_u8_s8(x));
            dot::<0>(&mut acc[0][q], field(x, 0), a);
            dot::<1>(&mut acc[1][q], field(x, 1), a);
            dot::<2>(&mut acc[2][q], field(x, 2), a);
            dot::<3>(&mut acc[3][q], vreinterpretq_s8_u8(upper), a);
        }
    }
    let [a, b, c, d] = acc;
    let mut sums = [-sum; 16];
    add_to(&mut sums, a);
    add_to(&mut sums, b.map(|b| vshrq_n_s32::<2>(b)));
    add_to(&mut sums, c.map(|c| vshrq_n_s32::<4>(c)));
    add_to(&mut sums, d);
    sums
}

/// Adds a panel times tokens to the tokens' sums, four planes at a time.
#[target_feature(enable = "neon,dotprod")]
fn multiply<const N: usize>(panel: &Panel<PLANES>, tile: &Tile<'_>, acc: &mut [[Sums; 1]]) {
    let tokens = tile.tokens::<N>();
    let (blocks, rest) = panel.0[..tile.fours.1].as_chunks::<4>();
    let sixteens = tokens.map(|token| &token.as_flattened().as_chunks().0[..blocks.len()]);
    let mut sums = [zero(); N];
    for (b, [p0, p1, p2, p3]) in blocks.iter().enumerate() {
        let a = sixteens.map(|token| load_i8(&token[b]));
        add_plane::<0, N>(&mut sums, p0, a);
        add_plane::<1, N>(&mut sums, p1, a);
        add_plane::<2, N>(&mut sums, p2, a);
        add_plane::<3, N>(&mut sums, p3, a);
    }
    for (j, plane) in (4 * blocks.len()..).zip(rest) {
        let a = tokens.map(|token| neon::broadcast(&token[j]));
        add_plane::<0, N>(&mut sums, plane, a);
    }
    for ([acc], sums) in acc.iter_mut().zip(sums) {
        add_to(acc, sums);
    }
}

/// Adds a plane times activations `4 P .. 4 P + 4` of every token.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_plane<const P: usize, const N: usize>(
    sums: &mut [Quarters32; N],
    plane: &Line,
    activations: [int8x16_t; N],
) {
    for (q, digits) in load(plane).into_iter().enumerate() {
        for (sums, a) in sums.iter_mut().zip(activations) {
            dot::<P>(&mut sums[q], digits, a);
        }
    }
}
