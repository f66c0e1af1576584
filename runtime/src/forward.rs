//! The forward pass, as stages that can be cut anywhere.
//!
//! One chunk of tokens goes through all blocks together. Each stage is a number of independent
//! *units* (a row group of a projection, a head, a token), so a pass can stop after any unit and go
//! on later, and no result depends on where it stopped.

use core::ops::Range;

use bitnet_formats::quant::quantize_hidden;
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{Attention, Dtype, ModelConfig, TernaryView, VectorView};

use crate::buffers::{LayerCache, Scratch};
use crate::error::{RunError, at_layer};
use crate::kernels::{HeadInput, Latents, Store};
use crate::layers::bit_linear::{BitLinear, quantize_token};
use crate::layers::latent_attention::{LatentHead, Work};
use crate::layers::{grouped_attention, rope};
use crate::math::sqrt;
use crate::model::{Block, KvProjection, Model};
use crate::plan::{code_stride, kv_widths};

/// The stages of a pass, in order. Those from `AttnIn` to `Down` repeat for every block, `HeadIn`
/// and `Head` for every position whose logits are wanted.
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
    /// Unit: head of a token.
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
            Self::Down | Self::HeadIn | Self::Head => None,
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
    pub(crate) layer: usize,
    /// Position of the chunk's first token.
    pub(crate) start: usize,
    /// Positions the cache has room for.
    pub(crate) capacity: usize,
    /// Token of the chunk that `HeadIn` and `Head` work on.
    pub(crate) head_token: usize,
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
            Stage::GateUp => 2 * groups(config.intermediate_size),
            Stage::HeadIn => 1,
            Stage::Head => groups(config.vocab_size),
            _ => self.n_tokens(),
        }
    }

    /// Runs some units of a stage.
    pub(crate) fn run(&mut self, stage: Stage, units: Range<usize>) -> Result<(), RunError> {
        match stage {
            Stage::Embed => units.into_iter().for_each(|token| self.embed(token)),
            Stage::AttnIn => self.attn_in(units)?,
            Stage::Qkv => self.qkv(units),
            Stage::Cache => units
                .into_iter()
                .try_for_each(|token| self.write_cache(token))?,
            Stage::Attend => units.into_iter().for_each(|unit| self.attend(unit)),
            Stage::AttnOut => self.attn_out(units)?,
            Stage::O => self.residual_linear(self.block.o, units),
            Stage::FfnIn => self.ffn_in(units)?,
            Stage::GateUp => self.gate_up(units),
            Stage::FfnMid => self.ffn_mid(units)?,
            Stage::Down => self.residual_linear(self.block.down, units),
            Stage::HeadIn => self.head_in()?,
            Stage::Head => self.head(units)?,
        }
        Ok(())
    }

    fn embed(&mut self, token: usize) {
        let id = self.scratch.ids[token] as usize;
        let row = self.model.embedding().row(id);
        let hidden = self.hidden(token);
        row.to_f32(&mut self.scratch.residual[hidden]);
        let width = self.config.rope_dim();
        let angles = &mut self.scratch.angles[token * width..][..width];
        rope::angles(self.start + token, &self.model.rope_inv_freq(), angles);
    }

    fn attn_in(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let gain = self.block.attn_norm;
        tokens
            .into_iter()
            .try_for_each(|token| self.norm_residual(token, &gain))
    }

    fn ffn_in(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let gain = self.block.ffn_norm;
        tokens
            .into_iter()
            .try_for_each(|token| self.norm_residual(token, &gain))
    }

    fn norm_residual(&mut self, token: usize, gain: &VectorView<'_>) -> Result<(), RunError> {
        let range = self.hidden(token);
        let width = range.len();
        let (eps, layer) = (self.config.norms.eps, at_layer(self.layer));
        let normed = &mut self.scratch.normed[..width];
        let kernels = self.model.kernels();
        let residual = &self.scratch.residual[range];
        kernels
            .rms_norm(residual, gain, eps, normed)
            .map_err(layer)?;
        self.quantize(token, width)
    }

    /// Norms a row of `wide`, where the model has a norm there, and quantises it.
    fn sub_norm(
        &mut self,
        token: usize,
        row: Range<usize>,
        gain: Option<VectorView<'_>>,
    ) -> Result<(), RunError> {
        let (eps, width) = (self.config.norms.eps, row.len());
        let row = &self.scratch.wide[row];
        let normed = &mut self.scratch.normed[..width];
        match gain {
            Some(gain) => {
                let done = self.model.kernels().rms_norm(row, &gain, eps, normed);
                done.map_err(at_layer(self.layer))?;
            }
            None => normed.copy_from_slice(row),
        }
        self.quantize(token, width)
    }

    /// Quantises `normed[..width]` as the input of the next projections.
    fn quantize(&mut self, token: usize, width: usize) -> Result<(), RunError> {
        let stride = code_stride(self.config);
        let codes = &mut self.scratch.codes[token * stride..][..stride];
        let normed = &self.scratch.normed[..width];
        let scale = quantize_token(self.model.kernels(), normed, codes);
        self.scratch.act_scales[token] = scale.map_err(at_layer(self.layer))?;
        Ok(())
    }

    fn qkv(&mut self, units: Range<usize>) {
        let block = self.block;
        let spans = self.attention_spans();
        let (first, second) = match block.kv {
            KvProjection::Grouped { k, v } => (k, Some(v)),
            KvProjection::Latent { kv_a, .. } => (kv_a, None),
        };
        let mut done = 0;
        for (weights, span) in [
            (Some(block.q), spans.q),
            (Some(first), spans.kv),
            (second, spans.v),
        ] {
            let Some(weights) = weights else { continue };
            self.linear(weights, part(&units, done, weights.n_groups()), span);
            done += weights.n_groups();
        }
    }

    fn gate_up(&mut self, units: Range<usize>) {
        let block = self.block;
        let (gate, up) = self.ffn_spans();
        let n_groups = block.gate.n_groups();
        self.linear(block.gate, part(&units, 0, n_groups), gate);
        self.linear(block.up, part(&units, n_groups, n_groups), up);
    }

    /// Row groups of a projection, into `wide`.
    fn linear(&mut self, weights: TernaryView<'_>, groups: Range<usize>, span: Range<usize>) {
        let scratch = &mut self.scratch;
        let linear = BitLinear::new(self.model, scratch.codes, scratch.act_scales);
        linear.forward(
            weights,
            groups,
            Store::Set,
            scratch.factors,
            &mut scratch.wide[span],
        );
    }

    /// Row groups of a projection, added to the residual stream.
    fn residual_linear(&mut self, weights: TernaryView<'_>, groups: Range<usize>) {
        let scratch = &mut self.scratch;
        let linear = BitLinear::new(self.model, scratch.codes, scratch.act_scales);
        linear.forward(
            weights,
            groups,
            Store::Add,
            scratch.factors,
            scratch.residual,
        );
    }

    fn write_cache(&mut self, token: usize) -> Result<(), RunError> {
        let config = self.config;
        let spans = self.attention_spans();
        let position = self.start + token;
        let angles = &self.scratch.angles[token * config.rope_dim()..][..config.rope_dim()];
        let pairing = config.rope.pairing;
        let queries = &mut self.scratch.wide[row(&spans.q, token, config.q_dim())];
        for head in queries.chunks_exact_mut(config.qk_head_dim()) {
            let rotated = head.len() - config.rope_dim();
            rope::rotate(&mut head[rotated..], angles, pairing);
        }
        let width = kv_widths(config).0;
        let kv = row(&spans.kv, token, width);
        match &mut self.cache {
            LayerCache::Grouped { keys, values } => {
                for (h, key) in self.scratch.wide[kv]
                    .chunks_exact_mut(config.rope_dim())
                    .enumerate()
                {
                    rope::rotate(key, angles, pairing);
                    keys.write(h * self.capacity + position, key);
                }
                let v = &self.scratch.wide[row(&spans.v, token, width)];
                for (h, value) in v.chunks_exact(config.v_head_dim()).enumerate() {
                    values.write(h * self.capacity + position, value);
                }
                Ok(())
            }
            LayerCache::Latent { .. } => self.write_latent(token, kv),
        }
    }

    /// Norms and quantises the latent exactly as `kv_b_proj` would, and keeps the codes.
    fn write_latent(&mut self, token: usize, kv: Range<usize>) -> Result<(), RunError> {
        let config = self.config;
        let (
            LayerCache::Latent {
                codes,
                factors,
                rope_keys,
            },
            KvProjection::Latent { kv_a_norm, key, .. },
        ) = (&mut self.cache, self.block.kv)
        else {
            unreachable!("the cache follows the model");
        };
        let (rank, position, layer) = (kv_a_norm.len(), self.start + token, self.layer);
        let (latent, rope_key) = self.scratch.wide[kv].split_at_mut(rank);
        let normed = &mut self.scratch.normed[..rank];
        let kernels = self.model.kernels();
        let done = kernels.rms_norm(latent, &kv_a_norm, config.norms.eps, normed);
        done.map_err(at_layer(layer))?;
        let codes = &mut codes[position * rank..][..rank];
        let act_scale = quantize_token(kernels, normed, codes).map_err(at_layer(layer))?;
        let convention = config.weight_scale;
        factors[position] = bitnet_formats::quant::linear_factor(convention, key.scale, act_scale);
        let angles = &self.scratch.angles[token * rope_key.len()..][..rope_key.len()];
        rope::rotate(rope_key, angles, config.rope.pairing);
        rope_keys[position * rope_key.len()..][..rope_key.len()].copy_from_slice(rope_key);
        Ok(())
    }

    fn attend(&mut self, unit: usize) {
        let config = self.config;
        let (token, head) = (unit / config.n_heads, unit % config.n_heads);
        let spans = self.attention_spans();
        let n = self.start + token + 1;
        let (before, after) = self.scratch.wide.split_at_mut(spans.out.start);
        let query = &before[row(&spans.q, unit, config.qk_head_dim())];
        let out = &mut after[unit * config.v_head_dim()..][..config.v_head_dim()];
        let scale = 1.0 / sqrt(config.qk_head_dim() as f32);
        let scores = &mut self.scratch.scores[..n];
        let kernels = self.model.kernels();
        match &self.cache {
            LayerCache::Grouped { keys, values } => {
                let kv_head = head / (config.n_heads / n_kv_heads(config));
                let rows = kv_head * self.capacity..kv_head * self.capacity + n;
                let keys = keys.rows(rows.clone(), query.len());
                let values = values.rows(rows, out.len());
                grouped_attention::attend(kernels, query, (keys, values), scale, scores, out);
            }
            LayerCache::Latent {
                codes,
                factors,
                rope_keys,
            } => {
                let KvProjection::Latent { key, value, .. } = self.block.kv else {
                    unreachable!("the cache follows the model");
                };
                let latents = Latents {
                    codes: &codes[..n * self.scratch.q_latent.len()],
                    factors: &factors[..n],
                    rope_keys: &rope_keys[..n * config.rope_dim()],
                };
                let mut work = Work {
                    scores,
                    q_latent: self.scratch.q_latent,
                    o_latent: self.scratch.o_latent,
                };
                let head = LatentHead {
                    kernels,
                    key,
                    value,
                    head,
                    scale,
                };
                head.attend(query, &latents, &mut work, out);
            }
        }
    }

    fn attn_out(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let gain = self.block.attn_sub_norm;
        let (span, width) = (self.attention_spans().out, self.config.attn_dim());
        tokens
            .into_iter()
            .try_for_each(|token| self.sub_norm(token, row(&span, token, width), gain))
    }

    fn ffn_mid(&mut self, tokens: Range<usize>) -> Result<(), RunError> {
        let gain = self.block.ffn_sub_norm;
        let width = self.config.intermediate_size;
        let (span, up_span) = self.ffn_spans();
        for token in tokens {
            let (before, after) = self.scratch.wide.split_at_mut(up_span.start);
            let gate = &mut before[row(&span, token, width)];
            let up = &after[token * width..][..width];
            let kernels = self.model.kernels();
            kernels.gated(self.config.activation, gate, up);
            self.sub_norm(token, row(&span, token, width), gain)?;
        }
        Ok(())
    }

    fn head_in(&mut self) -> Result<(), RunError> {
        let config = self.config;
        let layer = at_layer(config.n_layers);
        let residual = &self.scratch.residual[self.hidden(self.head_token)];
        let normed = &mut self.scratch.normed[..config.hidden_size];
        let (kernels, gain) = (self.model.kernels(), self.model.final_norm());
        kernels
            .rms_norm(residual, &gain, config.norms.eps, normed)
            .map_err(&layer)?;
        if self.model.head().dtype == Dtype::I8Rows {
            let scale = quantize_hidden(normed, self.scratch.hidden_codes).map_err(&layer)?;
            // The scale of the codes waits here for `head`.
            self.scratch.act_scales[self.head_token] = scale;
        }
        Ok(())
    }

    fn head(&mut self, units: Range<usize>) -> Result<(), RunError> {
        let config = self.config;
        let rows = units.start * GROUP_ROWS..config.vocab_size.min(units.end * GROUP_ROWS);
        let matrix = self.model.head();
        let input = match matrix.dtype {
            Dtype::I8Rows => {
                let inverse = 1.0 / self.scratch.act_scales[self.head_token];
                HeadInput::I16(self.scratch.hidden_codes, inverse)
            }
            _ => HeadInput::F32(&self.scratch.normed[..config.hidden_size]),
        };
        let logits = &mut self.scratch.logits[rows.clone()];
        self.model.kernels().head(&matrix, rows, input, logits);
        let finite = bitnet_formats::quant::absmax(logits).map(|_| ());
        finite.map_err(at_layer(config.n_layers))
    }

    fn n_tokens(&self) -> usize {
        self.scratch.ids.len()
    }

    /// A token's part of the residual stream.
    fn hidden(&self, token: usize) -> Range<usize> {
        let width = self.config.hidden_size;
        token * width..(token + 1) * width
    }

    /// Parts of `wide` during attention, each `[n_tokens, width]`.
    fn attention_spans(&self) -> AttentionSpans {
        let (n, config) = (self.n_tokens(), self.config);
        let (first, second) = kv_widths(config);
        let mut end = 0;
        let mut span = |width: usize| {
            let start = end;
            end += n * width;
            start..end
        };
        AttentionSpans {
            q: span(config.q_dim()),
            kv: span(first),
            v: span(second),
            out: span(config.attn_dim()),
        }
    }

    /// Parts of `wide` in the feed-forward layer: gate and up, each `[n_tokens, intermediate_size]`.
    fn ffn_spans(&self) -> (Range<usize>, Range<usize>) {
        let n = self.n_tokens() * self.config.intermediate_size;
        (0..n, n..2 * n)
    }
}

/// Parts of `wide` during attention.
struct AttentionSpans {
    /// Queries.
    q: Range<usize>,
    /// Keys, or latent and rotary key.
    kv: Range<usize>,
    /// Values; empty for latent attention.
    v: Range<usize>,
    /// Head outputs.
    out: Range<usize>,
}

/// Row `index` of a `[_, width]` array that stands at `span`.
fn row(span: &Range<usize>, index: usize, width: usize) -> Range<usize> {
    span.start + index * width..span.start + (index + 1) * width
}

/// The units that fall to the `n` groups which begin at unit `first`, counted from there.
fn part(units: &Range<usize>, first: usize, n: usize) -> Range<usize> {
    let clip = |unit: usize| unit.clamp(first, first + n) - first;
    clip(units.start)..clip(units.end)
}

const fn n_kv_heads(config: &ModelConfig) -> usize {
    match config.attention {
        Attention::Grouped { n_kv_heads, .. } => n_kv_heads,
        Attention::Latent { .. } => config.n_heads,
    }
}
