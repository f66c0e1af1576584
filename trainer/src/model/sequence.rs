//! Buffers of one sequence, cut into parts of neighbouring positions.
//!
//! Everything but the heads of the attention treats a token by itself, so a thread can own a part.
//! Where the cuts are depends on the length alone: sums over positions go part by part, and every
//! number of threads gives the same bits.

use std::ops::Range;

use bitnet_formats::ModelConfig;
use ndarray::Array2;

use crate::model::block::{BlockGrads, BlockTape};
use crate::model::input_norm::NormTape;
use crate::ops::attention::HeadBuffers;
use crate::ops::dropout::Dropout;
use crate::real::Real;
use crate::tensor::zeros;

/// Positions of a part at most.
const PART_ROWS: usize = 256;
/// Logits of one sequence that exist at a time; rows are cut to this, at least [`MIN_HEAD_ROWS`].
const HEAD_ELEMENTS: usize = 1 << 20;
/// Fewer would read a head of many ids from memory more often than it is computed with.
const MIN_HEAD_ROWS: usize = 128;

/// Neighbouring positions of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Part<T> {
    /// Position of the first row.
    pub(crate) first: usize,
    /// Residual stream, `[rows, hidden_size]`.
    pub(crate) hidden: Array2<T>,
    /// The residual stream as each block found it; to evaluate, only as the last did.
    pub(crate) inputs: Vec<Array2<T>>,
    /// One tape per block where all are kept, else one that every block overwrites.
    pub(crate) tapes: Vec<BlockTape<T>>,
    pub(crate) last: NormTape<T>,
}

/// Gradients of a part.
#[derive(Clone, Debug)]
pub(crate) struct PartGrads<T> {
    /// Of the residual stream, `[rows, hidden_size]`.
    pub(crate) hidden: Array2<T>,
    /// Of the final norm's output, `[rows, hidden_size]`.
    pub(crate) last: Array2<T>,
    pub(crate) block: BlockGrads<T>,
}

/// Buffers and results of the forward pass of one sequence.
#[derive(Clone, Debug)]
pub struct Sequence<T> {
    pub(crate) len: usize,
    pub(crate) parts: Vec<Part<T>>,
    /// One for each head that runs at the same time.
    pub(crate) heads: Vec<HeadBuffers<T>>,
    /// For each tape, that of head `h` at `[h * len..][..len]`.
    pub(crate) log_sum_exp: Vec<Vec<T>>,
    /// Of a piece of a part, `[`[`head_rows`]`, vocab_size]`.
    pub(crate) logits: Array2<T>,
    /// The id after which another text begins, where texts do not see each other.
    end_of_text: Option<u32>,
}

/// Rows of a part whose logits exist together.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) part: usize,
    pub(crate) rows: Range<usize>,
    /// The same rows as positions of the sequence.
    pub(crate) positions: Range<usize>,
}

/// What a sequence to train on keeps between its forward and its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All activations of all blocks.
    Activations,
    /// What each block got; its activations are computed again when the backward pass comes to it.
    Inputs,
}

impl Keep {
    /// Blocks whose activations a sequence holds at the same time.
    pub(crate) const fn tapes(self, n_layers: usize) -> usize {
        match self {
            Self::Activations => n_layers,
            Self::Inputs => 1,
        }
    }
}

impl<T: Real> Sequence<T> {
    /// Buffers to evaluate `len` tokens.
    pub fn to_evaluate(config: &ModelConfig, len: usize) -> Self {
        Self::new(config, len, 1, 1)
    }

    /// Buffers to train on `len` tokens.
    pub fn to_train(config: &ModelConfig, len: usize, keep: Keep) -> Self {
        Self::new(config, len, config.n_layers, keep.tapes(config.n_layers))
    }

    fn new(config: &ModelConfig, len: usize, inputs: usize, tapes: usize) -> Self {
        let part = |rows: Range<usize>| Part::new(config, rows, inputs, tapes);
        Self {
            len,
            parts: parts(len).map(part).collect(),
            heads: vec![HeadBuffers::new(
                len,
                config.qk_head_dim(),
                config.v_head_dim(),
            )],
            log_sum_exp: vec![vec![T::zero(); config.n_heads * len]; tapes],
            logits: zeros(head_rows(config, len), config.vocab_size),
            end_of_text: None,
        }
    }

