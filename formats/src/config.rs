//! What a model is: shapes and conventions, without code per model family.

use serde::{Deserialize, Serialize};

/// Widest input a ternary matrix may have: the T5 kernels are exact up to here (SPEC.md, "T5-R16").
pub const MAX_COLS: usize = 65_535;
/// Most layers a file may describe.
pub const MAX_LAYERS: usize = 1_024;
/// Largest vocabulary.
pub const MAX_VOCAB: usize = 1 << 22;
/// Longest context.
pub const MAX_SEQ_LEN: usize = 1 << 22;

/// The shape and the conventions of one model.
///
/// A block computes, with every projection a BitLinear:
///
/// ```text
/// h += o_proj(attn_sub_norm(attention(attn_norm(h))))
/// h += down_proj(ffn_sub_norm(activation(gate_proj(x)) * up_proj(x))),  x = ffn_norm(h)
/// ```
///
/// and the logits are `head . final_norm(h)`. [`Norms`], `qk_latent_dim` and [`Output`] say where a
/// model departs from this.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// How keys and values are made and cached.
    pub attention: Attention,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub max_seq_len: usize,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Activation of the feed-forward gate.
    pub activation: Activation,
    /// Where norms sit, and their epsilon.
    pub norms: Norms,
    /// True where the embedding matrix is the head as well.
    pub tie_embeddings: bool,
    /// How a stored weight scale enters a product.
    pub weight_scale: WeightScale,
    /// Grouped attention only: the width to which one BitLinear, shared by all heads, takes a head's
    /// rotated query, and another its rotated key, before they meet. `None` where they meet as they are.
    pub qk_latent_dim: Option<usize>,
    /// What the model gives for a position.
    pub output: Output,
    /// True where blocks have lost feed-forward neurons that are always zero. How many a block has
    /// left, at most `intermediate_size`, is told by its tensors; norms over them divide by
    /// `intermediate_size` all the same, so that nothing else changes.
    pub pruned_ffn: bool,
}

/// How attention makes its keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attention {
    /// Grouped-query attention; multi-head attention where `n_kv_heads == n_heads`.
    Grouped {
        /// Number of key/value heads; divides `n_heads`.
        n_kv_heads: usize,
        /// Width of a head, which need not be `hidden_size / n_heads`.
        head_dim: usize,
    },
    /// Multi-head latent attention (DeepSeek-V2, section 2.1) without the low-rank query.
    Latent {
        /// Width of the latent that keys and values are made from.
        kv_lora_rank: usize,
        /// Width of a head's query and key part that carries no position.
        qk_nope_head_dim: usize,
        /// Width of the rotated part; its key is shared by all heads.
        qk_rope_head_dim: usize,
        /// Width of a head's value.
        v_head_dim: usize,
    },
}

/// Rotary position embedding. The inverse frequencies themselves are a tensor of the file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// Which elements turn together.
    pub pairing: RopePairing,
}

#[cfg(feature = "std")]
impl Rope {
    /// Inverse frequencies `theta^(-i/n)` for `n` pairs, computed in f64 and rounded once.
    ///
    /// Writers of files and trainers call this; readers take the frequencies from the file.
    #[must_use]
    pub fn inv_freq(&self, n: usize) -> std::vec::Vec<f32> {
        let theta = f64::from(self.theta);
        (0..n)
            .map(|i| theta.powf(-(i as f64) / n as f64) as f32)
            .collect()
    }
}

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RopePairing {
    /// Element `i` with `i + dim/2` (Hugging Face, GPT-NeoX).
    HalfRotation,
    /// Element `2i` with `2i + 1` (GPT-J, GGUF `llama`).
    Interleaved,
}

/// Activation of the feed-forward gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// Which norms a model has, of which kind, and their epsilon. The norm before the head is always there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Norms {
    /// What every norm computes.
    pub kind: NormKind,
    /// Added to the mean square before the root, but for norms inside linears.
    pub eps: f32,
    /// A norm before attention, and one before the feed-forward layer.
    pub block: bool,
    /// A norm over the concatenated heads, before `o_proj`.
    pub attn_sub_norm: bool,
    /// A norm over the gated product, before `down_proj`.
    pub ffn_sub_norm: bool,
    /// A norm over each query head, and one over each key head, before they are rotated.
    pub qk_norm: bool,
    /// The epsilon of norms inside linears, where there are any: every BitLinear then norms its input
    /// with a gain of its own, after all other norms and before it quantises.
    pub in_linear: Option<f32>,
}

