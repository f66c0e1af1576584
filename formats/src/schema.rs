//! Which tensors a model has: the one list that writer, reader, converter and trainer share.
//!
//! A file holds exactly [`ModelConfig::tensors`], in that order. Tensors that read the same input
//! (q with k and v, or with the latent projection; gate with up) stand next to each other.

use crate::config::{Attention, ModelConfig};

/// What a tensor is for. The number is its code in the tensor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum TensorRole {
    /// Token embedding, `[vocab_size, hidden_size]`.
    Embedding = 0,
    /// Inverse RoPE frequencies, `[rope_dim / 2]`.
    RopeInvFreq = 1,
    /// Gain of the norm before the head, `[hidden_size]`.
    FinalNorm = 2,
    /// Output matrix where it is not the embedding, `[vocab_size, hidden_size]`.
    Head = 3,
    /// Gain of the norm before attention, `[hidden_size]`.
    AttnNorm = 16,
    /// Query projection, `[n_heads * qk_head_dim, hidden_size]`.
    Q = 17,
    /// Key projection, `[n_kv_heads * head_dim, hidden_size]`.
    K = 18,
    /// Value projection, `[n_kv_heads * head_dim, hidden_size]`.
    V = 19,
    /// Projection to latent and rotary key, `[kv_lora_rank + qk_rope_head_dim, hidden_size]`.
    KvA = 20,
    /// Gain of the norm on the latent, `[kv_lora_rank]`.
    KvANorm = 21,
    /// Key half of `kv_b_proj`, transposed per head: `[n_heads * kv_lora_rank, qk_nope_head_dim]`.
    KvBKey = 22,
    /// Value half of `kv_b_proj`: `[n_heads * v_head_dim, kv_lora_rank]`.
    KvBValue = 23,
    /// Gain of the norm before `o_proj`, `[n_heads * v_head_dim]`.
    AttnSubNorm = 24,
    /// Output projection, `[hidden_size, n_heads * v_head_dim]`.
    O = 25,
    /// Gain of the norm before the feed-forward layer, `[hidden_size]`.
    FfnNorm = 26,
    /// Gate projection, `[intermediate_size, hidden_size]`.
    Gate = 27,
    /// Up projection, `[intermediate_size, hidden_size]`.
    Up = 28,
    /// Gain of the norm before `down_proj`, `[intermediate_size]`.
    FfnSubNorm = 29,
    /// Down projection, `[hidden_size, intermediate_size]`.
    Down = 30,
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorClass {
    /// Ternary codes in a row-group layout, with a scale.
    Ternary,
    /// A dense matrix: f32, f16, bf16 or int8 rows.
    Matrix,
    /// A vector of f32.
    Vector,
}

/// One tensor a model must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// What it is for.
    pub role: TensorRole,
    /// Its block, or `None` for a tensor of the whole model.
    pub layer: Option<usize>,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns: the width of the input.
    pub cols: usize,
}

/// Tensors before the blocks.
const PROLOGUE: [TensorRole; 2] = [TensorRole::Embedding, TensorRole::RopeInvFreq];

/// Tensors of a block in file order; a model has those its configuration asks for.
const BLOCK: [TensorRole; 15] = [
    TensorRole::AttnNorm,
    TensorRole::Q,
    TensorRole::K,
    TensorRole::V,
    TensorRole::KvA,
    TensorRole::KvANorm,
    TensorRole::KvBKey,
    TensorRole::KvBValue,
    TensorRole::AttnSubNorm,
    TensorRole::O,
    TensorRole::FfnNorm,
    TensorRole::Gate,
    TensorRole::Up,
    TensorRole::FfnSubNorm,
    TensorRole::Down,
];

/// Tensors after the blocks.
const EPILOGUE: [TensorRole; 2] = [TensorRole::FinalNorm, TensorRole::Head];

