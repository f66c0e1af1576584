//! The forward pass, as stages that can be cut anywhere.
//!
//! One chunk of tokens goes through all blocks together. Each stage is a number of independent
//! *units* (a row group of a projection, a head, a token): a pass can stop after any unit and go on
//! later, threads can share the units, and no result depends on either.

use core::ops::Range;

use bitnet_formats::quant::{linear_factor, quantize_hidden};
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{
    Attention, Dtype, ModelConfig, Output, RopePairing, Row, TernaryView, VectorView,
};

use zerocopy::{FromBytes, IntoBytes};

use crate::buffers::{KvRows, LayerCache, Scratch, Workspace, Workspaces, split};
use crate::coarse_head::{self, Cut};
use crate::departures::{Gains, HeadWork, Inputs, LinearInput, planes};
use crate::error::{RunError, at_layer};
use crate::kernels::{HeadInput, HeadRows, HeadShape, Kernels, Latents, Store};
use crate::layers::grouped_attention::Tile;
use crate::layers::latent_attention::{LatentHead, Work};
use crate::layers::norm::Norm;
use crate::layers::rope;
use crate::math::{rounds_by_default, sqrt};
use crate::model::{Block, KvProjection, Model};
use crate::parts::{Groups, Rows, Workers};
use crate::plan::{TILE_QUERIES, code_stride, kv_widths};

/// The stages of a pass, in order. Those from `AttnIn` to `Down` repeat for every block, those from
/// `HeadIn` on for every position whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Unit: token. Embedding row to the residual stream; the position's angles.
    Embed,
    /// Unit: token. Norm and quantise the block's input.
    AttnIn,
    /// Unit: row group. Queries and key/value projections.
    Qkv,
    /// Unit: token. Rotate, and write the cache.
    Cache,
    /// Unit: head of a token; those that read the same cached rows follow each other.
    Attend,
    /// Unit: token. Sub-norm and quantise the heads.
    AttnOut,
    /// Unit: row group. Output projection, added to the residual stream.
    O,
    /// Unit: token. Norm and quantise the feed-forward input.
    FfnIn,
    /// Unit: row group. Gate and up projections.
    GateUp,
    /// Unit: token. Activation, sub-norm, quantise.
    FfnMid,
    /// Unit: row group. Down projection, added to the residual stream.
    Down,
    /// One unit. Final norm of one token.
    HeadIn,
    /// Unit: sixteen rows of the head. Coarse logits, where only the best token is wanted.
    CoarseHead,
    /// One unit. What a logit must reach to be the largest.
    Select,
    /// Unit: sixteen rows of the head.
    Head,
}

impl Stage {
    /// The stage after this one within a block; `None` after the last.
    pub(crate) const fn next_in_block(self) -> Option<Self> {
        match self {
            Self::Embed => Some(Self::AttnIn),
            Self::AttnIn => Some(Self::Qkv),
            Self::Qkv => Some(Self::Cache),
            Self::Cache => Some(Self::Attend),
            Self::Attend => Some(Self::AttnOut),
            Self::AttnOut => Some(Self::O),
            Self::O => Some(Self::FfnIn),
            Self::FfnIn => Some(Self::GateUp),
            Self::GateUp => Some(Self::FfnMid),
            Self::FfnMid => Some(Self::Down),
            Self::Down | Self::HeadIn | Self::CoarseHead | Self::Select | Self::Head => None,
        }
    }
}

/// One chunk on its way through one layer.
pub(crate) struct Forward<'a, 'w> {
    pub(crate) model: &'a Model<'w>,
    pub(crate) config: &'a ModelConfig,
    pub(crate) block: Block<'w>,
    pub(crate) scratch: Scratch<'a>,
    pub(crate) cache: LayerCache<'a>,
    pub(crate) workers: Workers<'a>,
    pub(crate) layer: usize,
    /// Position of the chunk's first token.
    pub(crate) start: usize,
    /// Positions the cache has room for.
    pub(crate) capacity: usize,
    /// Token of the chunk whose logits are made.
    pub(crate) head_token: usize,
    /// Whether `Head` computes only the rows that `Select` leaves.
    pub(crate) is_cut: bool,
}

