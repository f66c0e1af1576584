//! Attention of several queries over the same cached rows, with AVX-512.
//!
//! One query reads every key for itself, converts it, and folds sixteen lanes for each score. Here
//! queries and keys meet in tiles of sixteen sums, `M` queries by `16 / M` keys:
//!
//! 1. A key is loaded and converted once for `M` queries, a query once for `16 / M` keys.
//! 2. Sixteen sums of sixteen lanes are folded together: each level adds the halves of two registers
//!    into one, so fifteen additions end in one register of sixteen scores.
//! 3. Weighted sums keep `M` times [`COLUMNS`] outputs in registers while the positions go by.
//!
//! Every sum has the terms and the order of the definition; products and sums are rounded apart.

use core::arch::x86_64::*;

use super::CacheRows;

/// Elements of a register.
const LANES: usize = 16;
/// Registers of output columns that share a walk over the positions.
const COLUMNS: usize = 4;

/// A cached element as the register's lanes read it.
trait Cached: Copy {
    /// Sixteen elements from `row`, those outside of `mask` zero.
    ///
    /// # Safety
    ///
    /// The elements of `mask` are readable, and the machine has AVX-512 F and BW with VL.
    unsafe fn load(row: *const Self, mask: __mmask16) -> __m512;
}

impl Cached for f32 {
    #[inline(always)]
    unsafe fn load(row: *const Self, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's promise; masked elements are not touched.
        unsafe { _mm512_maskz_loadu_ps(mask, row) }
    }
}

impl Cached for u16 {
    #[inline(always)]
    unsafe fn load(row: *const Self, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's promise; masked elements are not touched.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row.cast())) }
    }
}

/// The lanes of the columns from `first` on that a row of `width` has.
#[inline(always)]
const fn mask(first: usize, width: usize) -> __mmask16 {
    match width - first {
        0..LANES => (1 << (width - first)) - 1,
        _ => !0,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn scores_of(
    queries: &[&[f32]],
    keys: CacheRows<'_>,
    scale: f32,
    scores: &mut [f32],
    stride: usize,
) {
    let mut done = 0;
    while done < queries.len() {
        let (queries, scores) = (&queries[done..], &mut scores[done * stride..]);
        done += match (queries, keys) {
            ([a, b, c, d, ..], CacheRows::F32(keys)) => {
                rows([*a, *b, *c, *d], keys, scale, scores, stride)
            }
            ([a, b, c, d, ..], CacheRows::F16(keys)) => {
                rows([*a, *b, *c, *d], keys, scale, scores, stride)
            }
            ([a, b, ..], CacheRows::F32(keys)) => rows([*a, *b], keys, scale, scores, stride),
            ([a, b, ..], CacheRows::F16(keys)) => rows([*a, *b], keys, scale, scores, stride),
            ([a, ..], CacheRows::F32(keys)) => rows([*a], keys, scale, scores, stride),
            ([a, ..], CacheRows::F16(keys)) => rows([*a], keys, scale, scores, stride),
            ([], _) => unreachable!("some query is left"),
        };
    }
}

/// The scores of `M` queries; returns `M`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn rows<T: Cached, const M: usize>(
    queries: [&[f32]; M],
    keys: &[T],
    scale: f32,
    scores: &mut [f32],
    stride: usize,
) -> usize {
    let width = queries[0].len();
    let per_tile = LANES / M;
    for (t, keys) in keys.chunks(per_tile * width).enumerate() {
        let n = keys.len() / width;
        let tile = tile(queries, keys, n, scale);
        for (m, tile) in tile.chunks_exact(per_tile).enumerate() {
            let first = m * stride + t * per_tile;
            scores[first..first + n].copy_from_slice(&tile[..n]);
        }
    }
    M
}

/// The scores of `M` queries and `n <= 16 / M` keys: that of query `m` and key `k` is number
/// `m * 16 / M + k`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn tile<T: Cached, const M: usize>(
    queries: [&[f32]; M],
    keys: &[T],
    n: usize,
    scale: f32,
) -> [f32; LANES] {
    let (width, per_tile) = (queries[0].len(), LANES / M);
    let mut sums = [_mm512_setzero_ps(); LANES];
    for first in (0..width).step_by(LANES) {
        let mask = mask(first, width);
        let mut parts = [_mm512_setzero_ps(); M];
        for (part, query) in parts.iter_mut().zip(queries) {
            // SAFETY: the mask is of the columns that are left of a query; `rows` has the features.
            *part = unsafe { f32::load(query[first..].as_ptr(), mask) };
        }
        for k in 0..per_tile {
            // A missing key repeats the last; its scores are not used.
            let row = &keys[k.min(n - 1) * width + first..];
            // SAFETY: as above, of a key, which is as wide.
            let key = unsafe { T::load(row.as_ptr(), mask) };
            for (m, query) in parts.into_iter().enumerate() {
                let sum = &mut sums[leaf(m * per_tile + k)];
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(key, query));
            }
        }
    }
    let scores = _mm512_mul_ps(fold(sums), _mm512_set1_ps(scale));
    let mut out = [0.0; LANES];
    // SAFETY: sixteen writable f32, and the store asks for no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), scores) };
    out
}

