//! The best token without all of the head: a coarse copy of it, and what the copy cannot tell.
//!
//! A decode step reads every row of the head to find the one with the largest logit. Six of a
//! code's eight bits settle most of them. With `w = 4 q + p` a code of the head, `h = 256 c + l` one of
//! the hidden state, and `D = sum w h` what the logit is made of,
//!
//! ```text
//! D - 1024 sum q c = sum p h + 4 sum q l,    at most |p| |h| + |4 q| |l|
//! ```
//!
//! by the inequality of Cauchy and Schwarz. A row whose logit cannot reach what another row's logit
//! is at least cannot be the best. Rows that remain are computed from the head itself, so the best
//! token and its logit are those of the whole computation, ties included.
//!
//! Five bits leave ten times as many rows (the bound grows by two), and seven save an eighth of the
//! traffic; the forty best of a vocabulary lie too close to the others for any of them.

use core::ops::Range;

use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{Dtype, MatrixView, ModelConfig, Output, Row};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::buffers::split;
use crate::error::RunError;
use crate::kernels::CoarseRows;
use crate::kernels::coarse::{BLOCK, LINE_BYTES, pack_row, row_lines};
use crate::math::sqrt;
use crate::sampler::argmax;

/// What products of `q` and `c` are multiples of.
const UNIT: f32 = 1_024.0;
/// More than all roundings between a bound and a logit, relative to the bound and to the logit.
const SLACK: f32 = 1.0 / (1 << 18) as f32;
/// More than what a rounding can lose below the normal numbers.
const LEAST: f32 = 1e-36;
/// Logits this large are computed: they may be too large for an f32.
const HUGE: f32 = 1e37;

/// A coarse copy of an int8 head `[rows, cols]`, in lent memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoarseHead<'w> {
    pub(crate) codes: CoarseRows<'w>,
    /// Of each row: its scale, `|p|` and `|4 q|`, the norms rounded up. Padded by a group.
    scales: &'w [f32],
    fine: &'w [f32],
    coarse: &'w [f32],
}

/// Bytes of the copy of a model's head.
pub(crate) fn plan(config: &ModelConfig) -> Result<usize, RunError> {
    let (rows, cols) = (config.vocab_size, config.hidden_size);
    if config.output != Output::Logits || !cols.is_multiple_of(BLOCK) {
        return Err(RunError::CoarseHead);
    }
    let [codes, bounds] = regions(rows, cols).ok_or(RunError::TooLarge)?;
    codes.checked_add(bounds).ok_or(RunError::TooLarge)
}

/// Bytes of the codes and of the bounds.
fn regions(rows: usize, cols: usize) -> Option<[usize; 2]> {
    let codes = rows.checked_mul(row_lines(cols) * LINE_BYTES)?;
    let bounds = bound_floats(rows).checked_mul(3 * size_of::<f32>())?;
    Some([codes, bounds])
}

/// Floats of each kind of bound: whole groups can be read from any row on.
const fn bound_floats(rows: usize) -> usize {
    rows.saturating_add(GROUP_ROWS)
}

impl<'w> CoarseHead<'w> {
    /// Makes the copy in `buffer`, which has the planned bytes and begins on a multiple of 64.
    ///
    /// # Errors
    ///
    /// The head is not one of int8 rows.
    pub(crate) fn new(head: &MatrixView<'_>, buffer: &'w mut [u8]) -> Result<Self, RunError> {
        if head.dtype != Dtype::I8Rows {
            return Err(RunError::CoarseHead);
        }
        let [codes_bytes, _] = regions(head.rows, head.cols).ok_or(RunError::TooLarge)?;
        let (codes, bounds) = buffer.split_at_mut(codes_bytes);
        let bounds = <[f32]>::mut_from_bytes(bounds).expect("regions are aligned and whole");
        let [scales, fine, coarse] = split(bounds, [bound_floats(head.rows); 3]);
        let lines = codes.as_chunks_mut().0;
        for (r, lines) in lines.chunks_exact_mut(row_lines(head.cols)).enumerate() {
            if let Row::I8(row, scale) = head.row(r) {
                scales[r] = scale;
                [fine[r], coarse[r]] = pack_row(row, lines).map(norm_of);
            }
        }
        Ok(Self {
            codes: CoarseRows::new(lines, head.cols),
            scales,
            fine,
            coarse,
        })
    }