impl TensorRole {
    /// The role with this code, if there is one.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        PROLOGUE
            .into_iter()
            .chain(EPILOGUE)
            .chain(BLOCK)
            .find(|role| *role as u16 == code)
    }

    /// Name within a block or model, as listings print it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::RopeInvFreq => "rope_inv_freq",
            Self::FinalNorm => "final_norm",
            Self::Head => "head",
            Self::AttnNorm => "attn_norm",
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::KvA => "kv_a_proj",
            Self::KvANorm => "kv_a_norm",
            Self::KvBKey => "kv_b_proj.key",
            Self::KvBValue => "kv_b_proj.value",
            Self::AttnSubNorm => "attn_sub_norm",
            Self::O => "o_proj",
            Self::FfnNorm => "ffn_norm",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::FfnSubNorm => "ffn_sub_norm",
            Self::Down => "down_proj",
        }
    }

    /// How tensors of this role are stored.
    #[must_use]
    pub const fn class(self) -> TensorClass {
        match self {
            Self::Embedding | Self::Head => TensorClass::Matrix,
            Self::Q | Self::K | Self::V | Self::KvA | Self::KvBKey | Self::KvBValue => {
                TensorClass::Ternary
            }
            Self::O | Self::Gate | Self::Up | Self::Down => TensorClass::Ternary,
            Self::RopeInvFreq | Self::FinalNorm | Self::AttnNorm | Self::KvANorm => {
                TensorClass::Vector
            }
            Self::AttnSubNorm | Self::FfnNorm | Self::FfnSubNorm => TensorClass::Vector,
        }
    }

    /// False for what follows from the configuration and is not learned.
    #[must_use]
    pub const fn is_trained(self) -> bool {
        !matches!(self, Self::RopeInvFreq)
    }

    /// True for tensors of a block, false for those of the whole model.
    #[must_use]
    pub fn is_in_block(self) -> bool {
        BLOCK.contains(&self)
    }
}

