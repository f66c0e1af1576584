//! What the x86 sets share: the order in which matrices are walked, and prefetching.
//!
//! Every set sees the sixteen rows of a group as sixteen 32-bit lanes: bytes `4 r .. 4 r + 4` of a
//! line are lane `r`, and the four activations of a plane are broadcast to all lanes. The byte dot
//! product of x86 takes one unsigned operand, so digits `d = t + 1` are multiplied and the sum of
//! the activations is subtracted: `sum t a = sum d a - sum a`, exactly.
//!
//! Functions here are inlined into callers that have an instruction set, and are compiled for it.

use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use core::ops::Range;

use bitnet_formats::ternary::{GROUP_ROWS, LINE_BYTES};
use bitnet_formats::{MatrixView, Row, TernaryView};
use zerocopy::{Immutable, IntoBytes};

use super::scalar::i8_logit;
use super::{Activations, HeadInput, Output, Store, TernaryGemm};

pub(super) type Line = [u8; LINE_BYTES];
/// One integer per row of a group.
pub(super) type Sums = [i32; GROUP_ROWS];

/// How far ahead of the loads memory is asked for. A group is a linear stream and the next group
/// follows it, as does the next matrix of the file, so running over an end fetches what comes next.
const PREFETCH_BYTES: usize = 4_096;
/// Tokens that share one decoding of the weights: their sums fit the stack.
pub(super) const TOKEN_BLOCK: usize = 64;

/// Asks for the memory that will be read [`PREFETCH_BYTES`] after `at`.
#[inline(always)]
pub(super) fn prefetch_after<T>(at: *const T) {
    let ahead = at.cast::<i8>().wrapping_add(PREFETCH_BYTES);
    // SAFETY: a prefetch is a hint that reads nothing and never faults, whatever the address; SSE,
    // which has it, is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) };
}

/// Four activations as one lane.
#[inline(always)]
pub(super) fn lane(activations: &[i8; 4]) -> i32 {
    i32::from_le_bytes(activations.map(|a| a as u8))
}

/// Digits of some lines, a plane of 4 columns by 16 rows after the other.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Panel<const PLANES: usize>(pub(super) [Line; PLANES]);

/// Tokens that meet a panel.
pub(super) struct Tile<'a> {
    pub(super) activations: Activations<'a>,
    /// First token.
    pub(super) first: usize,
    /// First group of four columns, and their number.
    pub(super) fours: (usize, usize),
}

impl<'a> Tile<'a> {
    /// The activations of each of `N` tokens.
    #[inline(always)]
    pub(super) fn tokens<const N: usize>(&self) -> [&'a [[i8; 4]]; N] {
        let (start, len) = self.fours;
        let mut tokens = [&[][..]; N];
        for (n, token) in tokens.iter_mut().enumerate() {
            *token = &self.activations.token(self.first + n).as_chunks().0[start..][..len];
        }
        tokens
    }
}