impl<'a> Forward<'a, '_> {
    /// Number of units of a stage.
    pub(crate) fn units(&self, stage: Stage) -> usize {
        let config = self.config;
        let groups = |rows: usize| rows.div_ceil(GROUP_ROWS);
        let (first, second) = kv_widths(config);
        match stage {
            Stage::Qkv => groups(config.q_dim()) + groups(first) + groups(second),
            Stage::Attend => self.n_tokens() * config.n_heads,
            Stage::O | Stage::Down => groups(config.hidden_size),
            Stage::GateUp => 2 * groups(self.block.gate.rows),
            Stage::HeadIn | Stage::Select => 1,
            Stage::Head if config.output == Output::Embedding => 1,
            Stage::Head | Stage::CoarseHead => groups(config.vocab_size),
            _ => self.n_tokens(),
        }
    }

    /// Runs some units of a stage. Each thread that has a part in it comes by here.
    pub(crate) fn run(&mut self, stage: Stage, units: Range<usize>) -> Result<(), RunError> {
        if !rounds_by_default() {
            return Err(RunError::Rounding);
        }
        match stage {
            Stage::Embed => self.embed(units),
            Stage::AttnIn => {
                self.norm_residual(self.block.attn_norm, self.block.in_linear.qkv, units)
            }
            Stage::Qkv => self.qkv(units),
            Stage::Cache => self.write_cache(units),
            Stage::Attend => self.attend(units),
            Stage::AttnOut => self.attn_out(units),
            Stage::O => self.residual_linear(self.block.o, units),
            Stage::FfnIn => {
                self.norm_residual(self.block.ffn_norm, self.block.in_linear.gate_up, units)
            }
            Stage::GateUp => self.gate_up(units),
            Stage::FfnMid => self.ffn_mid(units),
            Stage::Down => self.residual_linear(self.block.down, units),
            Stage::HeadIn => self.head_in(),
            Stage::CoarseHead => self.coarse_head(units),
            Stage::Select => self.select(),
            Stage::Head => self.head(units),
        }
    }

    fn embed(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let (embedding, frequencies) = (self.model.embedding(), self.model.rope_inv_freq());
        let (ids, start) = (&*self.scratch.ids, self.start);
        let residual = Rows::new(self.scratch.residual, self.config.hidden_size);
        let angles = Rows::new(self.scratch.angles, self.config.rope_dim());
        let (parts, spaces) = ((residual, angles), &mut self.scratch.spaces);
        self.workers.run(
            tokens,
            parts,
            spaces,
            |tokens, (mut residual, mut angles), _| {
                for token in tokens {
                    let row = embedding.row(ids[token] as usize);
                    row.to_f32(residual.row(token));
                    rope::angles(start + token, &frequencies, angles.row(token));
                }
                Ok(())
            },
        )
    }

    fn norm_residual(
        &mut self,
        gain: Option<VectorView<'_>>,
        inner: Gains<'_>,
        tokens: Range<usize>,
    ) -> Result<(), RunError> {
        let (input, width) = (self.linear_input(gain, inner), self.config.hidden_size);
        let (n, stride) = (self.n_tokens(), code_stride(self.config));
        let scratch = &mut self.scratch;
        let residual = &*scratch.residual;
        let planes = planes(scratch.codes, scratch.act_scales, n, stride);
        self.workers.run(
            tokens,
            planes,
            &mut scratch.spaces,
            |tokens, mut planes, space| {
                for token in tokens {
                    let x = &residual[token * width..][..width];
                    input.quantize(token, x, space.normed, &mut planes)?;
                }
                Ok(())
            },
        )
    }

    fn qkv(&mut self, units: Range<usize>) -> Result<(), RunError> {
        let (n, config, q) = (self.n_tokens(), self.config, self.block.q);
        let scratch = &mut self.scratch;
        let arrays = AttentionArrays::new(scratch.wide, n, config);
        let inputs = Inputs::new(
            self.model,
            scratch.codes,
            scratch.act_scales,
            scratch.ids.len(),
        );
        let stage = LinearStage {
            inputs,
            workers: self.workers,
            spaces: &mut scratch.spaces,
        };
        let (q, kv) = ((q, arrays.q), arrays.kv);
        match self.block.kv {
            KvProjection::Grouped { k, v } => {
                stage.run(units, [q, (k, kv), (v, arrays.v)], Store::Set)
            }
            KvProjection::Latent { kv_a, .. } => stage.run(units, [q, (kv_a, kv)], Store::Set),
        }
    }

    fn gate_up(&mut self, units: Range<usize>) -> Result<(), RunError> {
        let (n, block) = (self.n_tokens(), self.block);
        let scratch = &mut self.scratch;
        let [gate, up] = ffn_arrays(scratch.wide, n, block.gate.rows);
        let inputs = Inputs::new(
            self.model,
            scratch.codes,
            scratch.act_scales,
            scratch.ids.len(),
        );
        let stage = LinearStage {
            inputs,
            workers: self.workers,
            spaces: &mut scratch.spaces,
        };
        stage.run(units, [(block.gate, gate), (block.up, up)], Store::Set)
    }

    /// Row groups of a projection, added to the residual stream.
    fn residual_linear(
        &mut self,
        weights: TernaryView<'_>,
        units: Range<usize>,
    ) -> Result<(), RunError> {
        let scratch = &mut self.scratch;
        let inputs = Inputs::new(
            self.model,
            scratch.codes,
            scratch.act_scales,
            scratch.ids.len(),
        );
        let stage = LinearStage {
            inputs,
            workers: self.workers,
            spaces: &mut scratch.spaces,
        };
        stage.run(units, [(weights, &mut *scratch.residual)], Store::Add)
    }

    /// Rotates queries and keys, and stores what attention keeps of a token.
    fn write_cache(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        match self.block.kv {
            KvProjection::Grouped { .. } => self.write_grouped(tokens),
            KvProjection::Latent { kv_a_norm, key, .. } => {
                self.write_latent(tokens, kv_a_norm, key.scale)
            }
        }
    }

    fn write_grouped(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let (n, config, kernels) = (self.n_tokens(), self.config, self.model.kernels());
        let LayerCache::Grouped { keys, values } = &mut self.cache else {
            unreachable!("the cache follows the model");
        };
        let rotation = Rotation::new(self.scratch.angles, config);
        let heads = HeadWork::new(self.model, &self.block, self.layer);
        let arrays = AttentionArrays::new(self.scratch.wide, n, config);
        let (width, v) = (kv_widths(config).1, &*arrays.v);
        let (score_dim, v_dim) = (config.score_dim(), config.v_head_dim());
        let inputs = (
            Rows::new(arrays.q, config.q_dim()),
            Rows::new(arrays.kv, kv_widths(config).0),
            // The codes of q, k and v have been read: heads that are projected can have their place.
            Rows::new(self.scratch.codes, code_stride(config)),
        );
        let new = (
            keys.positions(self.capacity, self.start, score_dim),
            values.positions(self.capacity, self.start, v_dim),
        );
        let (parts, spaces) = ((inputs, new), &mut self.scratch.spaces);
        self.workers
            .run(tokens, parts, spaces, |tokens, (inputs, new), mut space| {
                let ((mut q, mut k, mut codes), (mut keys, mut values)) = (inputs, new);
                for token in tokens {
                    for (which, row) in [(0, q.row(token)), (1, k.row(token))] {
                        heads.norm(which, row, space.normed)?;
                        rotation.rotate_heads(token, row, config.qk_head_dim());
                        heads.project(which, row, codes.row(token), &mut space)?;
                    }
                    let n_kv_heads = width / v_dim;
                    keys.write(
                        kernels,
                        token,
                        &k.row(token)[..n_kv_heads * score_dim],
                        score_dim,
                    );
                    values.write(kernels, token, &v[token * width..][..width], v_dim);
                }
                Ok(())
            })
    }

    /// Norms and quantises the latent exactly as `kv_b_proj` would, and keeps the codes.
    fn write_latent(
        &mut self,
        tokens: Range<usize>,
        gain: VectorView<'_>,
        key_scale: f32,
    ) -> Result<(), RunError> {
        let (n, config, start) = (self.n_tokens(), self.config, self.start);
        let input = self.linear_input(Some(gain), Gains::default());
        let (rank, rope_dim) = (gain.len(), config.rope_dim());
        let LayerCache::Latent {
            codes,
            factors,
            rope_keys,
        } = &mut self.cache
        else {
            unreachable!("the cache follows the model");
        };
        let rotation = Rotation::new(self.scratch.angles, config);
        let arrays = AttentionArrays::new(self.scratch.wide, n, config);
        let queries = Rows::new(arrays.q, config.q_dim());
        let kv = Rows::new(arrays.kv, kv_widths(config).0);
        let new = (
            Rows::new(&mut codes[start * rank..][..n * rank], rank),
            Rows::new(&mut factors[start..][..n], 1),
            Rows::new(&mut rope_keys[start * rope_dim..][..n * rope_dim], rope_dim),
        );
        let (parts, spaces) = ((queries, kv, new), &mut self.scratch.spaces);
        self.workers.run(
            tokens,
            parts,
            spaces,
            |tokens, (mut queries, mut kv, new), space| {
                let (mut codes, mut factors, mut rope_keys) = new;
                for token in tokens {
                    rotation.rotate_heads(token, queries.row(token), config.qk_head_dim());
                    let (latent, rope_key) = kv.row(token).split_at_mut(rank);
                    let scale = input.quantize_once(latent, space.normed, codes.row(token))?;
                    let factor = linear_factor(config.weight_scale, key_scale, scale);
                    factors.row(token)[0] = factor;
                    rotation.rotate_heads(token, rope_key, rope_dim);
                    rope_keys.row(token).copy_from_slice(rope_key);
                }
                Ok(())
            },
        )
    }

    fn attend(&mut self, units: Range<usize>) -> Result<(), RunError> {
        let (n, config) = (self.n_tokens(), self.config);
        let arrays = AttentionArrays::new(self.scratch.wide, n, config);
        let shape = head_shape(config, n);
        let heads = Heads {
            kernels: self.model.kernels(),
            config,
            block: &self.block,
            cache: &self.cache,
            shape,
            start: self.start,
            capacity: self.capacity,
            queries: arrays.q,
            scale: 1.0 / sqrt(config.score_dim() as f32),
        };
        let spaces = &mut self.scratch.spaces;
        let outputs = HeadRows::new(arrays.out, shape, config.v_head_dim());
        self.workers
            .run(units, outputs, spaces, |units, mut outputs, mut space| {
                let mut next = units.start;
                while next < units.end {
                    next += heads.attend(next..units.end, &mut space, &mut outputs);
                }
                Ok(())
            })
    }

    fn attn_out(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let (n, config, block) = (self.n_tokens(), self.config, self.block);
        let input = self.linear_input(block.attn_sub_norm, block.in_linear.o);
        let (width, stride) = (config.attn_dim(), code_stride(config));
        let scratch = &mut self.scratch;
        let heads = AttentionArrays::new(scratch.wide, n, config).out;
        let planes = planes(scratch.codes, scratch.act_scales, n, stride);
        self.workers.run(
            tokens,
            planes,
            &mut scratch.spaces,
            |tokens, mut planes, space| {
                for token in tokens {
                    let x = &heads[token * width..][..width];
                    input.quantize(token, x, space.normed, &mut planes)?;
                }
                Ok(())
            },
        )
    }

    fn ffn_mid(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let (n, config, kernels) = (self.n_tokens(), self.config, self.model.kernels());
        let input = self.linear_input(self.block.ffn_sub_norm, self.block.in_linear.down);
        let input = input.over(config.intermediate_size);
        let (width, stride) = (self.block.gate.rows, code_stride(config));
        let scratch = &mut self.scratch;
        let [gate, up] = ffn_arrays(scratch.wide, n, width);
        let (gate, up) = (Rows::new(gate, width), &*up);
        let planes = planes(scratch.codes, scratch.act_scales, n, stride);
        let (parts, spaces) = ((gate, planes), &mut scratch.spaces);
        self.workers.run(
            tokens,
            parts,
            spaces,
            |tokens, (mut gate, mut planes), space| {
                for token in tokens {
                    let gate = gate.row(token);
                    kernels.gated(config.activation, gate, &up[token * width..][..width]);
                    input.quantize(token, gate, space.normed, &mut planes)?;
                }
                Ok(())
            },
        )
    }

    /// The final norm of one token. What it becomes waits where nothing else is needed any more: the
    /// scale of an int8 head's codes in `act_scales`, a float head's input in the residual stream.
    fn head_in(&mut self) -> Result<(), RunError> {
        let (config, token) = (self.config, self.head_token);
        let layer = at_layer(config.n_layers);
        let scratch = &mut self.scratch;
        let residual = &mut scratch.residual[token * config.hidden_size..][..config.hidden_size];
        let normed = &mut scratch.spaces.first().normed[..config.hidden_size];
        let final_norm = Norm::new(self.model.kernels(), config, self.model.final_norm());
        final_norm.apply(residual, normed).map_err(&layer)?;
        if config.output == Output::Logits && self.model.head().dtype == Dtype::I8Rows {
            let scale = quantize_hidden(normed, scratch.hidden_codes).map_err(&layer)?;
            scratch.act_scales[token] = scale;
        } else {
            residual.copy_from_slice(normed);
        }
        match config.output {
            Output::TernaryLogits => self.ternary_head_in(),
            Output::Logits | Output::Embedding => Ok(()),
        }
    }

    fn head(&mut self, units: Range<usize>) -> Result<(), RunError> {
        match self.config.output {
            Output::Logits => self.dense_head(units),
            Output::TernaryLogits => self.ternary_head(units),
            Output::Embedding => self.embedding(),
        }
    }

    fn coarse_head(&mut self, units: Range<usize>) -> Result<(), RunError> {
        let Some(head) = self.model.coarse_head() else {
            return Ok(());
        };
        let (kernels, scratch) = (self.model.kernels(), &mut self.scratch);
        let inverse = 1.0 / scratch.act_scales[self.head_token];
        let high = &mut scratch.codes[..self.config.hidden_size];
        let hidden = high.iter_mut().zip(&*scratch.hidden_codes);
        hidden.for_each(|(high, hidden)| *high = coarse_head::high(*hidden));
        let (high, logits) = (&*high, Rows::new(scratch.logits, GROUP_ROWS));
        self.workers
            .run(units, logits, &mut scratch.spaces, |units, logits, _| {
                let (first, logits) = (units.start * GROUP_ROWS, logits.all());
                let rows = first..first + logits.len();
                kernels.coarse(&head.codes, rows.clone(), high, logits);
                head.scale(rows, inverse, logits);
                Ok(())
            })
    }

    /// Finds out what a logit must reach. It waits in the residual stream, like a float head's input:
    /// an int8 head does not read it.
    fn select(&mut self) -> Result<(), RunError> {
        if let Some(head) = self.model.coarse_head() {
            let scratch = &mut self.scratch;
            let inverse = 1.0 / scratch.act_scales[self.head_token];
            let cut = head.cut(scratch.hidden_codes, inverse, scratch.logits);
            *waiting_cut(scratch.residual) = cut;
        }
        Ok(())
    }

    fn dense_head(&mut self, units: Range<usize>) -> Result<(), RunError> {
        let (config, matrix) = (self.config, self.model.head());
        let coarse_head = self.model.coarse_head().filter(|_| self.is_cut);
        let (kernels, scratch) = (self.model.kernels(), &mut self.scratch);
        let cut = coarse_head.map(|head| (head, *waiting_cut(scratch.residual)));
        let first = self.head_token * config.hidden_size;
        let input = match matrix.dtype {
            Dtype::I8Rows => {
                let inverse = 1.0 / scratch.act_scales[self.head_token];
                HeadInput::I16(scratch.hidden_codes, inverse)
            }
            _ => HeadInput::F32(&scratch.residual[first..][..config.hidden_size]),
        };
        let compute = |first: usize, logits: &mut [f32]| {
            kernels.head(&matrix, first..first + logits.len(), input, logits);
            let finite = bitnet_formats::quant::absmax(logits).map(|_| ());
            finite.map_err(at_layer(config.n_layers))
        };
        let expect = |row| {
            if let Row::I8(codes, _) = matrix.row(row) {
                kernels.prefetch(codes);
            }
        };
        let logits = Rows::new(scratch.logits, GROUP_ROWS);
        self.workers
            .run(units, logits, &mut scratch.spaces, |units, logits, _| {
                let (first, logits) = (units.start * GROUP_ROWS, logits.all());
                match &cut {
                    None => compute(first, logits),
                    Some((head, cut)) => head.finish(first, cut, logits, expect, compute),
                }
            })
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.scratch.ids.len()
    }

    pub(crate) fn linear_input<'i>(
        &self,
        gain: Option<VectorView<'i>>,
        inner: Gains<'i>,
    ) -> LinearInput<'i>
    where
        'a: 'i,
    {
        let (kernels, config) = (self.model.kernels(), self.config);
        LinearInput {
            kernels,
            norm: gain.map(|gain| Norm::new(kernels, config, gain)),
            inner: inner.map(|gain| gain.map(|gain| Norm::in_linear(kernels, config, gain))),
            layer: self.layer,
        }
    }
}

