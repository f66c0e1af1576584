//! Named shapes.

use crate::config::{
    Activation, Attention, ModelConfig, Norms, Output, Rope, RopePairing, WeightScale,
};

/// A named shape. The first four share the native architecture: SubLN, gated squared ReLU,
/// multi-head latent attention, tied embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// About 1 M parameters, for firmware.
    Nano,
    /// About 4 M, for a first training run.
    Tiny,
    /// About 30 M.
    Small,
    /// 696 M, with the LLaMA 3 vocabulary.
    BitNet700m,
    /// The shape of the public bitnet_b1_58-large: multi-head attention, SiLU, 729 M.
    BitNetLarge,
    /// The shape of the public BitNet-b1.58-2B-4T: grouped-query attention, 2.4 B.
    BitNet2b4t,
}

impl Preset {
    /// Every preset, smallest first.
    pub const ALL: [Self; 6] = [
        Self::Nano,
        Self::Tiny,
        Self::Small,
        Self::BitNet700m,
        Self::BitNetLarge,
        Self::BitNet2b4t,
    ];

    /// The name users type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nano => "nano",
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::BitNet700m => "bitnet-700m",
            Self::BitNetLarge => "bitnet-large",
            Self::BitNet2b4t => "bitnet-2b4t",
        }
    }

    /// The preset of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// The shape.
    #[must_use]
    pub const fn config(self) -> ModelConfig {
        match self {
            Self::Nano => native(128, 384, 4, 512, 256, heads(4, 64, 32, 16, 32)),
            Self::Tiny => native(256, 704, 4, 2_048, 256, heads(8, 128, 32, 16, 32)),
            Self::Small => native(512, 1_408, 8, 8_192, 512, heads(8, 192, 64, 32, 64)),
            Self::BitNet700m => {
                native(1_536, 4_096, 21, 128_256, 2_048, heads(16, 256, 64, 32, 64))
            }
            Self::BitNetLarge => public(1_536, 4_096, 24, 32_002, 2_048, grouped(16, 16, 96)),
            Self::BitNet2b4t => ModelConfig {
                rope: Rope {
                    theta: 500_000.0,
                    pairing: RopePairing::HalfRotation,
                },
                activation: Activation::SquaredRelu,
                ..public(2_560, 6_912, 30, 128_256, 4_096, grouped(20, 5, 128))
            },
        }
    }
}

/// Query heads and the attention they belong to.
type Heads = (usize, Attention);

const fn heads(n: usize, kv_lora_rank: usize, nope: usize, rope: usize, v: usize) -> Heads {
    let attention = Attention::Latent {
        kv_lora_rank,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: rope,
        v_head_dim: v,
    };
    (n, attention)
}

const fn grouped(n: usize, n_kv_heads: usize, head_dim: usize) -> Heads {
    (
        n,
        Attention::Grouped {
            n_kv_heads,
            head_dim,
        },
    )
}

const fn native(
    hidden_size: usize,
    intermediate_size: usize,
    n_layers: usize,
    vocab_size: usize,
    max_seq_len: usize,
    (n_heads, attention): Heads,
) -> ModelConfig {
    ModelConfig {
        hidden_size,
        intermediate_size,
        n_layers,
        n_heads,
        attention,
        vocab_size,
        max_seq_len,
        rope: Rope {
            theta: 10_000.0,
            pairing: RopePairing::HalfRotation,
        },
        activation: Activation::SquaredRelu,
        norms: Norms::sub_ln(1e-5),
        tie_embeddings: true,
        weight_scale: WeightScale::Divide,
        qk_latent_dim: None,
        output: Output::Logits,
        pruned_ffn: false,
    }
}

const fn public(
    hidden_size: usize,
    intermediate_size: usize,
    n_layers: usize,
    vocab_size: usize,
    max_seq_len: usize,
    heads: Heads,
) -> ModelConfig {
    ModelConfig {
        activation: Activation::Silu,
        weight_scale: WeightScale::Multiply,
        ..native(
            hidden_size,
            intermediate_size,
            n_layers,
            vocab_size,
            max_seq_len,
            heads,
        )
    }
}