impl Norms {
    /// RmsNorm before attention and before the feed-forward layer, and nothing else.
    #[must_use]
    pub const fn pre(eps: f32) -> Self {
        Self {
            kind: NormKind::Rms,
            eps,
            block: true,
            attn_sub_norm: false,
            ffn_sub_norm: false,
            qk_norm: false,
            in_linear: None,
        }
    }

    /// The norms of BitNet b1.58: those of [`pre`](Self::pre) and both sub-norms.
    #[must_use]
    pub const fn sub_ln(eps: f32) -> Self {
        Self {
            attn_sub_norm: true,
            ffn_sub_norm: true,
            ..Self::pre(eps)
        }
    }
}

/// What a norm computes. `gain` is learned; there is no bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * gain` (arXiv 1910.07467).
    Rms,
    /// The same of `x - mean(x)` (arXiv 1607.06450).
    Layer,
}

/// What a model gives for a position, from its normed hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Logits, by a dense matrix: the embedding or one of its own.
    Logits,
    /// Logits, by a BitLinear.
    TernaryLogits,
    /// The hidden state itself, scaled to length one: an embedding of the text so far.
    Embedding,
}

/// How the stored scale of a ternary matrix enters `y = codes . x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightScale {
    /// The scale is the size of a weight: `y = acc * scale / act_scale`.
    Multiply,
    /// The scale is its reciprocal, `1 / mean|w|`: `y = acc / (act_scale * scale)`.
    Divide,
}

/// A configuration that no model can have. Each variant carries the numbers that break the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size is zero or above its cap.
    OutOfRange {
        /// Field of [`ModelConfig`].
        field: &'static str,
        /// What it holds.
        value: usize,
        /// Its largest legal value.
        max: usize,
    },
    /// `n_heads` is not a multiple of `n_kv_heads`.
    HeadGroups {
        /// Query heads.
        n_heads: usize,
        /// Key/value heads.
        n_kv_heads: usize,
    },
    /// A size must be a multiple of something and is not.
    NotAMultiple {
        /// Field of [`ModelConfig`].
        field: &'static str,
        /// What it holds.
        value: usize,
        /// What must divide it.
        of: usize,
    },
    /// A float is not finite and positive.
    NotPositive {
        /// Field of [`ModelConfig`].
        field: &'static str,
    },
    /// Two settings that exclude each other.
    Conflict {
        /// A setting.
        setting: &'static str,
        /// What it cannot go with.
        with: &'static str,
    },
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::OutOfRange { field, value, max } => {
                write!(f, "{field} is {value}; it must be between 1 and {max}")
            }
            Self::HeadGroups {
                n_heads,
                n_kv_heads,
            } => write!(
                f,
                "n_heads {n_heads} must be a multiple of n_kv_heads {n_kv_heads}"
            ),
            Self::NotAMultiple { field, value, of } => {
                write!(f, "{field} is {value}; it must be a multiple of {of}")
            }
            Self::NotPositive { field } => {
                write!(f, "{field} must be a finite number above zero")
            }
            Self::Conflict { setting, with } => {
                write!(f, "{setting} cannot go with {with}")
            }
        }
    }
}

impl core::error::Error for ConfigError {}