/// The first floats of an array, as a [`Cut`].
fn waiting_cut(floats: &mut [f32]) -> &mut Cut {
    let (cut, _) = Cut::mut_from_prefix(floats.as_mut_bytes()).expect("a coarse head has columns");
    cut
}

/// Projections that read the same tokens.
struct LinearStage<'s, 'b> {
    inputs: Inputs<'s>,
    workers: Workers<'s>,
    spaces: &'s mut Workspaces<'b>,
}

impl LinearStage<'_, '_> {
    /// Computes some row groups of the matrices, which are numbered through. Outputs are
    /// `[n_tokens, rows]` each.
    fn run<const N: usize>(
        self,
        units: Range<usize>,
        matrices: [(TernaryView<'_>, &mut [f32]); N],
        store: Store,
    ) -> Result<(), RunError> {
        let (inputs, mut first) = (&self.inputs, 0);
        let weights = matrices.each_ref().map(|(weights, _)| *weights);
        let outputs = matrices.map(|(weights, out)| {
            let groups = Groups::new(out, weights.rows, first);
            first += weights.n_groups();
            groups
        });
        self.workers
            .run(units, outputs, self.spaces, |units, mut outputs, space| {
                for (place, (weights, out)) in weights.iter().zip(&mut outputs).enumerate() {
                    let linear = inputs.linear(place);
                    let groups = out.groups(&units, weights.n_groups());
                    linear.forward(*weights, groups, store, space.factors, &mut out.output);
                }
                Ok(())
            })
    }
}

/// Rotary embedding of the chunk's tokens.
struct Rotation<'s> {
    /// `[n_tokens, width]`.
    angles: &'s [f32],
    width: usize,
    pairing: RopePairing,
}

impl<'s> Rotation<'s> {
    fn new(angles: &'s [f32], config: &ModelConfig) -> Self {
        Self {
            angles,
            width: config.rope_dim(),
            pairing: config.rope.pairing,
        }
    }

