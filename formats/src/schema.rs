//! Which tensors a model has: the one list that writer, reader, converter and trainer share.
//!
//! A file holds exactly [`ModelConfig::tensors`], in that order. Tensors that read the same input
//! (q with k and v, or with the latent projection; gate with up) stand next to each other.

use crate::config::{Attention, ModelConfig, Output};

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
    /// Output matrix where it is a BitLinear, `[vocab_size, hidden_size]`.
    TernaryHead = 4,
    /// Gain of the norm inside [`TernaryHead`](Self::TernaryHead), `[hidden_size]`.
    HeadInputNorm = 5,
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
    /// Gain of the norm inside `q_proj`, `[hidden_size]`.
    QInputNorm = 31,
    /// Gain of the norm inside `k_proj`, `[hidden_size]`.
    KInputNorm = 32,
    /// Gain of the norm inside `v_proj`, `[hidden_size]`.
    VInputNorm = 33,
    /// Gain of the norm inside `o_proj`, `[n_heads * v_head_dim]`.
    OInputNorm = 34,
    /// Gain of the norm inside `gate_proj`, `[hidden_size]`.
    GateInputNorm = 35,
    /// Gain of the norm inside `up_proj`, `[hidden_size]`.
    UpInputNorm = 36,
    /// Gain of the norm inside `down_proj`, `[intermediate_size]`.
    DownInputNorm = 37,
    /// Gain of the norm of each query head, `[head_dim]`.
    QHeadNorm = 38,
    /// Gain of the norm of each key head, `[head_dim]`.
    KHeadNorm = 39,
    /// Projection of each rotated query head, `[qk_latent_dim, head_dim]`.
    LatentQ = 40,
    /// Projection of each rotated key head, `[qk_latent_dim, head_dim]`.
    LatentK = 41,
    /// Gain of the norm inside [`LatentQ`](Self::LatentQ), `[head_dim]`.
    LatentQInputNorm = 42,
    /// Gain of the norm inside [`LatentK`](Self::LatentK), `[head_dim]`.
    LatentKInputNorm = 43,
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

/// Which side of a tensor counts feed-forward neurons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfnAxis {
    /// Each row is one.
    Rows,
    /// Each column is one.
    Cols,
}

impl TensorSpec {
    /// The same tensor in a block with this many feed-forward neurons.
    #[must_use]
    pub const fn with_ffn_width(self, width: usize) -> Self {
        match self.role.ffn_axis() {
            Some(FfnAxis::Rows) => Self {
                rows: width,
                ..self
            },
            Some(FfnAxis::Cols) => Self {
                cols: width,
                ..self
            },
            None => self,
        }
    }
}

/// Tensors before the blocks.
const PROLOGUE: [TensorRole; 2] = [TensorRole::Embedding, TensorRole::RopeInvFreq];

/// Tensors of a block in file order; a model has those its configuration asks for.
const BLOCK: [TensorRole; 28] = [
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
    TensorRole::QInputNorm,
    TensorRole::KInputNorm,
    TensorRole::VInputNorm,
    TensorRole::OInputNorm,
    TensorRole::GateInputNorm,
    TensorRole::UpInputNorm,
    TensorRole::DownInputNorm,
    TensorRole::QHeadNorm,
    TensorRole::KHeadNorm,
    TensorRole::LatentQ,
    TensorRole::LatentK,
    TensorRole::LatentQInputNorm,
    TensorRole::LatentKInputNorm,
];

