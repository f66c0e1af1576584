//! The network: embedding, blocks, final norm, head; forward here, backward in [`gradient`].
//!
//! Parallelism is outside the matrix products. A thread owns parts of sequences, heads of their
//! attention, blocks of the head's columns, blocks of rows of the weight gradients: pieces that the
//! shapes alone decide. No sum is ever split by thread, so every thread count gives the same bits.

mod attend;
pub mod attention;
pub mod block;
pub mod gradient;
pub mod grouped_attention;
mod heads;
pub mod input_norm;
pub mod latent_attention;
pub mod linear_input;
pub mod sequence;

use std::collections::BTreeMap;

use bitnet_formats::ModelConfig;
use ndarray::{Array2, Axis, s};

use crate::metrics::TensorRecord;
use crate::model::block::Block;
use crate::model::input_norm::InputNorm;
use crate::model::sequence::{Part, Piece};
use crate::ops::codes::Codes;
use crate::ops::gemm::{Precision, gemm};
use crate::ops::ramp::Quantizers;
use crate::ops::rope::Rope;
use crate::ops::simd::vectorized;
use crate::ops::target;
use crate::param::{Param, ParamKind};
use crate::real::Real;
use crate::rng::{Rng, Stream};
use crate::tensor::{flat, flat_mut, row, row_mut, zeros};

pub use crate::model::sequence::{Keep, Sequence, head_rows};

use bitnet_formats::quant::NonFinite;
use rayon::prelude::*;

/// Standard deviation of fresh weights.
pub const INIT_STD_DEV: f64 = 0.02;
/// Ids whose logits one job computes.
const HEAD_BLOCK: usize = 1024;

/// The forward pass met an infinite value or a NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the activations of block {block} are infinite or not a number")]
pub struct Diverged {
    /// Which block, from 0.
    pub block: usize,
}

/// A BitNet language model with its gradients.
#[derive(Clone, Debug)]
pub struct Model<T> {
    config: ModelConfig,
    quantizers: Quantizers,
    embedding: Param<T>,
    blocks: Vec<Block<T>>,
    final_norm: InputNorm<T>,
    /// The output matrix where it is not the embedding.
    head: Option<Param<T>>,
    rope: Rope<T>,
    /// True if the parameters' gradients are those of a batch, to be added to.
    has_gradient: bool,
    /// Gradients of embedding and head up to the batch before this one, while this one's is made.
    set_aside: Vec<Array2<T>>,
}

impl<T: Real> Model<T> {
    /// A model of zeros, gains one. With `quantize` off every BitLinear is a plain linear map.
    #[must_use]
    pub fn new(config: ModelConfig, quantize: bool) -> Self {
        let matrix = |name: &str| {
            let (rows, cols) = (config.vocab_size, config.hidden_size);
            Param::new(name.into(), ParamKind::Embedding, rows, cols)
        };
        let final_norm = InputNorm::new(
            "model.norm.weight".into(),
            config.hidden_size,
            config.norms.eps,
        );
        Self {
            quantizers: match quantize {
                true => Quantizers::On,
                false => Quantizers::Off,
            },
            embedding: matrix("model.embed_tokens.weight"),
            blocks: (0..config.n_layers)
                .map(|layer| Block::new(&config, layer))
                .collect(),
            final_norm,
            head: (!config.tie_embeddings).then(|| matrix("lm_head.weight")),
            rope: Rope::new(&config.rope, config.rope_dim(), config.max_seq_len),
            has_gradient: false,
            set_aside: Vec::new(),
            config,
        }
    }

    /// Draws every matrix from a normal distribution of deviation [`INIT_STD_DEV`].
    pub fn init(&mut self, seed: u64) {
        let params = self.params_mut();
        params.into_par_iter().enumerate().for_each(|(i, param)| {
            param.init(&mut Rng::new(seed, Stream::Init, i as u64), INIT_STD_DEV);
        });
        self.refresh();
    }

    /// Shape and conventions.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Parameters, in the order in which the forward pass needs them.
    #[must_use]
    pub fn params(&self) -> Vec<&Param<T>> {
        let mut params = vec![&self.embedding];
        params.extend(self.blocks.iter().flat_map(Block::params));
        params.extend(self.final_norm.params());
        params.extend(&self.head);
        params
    }

    /// As [`Model::params`], to write. Call [`Model::refresh`] after.
    pub fn params_mut(&mut self) -> Vec<&mut Param<T>> {
        let mut params = vec![&mut self.embedding];
        params.extend(self.blocks.iter_mut().flat_map(Block::params_mut));
        params.extend(self.final_norm.params_mut());
        params.extend(&mut self.head);
        params
    }

