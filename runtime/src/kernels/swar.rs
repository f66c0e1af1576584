//! Ternary products with plain multiplications of 32 bits, two at a time.
//!
//! For small cores without vectors or DSP instructions (Cortex-M0+ to M3, RV32). The plain algorithm
//! takes one digit, one activation, one multiplication. Here a multiplication does two:
//!
//! 1. A word holds four bytes. Bytes 0 and 2 go to the 16-bit halves of one word, 1 and 3 to
//!    another; a plane is peeled off both halves at once (T5: times 3, the digits are bits 8 and 9
//!    of each half; T2: the digits are two bits).
//! 2. With digits `d0 + d2 2^16` and activations packed as `a2 + a0 2^16`, the product is
//!    `d0 a2 + (d0 a0 + d2 a2) 2^16` modulo 2^32: the upper half is what is wanted, the lower half is
//!    waste that carries into it.
//! 3. Both are summed in one register. While the waste stays in 16 signed bits it is known, so the
//!    carry is too: adding 2^15 before the shift undoes it. A product adds at most 2 * 128 to the
//!    waste and 2 * 2 * 128 to the sum, so 63 products fit before the register must be emptied.
//!
//! Digits are trit + 1; the sum of the activations is subtracted at the end.

use bitnet_formats::TernaryLayout;
use bitnet_formats::ternary::LINE_BYTES;

use super::words::{ROWS, WordDot, gemm, ternary_f32, words};
use super::{Isa, Kernels, Output, TernaryGemm, portable};

pub(super) const KERNELS: Kernels = Kernels {
    isa: Isa::Swar,
    ternary_gemm,
    ternary_f32,
    ..portable::KERNELS
};

/// Lines of T5 with at most 63 products to a row: 6 * 10.
const T5_FLUSH: usize = 6;
/// Lines of T2 with at most 63 products to a row: 7 * 8.
const T2_FLUSH: usize = 7;

fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    match job.weights.layout {
        TernaryLayout::T5R16 => gemm::<T5>(job, out),
        TernaryLayout::T2R16 => gemm::<T2>(job, out),
    }
}

/// For each plane, the activations that meet bytes 0 and 2, and those that meet 1 and 3.
type Pairs<const PLANES: usize> = [[u32; 2]; PLANES];

/// `a2 + a0 2^16` and `a3 + a1 2^16` of each plane.
#[inline(always)]
fn pairs<const PLANES: usize>(activations: &[i8]) -> Pairs<PLANES> {
    let planes = activations.as_chunks::<4>().0;
    core::array::from_fn(|p| {
        let [a0, a1, a2, a3] = planes[p].map(i32::from);
        [(a2 + (a0 << 16)) as u32, (a3 + (a1 << 16)) as u32]
    })
}

/// The upper halves of summed products, without the carry of the lower halves.
#[inline(always)]
fn upper(sum: u32) -> i32 {
    (sum.wrapping_add(0x8000) as i32) >> 16
}

struct T5;

impl WordDot for T5 {
    type Terms = Pairs<5>;
    const ZERO: Pairs<5> = [[0; 2]; 5];

    #[inline(always)]
    fn prepare(activations: &[i8]) -> Pairs<5> {
        pairs(activations)
    }

    #[inline(always)]
    fn dot(lines: &[[u8; LINE_BYTES]], terms: &[Pairs<5>], row: usize) -> [i32; ROWS] {
        let mut sums = [0; ROWS];
        for (lines, terms) in lines.chunks(T5_FLUSH).zip(terms.chunks(T5_FLUSH)) {
            let mut products = [0; ROWS];
            for (line, terms) in lines.iter().zip(terms) {
                let [a, b] = words(line, row);
                products = [
                    t5_products(a ^ 0x8080_8080, terms, products[0]),
                    t5_products(b ^ 0x8080_8080, terms, products[1]),
                ];
            }
            sums = [sums[0] + upper(products[0]), sums[1] + upper(products[1])];
        }
        sums
    }

    #[inline(always)]
    fn finish(sum: i32, activations: i32) -> i32 {
        sum - activations
    }
}

#[inline(always)]
fn t5_products(word: u32, terms: &Pairs<5>, sum: u32) -> u32 {
    let fractions = [word & 0x00ff_00ff, (word >> 8) & 0x00ff_00ff];
    let (fractions, sum) = t5_plane(fractions, terms[0], sum);
    let (fractions, sum) = t5_plane(fractions, terms[1], sum);
    let (fractions, sum) = t5_plane(fractions, terms[2], sum);
    let (fractions, sum) = t5_plane(fractions, terms[3], sum);
    t5_plane(fractions, terms[4], sum).1
}

/// Peels one plane: the fractions that are left, and the sum with its products.
///
/// Written out: compilers that optimise for size make loops of arrays of two.
#[inline(always)]
fn t5_plane([even, odd]: [u32; 2], [terms0, terms1]: [u32; 2], sum: u32) -> ([u32; 2], u32) {
    let (even, odd) = (even + (even << 1), odd + (odd << 1));
    let sum = sum.wrapping_add(((even >> 8) & 0x0003_0003).wrapping_mul(terms0));
    let sum = sum.wrapping_add(((odd >> 8) & 0x0003_0003).wrapping_mul(terms1));
    ([even & 0x00ff_00ff, odd & 0x00ff_00ff], sum)
}

struct T2;

impl WordDot for T2 {
    type Terms = Pairs<4>;
    const ZERO: Pairs<4> = [[0; 2]; 4];

    #[inline(always)]
    fn prepare(activations: &[i8]) -> Pairs<4> {
        pairs(activations)
    }

    #[inline(always)]
    fn dot(lines: &[[u8; LINE_BYTES]], terms: &[Pairs<4>], row: usize) -> [i32; ROWS] {
        let mut sums = [0; ROWS];
        for (lines, terms) in lines.chunks(T2_FLUSH).zip(terms.chunks(T2_FLUSH)) {
            let mut products = [0; ROWS];
            for (line, terms) in lines.iter().zip(terms) {
                let [a, b] = words(line, row);
                products = [
                    t2_products(a, terms, products[0]),
                    t2_products(b, terms, products[1]),
                ];
            }
            sums = [sums[0] + upper(products[0]), sums[1] + upper(products[1])];
        }
        sums
    }

    #[inline(always)]
    fn finish(sum: i32, activations: i32) -> i32 {
        sum - activations
    }
}

#[inline(always)]
fn t2_products(word: u32, terms: &Pairs<4>, sum: u32) -> u32 {
    let sum = t2_plane::<0>(word, terms[0], sum);
    let sum = t2_plane::<2>(word, terms[1], sum);
    let sum = t2_plane::<4>(word, terms[2], sum);
    t2_plane::<6>(word, terms[3], sum)
}

/// The sum with the products of the digits at bit `BIT` of each byte.
#[inline(always)]
fn t2_plane<const BIT: u32>(word: u32, terms: [u32; 2], sum: u32) -> u32 {
    let digits = [
        (word >> BIT) & 0x0003_0003,
        (word >> (BIT + 8)) & 0x0003_0003,
    ];
    let sum = sum.wrapping_add(digits[0].wrapping_mul(terms[0]));
    sum.wrapping_add(digits[1].wrapping_mul(terms[1]))
}