    /// Rotates the last `rope_dim` elements of each head of a token.
    fn rotate_heads(&self, token: usize, heads: &mut [f32], head_dim: usize) {
        let angles = &self.angles[token * self.width..][..self.width];
        for head in heads.chunks_exact_mut(head_dim) {
            rope::rotate(&mut head[head_dim - self.width..], angles, self.pairing);
        }
    }
}

/// Attention of a chunk, once its keys and values are in the cache.
struct Heads<'s, 'w> {
    kernels: &'s Kernels,
    config: &'s ModelConfig,
    block: &'s Block<'w>,
    cache: &'s LayerCache<'s>,
    shape: HeadShape,
    start: usize,
    capacity: usize,
    /// `[n_tokens, q_dim]`, of which the first `n_heads * score_dim` are queries.
    queries: &'s [f32],
    /// `1 / sqrt(score_dim)`.
    scale: f32,
}

impl Heads<'_, '_> {
    /// The first of some units, and those that can share its reading of the cache; returns how many.
    fn attend(
        &self,
        units: Range<usize>,
        space: &mut Workspace<'_>,
        outputs: &mut HeadRows<'_>,
    ) -> usize {
        match (self.cache, self.block.kv) {
            (LayerCache::Grouped { keys, values }, _) => {
                self.attend_grouped(units, [keys, values], space, outputs)
            }
            (
                LayerCache::Latent {
                    codes,
                    factors,
                    rope_keys,
                },
                KvProjection::Latent { key, value, .. },
            ) => {
                let (head, n) = (
                    self.shape.token_and_head(units.start).1,
                    self.length(units.start),
                );
                let latents = Latents {
                    codes: &codes[..n * space.q_latent.len()],
                    factors: &factors[..n],
                    rope_keys: &rope_keys[..n * self.config.rope_dim()],
                };
                let head = LatentHead {
                    kernels: self.kernels,
                    key,
                    value,
                    head,
                    scale: self.scale,
                };
                let mut work = Work {
                    scores: &mut space.scores[..n],
                    q_latent: space.q_latent,
                    o_latent: space.o_latent,
                };
                let out = outputs.row(units.start);
                head.attend(self.query(units.start), &latents, &mut work, out);
                1
            }
            _ => unreachable!("the cache follows the model"),
        }
    }

