//! Bringing operands into the order in which tiles read them.

use std::marker::PhantomData;
use std::ops::Range;

use bitnet_formats::float::f32_to_bf16;
use zerocopy::{Immutable, IntoBytes};

use super::rows::Rows;
use super::tiled::Tile;
use crate::ops::simd::vectorized;

/// A block of an operand: rows of `a` or columns of `b`, and steps along `k`.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) outer: Range<usize>,
    pub(super) ks: Range<usize>,
}

/// Rows of `a` as tiles read them, in memory lent for `'a`.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedA<'a> {
    base: *const u8,
    /// From one group of `MR` rows to the next.
    group_bytes: usize,
    pub(super) row_bytes: usize,
    pub(super) step_bytes: usize,
    /// Words in a row.
    pub(super) depth: usize,
    lent: PhantomData<&'a u32>,
}

impl<'a> PackedA<'a> {
    /// Rows of whole words where they lie; `ks` counts elements.
    pub(super) fn in_place<E>(a: Rows<'a, E>, Block { outer: ms, ks }: Block, mr: usize) -> Self {
        assert!(ms.end <= a.len() && ks.end <= a.cols());
        let at = ms.start * a.stride_bytes() + ks.start * size_of::<E>();
        Self {
            base: a.as_ptr().cast::<u8>().wrapping_add(at),
            group_bytes: a.stride_bytes() * mr,
            row_bytes: a.stride_bytes(),
            step_bytes: 4,
            depth: ks.len() * size_of::<E>() / 4,
            lent: PhantomData,
        }
    }

    /// `[rows / mr, depth, mr]` words.
    fn groups(words: &'a [u32], mr: usize, depth: usize) -> Self {
        Self {
            base: words.as_ptr().cast(),
            group_bytes: 4 * depth * mr,
            row_bytes: 4,
            step_bytes: 4 * mr,
            depth,
            lent: PhantomData,
        }
    }

    /// `[rows, depth]` words.
    fn rows(words: &'a [u32], mr: usize, depth: usize) -> Self {
        Self {
            base: words.as_ptr().cast(),
            group_bytes: 4 * depth * mr,
            row_bytes: 4 * depth,
            step_bytes: 4,
            depth,
            lent: PhantomData,
        }
    }

    /// Where group `g` begins.
    pub(super) fn group(&self, g: usize) -> *const u8 {
        self.base.wrapping_add(g * self.group_bytes)
    }
}

fn room(words: &mut Vec<u32>, len: usize) -> &mut [u32] {
    if words.len() < len {
        words.resize(len, 0);
    }
    &mut words[..len]
}

/// Rows `ms` and columns `ks` of `a` as words of one f32, where they lie.
pub(super) fn rows_f32<'s>(
    a: Rows<'s, f32>,
    block: Block,
    mr: usize,
    _scratch: &'s mut Vec<u32>,
) -> PackedA<'s> {
    PackedA::in_place(a, block, mr)
}

/// Rows `ms` and columns `ks` of the transpose of `a`, column `k` divided by `scales[k]` if there
/// are any, as words of one f32.
pub(super) fn columns_f32<'s, const MR: usize>(
    a: Rows<'_, f32>,
    Block { outer: ms, ks }: Block,
    scales: &[f32],
    scratch: &'s mut Vec<u32>,
) -> PackedA<'s> {
    let depth = ks.len();
    let words = room(scratch, ms.len().div_ceil(MR) * MR * depth);
    vectorized!({
        for (step, k) in ks.enumerate() {
            let factor = scales.get(k).map_or(1.0, |scale| 1.0 / scale);
            let row = &a.row(k)[ms.clone()];
            for (group, values) in words.chunks_exact_mut(MR * depth).zip(row.chunks(MR)) {
                let words = &mut group.as_chunks_mut::<MR>().0[step];
                each(values, words, |value| (value * factor).to_bits());
            }
        }
    });
    PackedA::groups(words, MR, depth)
}

/// As [`columns_f32`], as words of two bf16.
pub(super) fn columns_bf16<'s, const MR: usize>(
    a: Rows<'_, f32>,
    Block { outer: ms, ks }: Block,
    scales: &[f32],
    scratch: &'s mut Vec<u32>,
) -> PackedA<'s> {
    let depth = ks.len().div_ceil(2);
    let words = room(scratch, ms.len().div_ceil(MR) * MR * depth);
    let scaled = |k: usize| scales.get(k).map_or(1.0, |scale| 1.0 / scale);
    vectorized!({
        for step in 0..depth {
            let k = ks.start + 2 * step;
            let odd = (k + 1).min(ks.end - 1);
            let factors = [scaled(k), if odd > k { scaled(odd) } else { 0.0 }];
            let rows = (&a.row(k)[ms.clone()], &a.row(odd)[ms.clone()]);
            let values = rows.0.chunks(MR).zip(rows.1.chunks(MR));
            for (group, (even, odd)) in words.chunks_exact_mut(MR * depth).zip(values) {
                let words = &mut group.as_chunks_mut::<MR>().0[step];
                each(even, words, |value| low_half(value * factors[0]));
                join(odd, words, |word, value| {
                    word | low_half(value * factors[1]) << 16
                });
            }
        }
    });
    PackedA::groups(words, MR, depth)
}

