//! The public names of tensors, and the roles they play.
//!
//! One matrix has two roles: `kv_b_proj` makes keys and values from the latent, and a `.btn` file
//! stores its two halves apart, each along the axis in which attention reads it.

use bitnet_formats::{Attention, ModelConfig, TensorClass, TensorRole, TensorSpec};

/// A tensor as checkpoints hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointTensor {
    /// Public name.
    pub name: String,
    /// Its role; [`TensorRole::KvBKey`] stands for the whole of `kv_b_proj`.
    pub role: TensorRole,
    /// Its block, or `None` for a tensor of the whole model.
    pub layer: Option<usize>,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl CheckpointTensor {
    /// The shape checkpoints give it: `[cols]` for a vector, `[rows, cols]` for a matrix.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        match self.role.class() {
            TensorClass::Vector => vec![self.cols],
            _ => vec![self.rows, self.cols],
        }
    }
}

/// How a family names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Before every name.
    root: &'static str,
    /// Before the names of everything but the head.
    model: &'static str,
    attention: &'static str,
    ffn: &'static str,
    attn_sub_norm: &'static str,
    ffn_sub_norm: &'static str,
    /// The norm inside a linear.
    inner_norm: &'static str,
}

impl Naming {
    /// The names of the `transformers` library's BitNet and Llama, which this project writes as well.
    pub const PUBLIC: Self = Self {
        root: "",
        model: "model.",
        attention: "self_attn",
        ffn: "mlp",
        attn_sub_norm: "self_attn.attn_sub_norm",
        ffn_sub_norm: "mlp.ffn_sub_norm",
        inner_norm: "rms_norm",
    };
    /// `bitnet_b1_58`: the sub-norms have names of their own.
    pub const B1_58: Self = Self {
        attn_sub_norm: "self_attn.inner_attn_ln",
        ffn_sub_norm: "mlp.ffn_layernorm",
        ..Self::PUBLIC
    };
    /// `bitnet-embedding`: the body alone.
    pub const EMBEDDING: Self = Self {
        model: "",
        inner_norm: "norm",
        ..Self::PUBLIC
    };
    /// `bitnet700`.
    pub const BITNET700: Self = Self {
        attention: "attention",
        ffn: "ffn",
        ..Self::EMBEDDING
    };

    /// The same names behind another word, as an unwrapped training state has them.
    #[must_use]
    pub const fn under(self, root: &'static str) -> Self {
        Self { root, ..self }
    }

    /// Name of a tensor.
    ///
    /// `None` for a role that checkpoints do not store, or where `layer` does not fit the role:
    /// tensors of a block need one, the others must have none.
    #[must_use]
    pub fn name(&self, role: TensorRole, layer: Option<usize>) -> Option<String> {
        let (root, model) = (self.root, self.model);
        match layer {
            Some(layer) if role.is_in_block() => {
                let suffix = self.in_block(role)?;
                Some(format!("{root}{model}layers.{layer}.{suffix}.weight"))
            }
            None => match role {
                TensorRole::Embedding => Some(format!("{root}{model}embed_tokens.weight")),
                TensorRole::FinalNorm => Some(format!("{root}{model}norm.weight")),
                TensorRole::Head | TensorRole::TernaryHead => Some(format!("{root}lm_head.weight")),
                TensorRole::HeadInputNorm => {
                    Some(format!("{root}lm_head.{}.weight", self.inner_norm))
                }
                _ => None,
            },
            Some(_) => None,
        }
    }

    fn in_block(&self, role: TensorRole) -> Option<String> {
        use TensorRole as R;
        let (attention, ffn, inner) = (self.attention, self.ffn, self.inner_norm);
        Some(match role {
            R::AttnNorm => "input_layernorm".to_owned(),
            R::FfnNorm => "post_attention_layernorm".to_owned(),
            R::AttnSubNorm => self.attn_sub_norm.to_owned(),
            R::FfnSubNorm => self.ffn_sub_norm.to_owned(),
            R::Q => format!("{attention}.q_proj"),
            R::K => format!("{attention}.k_proj"),
            R::V => format!("{attention}.v_proj"),
            R::KvA => format!("{attention}.kv_a_proj_with_mqa"),
            R::KvANorm => format!("{attention}.kv_a_layernorm"),
            R::KvBKey | R::KvBValue => format!("{attention}.kv_b_proj"),
            R::O => format!("{attention}.o_proj"),
            R::Gate => format!("{ffn}.gate_proj"),
            R::Up => format!("{ffn}.up_proj"),
            R::Down => format!("{ffn}.down_proj"),
            R::QHeadNorm => format!("{attention}.q_norm"),
            R::KHeadNorm => format!("{attention}.k_norm"),
            R::LatentQ => format!("{attention}.latent_q"),
            R::LatentK => format!("{attention}.latent_k"),
            _ => format!("{}.{inner}", self.in_block(linear_of(role)?)?),
        })
    }