    /// The gradient of every parameter, in the order of [`Model::params`].
    pub fn gradients_mut(&mut self) -> impl Iterator<Item = &mut [T]> {
        let params = self.params_mut().into_iter();
        params.map(|param| flat_mut(&mut param.grad))
    }

    /// Turns the quantisers on, off, or part of the way.
    pub fn set_quantizers(&mut self, quantizers: Quantizers) {
        if self.quantizers != quantizers {
            self.quantizers = quantizers;
            self.refresh();
        }
    }

    /// True with all quantisers on.
    fn quantizes(&self) -> bool {
        self.quantizers == Quantizers::On
    }

    /// Makes the weights in use follow the master weights.
    pub fn refresh(&mut self) {
        let quantizers = self.quantizers;
        let mut linears: Vec<_> = self
            .blocks
            .iter_mut()
            .flat_map(Block::linears_mut)
            .collect();
        linears.par_iter_mut().for_each(|linear| match quantizers {
            Quantizers::Ramp(lambda) => linear.refresh_blended(lambda),
            Quantizers::On => linear.refresh(true),
            Quantizers::Off => linear.refresh(false),
        });
    }

    /// How the products of the backward pass of every BitLinear are read from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            linear.precision = precision;
        }
    }

    /// Share of the ternary weights that are zero.
    #[must_use]
    pub fn zero_share(&self) -> f64 {
        let linears = self.blocks.iter().flat_map(Block::linears);
        let (zeros, all) = linears.fold((0.0, 0.0), |(zeros, all), linear| {
            let size = linear.size() as f64;
            (zeros + linear.zero_share() * size, all + size)
        });
        zeros / all
    }

    /// Share of the ternary weights that the last [`Model::refresh`] changed.
    #[must_use]
    pub fn flip_share(&self) -> f64 {
        let linears = self.blocks.iter().flat_map(Block::linears);
        let (flips, all) = linears.fold((0, 0), |(flips, all), linear| {
            (flips + linear.flips(), all + linear.size())
        });
        flips as f64 / all as f64
    }

    /// What is known of every tensor after a step, by name.
    #[must_use]
    pub fn tensor_records(&self) -> BTreeMap<String, TensorRecord> {
        let record = |param: &&Param<T>| {
            let squares = flat(&param.grad)
                .iter()
                .map(|g| f64::from(g.narrow()).powi(2));
            let record = TensorRecord {
                grad_norm: squares.sum::<f64>().sqrt(),
                scale: None,
                zero_share: None,
            };
            (param.name.clone(), record)
        };
        let mut records: BTreeMap<_, _> = self.params().iter().map(record).collect();
        for linear in self.blocks.iter().flat_map(Block::linears) {
            if let (true, Some(record)) = (self.quantizes(), records.get_mut(&linear.weight.name)) {
                record.scale = Some(linear.mean_magnitude());
                record.zero_share = Some(linear.zero_share());
            }
        }
        records
    }

    /// Runs `ids` through all blocks and the final norm.
    ///
    /// # Errors
    ///
    /// [`Diverged`] if an activation is not finite.
    ///
    /// # Panics
    ///
    /// If there are not `seq.len()` ids, more than `max_seq_len`, or one outside the vocabulary.
    pub fn forward(&self, ids: &[u32], seq: &mut Sequence<T>) -> Result<(), Diverged> {
        assert_eq!(ids.len(), seq.len);
        for part in &mut seq.parts {
            for (t, id) in ids[part.first..]
                .iter()
                .take(part.hidden.nrows())
                .enumerate()
            {
                let embedded = row(&self.embedding.value, *id as usize);
                row_mut(&mut part.hidden, t).copy_from_slice(embedded);
            }
        }
        seq.mark_texts(ids);
        for i in 0..self.blocks.len() {
            self.block_forward(i, seq)?;
        }
        let norm =
            |part: &mut Part<T>| self.final_norm.forward(&part.hidden, false, &mut part.last);
        let normed = seq.parts.par_iter_mut().try_for_each(norm);
        normed.map_err(|NonFinite| Diverged {
            block: self.blocks.len(),
        })
    }

    /// Carries the residual stream of a sequence through block `i`.
    fn block_forward(&self, i: usize, seq: &mut Sequence<T>) -> Result<(), Diverged> {
        for part in &mut seq.parts {
            let slot = i % part.inputs.len();
            std::mem::swap(&mut part.hidden, &mut part.inputs[slot]);
        }
        self.fill_tape(i, seq)?;
        seq.parts.par_iter_mut().for_each(|part| {
            let tape = &part.tapes[i % part.tapes.len()];
            self.blocks[i].output(tape, &mut part.hidden);
        });
        Ok(())
    }

    /// Computes from the input of block `i` all that its backward pass needs.
    fn fill_tape(&self, i: usize, seq: &mut Sequence<T>) -> Result<(), Diverged> {
        let (block, quantize) = (&self.blocks[i], self.quantizes());
        let diverged = |NonFinite| Diverged { block: i };
        let tape = i % seq.log_sum_exp.len();
        let before = |part: &mut Part<T>| {
            let input = &part.inputs[i % part.inputs.len()];
            let tape = &mut part.tapes[tape];
            block.before_heads(input, &self.rope, part.first, quantize, tape)
        };
        let projected = seq.parts.par_iter_mut().try_for_each(before);
        projected.map_err(diverged)?;
        let (heads, log_sum_exp) = (&mut seq.heads, &mut seq.log_sum_exp[tape]);
        attend::forward(block.attention(), &mut seq.parts, tape, heads, log_sum_exp);
        let after = |part: &mut Part<T>| {
            let input = &part.inputs[i % part.inputs.len()];
            block.after_heads(input, quantize, &mut part.tapes[tape])
        };
        let finished = seq.parts.par_iter_mut().try_for_each(after);
        finished.map_err(diverged)
    }

    /// Sum of the losses of a sequence in nats, one target for each id; see [`target::IGNORED`].
    ///
    /// # Errors
    ///
    /// As [`Model::forward`].
    pub fn loss(
        &self,
        ids: &[u32],
        targets: &[u32],
        seq: &mut Sequence<T>,
    ) -> Result<f64, Diverged> {
        self.forward(ids, seq)?;
        let mut sum = 0.0;
        for piece in seq.pieces() {
            self.piece_logits(&piece, seq);
            for (i, of_position) in targets[piece.positions].iter().enumerate() {
                let logits = row_mut(&mut seq.logits, i);
                sum += vectorized!(target::loss(logits, *of_position));
            }
        }
        Ok(sum)
    }

    /// Logits of the position after the last id.
    ///
    /// # Errors
    ///
    /// As [`Model::forward`].
    pub fn next_logits<'s>(
        &self,
        ids: &[u32],
        seq: &'s mut Sequence<T>,
    ) -> Result<&'s [T], Diverged> {
        self.forward(ids, seq)?;
        let part = seq.parts.len() - 1;
        let last = seq.parts[part].hidden.nrows() - 1;
        let piece = Piece {
            part,
            rows: last..last + 1,
            positions: seq.len - 1..seq.len,
        };
        self.piece_logits(&piece, seq);
        Ok(row(&seq.logits, 0))
    }

    /// Logits of all positions, `[len, vocab_size]`.
    ///
    /// # Errors
    ///
    /// As [`Model::forward`].
    pub fn all_logits(&self, ids: &[u32], seq: &mut Sequence<T>) -> Result<Array2<T>, Diverged> {
        self.forward(ids, seq)?;
        let mut all = zeros(seq.len, self.config.vocab_size);
        for piece in seq.pieces() {
            self.piece_logits(&piece, seq);
            let rows = seq.logits.slice(s![..piece.rows.len(), ..]);
            all.slice_mut(s![piece.positions, ..]).assign(&rows);
        }
        Ok(all)
    }

    /// `head . final_norm(h)` of a piece, into the first rows of `seq.logits`.
    fn piece_logits(&self, piece: &Piece, seq: &mut Sequence<T>) {
        let Codes::Values(hidden) = &seq.parts[piece.part].last.activations.codes else {
            unreachable!("the final norm does not quantise");
        };
        let hidden = hidden.slice(s![piece.rows.clone(), ..]);
        let mut logits = seq.logits.slice_mut(s![..piece.rows.len(), ..]);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let blocks = head.value.axis_chunks_iter(Axis(0), HEAD_BLOCK);
        let jobs = logits.axis_chunks_iter_mut(Axis(1), HEAD_BLOCK).zip(blocks);
        let jobs: Vec<_> = jobs.collect();
        jobs.into_par_iter().for_each(|(logits, head)| {
            gemm(T::one(), hidden, head.t(), T::zero(), logits);
        });
    }
}
