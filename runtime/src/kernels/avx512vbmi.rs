//! AVX-512 with VNNI and VBMI: byte permutations look up the digits of a T5 byte.
//!
//! One table holds the first four digits of a byte as 2-bit fields, which is what T2 stores; another
//! holds the fifth. A permutation has 128 entries and a byte 256 values, but the stored byte is signed
//! and negating it negates its trits, which takes a digit `d` to `2 - d`: so the magnitude is looked
//! up, and the digits of negative bytes are subtracted from twos. Two details make that exact:
//!
//! 1. -128 stands for -121 and has no positive counterpart; magnitudes saturate at 127, which
//!    stands for 121.
//! 2. Codes are rounded up, so some negative codes are one further from zero than the positive ones.
//!    The byte they share their magnitude with is no code, and its entry is theirs ([`table`]).

use core::arch::x86_64::*;

use bitnet_formats::TernaryLayout;
use bitnet_formats::ternary::t5_digits;

use super::avx512vnni::{self, GROUPS, PLANES, TILE};
use super::avx512vnni::{add_fields, broadcast, dot_fields, load, store, store_sums};
use super::walk::{self, Line, Panel, Sums};
use super::x86::{self, prefetch_after, prefetch_ahead};
use super::{Isa, Kernels, Output, TernaryGemm};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<Kernels> {
    x86::has!("avx512vbmi").then_some(Kernels {
        isa: Isa::Avx512Vbmi,
        ternary_gemm,
        ..avx512vnni::kernels()?
    })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
pub(super) fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    walk::ternary_gemm::<GROUPS, PLANES>(
        job,
        out,
        |lines, token, sum| match layout {
            TernaryLayout::T5R16 => dot_t5(lines, token, sum),
            TernaryLayout::T2R16 => avx512vnni::dot_t2(lines, token, sum),
        },
        |lines, panel| match layout {
            TernaryLayout::T5R16 => unpack_t5(lines, panel),
            TernaryLayout::T2R16 => avx512vnni::unpack_t2(lines, panel),
        },
        TILE,
        |panels, tile, acc| avx512vnni::multiply(panels, &tile, acc),
    );
}

/// A value for every magnitude of a stored byte.
type Table = [Line; 2];

/// Digits 0 to 3, two bits each.
const FIELDS: Table = table(false);
/// Digit 4.
const FIFTH: Table = table(true);
/// What digits of negative bytes are subtracted from: a two in every field.
const TWOS: [u8; 2] = [0b10_10_10_10, 2];

const fn table(fifth: bool) -> Table {
    let mut table = [[0; 64]; 2];
    let mut magnitude = 0;
    while magnitude < 128 {
        let mut digits = t5_digits(magnitude as u8);
        if !TernaryLayout::T5R16.is_code(magnitude as u8) {
            let negative = t5_digits((magnitude as u8).wrapping_neg());
            let mut p = 0;
            while p < 5 {
                digits[p] = 2 - negative[p];
                p += 1;
            }
        }
        let [a, b, c, d, e] = digits;
        table[magnitude / 64][magnitude % 64] = if fifth {
            e
        } else {
            a | b << 2 | c << 4 | d << 6
        };
        magnitude += 1;
    }
    table
}

/// Tables and what goes with them, in registers.
#[derive(Clone, Copy)]
struct Tables {
    entries: [[__m512i; 2]; 2],
    twos: [__m512i; 2],
}

#[inline]
#[target_feature(enable = "avx512f")]
fn tables() -> Tables {
    let load2 = |table: &Table| [load(&table[0]), load(&table[1])];
    Tables {
        entries: [load2(&FIELDS), load2(&FIFTH)],
        twos: [
            _mm512_set1_epi8(TWOS[0] as i8),
            _mm512_set1_epi8(TWOS[1] as i8),
        ],
    }
}