    /// Every tensor a checkpoint of this model holds, each once, in the order of a `.btn` file.
    pub fn checkpoint_tensors(
        self,
        config: &ModelConfig,
    ) -> impl Iterator<Item = CheckpointTensor> + '_ {
        config.tensors().filter_map(move |spec| {
            let name = (spec.role != TensorRole::KvBValue)
                .then(|| self.name(spec.role, spec.layer))
                .flatten()?;
            let (rows, cols) = checkpoint_shape(config, spec);
            Some(CheckpointTensor {
                name,
                role: spec.role,
                layer: spec.layer,
                rows,
                cols,
            })
        })
    }
}

/// The linear that a norm is inside of.
const fn linear_of(norm: TensorRole) -> Option<TensorRole> {
    use TensorRole as R;
    match norm {
        R::QInputNorm => Some(R::Q),
        R::KInputNorm => Some(R::K),
        R::VInputNorm => Some(R::V),
        R::OInputNorm => Some(R::O),
        R::GateInputNorm => Some(R::Gate),
        R::UpInputNorm => Some(R::Up),
        R::DownInputNorm => Some(R::Down),
        R::LatentQInputNorm => Some(R::LatentQ),
        R::LatentKInputNorm => Some(R::LatentK),
        _ => None,
    }
}

/// [`Naming::checkpoint_tensors`] under the public names.
pub fn checkpoint_tensors(config: &ModelConfig) -> impl Iterator<Item = CheckpointTensor> + '_ {
    Naming::PUBLIC.checkpoint_tensors(config)
}

/// Shape of the checkpoint's tensor: that of the role, but for `kv_b_proj`, which is whole there.
fn checkpoint_shape(config: &ModelConfig, spec: TensorSpec) -> (usize, usize) {
    match (spec.role, config.attention) {
        (
            TensorRole::KvBKey,
            Attention::Latent {
                kv_lora_rank,
                qk_nope_head_dim,
                v_head_dim,
                ..
            },
        ) => (
            config.n_heads * (qk_nope_head_dim + v_head_dim),
            kv_lora_rank,
        ),
        _ => (spec.rows, spec.cols),
    }
}

/// [`Naming::name`] under the public names.
#[must_use]
pub fn tensor_name(role: TensorRole, layer: Option<usize>) -> Option<String> {
    Naming::PUBLIC.name(role, layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    /// A checkpoint holds the same parameters as the model, each once.
    #[test]
    fn checkpoints_hold_every_parameter_once() {
        for preset in Preset::ALL {
            let config = preset.config();
            let mut names: Vec<_> = checkpoint_tensors(&config).map(|t| t.name).collect();
            let parameters: u64 = checkpoint_tensors(&config)
                .map(|t| t.rows as u64 * t.cols as u64)
                .sum();
            assert_eq!(parameters, config.parameter_count(), "{}", preset.name());
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", preset.name());
        }
    }

    #[test]
    fn the_latent_matrix_is_whole_and_vectors_are_flat() {
        let config = Preset::BitNet700m.config();
        let find = |role| {
            checkpoint_tensors(&config)
                .find(|t| t.role == role && t.layer.is_none_or(|l| l == 20))
                .unwrap()
        };
        let kv_b = find(TensorRole::KvBKey);
        assert_eq!(kv_b.name, "model.layers.20.self_attn.kv_b_proj.weight");
        assert_eq!(kv_b.shape(), [16 * 128, 256]);
        assert_eq!(find(TensorRole::KvANorm).shape(), [256]);
        assert_eq!(find(TensorRole::Embedding).shape(), [128_256, 1_536]);
    }

    #[test]
    fn each_family_has_its_names() {
        let name = |naming: Naming, role| naming.name(role, Some(3)).unwrap();
        assert_eq!(
            name(Naming::PUBLIC, TensorRole::DownInputNorm),
            "model.layers.3.mlp.down_proj.rms_norm.weight"
        );
        assert_eq!(
            name(Naming::B1_58, TensorRole::AttnSubNorm),
            "model.layers.3.self_attn.inner_attn_ln.weight"
        );
        assert_eq!(
            name(Naming::EMBEDDING, TensorRole::KHeadNorm),
            "layers.3.self_attn.k_norm.weight"
        );
        assert_eq!(
            name(
                Naming::BITNET700.under("model_state_dict."),
                TensorRole::LatentQInputNorm
            ),
            "model_state_dict.layers.3.attention.latent_q.norm.weight"
        );
    }

    #[test]
    fn roles_without_a_tensor_have_no_name() {
        assert_eq!(tensor_name(TensorRole::RopeInvFreq, None), None);
        assert_eq!(tensor_name(TensorRole::Q, None), None);
        assert_eq!(tensor_name(TensorRole::Head, Some(0)), None);
    }
}