    /// No position sees what stands before the last `end_of_text` before it.
    #[must_use]
    pub fn divided_by(mut self, end_of_text: Option<u32>) -> Self {
        self.end_of_text = end_of_text;
        self
    }

    /// Which features the blocks leave out; none until this is called.
    pub fn set_dropout(&mut self, dropout: Dropout) {
        for part in &mut self.parts {
            let of_part = dropout.from_position(part.first);
            part.tapes
                .iter_mut()
                .for_each(|tape| tape.dropout = of_part);
        }
    }

    /// Runs up to `heads` heads of a layer at the same time. Changes no result.
    #[must_use]
    pub fn with_heads(mut self, heads: usize) -> Self {
        let n_heads = self.log_sum_exp[0].len() / self.len;
        let first = self.heads[0].clone();
        self.heads.resize(heads.clamp(1, n_heads), first);
        self
    }

    /// A text ends with its `end_of_text`; the next position is the first that the next text sees.
    pub(crate) fn mark_texts(&mut self, ids: &[u32]) {
        let Some(end_of_text) = self.end_of_text else {
            return;
        };
        let mut first = 0;
        for (t, id) in ids.iter().enumerate() {
            for head in &mut self.heads {
                head.first_seen[t] = first;
            }
            if *id == end_of_text {
                first = t + 1;
            }
        }
    }

    /// Tokens it has room for.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True for a sequence of no tokens.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All positions, in order.
    pub(crate) fn pieces(&self) -> Vec<Piece> {
        let rows = self.logits.nrows();
        let of_part = |(part, p): (usize, &Part<T>)| {
            let (first, len) = (p.first, p.hidden.nrows());
            (0..len).step_by(rows).map(move |start| {
                let rows = start..len.min(start + rows);
                Piece {
                    part,
                    positions: first + rows.start..first + rows.end,
                    rows,
                }
            })
        };
        self.parts.iter().enumerate().flat_map(of_part).collect()
    }
}

impl<T: Real> Part<T> {
    fn new(config: &ModelConfig, rows: Range<usize>, inputs: usize, tapes: usize) -> Self {
        let (len, hidden) = (rows.len(), config.hidden_size);
        Self {
            first: rows.start,
            hidden: zeros(len, hidden),
            inputs: (0..inputs).map(|_| zeros(len, hidden)).collect(),
            tapes: (0..tapes).map(|_| BlockTape::new(config, len)).collect(),
            last: NormTape::of_values(len, hidden),
        }
    }
}

impl<T: Real> PartGrads<T> {
    pub(crate) fn new(config: &ModelConfig, rows: usize) -> Self {
        Self {
            hidden: zeros(rows, config.hidden_size),
            last: zeros(rows, config.hidden_size),
            block: BlockGrads::new(config, rows),
        }
    }
}

/// The parts of a sequence of `len` positions: as few as 256 positions to a part allow, equally long
/// but for the last.
pub fn parts(len: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = part_rows(len);
    (0..len)
        .step_by(rows)
        .map(move |start| start..len.min(start + rows))
}

/// Positions of the longest part.
fn part_rows(len: usize) -> usize {
    len.div_ceil(len.div_ceil(PART_ROWS).max(1)).max(1)
}

/// Positions of a sequence whose logits exist at a time.
#[must_use]
pub fn head_rows(config: &ModelConfig, len: usize) -> usize {
    (HEAD_ELEMENTS / config.vocab_size)
        .max(MIN_HEAD_ROWS)
        .min(part_rows(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_sequence_evenly() {
        for len in 1..1200 {
            let parts: Vec<_> = parts(len).collect();
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, len));
            assert!(parts.windows(2).all(|p| p[0].end == p[1].start), "{len}");
            assert_eq!(parts.len(), len.div_ceil(PART_ROWS), "{len}");
            assert!(parts.iter().all(|p| (1..=PART_ROWS).contains(&p.len())));
        }
        let of = |len| parts(len).map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!((of(256), of(300)), (vec![256], vec![150, 150]));
        assert_eq!(of(2048), [256; 8]);
    }
}
