//! The bytes of a configuration: what version 1 holds, and what version 2 adds behind it.

use serde::{Deserialize, Serialize};

use crate::config::{
    Activation, Attention, ModelConfig, NormKind, Norms, Output, Rope, WeightScale,
};

/// Version 1.
#[derive(Serialize, Deserialize)]
struct Base {
    hidden_size: usize,
    intermediate_size: usize,
    n_layers: usize,
    n_heads: usize,
    attention: Attention,
    vocab_size: usize,
    max_seq_len: usize,
    rope: Rope,
    activation: Activation,
    eps: f32,
    attn_sub_norm: bool,
    ffn_sub_norm: bool,
    tie_embeddings: bool,
    weight_scale: WeightScale,
}

/// What version 2 adds. The default is what version 1 means.
#[derive(PartialEq, Serialize, Deserialize)]
struct Departures {
    norm_kind: NormKind,
    block_norms: bool,
    qk_norm: bool,
    in_linear: Option<f32>,
    qk_latent_dim: Option<usize>,
    output: Output,
    pruned_ffn: bool,
}

impl Departures {
    const NONE: Self = Self {
        norm_kind: NormKind::Rms,
        block_norms: true,
        qk_norm: false,
        in_linear: None,
        qk_latent_dim: None,
        output: Output::Logits,
        pruned_ffn: false,
    };
}

/// Writes a configuration; returns its version and length.
///
/// # Panics
///
/// If `buf` is shorter than any configuration needs.
pub(crate) fn encode(config: &ModelConfig, buf: &mut [u8]) -> (u16, usize) {
    let (base, departures) = split(config);
    let written = if departures == Departures::NONE {
        (1, postcard::to_slice(&base, buf))
    } else {
        (2, postcard::to_slice(&(base, departures), buf))
    };
    let (version, bytes) = written;
    (version, bytes.expect("a config is small").len())
}

/// Reads a configuration of a version, and gives what is left over.
pub(crate) fn decode(version: u16, bytes: &[u8]) -> Option<(ModelConfig, &[u8])> {
    let (base, rest) = postcard::take_from_bytes::<Base>(bytes).ok()?;
    let (departures, rest) = match version {
        1 => (Departures::NONE, rest),
        2 => postcard::take_from_bytes(rest).ok()?,
        _ => return None,
    };
    Some((join(base, departures), rest))
}

fn split(config: &ModelConfig) -> (Base, Departures) {
    let norms = config.norms;
    let base = Base {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        n_layers: config.n_layers,
        n_heads: config.n_heads,
        attention: config.attention,
        vocab_size: config.vocab_size,
        max_seq_len: config.max_seq_len,
        rope: config.rope,
        activation: config.activation,
        eps: norms.eps,
        attn_sub_norm: norms.attn_sub_norm,
        ffn_sub_norm: norms.ffn_sub_norm,
        tie_embeddings: config.tie_embeddings,
        weight_scale: config.weight_scale,
    };
    let departures = Departures {
        norm_kind: norms.kind,
        block_norms: norms.block,
        qk_norm: norms.qk_norm,
        in_linear: norms.in_linear,
        qk_latent_dim: config.qk_latent_dim,
        output: config.output,
        pruned_ffn: config.pruned_ffn,
    };
    (base, departures)
}

fn join(base: Base, departures: Departures) -> ModelConfig {
    ModelConfig {
        hidden_size: base.hidden_size,
        intermediate_size: base.intermediate_size,
        n_layers: base.n_layers,
        n_heads: base.n_heads,
        attention: base.attention,
        vocab_size: base.vocab_size,
        max_seq_len: base.max_seq_len,
        rope: base.rope,
        activation: base.activation,
        norms: Norms {
            kind: departures.norm_kind,
            eps: base.eps,
            block: departures.block_norms,
            attn_sub_norm: base.attn_sub_norm,
            ffn_sub_norm: base.ffn_sub_norm,
            qk_norm: departures.qk_norm,
            in_linear: departures.in_linear,
        },
        tie_embeddings: base.tie_embeddings,
        weight_scale: base.weight_scale,
        qk_latent_dim: departures.qk_latent_dim,
        output: departures.output,
        pruned_ffn: departures.pruned_ffn,
    }
}