    /// A tile of the first units that read the same keys and values.
    fn attend_grouped(
        &self,
        units: Range<usize>,
        cached: [&KvRows<'_>; 2],
        space: &mut Workspace<'_>,
        outputs: &mut HeadRows<'_>,
    ) -> usize {
        let (first, width) = (units.start, self.config.v_head_dim());
        let per_kv_head = self.shape.units_per_kv_head();
        let kv_head = first / per_kv_head;
        let n = TILE_QUERIES.min(units.end.min((kv_head + 1) * per_kv_head) - first);
        let (mut queries, mut lengths) = ([&self.queries[..0]; TILE_QUERIES], [0; TILE_QUERIES]);
        for i in 0..n {
            (queries[i], lengths[i]) = (self.query(first + i), self.length(first + i));
        }
        let rows = kv_head * self.capacity..kv_head * self.capacity + lengths[n - 1];
        let [keys, values] = cached;
        if first + n == (kv_head + 1) * per_kv_head && first + n < units.end {
            let next = (kv_head + 1) * self.capacity;
            keys.rows(next..next + self.length(first + n), self.config.score_dim())
                .prefetch();
        }
        let tile = Tile {
            queries: &queries[..n],
            lengths: &lengths[..n],
            cached: [
                keys.rows(rows.clone(), self.config.score_dim()),
                values.rows(rows, width),
            ],
            scale: self.scale,
        };
        let mixed = &mut space.mixed[..n * width];
        tile.attend(self.kernels, space.scores, mixed);
        for (i, mixed) in mixed.chunks_exact(width).enumerate() {
            outputs.row(first + i).copy_from_slice(mixed);
        }
        n
    }

    fn query(&self, unit: usize) -> &[f32] {
        let (token, head) = self.shape.token_and_head(unit);
        let (row, width) = (self.config.q_dim(), self.config.score_dim());
        &self.queries[token * row + head * width..][..width]
    }

    /// Positions a unit's token sees.
    const fn length(&self, unit: usize) -> usize {
        self.start + self.shape.token_and_head(unit).0 + 1
    }
}

/// Parts of `wide` during attention, each `[n_tokens, width]`.
struct AttentionArrays<'s> {
    /// Queries.
    q: &'s mut [f32],
    /// Keys, or latent and rotary key.
    kv: &'s mut [f32],
    /// Values; empty for latent attention.
    v: &'s mut [f32],
    /// Head outputs.
    out: &'s mut [f32],
}

impl<'s> AttentionArrays<'s> {
    fn new(wide: &'s mut [f32], n: usize, config: &ModelConfig) -> Self {
        let (first, second) = kv_widths(config);
        let widths = [config.q_dim(), first, second, config.attn_dim()];
        let [q, kv, v, out] = split(wide, widths.map(|width| n * width));
        Self { q, kv, v, out }
    }
}

/// Parts of `wide` in the feed-forward layer: gate and up, each `[n_tokens, width]`.
fn ffn_arrays(wide: &mut [f32], n: usize, width: usize) -> [&mut [f32]; 2] {
    split(wide, [n * width; 2])
}

/// Which units attention has: the heads of a latent cache all read the same rows.
const fn head_shape(config: &ModelConfig, n_tokens: usize) -> HeadShape {
    let n_kv_heads = match config.attention {
        Attention::Grouped { n_kv_heads, .. } => n_kv_heads,
        Attention::Latent { .. } => 1,
    };
    HeadShape {
        n_tokens,
        n_kv_heads,
        group: config.n_heads / n_kv_heads,
    }
}