/// Both tables at once: the fields, and the fifth digits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn digits(tables: &Tables, line: &Line) -> [__m512i; 2] {
    let x = load(line);
    let negative = _mm512_movepi8_mask(x);
    let magnitude = _mm512_mask_subs_epi8(x, negative, _mm512_setzero_si512(), x);
    let [fields, fifth] = tables.entries;
    let fields = _mm512_permutex2var_epi8(fields[0], magnitude, fields[1]);
    let fifth = _mm512_permutex2var_epi8(fifth[0], magnitude, fifth[1]);
    [
        _mm512_mask_sub_epi8(fields, negative, tables.twos[0], fields),
        _mm512_mask_sub_epi8(fifth, negative, tables.twos[1], fifth),
    ]
}

/// Sums of one token: four for the fields and one for the fifth digits.
#[derive(Clone, Copy)]
struct Accumulators {
    fields: [__m512i; 4],
    fifth: __m512i,
}

/// Adds the products of a line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn add_line(acc: &mut Accumulators, tables: &Tables, line: &Line, token: &[i8; 20]) {
    prefetch_after(line);
    let [fields, fifth] = digits(tables, line);
    let ([a, b, c, d, e], _) = token.as_chunks() else {
        unreachable!("twenty are five fours");
    };
    dot_fields(&mut acc.fields, fields, &[*a, *b, *c, *d]);
    acc.fifth = _mm512_dpbusd_epi32(acc.fifth, fifth, broadcast(e));
}

/// Per line: 1 mask, 1 subtraction, 2 permutations, 2 subtractions, 4 ands, 5 dot products. Lines
/// alternate between two sets of sums, so that no dot product waits for the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn dot_t5(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let tables = tables();
    let mut acc = [Accumulators {
        fields: [_mm512_setzero_si512(); 4],
        fifth: _mm512_setzero_si512(),
    }; 2];
    let (tokens, _) = token.as_chunks::<20>();
    let ((pairs, last), (token_pairs, _)) = (lines.as_chunks::<2>(), tokens.as_chunks::<2>());
    for (pair, tokens) in pairs.iter().zip(token_pairs) {
        add_line(&mut acc[0], &tables, &pair[0], &tokens[0]);
        add_line(&mut acc[1], &tables, &pair[1], &tokens[1]);
    }
    if let [line] = last {
        add_line(&mut acc[0], &tables, line, &tokens[lines.len() - 1]);
    }
    let [a, b] = acc;
    let fields = _mm512_add_epi32(add_fields(a.fields), add_fields(b.fields));
    let fifth = _mm512_add_epi32(a.fifth, b.fifth);
    let total = _mm512_add_epi32(fields, fifth);
    let mut sums = [0; 16];
    store_sums(&mut sums, _mm512_sub_epi32(total, _mm512_set1_epi32(sum)));
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn unpack_t5<const N: usize>(lines: &[Line], panel: &mut Panel<N>) {
    let tables = tables();
    for (line, [planes @ .., last]) in lines.iter().zip(panel.0.as_chunks_mut::<5>().0) {
        prefetch_ahead(line, N / 5);
        let [fields, fifth] = digits(&tables, line);
        avx512vnni::unpack_fields(fields, planes);
        store(last, fifth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables alone, as the kernels use them, against the definition for every code.
    #[test]
    fn every_code_has_its_digits() {
        for byte in (0..=255u8).filter(|byte| TernaryLayout::T5R16.is_code(*byte)) {
            let negative = byte >= 128;
            let magnitude = usize::from((byte as i8).saturating_abs() as u8);
            let entry = |table: &Table| table[magnitude / 64][magnitude % 64];
            let fixed = |entry: u8, twos: u8| if negative { twos - entry } else { entry };
            let (fields, fifth) = (entry(&FIELDS), entry(&FIFTH));
            let fields = fixed(fields, TWOS[0]);
            let found = [0, 2, 4, 6].map(|bits| fields >> bits & 3);
            let [a, b, c, d, e] = t5_digits(byte);
            assert_eq!(found, [a, b, c, d], "{byte}");
            assert_eq!(fixed(fifth, TWOS[1]), e, "{byte}");
        }
    }
}
