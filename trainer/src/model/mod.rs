//! The network: embedding, blocks, final norm, head; forward here, backward in [`gradient`].
//!
//! Parallelism is outside the matrix products. A thread owns whole sequences in the forward and
//! backward pass, and whole blocks of rows of the weight gradients; no sum is ever split by thread,
//! so every thread count gives the same bits.

pub mod attention;
pub mod block;
pub mod gradient;
pub mod grouped_attention;
mod heads;
pub mod input_norm;
pub mod latent_attention;

use std::collections::BTreeMap;
use std::ops::Range;

use bitnet_formats::ModelConfig;
use ndarray::{Array2, s};

use crate::metrics::TensorRecord;
use crate::model::block::{Block, BlockTape};
use crate::model::input_norm::{InputNorm, NormTape};
use crate::ops::attention::HeadBuffers;
use crate::ops::codes::Codes;
use crate::ops::cross_entropy;
use crate::ops::gemm::{Precision, gemm};
use crate::ops::rope::Rope;
use crate::param::{Param, ParamKind};
use crate::real::Real;
use crate::rng::{Rng, Stream};
use crate::tensor::{flat, row, row_mut, zeros};

use bitnet_formats::quant::NonFinite;
use rayon::prelude::*;

/// Standard deviation of fresh weights.
pub const INIT_STD_DEV: f64 = 0.02;
/// Logits of one sequence that exist at a time; rows are cut to this, at least [`MIN_HEAD_ROWS`].
const HEAD_ELEMENTS: usize = 1 << 20;
const MIN_HEAD_ROWS: usize = 16;

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
    quantize: bool,
    embedding: Param<T>,
    blocks: Vec<Block<T>>,
    final_norm: InputNorm<T>,
    /// The output matrix where it is not the embedding.
    head: Option<Param<T>>,
    rope: Rope<T>,
}

/// Buffers and results of the forward pass of one sequence.
#[derive(Clone, Debug)]
pub struct Sequence<T> {
    len: usize,
    /// Residual stream, `[len, hidden_size]`.
    hidden: Array2<T>,
    /// One tape per block to train; to evaluate, one that every block overwrites.
    tapes: Vec<BlockTape<T>>,
    last: NormTape<T>,
    logits: Array2<T>,
    head: HeadBuffers<T>,
    /// The id after which another text begins, where texts do not see each other.
    end_of_text: Option<u32>,
}

impl<T: Real> Sequence<T> {
    /// Buffers to evaluate `len` tokens.
    pub fn to_evaluate(config: &ModelConfig, len: usize) -> Self {
        Self::new(config, len, 1)
    }

    /// Buffers to train on `len` tokens.
    pub fn to_train(config: &ModelConfig, len: usize) -> Self {
        Self::new(config, len, config.n_layers)
    }

    fn new(config: &ModelConfig, len: usize, tapes: usize) -> Self {
        Self {
            len,
            hidden: zeros(len, config.hidden_size),
            tapes: (0..tapes).map(|_| BlockTape::new(config, len)).collect(),
            last: NormTape::of_values(len, config.hidden_size),
            logits: zeros(head_rows(config, len), config.vocab_size),
            head: HeadBuffers::new(len, config.qk_head_dim(), config.v_head_dim()),
            end_of_text: None,
        }
    }

    /// No position sees what stands before the last `end_of_text` before it.
    #[must_use]
    pub fn divided_by(mut self, end_of_text: Option<u32>) -> Self {
        self.end_of_text = end_of_text;
        self
    }

    /// A text ends with its `end_of_text`; the next position is the first that the next text sees.
    fn mark_texts(&mut self, ids: &[u32]) {
        let Some(end_of_text) = self.end_of_text else {
            return;
        };
        let mut first = 0;
        for (t, id) in ids.iter().enumerate() {
            self.head.first_seen[t] = first;
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

    /// Ranges of positions whose logits exist together, in order.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (len, rows) = (self.len, self.logits.nrows());
        (0..len)
            .step_by(rows)
            .map(move |start| start..len.min(start + rows))
    }
}

/// Positions whose logits exist at a time.
#[must_use]
pub fn head_rows(config: &ModelConfig, len: usize) -> usize {
    (HEAD_ELEMENTS / config.vocab_size)
        .max(MIN_HEAD_ROWS)
        .min(len)
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
            quantize,
            embedding: matrix("model.embed_tokens.weight"),
            blocks: (0..config.n_layers)
                .map(|layer| Block::new(&config, layer))
                .collect(),
            final_norm,
            head: (!config.tie_embeddings).then(|| matrix("lm_head.weight")),
            rope: Rope::new(&config.rope, config.rope_dim(), config.max_seq_len),
            config,
        }
    }

    /// Draws every matrix from a normal distribution of deviation [`INIT_STD_DEV`].
    pub fn init(&mut self, seed: u64) {
        for (i, param) in self.params_mut().into_iter().enumerate() {
            param.init(&mut Rng::new(seed, Stream::Init, i as u64), INIT_STD_DEV);
        }
        self.refresh();
    }

    /// Shape and conventions.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Parameters, in file order.
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

    /// Makes the ternary codes follow the weights.
    pub fn refresh(&mut self) {
        let quantize = self.quantize;
        let mut linears: Vec<_> = self
            .blocks
            .iter_mut()
            .flat_map(Block::linears_mut)
            .collect();
        linears
            .par_iter_mut()
            .for_each(|linear| linear.refresh(quantize));
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
            if let (true, Some(record)) = (self.quantize, records.get_mut(&linear.weight.name)) {
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
        for (t, id) in ids.iter().enumerate() {
            let embedded = row(&self.embedding.value, *id as usize);
            row_mut(&mut seq.hidden, t).copy_from_slice(embedded);
        }
        seq.mark_texts(ids);
        let tapes = seq.tapes.len();
        for (i, block) in self.blocks.iter().enumerate() {
            let tape = &mut seq.tapes[i % tapes];
            block
                .forward(
                    &mut seq.hidden,
                    &self.rope,
                    self.quantize,
                    tape,
                    &mut seq.head,
                )
                .map_err(|NonFinite| Diverged { block: i })?;
        }
        self.final_norm
            .forward(&seq.hidden, false, &mut seq.last)
            .map_err(|NonFinite| Diverged {
                block: self.blocks.len(),
            })
    }

    /// Sum of the losses of a sequence in nats, one target for each id.
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
            for (i, target) in targets[piece].iter().enumerate() {
                sum += cross_entropy::loss(row_mut(&mut seq.logits, i), *target as usize);
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
        self.piece_logits(&(seq.len - 1..seq.len), seq);
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
            let rows = seq.logits.slice(s![..piece.len(), ..]);
            all.slice_mut(s![piece, ..]).assign(&rows);
        }
        Ok(all)
    }

    /// `head . final_norm(h)` of a range of positions, into the first rows of `seq.logits`.
    fn piece_logits(&self, piece: &Range<usize>, seq: &mut Sequence<T>) {
        let Codes::Values(hidden) = &seq.last.activations.codes else {
            unreachable!("the final norm does not quantise");
        };
        let hidden = hidden.slice(s![piece.clone(), ..]);
        let logits = seq.logits.slice_mut(s![..piece.len(), ..]);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        gemm(T::one(), hidden, head.value.t(), T::zero(), logits);
    }
}