/// Tensors after the blocks.
const EPILOGUE: [TensorRole; 4] = [
    TensorRole::FinalNorm,
    TensorRole::Head,
    TensorRole::TernaryHead,
    TensorRole::HeadInputNorm,
];

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
            Self::TernaryHead => "ternary_head",
            Self::HeadInputNorm => "head.norm",
            Self::QInputNorm => "q_proj.norm",
            Self::KInputNorm => "k_proj.norm",
            Self::VInputNorm => "v_proj.norm",
            Self::OInputNorm => "o_proj.norm",
            Self::GateInputNorm => "gate_proj.norm",
            Self::UpInputNorm => "up_proj.norm",
            Self::DownInputNorm => "down_proj.norm",
            Self::QHeadNorm => "q_norm",
            Self::KHeadNorm => "k_norm",
            Self::LatentQ => "latent_q",
            Self::LatentK => "latent_k",
            Self::LatentQInputNorm => "latent_q.norm",
            Self::LatentKInputNorm => "latent_k.norm",
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
            Self::LatentQ | Self::LatentK | Self::TernaryHead => TensorClass::Ternary,
            _ => TensorClass::Vector,
        }
    }

    /// Which side of tensors of this role counts feed-forward neurons, if one does.
    #[must_use]
    pub const fn ffn_axis(self) -> Option<FfnAxis> {
        match self {
            Self::Gate | Self::Up => Some(FfnAxis::Rows),
            Self::FfnSubNorm | Self::DownInputNorm | Self::Down => Some(FfnAxis::Cols),
            _ => None,
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
        PROLOGUE
            .into_iter()
            .map(whole)
            .chain(blocks)
            .chain(self.epilogue_roles().map(whole))
    }

    fn epilogue_roles(&self) -> impl Iterator<Item = TensorRole> + '_ {
        EPILOGUE.into_iter().filter(|role| self.has(*role))
    }

    /// The roles of one block, in file order.
    pub fn block_roles(&self) -> impl Iterator<Item = TensorRole> + '_ {
        BLOCK.into_iter().filter(|role| self.has(*role))
    }

    /// Number of tensors a file of this model holds.
    #[must_use]
    pub fn tensor_count(&self) -> usize {
        let epilogue = self.epilogue_roles().count();
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
                    let slot = self.epilogue_roles().position(|r| r == role)?;
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
            TensorRole::Head => !self.tie_embeddings && matches!(self.output, Output::Logits),
            _ => self.has_departure(role),
        }
    }

    /// [`has`](Self::has) for what most models lack.
    const fn has_departure(&self, role: TensorRole) -> bool {
        let ternary_head = matches!(self.output, Output::TernaryLogits);
        let norms = &self.norms;
        let in_linear = norms.in_linear.is_some();
        match role {
            TensorRole::AttnNorm | TensorRole::FfnNorm => norms.block,
            TensorRole::TernaryHead => ternary_head,
            TensorRole::HeadInputNorm => ternary_head && in_linear,
            TensorRole::QInputNorm | TensorRole::KInputNorm | TensorRole::VInputNorm => in_linear,
            TensorRole::OInputNorm | TensorRole::DownInputNorm => in_linear,
            TensorRole::GateInputNorm | TensorRole::UpInputNorm => in_linear,
            TensorRole::QHeadNorm | TensorRole::KHeadNorm => norms.qk_norm,
            TensorRole::LatentQ | TensorRole::LatentK => self.qk_latent_dim.is_some(),
            TensorRole::LatentQInputNorm | TensorRole::LatentKInputNorm => {
                in_linear && self.qk_latent_dim.is_some()
            }
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
            TensorRole::Embedding | TensorRole::Head | TensorRole::TernaryHead => {
                (self.vocab_size, hidden)
            }
            TensorRole::RopeInvFreq => (1, self.rope_dim() / 2),
            TensorRole::FinalNorm | TensorRole::AttnNorm | TensorRole::FfnNorm => (1, hidden),
            TensorRole::QInputNorm | TensorRole::KInputNorm | TensorRole::VInputNorm => (1, hidden),
            TensorRole::GateInputNorm | TensorRole::UpInputNorm => (1, hidden),
            TensorRole::HeadInputNorm => (1, hidden),
            TensorRole::Q => (self.q_dim(), hidden),
            TensorRole::AttnSubNorm | TensorRole::OInputNorm => (1, self.attn_dim()),
            TensorRole::O => (hidden, self.attn_dim()),
            TensorRole::Gate | TensorRole::Up => (ffn, hidden),
            TensorRole::FfnSubNorm | TensorRole::DownInputNorm => (1, ffn),
            TensorRole::Down => (hidden, ffn),
            TensorRole::QHeadNorm | TensorRole::KHeadNorm => (1, self.qk_head_dim()),
            TensorRole::LatentQInputNorm | TensorRole::LatentKInputNorm => (1, self.qk_head_dim()),
            TensorRole::LatentQ | TensorRole::LatentK => (self.score_dim(), self.qk_head_dim()),
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
    use crate::config::Norms;
    use crate::presets::Preset;

    /// Every norm, a shared projection and a ternary head: all roles of grouped attention.
    fn departing() -> ModelConfig {
        ModelConfig {
            norms: Norms {
                qk_norm: true,
                in_linear: Some(1e-6),
                ..Norms::sub_ln(1e-5)
            },
            tie_embeddings: false,
            qk_latent_dim: Some(8),
            output: Output::TernaryLogits,
            ..Preset::BitNetLarge.config()
        }
    }

    #[test]
    fn index_and_list_agree() {
        let presets = Preset::ALL.map(Preset::config).into_iter();
        for config in presets.chain([departing()]) {
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