    /// The coarse logits of some rows, from their products with `c`: in place.
    pub(crate) fn scale(&self, rows: Range<usize>, inverse: f32, products: &mut [f32]) {
        for (product, scale) in products.iter_mut().zip(&self.scales[rows]) {
            *product = *product * UNIT * (scale * inverse);
        }
    }

    /// What decides which rows stay: the largest coarse logit is known to be worth that much.
    pub(crate) fn cut(&self, hidden: &[i16], inverse: f32, logits: &[f32]) -> Cut {
        let all = Cut::new(hidden, inverse);
        let best = argmax(logits) as usize;
        let mut group = [0.0; GROUP_ROWS];
        group[0] = logits[best];
        let least = logits[best] - self.errors(best, &all, &group)[0];
        Cut { least, ..all }
    }

    /// Makes logits of coarse ones, from row `first` on: those that may be the largest by `compute`,
    /// the others negative infinity. `expect` is told of a row before it is computed, and of the next
    /// one as well: rows that stay lie far apart, and memory should be asked for early.
    pub(crate) fn finish(
        &self,
        first: usize,
        cut: &Cut,
        logits: &mut [f32],
        expect: impl Fn(usize),
        compute: impl Fn(usize, &mut [f32]) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let mut waiting: Option<usize> = None;
        for start in (0..logits.len()).step_by(GROUP_ROWS) {
            let n = GROUP_ROWS.min(logits.len() - start);
            let stays = self.may_be_best(first + start, cut, &logits[start..start + n]);
            logits[start..start + n].fill(f32::NEG_INFINITY);
            for at in (start..start + n).filter(|at| stays >> (at - start) & 1 == 1) {
                expect(first + at);
                if let Some(at) = waiting.replace(at) {
                    compute(first + at, &mut logits[at..=at])?;
                }
            }
        }
        waiting.map_or(Ok(()), |at| compute(first + at, &mut logits[at..=at]))
    }

    /// Which of up to sixteen rows from `first` on may have the largest logit, given the coarse ones:
    /// a bit each.
    #[inline]
    fn may_be_best(&self, first: usize, cut: &Cut, logits: &[f32]) -> u16 {
        let mut group = [0.0; GROUP_ROWS];
        group[..logits.len()].copy_from_slice(logits);
        let errors = self.errors(first, cut, &group);
        let rows = group.iter().zip(errors).enumerate().take(logits.len());
        rows.fold(0, |stays, (i, (logit, error))| {
            // What is not a number is computed too: it is an error, and must become one.
            let is_out = logit + error < cut.least && logit.abs() + error < HUGE;
            stays | u16::from(!is_out) << i
        })
    }

    /// How far logits are from the coarse ones, at most.
    #[inline(always)]
    fn errors(&self, first: usize, cut: &Cut, logits: &[f32; GROUP_ROWS]) -> [f32; GROUP_ROWS] {
        let part = |of: &'w [f32]| -> &'w [f32; GROUP_ROWS] {
            of[first..].first_chunk().expect("rows and padding")
        };
        let [scales, fine, coarse] = [self.scales, self.fine, self.coarse].map(part);
        core::array::from_fn(|i| {
            let norms = fine[i] * cut.hidden + coarse[i] * cut.low;
            let error = norms * (scales[i] * cut.inverse).abs();
            error + (error + logits[i].abs()) * SLACK + LEAST
        })
    }
}

/// What the bounds of a step are made of, and what a logit must reach.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Cut {
    /// `|h|` and `|l|`, rounded up.
    hidden: f32,
    low: f32,
    /// The reciprocal of the hidden state's scale.
    inverse: f32,
    least: f32,
}

