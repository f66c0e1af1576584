//! 32-bit Arm with the DSP extension: Cortex-M4, M7, M33 and up, and all of ARMv6 and ARMv7-A.
//!
//! The plain algorithm takes one digit, one activation, one multiplication. `SMLAD` does two
//! products of signed 16-bit halves and both additions.
//!
//! T5, for one byte with trits t0..t4 and signed fractions X0..X5 (`256 t_p = 3 X_p - X_(p+1)`, the
//! byte and its successors times 3 modulo 256):
//!
//! 1. `256 sum_p t_p a_p = sum_p X_p b_p` over six terms, with `b_0 = 3 a_0`, `b_p = 3 a_p -
//!    a_(p-1)`, `b_5 = -a_4`: no digit is ever extracted. The b are prepared, |b| <= 512.
//! 2. The four bytes of a word are tripled together by two `UADD8`.
//! 3. `SXTB16` takes bytes 0 and 2 to signed halves, and with a rotation bytes 1 and 3.
//!
//! A word of 20 weights costs 10 `UADD8`, 12 `SXTB16`, 12 `SMLAD`, its load and a share of the loads
//! of b. Sums are modulo 2^32, which is exact: |256 sum| <= 256 * 65535 * 128 < 2^31.
//!
//! T2: masking two digits of a plane, shift included, is one `AND`; digits are trit + 1, so the
//! sum of the activations is subtracted at the end.

use core::arch::asm;
use core::ops::Range;

use bitnet_formats::ternary::LINE_BYTES;
use bitnet_formats::{MatrixView, Row, TernaryLayout};

use super::scalar::{dense_dot, i8_logit};
use super::words::{ROWS, WordDot, gemm, ternary_f32, words};
use super::{HeadInput, Isa, Kernels, Output, TernaryGemm, portable};

pub(super) const KERNELS: Kernels = Kernels {
    isa: Isa::Dsp,
    ternary_gemm,
    ternary_f32,
    head,
    ..portable::KERNELS
};

/// Columns of an int8 row whose products fit an i32, whatever the codes: 2^8 * 2^7 * 2^15 = 2^30.
const I8_BLOCK: usize = 256;

fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    match job.weights.layout {
        TernaryLayout::T5R16 => gemm::<T5>(job, out),
        TernaryLayout::T2R16 => gemm::<T2>(job, out),
    }
}

/// What meets bytes 0 and 2 of a word, and what meets bytes 1 and 3, as signed halves.
type Pair = [u32; 2];

/// Bytes 0 and 2 as signed halves.
#[inline(always)]
fn even_bytes(word: u32) -> u32 {
    let halves;
    // SAFETY: registers only; `arm_dsp` says that the target has the instruction.
    unsafe {
        asm!("sxtb16 {halves}, {word}", halves = lateout(reg) halves, word = in(reg) word,
            options(pure, nomem, nostack, preserves_flags));
    }
    halves
}

/// Bytes 1 and 3 as signed halves.
#[inline(always)]
fn odd_bytes(word: u32) -> u32 {
    even_bytes(word.rotate_right(8))
}

/// `3 a - before` in each half.
#[inline(always)]
fn next_term(a: u32, before: u32) -> u32 {
    let term;
    // SAFETY: registers only; `arm_dsp` says that the target has the instructions.
    unsafe {
        asm!(
            "sadd16 {term}, {a}, {a}",
            "sadd16 {term}, {term}, {a}",
            "ssub16 {term}, {term}, {before}",
            term = out(reg) term, a = in(reg) a, before = in(reg) before,
            options(pure, nomem, nostack)
        );
    }
    term
}

/// Adds the products of one plane; the offset is that of its terms.
macro_rules! t5_terms {
    ($offset:literal) => {
        concat!(
            "ldrd r2, r3, [{terms}, #",
            $offset,
            "]\n",
            "sxtb16 {t}, {x0}\n",
            "smlad {sum0}, {t}, r2, {sum0}\n",
            "sxtb16 {t}, {x1}\n",
            "smlad {sum1}, {t}, r2, {sum1}\n",
            "sxtb16 {t}, {x0}, ror #8\n",
            "smlad {sum0}, {t}, r3, {sum0}\n",
            "sxtb16 {t}, {x1}, ror #8\n",
            "smlad {sum1}, {t}, r3, {sum1}",
        )
    };
}

/// Takes the fractions to the next plane.
macro_rules! t5_triple {
    () => {
        concat!(
            "uadd8 {t}, {x0}, {x0}\n",
            "uadd8 {x0}, {t}, {x0}\n",
            "uadd8 {t}, {x1}, {x1}\n",
            "uadd8 {x1}, {t}, {x1}",
        )
    };
}

struct T5;

impl WordDot for T5 {
    type Terms = [Pair; 6];
    const ZERO: [Pair; 6] = [[0; 2]; 6];

    #[inline(always)]
    fn prepare(activations: &[i8]) -> [Pair; 6] {
        let planes = activations.as_chunks::<4>().0;
        let mut terms = Self::ZERO;
        let mut before = [0; 2];
        for (terms, plane) in terms.iter_mut().zip(planes) {
            let word = u32::from_le_bytes(plane.map(i8::cast_unsigned));
            let plane = [even_bytes(word), odd_bytes(word)];
            *terms = [
                next_term(plane[0], before[0]),
                next_term(plane[1], before[1]),
            ];
            before = plane;
        }
        terms[5] = [next_term(0, before[0]), next_term(0, before[1])];
        terms
    }