impl ModelConfig {
    /// Checks every size against its cap, and the relations between sizes.
    ///
    /// # Errors
    ///
    /// The first rule that is broken. After `Ok`, no product of sizes overflows a `u64`.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_ranges()?;
        self.validate_attention()?;
        self.validate_departures()?;
        positive("norms.eps", self.norms.eps)?;
        positive("norms.in_linear", self.norms.in_linear.unwrap_or(1.0))?;
        positive("rope.theta", self.rope.theta)
    }

    fn validate_departures(&self) -> Result<(), ConfigError> {
        let norms = &self.norms;
        let plain_norms =
            norms.kind == NormKind::Rms && norms.in_linear.is_none() && !norms.qk_norm;
        if let Attention::Latent { .. } = self.attention {
            let with = "latent attention";
            conflict(!plain_norms, "this kind or place of norms", with)?;
            conflict(self.qk_latent_dim.is_some(), "qk_latent_dim", with)?;
        }
        if let Some(dim) = self.qk_latent_dim {
            in_range("qk_latent_dim", dim, self.qk_head_dim())?;
        }
        let other_norm = norms.kind != NormKind::Rms;
        conflict(self.pruned_ffn && other_norm, "pruned_ffn", "LayerNorm")?;
        let head_is_other = self.output != Output::Logits;
        conflict(
            head_is_other && self.tie_embeddings,
            "a tied head",
            "this output",
        )
    }

    fn validate_ranges(&self) -> Result<(), ConfigError> {
        in_range("hidden_size", self.hidden_size, MAX_COLS)?;
        in_range("intermediate_size", self.intermediate_size, MAX_COLS)?;
        in_range("n_layers", self.n_layers, MAX_LAYERS)?;
        in_range("n_heads", self.n_heads, MAX_COLS)?;
        in_range("vocab_size", self.vocab_size, MAX_VOCAB)?;
        in_range("max_seq_len", self.max_seq_len, MAX_SEQ_LEN)
    }

    fn validate_attention(&self) -> Result<(), ConfigError> {
        let heads_cap = MAX_COLS / self.n_heads;
        match self.attention {
            Attention::Grouped {
                n_kv_heads,
                head_dim,
            } => {
                in_range("head_dim", head_dim, heads_cap)?;
                multiple("head_dim", head_dim, 2)?;
                in_range("n_kv_heads", n_kv_heads, self.n_heads)?;
                if !self.n_heads.is_multiple_of(n_kv_heads) {
                    let n_heads = self.n_heads;
                    return Err(ConfigError::HeadGroups {
                        n_heads,
                        n_kv_heads,
                    });
                }
                Ok(())
            }
            Attention::Latent {
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => {
                in_range("kv_lora_rank", kv_lora_rank, heads_cap)?;
                in_range("qk_nope_head_dim", qk_nope_head_dim, heads_cap)?;
                in_range("qk_rope_head_dim", qk_rope_head_dim, heads_cap)?;
                in_range("v_head_dim", v_head_dim, heads_cap)?;
                in_range(
                    "qk_head_dim",
                    qk_nope_head_dim + qk_rope_head_dim,
                    heads_cap,
                )?;
                // A head starts on a row group in both halves of kv_b_proj.
                multiple("kv_lora_rank", kv_lora_rank, crate::ternary::GROUP_ROWS)?;
                multiple("v_head_dim", v_head_dim, crate::ternary::GROUP_ROWS)?;
                multiple("qk_rope_head_dim", qk_rope_head_dim, 2)
            }
        }
    }

    /// Width of a head's query and key.
    #[must_use]
    pub const fn qk_head_dim(&self) -> usize {
        match self.attention {
            Attention::Grouped { head_dim, .. } => head_dim,
            Attention::Latent {
                qk_nope_head_dim,
                qk_rope_head_dim,
                ..
            } => qk_nope_head_dim + qk_rope_head_dim,
        }
    }

    /// Width in which a head's query and key meet.
    #[must_use]
    pub const fn score_dim(&self) -> usize {
        match self.qk_latent_dim {
            Some(dim) => dim,
            None => self.qk_head_dim(),
        }
    }

    /// Numbers the model gives for a position: logits, or elements of an embedding.
    #[must_use]
    pub const fn output_size(&self) -> usize {
        match self.output {
            Output::Logits | Output::TernaryLogits => self.vocab_size,
            Output::Embedding => self.hidden_size,
        }
    }

    /// Width of a head's value.
    #[must_use]
    pub const fn v_head_dim(&self) -> usize {
        match self.attention {
            Attention::Grouped { head_dim, .. } => head_dim,
            Attention::Latent { v_head_dim, .. } => v_head_dim,
        }
    }

    /// Width of the part of a head that is rotated.
    #[must_use]
    pub const fn rope_dim(&self) -> usize {
        match self.attention {
            Attention::Grouped { head_dim, .. } => head_dim,
            Attention::Latent {
                qk_rope_head_dim, ..
            } => qk_rope_head_dim,
        }
    }

    /// Width of the concatenated queries: rows of `q_proj`.
    #[must_use]
    pub const fn q_dim(&self) -> usize {
        self.n_heads * self.qk_head_dim()
    }

    /// Width of the concatenated head outputs: columns of `o_proj`.
    #[must_use]
    pub const fn attn_dim(&self) -> usize {
        self.n_heads * self.v_head_dim()
    }

    /// Parameters of the model, each shared matrix once.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.tensors()
            .filter(|t| t.role.is_trained())
            .map(|t| t.rows as u64 * t.cols as u64)
            .sum()
    }
}