impl ModelConfig {
    /// Every tensor of the model, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        let whole = |role| self.spec(role, None);
        let blocks = (0..self.n_layers).flat_map(move |layer| {
            self.block_roles()
                .map(move |role| self.spec(role, Some(layer)))
        });
        let epilogue = EPILOGUE.into_iter().filter(|role| self.has(*role));
        PROLOGUE
            .into_iter()
            .map(whole)
            .chain(blocks)
            .chain(epilogue.map(whole))
    }

    /// The roles of one block, in file order.
    pub fn block_roles(&self) -> impl Iterator<Item = TensorRole> + '_ {
        BLOCK.into_iter().filter(|role| self.has(*role))
    }

    /// Number of tensors a file of this model holds.
    #[must_use]
    pub fn tensor_count(&self) -> usize {
        let epilogue = if self.tie_embeddings { 1 } else { 2 };
        PROLOGUE.len() + self.n_layers * self.block_roles().count() + epilogue
    }

    /// Place of a tensor in the table, or `None` where the model has no such tensor.
    #[must_use]
    pub fn tensor_index(&self, role: TensorRole, layer: Option<usize>) -> Option<usize> {
        let per_block = self.block_roles().count();
        match layer {
            Some(layer) if layer < self.n_layers => {
                let slot = self.block_roles().position(|r| r == role)?;
                Some(PROLOGUE.len() + layer * per_block + slot)
            }
            Some(_) => None,
            None => match PROLOGUE.iter().position(|r| *r == role) {
                Some(slot) => Some(slot),
                None if !self.has(role) => None,
                None => {
                    let slot = EPILOGUE.iter().position(|r| *r == role)?;
                    Some(PROLOGUE.len() + self.n_layers * per_block + slot)
                }
            },
        }
    }

    /// True where the model has tensors of this role.
    #[must_use]
    pub const fn has(&self, role: TensorRole) -> bool {
        let latent = matches!(self.attention, Attention::Latent { .. });
        match role {
            TensorRole::K | TensorRole::V => !latent,
            TensorRole::KvA | TensorRole::KvANorm => latent,
            TensorRole::KvBKey | TensorRole::KvBValue => latent,
            TensorRole::AttnSubNorm => self.norms.attn_sub_norm,
            TensorRole::FfnSubNorm => self.norms.ffn_sub_norm,
            TensorRole::Head => !self.tie_embeddings,
            _ => true,
        }
    }

    fn spec(&self, role: TensorRole, layer: Option<usize>) -> TensorSpec {
        let (rows, cols) = self.shape(role);
        TensorSpec {
            role,
            layer,
            rows,
            cols,
        }
    }

    /// Shape `(rows, cols)` of the tensors of a role; `(0, 0)` for a role this model lacks.
    #[must_use]
    pub const fn shape(&self, role: TensorRole) -> (usize, usize) {
        let hidden = self.hidden_size;
        let ffn = self.intermediate_size;
        match role {
            TensorRole::Embedding | TensorRole::Head => (self.vocab_size, hidden),
            TensorRole::RopeInvFreq => (1, self.rope_dim() / 2),
            TensorRole::FinalNorm | TensorRole::AttnNorm | TensorRole::FfnNorm => (1, hidden),
            TensorRole::Q => (self.q_dim(), hidden),
            TensorRole::AttnSubNorm => (1, self.attn_dim()),
            TensorRole::O => (hidden, self.attn_dim()),
            TensorRole::Gate | TensorRole::Up => (ffn, hidden),
            TensorRole::FfnSubNorm => (1, ffn),
            TensorRole::Down => (hidden, ffn),
            _ => self.kv_shape(role),
        }
    }

    const fn kv_shape(&self, role: TensorRole) -> (usize, usize) {
        match (self.attention, role) {
            (
                Attention::Grouped {
                    n_kv_heads,
                    head_dim,
                },
                TensorRole::K | TensorRole::V,
            ) => (n_kv_heads * head_dim, self.hidden_size),
            (
                Attention::Latent {
                    kv_lora_rank,
                    qk_nope_head_dim,
                    qk_rope_head_dim,
                    v_head_dim,
                },
                _,
            ) => match role {
                TensorRole::KvA => (kv_lora_rank + qk_rope_head_dim, self.hidden_size),
                TensorRole::KvANorm => (1, kv_lora_rank),
                TensorRole::KvBKey => (self.n_heads * kv_lora_rank, qk_nope_head_dim),
                TensorRole::KvBValue => (self.n_heads * v_head_dim, kv_lora_rank),
                _ => (0, 0),
            },
            _ => (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::Preset;

    #[test]
    fn index_and_list_agree_for_every_preset() {
        for preset in Preset::ALL {
            let config = preset.config();
            for (i, spec) in config.tensors().enumerate() {
                assert_eq!(
                    config.tensor_index(spec.role, spec.layer),
                    Some(i),
                    "{spec:?}"
                );
                assert!(spec.rows > 0 && spec.cols > 0, "{spec:?}");
                assert_eq!(TensorRole::from_code(spec.role as u16), Some(spec.role));
                assert_eq!(spec.layer.is_some(), spec.role.is_in_block());
            }
            assert_eq!(config.tensors().count(), config.tensor_count());
        }
    }

    #[test]
    fn absent_tensors_have_no_index() {
        let config = Preset::Tiny.config();
        assert_eq!(config.tensor_index(TensorRole::Head, None), None);
        assert_eq!(config.tensor_index(TensorRole::K, Some(0)), None);
        assert_eq!(config.tensor_index(TensorRole::Q, None), None);
        assert_eq!(
            config.tensor_index(TensorRole::Q, Some(config.n_layers)),
            None
        );
    }

    /// The parameter counts the documentation states.
    #[test]
    fn preset_parameter_counts() {
        let count = |p: Preset| p.config().parameter_count();
        assert_eq!(count(Preset::Nano), 929_152);
        assert_eq!(count(Preset::Tiny), 3_758_592);
        assert_eq!(count(Preset::Small), 29_254_656);
        assert_eq!(count(Preset::BitNet700m), 696_417_024);
        assert_eq!(count(Preset::BitNetLarge), 728_842_752);
        assert_eq!(count(Preset::BitNet2b4t), 2_412_820_480);
    }
}
