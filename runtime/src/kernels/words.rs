//! Ternary products on machines whose registers hold four bytes.
//!
//! A word of a line is four bytes of one row: 4 columns of each plane. What a word is multiplied by
//! depends on the activations alone, so it is prepared once for a token and read by every row. The
//! prepared words of up to [`CHUNK`] lines are on the stack; a row that is longer is taken in
//! several chunks, each prepared again for every group.

use core::ops::Range;

use bitnet_formats::ternary::{GROUP_ROWS, LINE_BYTES};
use bitnet_formats::{TernaryLayout, TernaryView};

use super::scalar::{self, store};
use super::{Output, TernaryGemm};

/// Lines whose prepared words are held at a time: 400 columns of T5, at most 960 bytes.
const CHUNK: usize = 20;
/// Rows that share the loads of prepared words.
pub(super) const ROWS: usize = 2;

/// How one machine multiplies the words of one layout.
pub(super) trait WordDot {
    /// The prepared activations of a line.
    type Terms: Copy;
    /// Those of zero activations.
    const ZERO: Self::Terms;

    /// Prepares the activations of a line: as many as the layout has columns in a line.
    fn prepare(activations: &[i8]) -> Self::Terms;

    /// The sums of rows `row` to `row + ROWS` over some lines.
    fn dot(lines: &[[u8; LINE_BYTES]], terms: &[Self::Terms], row: usize) -> [i32; ROWS];

    /// The dot product, from the sum over all lines and the sum of the activations.
    fn finish(sum: i32, activations: i32) -> i32;
}

#[inline(always)]
pub(super) fn gemm<D: WordDot>(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    let weights = &job.weights;
    let columns = weights.layout.group_lines(weights.cols) * weights.layout.block_cols();
    let mut terms = [D::ZERO; CHUNK];
    for (t, factor) in job.factors.iter().enumerate() {
        let token = &job.activations.token(t)[..columns];
        let activations = token.iter().map(|a| i32::from(*a)).sum();
        let mut prepared = None;
        for group in job.groups.clone() {
            let sums = dot_group::<D>(weights, group, token, &mut terms, &mut prepared);
            let out = out.slice(t, job.rows(group));
            for (out, sum) in out.iter_mut().zip(sums) {
                store(out, D::finish(sum, activations), *factor, job.store);
            }
        }
    }
}

/// Sums of the rows of a group. `prepared` is the chunk whose words are in `terms`.
#[inline(always)]
fn dot_group<D: WordDot>(
    weights: &TernaryView<'_>,
    group: usize,
    token: &[i8],
    terms: &mut [D::Terms; CHUNK],
    prepared: &mut Option<usize>,
) -> [i32; GROUP_ROWS] {
    let block_cols = weights.layout.block_cols();
    let mut sums = [0i32; GROUP_ROWS];
    for (chunk, lines) in weights.group(group).chunks(CHUNK).enumerate() {
        if *prepared != Some(chunk) {
            let blocks = token[chunk * CHUNK * block_cols..].chunks_exact(block_cols);
            for (terms, block) in terms.iter_mut().zip(blocks) {
                *terms = D::prepare(block);
            }
            *prepared = Some(chunk);
        }
        for (pair, sums) in sums.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            let part = D::dot(lines, &terms[..lines.len()], ROWS * pair);
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum = sum.wrapping_add(part);
            }
        }
    }
    sums
}

/// The words of rows `row` to `row + ROWS` of a line.
#[inline(always)]
pub(super) fn words(line: &[u8; LINE_BYTES], row: usize) -> [u32; ROWS] {
    let rows = line.as_chunks::<4>().0;
    [
        u32::from_le_bytes(rows[row]),
        u32::from_le_bytes(rows[row + 1]),
    ]
}

/// Ternary rows times floats: one row after another, an addition or subtraction for each trit that
/// is not zero.
///
/// Leaving out `0 * x` changes nothing while x is finite: the product is a zero, and the sum is never
/// the negative zero that a positive one would change. Anything else is left to the definition.
pub(super) fn ternary_f32(
    weights: &TernaryView<'_>,
    groups: Range<usize>,
    x: &[f32],
    out: &mut [f32],
) {
    if x.iter().any(|x| !x.is_finite()) {
        return scalar::ternary_f32(weights, groups, x, out);
    }
    for (group, out) in groups.zip(out.chunks_exact_mut(GROUP_ROWS)) {
        let lines = weights.group(group);
        for (row, out) in out.iter_mut().enumerate() {
            *out = match weights.layout {
                TernaryLayout::T5R16 => dot_row::<20>(lines, row, x, t5_digits),
                TernaryLayout::T2R16 => dot_row::<16>(lines, row, x, t2_digits),
            };
        }
    }
}

/// `peel` takes the digits of the next plane off two words of two bytes each.
#[inline(always)]
fn dot_row<const BLOCK: usize>(
    lines: &[[u8; LINE_BYTES]],
    row: usize,
    x: &[f32],
    peel: impl Fn(&mut [u32; 2]) -> u32,
) -> f32 {
    let mut sum = 0.0;
    for (line, x) in lines.iter().zip(x.chunks(BLOCK)) {
        let word = u32::from_le_bytes(line.as_chunks::<4>().0[row]);
        let mut halves = match BLOCK {
            20 => {
                let fractions = word ^ 0x8080_8080;
                [fractions & 0x00ff_00ff, (fractions >> 8) & 0x00ff_00ff]
            }
            _ => [word, 0],
        };
        for x in x.chunks(4) {
            let mut digits = peel(&mut halves);
            for x in x {
                match digits & 3 {
                    0 => sum -= x,
                    2 => sum += x,
                    _ => (),
                }
                digits >>= 8;
            }
        }
    }
    sum
}

/// The digits of four bytes, each in its byte.
#[inline(always)]
fn t5_digits(fractions: &mut [u32; 2]) -> u32 {
    let [even, odd] = [
        fractions[0] + (fractions[0] << 1),
        fractions[1] + (fractions[1] << 1),
    ];
    *fractions = [even & 0x00ff_00ff, odd & 0x00ff_00ff];
    (even >> 8) & 0x0003_0003 | odd & 0x0300_0300
}

#[inline(always)]
fn t2_digits(word: &mut [u32; 2]) -> u32 {
    let digits = word[0] & 0x0303_0303;
    word[0] >>= 2;
    digits
}