    #[inline(always)]
    fn dot(lines: &[[u8; LINE_BYTES]], terms: &[[Pair; 6]], row: usize) -> [i32; ROWS] {
        let [mut sum0, mut sum1] = [0; ROWS];
        for (line, terms) in lines.iter().zip(terms) {
            let [x0, x1] = words(line, row);
            // SAFETY: `arm_dsp` says that the target has the instructions; they read the 48 bytes of
            // `terms`, which is aligned for u32, and write nothing.
            unsafe {
                asm!(
                    t5_terms!(0), t5_triple!(),
                    t5_terms!(8), t5_triple!(),
                    t5_terms!(16), t5_triple!(),
                    t5_terms!(24), t5_triple!(),
                    t5_terms!(32), t5_triple!(),
                    t5_terms!(40),
                    x0 = inout(reg) x0 => _, x1 = inout(reg) x1 => _,
                    sum0 = inout(reg) sum0, sum1 = inout(reg) sum1,
                    terms = in(reg) terms, t = out(reg) _,
                    out("r2") _, out("r3") _,
                    options(pure, readonly, nostack)
                );
            }
        }
        [sum0, sum1]
    }

    #[inline(always)]
    fn finish(sum: i32, _: i32) -> i32 {
        sum >> 8
    }
}

/// Adds the products of one plane: the offset of its terms, and the bits where its digits begin in
/// bytes 0 and 1.
macro_rules! t2_terms {
    ($offset:literal, $even:literal, $odd:literal) => {
        concat!(
            "ldrd r2, r3, [{terms}, #",
            $offset,
            "]\n",
            "and {t}, {mask}, {x0}, lsr #",
            $even,
            "\n",
            "smlad {sum0}, {t}, r2, {sum0}\n",
            "and {t}, {mask}, {x1}, lsr #",
            $even,
            "\n",
            "smlad {sum1}, {t}, r2, {sum1}\n",
            "and {t}, {mask}, {x0}, lsr #",
            $odd,
            "\n",
            "smlad {sum0}, {t}, r3, {sum0}\n",
            "and {t}, {mask}, {x1}, lsr #",
            $odd,
            "\n",
            "smlad {sum1}, {t}, r3, {sum1}",
        )
    };
}

struct T2;

impl WordDot for T2 {
    type Terms = [Pair; 4];
    const ZERO: [Pair; 4] = [[0; 2]; 4];

    #[inline(always)]
    fn prepare(activations: &[i8]) -> [Pair; 4] {
        let planes = activations.as_chunks::<4>().0;
        core::array::from_fn(|p| {
            let word = u32::from_le_bytes(planes[p].map(i8::cast_unsigned));
            [even_bytes(word), odd_bytes(word)]
        })
    }

    #[inline(always)]
    fn dot(lines: &[[u8; LINE_BYTES]], terms: &[[Pair; 4]], row: usize) -> [i32; ROWS] {
        let [mut sum0, mut sum1] = [0; ROWS];
        for (line, terms) in lines.iter().zip(terms) {
            let [x0, x1] = words(line, row);
            // SAFETY: `arm_dsp` says that the target has the instructions; they read the 32 bytes of
            // `terms`, which is aligned for u32, and write nothing.
            unsafe {
                asm!(
                    t2_terms!(0, 0, 8),
                    t2_terms!(8, 2, 10),
                    t2_terms!(16, 4, 12),
                    t2_terms!(24, 6, 14),
                    x0 = in(reg) x0, x1 = in(reg) x1,
                    sum0 = inout(reg) sum0, sum1 = inout(reg) sum1,
                    mask = in(reg) 0x0003_0003,
                    terms = in(reg) terms, t = out(reg) _,
                    out("r2") _, out("r3") _,
                    options(pure, readonly, nostack)
                );
            }
        }
        [sum0, sum1]
    }

    #[inline(always)]
    fn finish(sum: i32, activations: i32) -> i32 {
        sum - activations
    }
}

fn head(matrix: &MatrixView<'_>, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
    for (r, out) in rows.zip(out) {
        *out = match (matrix.row(r), input) {
            (Row::I8(codes, scale), HeadInput::I16(x, inverse)) => {
                let blocks = codes.chunks(I8_BLOCK).zip(x.chunks(I8_BLOCK));
                let sums = blocks.map(|(w, x)| i64::from(i8_block(w, x)));
                i8_logit(sums.sum(), scale, inverse)
            }
            (row, HeadInput::F32(x)) => dense_dot(row, x),
            _ => unreachable!("checked by Kernels::head"),
        };
    }
}

/// At most [`I8_BLOCK`] products.
#[inline(always)]
fn i8_block(codes: &[u8], x: &[i16]) -> i32 {
    let ((words, codes), (fours, x)) = (codes.as_chunks::<4>(), x.as_chunks::<4>());
    let mut sum = 0;
    for (word, four) in words.iter().zip(fours) {
        // SAFETY: `arm_dsp` says that the target has the instructions; they read the 4 bytes of
        // `word` and the 8 of `four`, by loads that need no alignment, and write nothing.
        unsafe {
            asm!(
                "ldr {w}, [{word}]",
                "ldr {a}, [{four}]",
                "ldr {b}, [{four}, #4]",
                "pkhbt {t}, {a}, {b}, lsl #16",
                "pkhtb {b}, {b}, {a}, asr #16",
                "sxtb16 {a}, {w}",
                "smlad {sum}, {a}, {t}, {sum}",
                "sxtb16 {a}, {w}, ror #8",
                "smlad {sum}, {a}, {b}, {sum}",
                word = in(reg) word, four = in(reg) four, sum = inout(reg) sum,
                w = out(reg) _, a = out(reg) _, b = out(reg) _, t = out(reg) _,
                options(pure, readonly, nostack)
            );
        }
    }
    let rest = codes.iter().zip(x);
    rest.fold(sum, |sum: i32, (w, x)| {
        sum + i32::from(*w as i8) * i32::from(*x)
    })
}