const fn in_range(field: &'static str, value: usize, max: usize) -> Result<(), ConfigError> {
    if value == 0 || value > max {
        return Err(ConfigError::OutOfRange { field, value, max });
    }
    Ok(())
}

const fn multiple(field: &'static str, value: usize, of: usize) -> Result<(), ConfigError> {
    if !value.is_multiple_of(of) {
        return Err(ConfigError::NotAMultiple { field, value, of });
    }
    Ok(())
}

const fn conflict(
    is_one: bool,
    setting: &'static str,
    with: &'static str,
) -> Result<(), ConfigError> {
    if is_one {
        return Err(ConfigError::Conflict { setting, with });
    }
    Ok(())
}

fn positive(field: &'static str, value: f32) -> Result<(), ConfigError> {
    if !value.is_finite() || value <= 0.0 {
        return Err(ConfigError::NotPositive { field });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::Preset;

    #[test]
    fn every_preset_is_valid() {
        for preset in Preset::ALL {
            preset
                .config()
                .validate()
                .unwrap_or_else(|e| panic!("{}: {e}", preset.name()));
        }
    }

    #[cfg(feature = "std")]
    #[test]
    fn frequencies_are_a_geometric_series() {
        let rope = Preset::Tiny.config().rope;
        assert_eq!(rope.inv_freq(4), [1.0, 0.1, 0.01, 0.001]);
    }

    /// One case per rule: what is changed, and the error it must give.
    #[test]
    fn each_rule_has_its_error() {
        type Change = fn(&mut ModelConfig);
        let latent = |c: &mut ModelConfig, rank, v| {
            c.attention = Attention::Latent {
                kv_lora_rank: rank,
                qk_nope_head_dim: 32,
                qk_rope_head_dim: 16,
                v_head_dim: v,
            };
        };
        assert_eq!(
            changed(|c| c.hidden_size = 0),
            "hidden_size is 0; it must be between 1 and 65535"
        );
        assert_eq!(
            changed(|c| c.n_layers = 1_025),
            "n_layers is 1025; it must be between 1 and 1024"
        );
        assert_eq!(
            changed(|c| c.norms.eps = f32::NAN),
            "norms.eps must be a finite number above zero"
        );
        let mut c = Preset::Tiny.config();
        latent(&mut c, 40, 32);
        assert_eq!(
            c.validate().unwrap_err(),
            ConfigError::NotAMultiple {
                field: "kv_lora_rank",
                value: 40,
                of: 16
            }
        );
        let groups: Change = |c| {
            c.attention = Attention::Grouped {
                n_kv_heads: 3,
                head_dim: 32,
            }
        };
        assert_eq!(
            changed(groups),
            "n_heads 8 must be a multiple of n_kv_heads 3"
        );

        assert_eq!(
            changed(|c| c.norms.qk_norm = true),
            "this kind or place of norms cannot go with latent attention"
        );
        assert_eq!(
            changed(|c| c.qk_latent_dim = Some(8)),
            "qk_latent_dim cannot go with latent attention"
        );
        assert_eq!(
            changed(|c| c.output = Output::Embedding),
            "a tied head cannot go with this output"
        );
        let departure: Change = |c| {
            c.attention = Attention::Grouped {
                n_kv_heads: 8,
                head_dim: 32,
            };
            c.norms.in_linear = Some(0.0);
        };
        assert_eq!(
            changed(departure),
            "norms.in_linear must be a finite number above zero"
        );
        let departure: Change = |c| {
            c.attention = Attention::Grouped {
                n_kv_heads: 8,
                head_dim: 32,
            };
            c.qk_latent_dim = Some(33);
        };
        assert_eq!(
            changed(departure),
            "qk_latent_dim is 33; it must be between 1 and 32"
        );

        fn changed(change: Change) -> std::string::String {
            let mut c = Preset::Tiny.config();
            change(&mut c);
            std::format!("{}", c.validate().unwrap_err())
        }
    }
}