/// Which sum [`fold`] leaves in `lane`.
#[inline(always)]
const fn leaf(lane: usize) -> usize {
    4 * (lane % 4) + lane / 4
}

/// Folds sixteen sums 8, 4, 2, 1 at once: lane `i` of the result is sum `leaf(i)`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold(sums: [__m512; LANES]) -> __m512 {
    // Loops, not `array::from_fn`: a closure may end up in a function without the features.
    let mut by8 = [_mm512_setzero_ps(); 8];
    for (to, [a, b]) in by8.iter_mut().zip(sums.as_chunks().0) {
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(*a, *b);
        *to = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(*a, *b));
    }
    let mut by4 = [_mm512_setzero_ps(); 4];
    for (to, [a, b]) in by4.iter_mut().zip(by8.as_chunks().0) {
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(*a, *b);
        *to = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(*a, *b));
    }
    let mut by2 = [_mm512_setzero_ps(); 2];
    for (to, [a, b]) in by2.iter_mut().zip(by4.as_chunks().0) {
        let low = _mm512_shuffle_ps::<0b01_00_01_00>(*a, *b);
        *to = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(*a, *b));
    }
    let low = _mm512_shuffle_ps::<0b10_00_10_00>(by2[0], by2[1]);
    _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_01_11_01>(by2[0], by2[1]))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn add_mixes(
    values: CacheRows<'_>,
    weights: &[f32],
    stride: usize,
    outs: &mut [f32],
    width: usize,
) {
    match values {
        CacheRows::F32(values) => mixes(values, weights, stride, outs, width),
        CacheRows::F16(values) => mixes(values, weights, stride, outs, width),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn mixes<T: Cached>(values: &[T], weights: &[f32], stride: usize, outs: &mut [f32], width: usize) {
    let mut done = 0;
    while done < outs.len() / width {
        let (weights, outs) = (&weights[done * stride..], &mut outs[done * width..]);
        done += match outs.len() / width {
            4.. => mix::<T, 4>(values, weights, stride, outs, width),
            2.. => mix::<T, 2>(values, weights, stride, outs, width),
            _ => mix::<T, 1>(values, weights, stride, outs, width),
        };
    }
}

/// Adds to the outputs of `M` queries; returns `M`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn mix<T: Cached, const M: usize>(
    values: &[T],
    weights: &[f32],
    stride: usize,
    outs: &mut [f32],
    width: usize,
) -> usize {
    let n = values.len() / width;
    let weights: [&[f32]; M] = core::array::from_fn(|m| &weights[m * stride..][..n]);
    let mut first = 0;
    while first < width {
        let left = (width - first).div_ceil(LANES);
        first += LANES
            * match left {
                COLUMNS.. => mix_columns::<T, M, COLUMNS>(values, weights, outs, width, first),
                2.. => mix_columns::<T, M, 2>(values, weights, outs, width, first),
                _ => mix_columns::<T, M, 1>(values, weights, outs, width, first),
            };
    }
    M
}

/// Adds to `C` registers of the columns from `first` on; returns `C`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn mix_columns<T: Cached, const M: usize, const C: usize>(
    values: &[T],
    weights: [&[f32]; M],
    outs: &mut [f32],
    width: usize,
    first: usize,
) -> usize {
    let columns: [usize; C] = core::array::from_fn(|c| first + c * LANES);
    let masks = columns.map(|column| mask(column, width));
    let mut sums = [[_mm512_setzero_ps(); C]; M];
    for (m, sums) in sums.iter_mut().enumerate() {
        for c in 0..C {
            // SAFETY: the mask is of the columns that are left of this output.
            sums[c] = unsafe { f32::load(outs[m * width + columns[c]..].as_ptr(), masks[c]) };
        }
    }
    for (j, row) in values.chunks_exact(width).enumerate() {
        let mut parts = [_mm512_setzero_ps(); C];
        for c in 0..C {
            // SAFETY: the mask is of the columns that are left of this row.
            parts[c] = unsafe { T::load(row[columns[c]..].as_ptr(), masks[c]) };
        }
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = _mm512_set1_ps(weights[j]);
            for c in 0..C {
                sums[c] = _mm512_add_ps(sums[c], _mm512_mul_ps(weight, parts[c]));
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for c in 0..C {
            let out = outs[m * width + columns[c]..].as_mut_ptr();
            // SAFETY: the mask is of the columns that are left of this output.
            unsafe { _mm512_mask_storeu_ps(out, masks[c], sums[c]) };
        }
    }
    C
}
