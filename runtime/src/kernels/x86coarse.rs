//! Products of coarse codes with AVX2 and AVX-512 VNNI: the values are unsigned bytes below 64, the
//! vector is of signed bytes, as both instruction sets multiply them. What [`BIAS`] adds to every
//! value is taken off at the end, with the sum of the vector.

use core::arch::x86_64::*;
use core::ops::Range;

use super::coarse::{BIAS, BLOCK, CoarseRows, Line, Shared};
use super::x86::prefetch_after;

/// The vector of four blocks, and of one.
type Four = [[i8; BLOCK]; 4];
type One = [i8; BLOCK];

/// Walks the rows: `shared` adds the products of three lines, `single` those of one, `sum` ends.
#[inline(always)]
fn walk<A>(
    (rows, range): (&CoarseRows<'_>, Range<usize>),
    x: &[i8],
    out: &mut [f32],
    zero: impl Fn() -> A,
    shared: impl Fn(A, &Shared, &Four) -> A,
    single: impl Fn(A, &Line, &One) -> A,
    sum: impl Fn(A) -> i32,
) {
    let bias = BIAS * x.iter().map(|x| i32::from(*x)).sum::<i32>();
    let x = x.as_chunks::<BLOCK>().0;
    for (r, out) in range.zip(out) {
        let (lines, rest) = rows.row(r);
        let (four, one) = x.split_at(4 * lines.len());
        let mut acc = zero();
        for (lines, x) in lines.iter().zip(four.as_chunks::<4>().0) {
            lines.iter().for_each(|line| prefetch_after(line.as_ptr()));
            acc = shared(acc, lines, x);
        }
        for (line, x) in rest.iter().zip(one) {
            acc = single(acc, line, x);
        }
        *out = (sum(acc) - bias) as f32;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn avx512(rows: &CoarseRows<'_>, range: Range<usize>, x: &[i8], out: &mut [f32]) {
    walk(
        (rows, range),
        x,
        out,
        || [_mm512_setzero_si512(); 2],
        |acc, lines, x| add_shared_512(acc, lines, x),
        |[a, b], line, x| [_mm512_dpbusd_epi32(a, load_512(line), load_512(x)), b],
        |[a, b]| _mm512_reduce_add_epi32(_mm512_add_epi32(a, b)),
    );
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_shared_512([a, b]: [__m512i; 2], lines: &Shared, x: &Four) -> [__m512i; 2] {
    let [l0, l1, l2] = lines.each_ref().map(|line| load_512(line));
    let low = _mm512_set1_epi8(0x3f);
    let a = _mm512_dpbusd_epi32(a, _mm512_and_si512(l0, low), load_512(&x[0]));
    let b = _mm512_dpbusd_epi32(b, _mm512_and_si512(l1, low), load_512(&x[1]));
    let a = _mm512_dpbusd_epi32(a, _mm512_and_si512(l2, low), load_512(&x[2]));
    // Shifts cross bytes; the masks keep the two bits that are wanted of each.
    let first = _mm512_and_si512(_mm512_srli_epi16::<6>(l0), _mm512_set1_epi8(0x03));
    let second = _mm512_and_si512(_mm512_srli_epi16::<4>(l1), _mm512_set1_epi8(0x0c));
    let third = _mm512_and_si512(_mm512_srli_epi16::<2>(l2), _mm512_set1_epi8(0x30));
    let last = _mm512_or_si512(_mm512_or_si512(first, second), third);
    [a, _mm512_dpbusd_epi32(b, last, load_512(&x[3]))]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_512<T>(bytes: &[T; BLOCK]) -> __m512i {
    const { assert!(size_of::<T>() == 1) }
    // SAFETY: 64 readable bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
pub(super) fn avx2(rows: &CoarseRows<'_>, range: Range<usize>, x: &[i8], out: &mut [f32]) {
    walk(
        (rows, range),
        x,
        out,
        || [_mm256_setzero_si256(); 2],
        |acc, lines, x| add_shared_256(acc, lines, x),
        |acc, line, x| add_256(acc, load_256(line), x),
        |[a, b]| sum_256(_mm256_add_epi32(a, b)),
    );
}

/// Adds the products of a block: `2 * 63 * 128` fits the i16 of a pair.
#[inline]
#[target_feature(enable = "avx2")]
fn add_256(acc: [__m256i; 2], values: [__m256i; 2], x: &One) -> [__m256i; 2] {
    let x = load_256(x);
    let ones = _mm256_set1_epi16(1);
    let mut sums = acc;
    for i in 0..2 {
        let pairs = _mm256_maddubs_epi16(values[i], x[i]);
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_shared_256(mut acc: [__m256i; 2], lines: &Shared, x: &Four) -> [__m256i; 2] {
    let [l0, l1, l2] = lines.each_ref().map(|line| load_256(line));
    let low = _mm256_set1_epi8(0x3f);
    for (line, x) in [l0, l1, l2].iter().zip(x) {
        acc = add_256(acc, line.map(|half| _mm256_and_si256(half, low)), x);
    }
    let mut last = [_mm256_setzero_si256(); 2];
    for (i, last) in last.iter_mut().enumerate() {
        let first = _mm256_and_si256(_mm256_srli_epi16::<6>(l0[i]), _mm256_set1_epi8(0x03));
        let second = _mm256_and_si256(_mm256_srli_epi16::<4>(l1[i]), _mm256_set1_epi8(0x0c));
        let third = _mm256_and_si256(_mm256_srli_epi16::<2>(l2[i]), _mm256_set1_epi8(0x30));
        *last = _mm256_or_si256(_mm256_or_si256(first, second), third);
    }
    add_256(acc, last, &x[3])
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_256(x: __m256i) -> i32 {
    let mut lanes = [0i32; 8];
    // SAFETY: eight writable i32 are 32 bytes, and the store asks for no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), x) }
    lanes.iter().sum()
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_256<T>(bytes: &[T; BLOCK]) -> [__m256i; 2] {
    const { assert!(size_of::<T>() == 1) }
    let halves = bytes.as_chunks::<32>().0;
    // SAFETY: each half is 32 readable bytes, and the load asks for no alignment.
    [0, 1].map(|i| unsafe { _mm256_loadu_si256(halves[i].as_ptr().cast()) })
}
