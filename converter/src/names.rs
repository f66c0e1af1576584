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

/// Every tensor a checkpoint of this model holds, each once, in the order of a `.btn` file.
pub fn checkpoint_tensors(config: &ModelConfig) -> impl Iterator<Item = CheckpointTensor> + '_ {
    config.tensors().filter_map(|spec| {
        let name = (spec.role != TensorRole::KvBValue)
            .then(|| tensor_name(spec.role, spec.layer))
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

/// Public name of a tensor.
///
/// `None` for a role that checkpoints do not store, or where `layer` does not fit the role: tensors
/// of a block need one, the others must have none.
#[must_use]
pub fn tensor_name(role: TensorRole, layer: Option<usize>) -> Option<String> {
    let suffix = suffix(role)?;
    match layer {
        Some(layer) if role.is_in_block() => Some(format!("model.layers.{layer}.{suffix}")),
        None if !role.is_in_block() => Some(suffix.to_owned()),
        _ => None,
    }
}

/// Role and block of a public name: the inverse of [`tensor_name`].
///
/// `kv_b_proj` gives [`TensorRole::KvBKey`].
#[must_use]
pub fn parse_tensor_name(name: &str) -> Option<(TensorRole, Option<usize>)> {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        let role = role_of(name).filter(|role| !role.is_in_block())?;
        return Some((role, None));
    };
    let (layer, rest) = rest.split_once('.')?;
    let role = role_of(rest).filter(|role| role.is_in_block())?;
    Some((role, Some(parse_layer(layer)?)))
}

/// A layer number as [`tensor_name`] writes it: digits only, no leading zero.
fn parse_layer(text: &str) -> Option<usize> {
    let layer = text.parse::<usize>().ok()?;
    (layer.to_string() == text).then_some(layer)
}

fn role_of(text: &str) -> Option<TensorRole> {
    NAMES
        .iter()
        .find(|(_, name)| *name == text)
        .map(|(role, _)| *role)
}

fn suffix(role: TensorRole) -> Option<&'static str> {
    NAMES
        .iter()
        .find(|(r, _)| *r == role)
        .map(|(_, name)| *name)
}

/// Names within a model or block. `kv_b_proj` is listed under its key half first.
const NAMES: [(TensorRole, &str); 18] = [
    (TensorRole::Embedding, "model.embed_tokens.weight"),
    (TensorRole::FinalNorm, "model.norm.weight"),
    (TensorRole::Head, "lm_head.weight"),
    (TensorRole::AttnNorm, "input_layernorm.weight"),
    (TensorRole::Q, "self_attn.q_proj.weight"),
    (TensorRole::K, "self_attn.k_proj.weight"),
    (TensorRole::V, "self_attn.v_proj.weight"),
    (TensorRole::KvA, "self_attn.kv_a_proj_with_mqa.weight"),
    (TensorRole::KvANorm, "self_attn.kv_a_layernorm.weight"),
    (TensorRole::KvBKey, "self_attn.kv_b_proj.weight"),
    (TensorRole::KvBValue, "self_attn.kv_b_proj.weight"),
    (TensorRole::AttnSubNorm, "self_attn.attn_sub_norm.weight"),
    (TensorRole::O, "self_attn.o_proj.weight"),
    (TensorRole::FfnNorm, "post_attention_layernorm.weight"),
    (TensorRole::Gate, "mlp.gate_proj.weight"),
    (TensorRole::Up, "mlp.up_proj.weight"),
    (TensorRole::FfnSubNorm, "mlp.ffn_sub_norm.weight"),
    (TensorRole::Down, "mlp.down_proj.weight"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    #[test]
    fn names_survive_the_round_trip_in_every_preset() {
        for preset in Preset::ALL {
            let config = preset.config();
            for tensor in checkpoint_tensors(&config) {
                let parsed = parse_tensor_name(&tensor.name);
                assert_eq!(parsed, Some((tensor.role, tensor.layer)), "{}", tensor.name);
            }
        }
    }

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
    fn other_names_have_no_role() {
        for name in [
            "",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.x.self_attn.q_proj.weight",
            "model.layers.01.self_attn.q_proj.weight",
            "model.layers.+1.self_attn.q_proj.weight",
            "model.layers.0.model.norm.weight",
            "model.layers.0.lm_head.weight",
            "layers.0.self_attn.q_proj.weight",
        ] {
            assert_eq!(parse_tensor_name(name), None, "{name}");
        }
        assert_eq!(parse_tensor_name("self_attn.q_proj.weight"), None);
        assert_eq!(tensor_name(TensorRole::RopeInvFreq, None), None);
        assert_eq!(tensor_name(TensorRole::Q, None), None);
        assert_eq!(tensor_name(TensorRole::Head, Some(0)), None);
    }
}