/// Walks a ternary product.
///
/// One token takes `dot`, which keeps digits in registers: lines, activations and their sum to
/// the finished sums of a group. More tokens take the weights `GROUPS` row groups and `PLANES`
/// planes at a time: `unpack` writes the digits of some lines, and `multiply` adds the products of
/// up to `tile` tokens to `[token][group]` sums.
#[inline(always)]
pub(super) fn ternary_gemm<const GROUPS: usize, const PLANES: usize>(
    job: &TernaryGemm<'_>,
    out: &mut Output<'_>,
    dot: impl Fn(&[Line], &[i8], i32) -> Sums,
    unpack: impl Fn(&[Line], &mut Panel<PLANES>),
    tile: usize,
    multiply: impl Fn(&[Panel<PLANES>], Tile<'_>, &mut [[Sums; GROUPS]]),
) {
    if let [factor] = job.factors {
        let token = job.activations.token(0);
        let sum = sum_codes(job, 0);
        for group in job.groups.clone() {
            let sums = dot(job.weights.group(group), token, sum);
            store_group(job, out, (group, 0), &sums, *factor);
        }
        return;
    }
    let mut panels = [const { Panel([[0; LINE_BYTES]; PLANES]) }; GROUPS];
    let mut acc = [[[0; GROUP_ROWS]; GROUPS]; TOKEN_BLOCK];
    let mut code_sums = [0; TOKEN_BLOCK];
    let planes = job.weights.layout.planes();
    let n_lines = job.weights.layout.group_lines(job.weights.cols);
    for (block, factors) in job.factors.chunks(TOKEN_BLOCK).enumerate() {
        let (first, n) = (block * TOKEN_BLOCK, factors.len());
        for (t, sum) in (first..).zip(&mut code_sums[..n]) {
            *sum = sum_codes(job, t);
        }
        for group in job.groups.clone().step_by(GROUPS) {
            let n_groups = GROUPS.min(job.groups.end - group);
            acc[..n].fill([[0; GROUP_ROWS]; GROUPS]);
            for start in (0..n_lines).step_by(PLANES / planes) {
                let len = (PLANES / planes).min(n_lines - start);
                for (g, panel) in panels[..n_groups].iter_mut().enumerate() {
                    unpack(&job.weights.group(group + g)[start..][..len], panel);
                }
                for (i, acc) in acc[..n].chunks_mut(tile).enumerate() {
                    let tile = Tile {
                        activations: job.activations,
                        first: first + i * tile,
                        fours: (start * planes, len * planes),
                    };
                    multiply(&panels[..n_groups], tile, acc);
                }
            }
            for (t, factor) in factors.iter().enumerate() {
                for (g, sums) in acc[t][..n_groups].iter().enumerate() {
                    let sums = sums.map(|sum| sum - code_sums[t]);
                    store_group(job, out, (group + g, first + t), &sums, *factor);
                }
            }
        }
    }
}

/// Sum of the activations that meet the digits of a row, padding included: the digit of a padding
/// trit is one.
#[inline(always)]
fn sum_codes(job: &TernaryGemm<'_>, token: usize) -> i32 {
    let layout = job.weights.layout;
    let used = layout.group_lines(job.weights.cols) * layout.block_cols();
    let codes = &job.activations.token(token)[..used];
    codes.iter().map(|code| i32::from(*code)).sum()
}

#[inline(always)]
fn store_group(
    job: &TernaryGemm<'_>,
    out: &mut Output<'_>,
    (group, token): (usize, usize),
    sums: &Sums,
    factor: f32,
) {
    let out = out.slice(token, job.rows(group));
    let y = sums.map(|sum| sum as f32 * factor);
    // A full group has a fixed length, and becomes a store of a register.
    match (out.first_chunk_mut::<GROUP_ROWS>(), job.store) {
        (Some(out), Store::Set) => *out = y,
        (Some(out), Store::Add) => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
        (None, Store::Set) => out.iter_mut().zip(y).for_each(|(out, y)| *out = y),
        (None, Store::Add) => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
    }
}

/// Row groups whose float sums go side by side: an addition waits for the one before.
pub(super) const F32_GROUPS: usize = 4;

/// Walks a product of ternary rows and floats: up to [`F32_GROUPS`] groups and `PLANES` planes at a
/// time, `unpack` writes digits and `add_columns` takes the columns in ascending order.
#[inline(always)]
pub(super) fn ternary_f32<const PLANES: usize>(
    weights: &TernaryView<'_>,
    groups: Range<usize>,
    x: &[f32],
    out: &mut [f32],
    unpack: impl Fn(&[Line], &mut Panel<PLANES>),
    add_columns: impl Fn(&[Panel<PLANES>], &[f32], &mut [[f32; GROUP_ROWS]]),
) {
    let n_lines = PLANES / weights.layout.planes();
    let n_cols = n_lines * weights.layout.block_cols();
    let mut panels = [const { Panel([[0; LINE_BYTES]; PLANES]) }; F32_GROUPS];
    let out = out.as_chunks_mut().0;
    let first_groups = groups.step_by(F32_GROUPS);
    for (first, out) in first_groups.zip(out.chunks_mut(F32_GROUPS)) {
        out.fill([0.0; GROUP_ROWS]);
        let panels = &mut panels[..out.len()];
        for (i, x) in x.chunks(n_cols).enumerate() {
            for (group, panel) in (first..).zip(&mut *panels) {
                let lines = &weights.group(group)[i * n_lines..];
                unpack(&lines[..n_lines.min(lines.len())], panel);
            }
            add_columns(panels, x, out);
        }
    }
}

/// Four columns at a time; missing ones are zero, and add nothing to a sum that begins at `+0`.
#[inline(always)]
pub(super) fn for_each_four(x: &[f32], mut f: impl FnMut(usize, [f32; 4])) {
    for (j, columns) in x.chunks(4).enumerate() {
        let four = <[f32; 4]>::try_from(columns).unwrap_or_else(|_| {
            let mut four = [0.0; 4];
            four[..columns.len()].copy_from_slice(columns);
            four
        });
        f(j, four);
    }
}

/// Walks the rows of a head: a set brings the exact product of an int8 row, and the sixteen-lane
/// product of a float row.
#[inline(always)]
pub(super) fn head(
    matrix: &MatrixView<'_>,
    rows: Range<usize>,
    input: HeadInput<'_>,
    out: &mut [f32],
    dot_i8: impl Fn(&[u8], &[i16]) -> i64,
    dense_dot: impl Fn(Row<'_>, &[f32]) -> f32,
) {
    for (r, out) in rows.zip(out) {
        *out = match (matrix.row(r), input) {
            (Row::I8(codes, scale), HeadInput::I16(x, inverse)) => {
                i8_logit(dot_i8(codes, x), scale, inverse)
            }
            (row, HeadInput::F32(x)) => dense_dot(row, x),
            _ => unreachable!("checked by Kernels::head"),
        };
    }
}

/// Numbers as the file would hold them: x86 is little-endian.
#[inline(always)]
pub(super) fn le_bytes<T: IntoBytes + Immutable, const N: usize>(x: &[T]) -> &[[u8; N]] {
    const { assert!(size_of::<T>() == N) }
    x.as_bytes().as_chunks().0
}

/// The last elements of a slice, filled up to sixteen. Lanes without a term then take `0 * 0`, which
/// changes no sum that begins at `+0`.
#[inline(always)]
pub(super) fn fill_lanes<T: Copy + Default>(rest: &[T]) -> [T; 16] {
    let mut lanes = [T::default(); 16];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// The products of the last columns of an int8 row, those that fill no register.
#[inline(always)]
pub(super) fn dot_i8_rest(codes: &[u8], x: &[i16]) -> i64 {
    let terms = codes
        .iter()
        .zip(x)
        .map(|(w, x)| i64::from(*w as i8) * i64::from(*x));
    terms.sum()
}

/// Calls a function that is generic over a number of tokens with the number at hand.
macro_rules! with_count {
    ($n:expr, [$($count:literal)+], $f:ident $args:tt) => {
        match $n {
            $($count => $f::<$count> $args,)+
            n => unreachable!("a tile of {n} tokens"),
        }
    };
}
pub(super) use with_count;

/// True where the machine has all of the features: found out at run time with `std`, decided by the
/// compiler's target without.
macro_rules! has {
    ($($feature:tt),+) => {{
        #[cfg(feature = "std")]
        let found = $(std::arch::is_x86_feature_detected!($feature))&&+;
        #[cfg(not(feature = "std"))]
        let found = $(cfg!(target_feature = $feature))&&+;
        found
    }};
}
pub(super) use has;