/// Rows `ms` and columns `ks` of `a` as words of two bf16.
pub(super) fn rows_bf16<'s>(
    a: Rows<'_, f32>,
    Block { outer: ms, ks }: Block,
    mr: usize,
    scratch: &'s mut Vec<u32>,
) -> PackedA<'s> {
    let depth = ks.len().div_ceil(2);
    let words = room(scratch, ms.len() * depth);
    vectorized!({
        for (words, m) in words.chunks_exact_mut(depth).zip(ms) {
            let (pairs, last) = a.row(m)[ks.clone()].as_chunks::<2>();
            for (word, [even, odd]) in words.iter_mut().zip(pairs) {
                *word = pair(*even, *odd);
            }
            if let [last] = last {
                words[depth - 1] = pair(*last, 0.0);
            }
        }
    });
    PackedA::rows(words, mr, depth)
}

/// A value as bf16.
#[inline(always)]
fn low_half(x: f32) -> u32 {
    u32::from(f32_to_bf16(x))
}

/// Two values as bf16, the first in the low half.
#[inline(always)]
fn pair(even: f32, odd: f32) -> u32 {
    low_half(even) | low_half(odd) << 16
}

/// An element that packs to f32.
pub(super) trait Widen: Copy {
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for i8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

/// Block `[ks, ns]` of `b` in panels `[columns / NR, ks, NR]` of words of one f32. Words beyond the
/// last column hold anything.
pub(super) fn panels_f32<'s, const NR: usize, E: Widen>(
    b: Rows<'_, E>,
    Block { outer: ns, ks }: Block,
    scratch: &'s mut Vec<u32>,
) -> &'s [u32] {
    let depth = ks.len();
    let words = room(scratch, ns.len().div_ceil(NR) * NR * depth);
    vectorized!({
        let starts = ns.clone().step_by(NR);
        for (panel, at) in words.chunks_exact_mut(NR * depth).zip(starts) {
            let cols = at..ns.end.min(at + NR);
            for (words, k) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(ks.clone()) {
                each(&b.row(k)[cols.clone()], words, |b| b.widen().to_bits());
            }
        }
    });
    words
}

/// As [`panels_f32`], in words of two bf16: steps are pairs of rows, the last with zeros where no
/// row is left.
pub(super) fn panels_bf16<'s, const NR: usize, E: Widen>(
    b: Rows<'_, E>,
    Block { outer: ns, ks }: Block,
    scratch: &'s mut Vec<u32>,
) -> &'s [u32] {
    let depth = ks.len().div_ceil(2);
    let words = room(scratch, ns.len().div_ceil(NR) * NR * depth);
    vectorized!({
        let starts = ns.clone().step_by(NR);
        for (panel, at) in words.chunks_exact_mut(NR * depth).zip(starts) {
            let cols = at..ns.end.min(at + NR);
            let steps = ks.clone().step_by(2);
            for (words, k) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(steps) {
                each(&b.row(k)[cols.clone()], words, |b| low_half(b.widen()));
                if k + 1 < ks.end {
                    let odd = &b.row(k + 1)[cols.clone()];
                    join(odd, words, |word, b| word | low_half(b.widen()) << 16);
                }
            }
        }
    });
    words
}

/// `words[i] = f(values[i])`; as many as there are values, all at once where there are `NR`.
#[inline(always)]
fn each<const NR: usize, E: Copy>(values: &[E], words: &mut [u32; NR], f: impl Fn(E) -> u32) {
    join(values, words, |_, value| f(value));
}

/// `words[i] = f(words[i], values[i])`, as [`each`].
#[inline(always)]
fn join<const NR: usize, E: Copy>(values: &[E], words: &mut [u32; NR], f: impl Fn(u32, E) -> u32) {
    if let Ok(values) = <&[E; NR]>::try_from(values) {
        for i in 0..NR {
            words[i] = f(words[i], values[i]);
        }
    } else {
        for (word, value) in words.iter_mut().zip(values) {
            *word = f(*word, *value);
        }
    }
}

/// Rows `ns` of `b`, which is the transpose of what is multiplied, in panels as [`panels_f32`] has
/// them. `ks` counts words.
pub(super) fn transposed_panels<'s, K: Tile, E: IntoBytes + Immutable>(
    tile: K,
    b: Rows<'_, E>,
    Block { outer: ns, ks }: Block,
    scratch: &'s mut Vec<u32>,
) -> &'s mut [u32] {
    let nr = K::NR;
    let words = room(scratch, ns.len().div_ceil(nr) * nr * ks.len());
    let starts = ns.clone().step_by(nr);
    for (panel, at) in words.chunks_exact_mut(nr * ks.len()).zip(starts) {
        let rows = at..ns.end.min(at + nr);
        tile.transpose(b, rows, ks.clone(), panel);
    }
    words
}

/// The definition of [`Tile::transpose`].
pub(super) fn transpose<E: IntoBytes + Immutable>(
    b: Rows<'_, E>,
    rows: Range<usize>,
    ks: Range<usize>,
    panel: &mut [u32],
    nr: usize,
) {
    for (j, row) in rows.enumerate() {
        let bytes = b.row_bytes(row);
        for (i, word) in bytes.as_chunks::<4>().0[ks.clone()].iter().enumerate() {
            panel[i * nr + j] = u32::from_ne_bytes(*word);
        }
    }
}
