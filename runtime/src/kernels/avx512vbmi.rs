//! AVX-512 with VNNI and VBMI: byte permutations look up the digits of a T5 byte.
//!
//! One table holds the first four digits of every byte as 2-bit fields, which is what T2 stores;
//! another holds the fifth. 256 entries are four registers: two permutations of 128 entries each,
//! and the top bit of the byte chooses. The tables are indexed by the stored byte.

use core::arch::x86_64::*;

use bitnet_formats::TernaryLayout;
use bitnet_formats::ternary::t5_digits;

use super::avx512vnni::{self, GROUPS, PLANES, TILE};
use super::avx512vnni::{add_fields, broadcast, dot_fields, load, store, store_sums};
use super::x86::{self, Line, Panel, Sums, prefetch_after};
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
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let layout = job.weights.layout;
    x86::ternary_gemm::<GROUPS, PLANES>(
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

/// A value for every byte.
type Table = [Line; 4];

/// Digits 0 to 3 of every stored byte, two bits each.
const FIELDS: Table = table(false);
/// Digit 4 of every stored byte.
const FIFTH: Table = table(true);

const fn table(fifth: bool) -> Table {
    let mut table = [[0; 64]; 4];
    let mut byte = 0;
    while byte < 256 {
        let [a, b, c, d, e] = t5_digits(byte as u8);
        table[byte / 64][byte % 64] = if fifth {
            e
        } else {
            a | b << 2 | c << 4 | d << 6
        };
        byte += 1;
    }
    table
}

#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn look_up(table: &[__m512i; 4], x: __m512i, upper: __mmask64) -> __m512i {
    let low = _mm512_permutex2var_epi8(table[0], x, table[1]);
    let high = _mm512_permutex2var_epi8(table[2], x, table[3]);
    _mm512_mask_blend_epi8(upper, low, high)
}

/// Both tables at once: the fields, and the fifth digits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn digits(tables: &[[__m512i; 4]; 2], line: &Line) -> [__m512i; 2] {
    let x = load(line);
    let upper = _mm512_movepi8_mask(x);
    [look_up(&tables[0], x, upper), look_up(&tables[1], x, upper)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn tables() -> [[__m512i; 4]; 2] {
    let load4 = |table: &Table| [0, 1, 2, 3].map(|i| load(&table[i]));
    [load4(&FIELDS), load4(&FIFTH)]
}

/// Per line: 4 permutations, 2 blends, 1 mask, 4 ands, 5 dot products.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn dot_t5(lines: &[Line], token: &[i8], sum: i32) -> Sums {
    let tables = tables();
    let mut acc = [_mm512_setzero_si512(); 4];
    let mut fifth_acc = _mm512_set1_epi32(-sum);
    for (line, token) in lines.iter().zip(token.as_chunks::<20>().0) {
        prefetch_after(line);
        let [fields, fifth] = digits(&tables, line);
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|p| token.as_chunks().0[p]);
        dot_fields(&mut acc, fields, &[a, b, c, d]);
        fifth_acc = _mm512_dpbusd_epi32(fifth_acc, fifth, broadcast(&e));
    }
    let mut sums = [0; 16];
    store_sums(&mut sums, _mm512_add_epi32(add_fields(acc), fifth_acc));
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack_t5(lines: &[Line], panel: &mut Panel<PLANES>) {
    let tables = tables();
    for (line, [planes @ .., last]) in lines.iter().zip(panel.0.as_chunks_mut::<5>().0) {
        prefetch_after(line);
        let [fields, fifth] = digits(&tables, line);
        avx512vnni::unpack_fields(fields, planes);
        store(last, fifth);
    }
}