impl Cut {
    /// One that every row reaches.
    fn new(hidden: &[i16], inverse: f32) -> Self {
        let square = |x: i16| i64::from(x).pow(2) as u64;
        let low = |h: i16| h.wrapping_sub(i16::from(high(h)) << 8);
        Self {
            hidden: norm_of(hidden.iter().map(|h| square(*h)).sum()),
            low: norm_of(hidden.iter().map(|h| square(low(*h))).sum()),
            inverse,
            least: f32::NEG_INFINITY,
        }
    }
}

/// The square root of a sum of squares, or a little more.
fn norm_of(squares: u64) -> f32 {
    sqrt(squares as f32) * (1.0 + SLACK)
}

/// The nearest multiple of 256 to a code of the hidden state, as a multiple: `c`.
pub(crate) fn high(hidden: i16) -> i8 {
    (hidden.saturating_add(128) >> 8) as i8
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::kernels::{HeadInput, Kernels};

    /// A head of some rows and a hidden state, from a simple generator.
    fn case(rows: usize, cols: usize, seed: u32) -> (Vec<u8>, Vec<i16>) {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let mut bytes = vec![0; bitnet_formats::Dtype::I8Rows.payload_bytes(rows, cols) as usize];
        let scales = (0..rows).map(|_| (next() % 100) as f32 * 1e-3);
        let scales: Vec<u8> = scales.flat_map(f32::to_le_bytes).collect();
        bytes[..4 * rows].copy_from_slice(&scales);
        let start = bytes.len() - rows * cols;
        bytes[start..].fill_with(|| next() as u8);
        let hidden = (0..cols).map(|_| (next() as i32 - 32_768) as i16 / 2);
        (bytes, hidden.collect())
    }

    /// The bound holds for every row, and is not idle.
    #[test]
    fn no_logit_is_farther_than_its_bound() {
        let (rows, inverse) = (64, 0.37);
        for (cols, seed) in [(64, 1), (192, 2), (320, 3), (1_536, 4)] {
            let (bytes, hidden) = case(rows, cols, seed);
            let head = MatrixView::new(Dtype::I8Rows, (rows, cols), &bytes).unwrap();
            let [codes, bounds] = regions(rows, cols).unwrap();
            let mut buffer = crate::AlignedBuffer::zeroed(codes + bounds);
            let coarse = CoarseHead::new(&head, &mut buffer).unwrap();
            let kernels = Kernels::scalar();
            let (mut logits, mut coarse_logits) = (vec![0.0; rows], vec![0.0; rows]);
            kernels.head(
                &head,
                0..rows,
                HeadInput::I16(&hidden, inverse),
                &mut logits,
            );
            let high: Vec<i8> = hidden.iter().map(|h| high(*h)).collect();
            kernels.coarse(&coarse.codes, 0..rows, &high, &mut coarse_logits);
            coarse.scale(0..rows, inverse, &mut coarse_logits);
            let cut = Cut::new(&hidden, inverse);
            let spread = logits
                .iter()
                .fold(0.0f32, |max, logit| max.max(logit.abs()));
            for (row, (logit, near)) in logits.iter().zip(&coarse_logits).enumerate() {
                let mut group = [0.0; GROUP_ROWS];
                group[0] = *near;
                let error = coarse.errors(row, &cut, &group)[0];
                assert!((logit - near).abs() <= error, "row {row} of {cols} columns");
                assert!(error < spread, "row {row} of {cols} columns: {error}");
            }
        }
    }

    #[test]
    fn the_high_byte_rounds_to_the_nearest() {
        for (hidden, expected) in [(0, 0), (127, 0), (128, 1), (-128, 0), (-129, -1)] {
            assert_eq!(high(hidden), expected);
        }
        assert_eq!([32_639, -32_639].map(high), [127, -127]);
    }
}
