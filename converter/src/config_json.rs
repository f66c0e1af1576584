//! `config.json`: the public keys, to and from [`ModelConfig`].
//!
//! Both generations of keys are read: `rope_theta` and `torch_dtype` of the 4.x library,
//! `rope_parameters` and `dtype` of 5.x. Both are written. A key that would change the numbers and
//! is not understood is an error; nothing has a default but what the public classes leave out
//! (`head_dim`, `num_key_value_heads`, `hidden_act`).

use bitnet_formats::{
    Activation, Attention, ModelConfig, NormKind, Norms, Output, Rope, RopePairing, WeightScale,
};
use serde_json::{Value, json};

use crate::error::ConfigJsonError;
use crate::family::{Detected, Family, TensorNames, WeightForm, unsupported, wrong_type};

type Result<T> = std::result::Result<T, ConfigJsonError>;

/// What a `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointConfig {
    /// Whose checkpoint it is.
    pub family: Family,
    /// How it stores ternary matrices.
    pub weights: WeightForm,
    /// The model.
    pub model: ModelConfig,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end one.
    pub eos_token_ids: Vec<u32>,
}

impl CheckpointConfig {
    /// The configuration of a new checkpoint: the family follows from the model.
    ///
    /// # Errors
    ///
    /// [`ConfigJsonError::Inexpressible`] where the public keys have no word for a setting.
    pub fn new(model: ModelConfig) -> Result<Self> {
        model.validate()?;
        let (family, weights) = family_of(&model)?;
        Ok(Self {
            family,
            weights,
            model,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        })
    }

    /// The configuration of a checkpoint of packed codes.
    ///
    /// # Errors
    ///
    /// [`ConfigJsonError::Inexpressible`] where the public keys have no word for a setting.
    pub fn packed(model: ModelConfig) -> Result<Self> {
        model.validate()?;
        Ok(Self {
            family: packed_family(&model)?,
            weights: WeightForm::Packed(model.weight_scale),
            model,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        })
    }

    /// Reads a `config.json`, together with the tensor names of its checkpoint.
    ///
    /// # Errors
    ///
    /// The first key that is missing, of the wrong type, or not supported.
    pub fn from_json(config: &Value, names: TensorNames<'_>) -> Result<Self> {
        let detected = Detected::of(config, names)?;
        let model = match detected.family {
            Family::BitNet700 => read_bitnet700(config)?,
            _ => read_model(config, detected)?,
        };
        model.validate()?;
        Ok(Self {
            family: detected.family,
            weights: detected.weights,
            model,
            bos_token_id: token_ids(config, "bos_token_id")?.first().copied(),
            eos_token_ids: token_ids(config, "eos_token_id")?,
        })
    }

    /// Writes a `config.json`: the inverse of [`from_json`](Self::from_json).
    ///
    /// `dtype` is the element type of the stored tensors, by its public name: `"float32"`,
    /// `"bfloat16"`, `"float16"`.
    #[must_use]
    pub fn to_json(&self, dtype: &str) -> Value {
        let mut config = model_keys(&self.model);
        config["architectures"] = json!([self.family.architecture()]);
        config["model_type"] = json!(self.family.model_type());
        config["bos_token_id"] = json!(self.bos_token_id);
        config["eos_token_id"] = token_value(&self.eos_token_ids);
        config["torch_dtype"] = json!(dtype);
        config["dtype"] = json!(dtype);
        config["quantization_config"] = self.quantization();
        if self.family == Family::BitNet700 {
            config["activation_function"] = json!("relu");
            config["latent_dim"] = json!(self.model.qk_latent_dim);
        }
        config
    }

    fn quantization(&self) -> Value {
        let packed = self.weights.is_packed();
        let divides = self.weights == WeightForm::Packed(WeightScale::Divide);
        let mut section = json!({
            "quant_method": "bitnet",
            "linear_class": if divides { "bitlinear" } else { "autobitlinear" },
            "quantization_mode": if packed { "offline" } else { "online" },
            "modules_to_not_convert": null,
        });
        let says_norms = matches!(self.family, Family::BitNet | Family::Llama);
        if let Some(eps) = self.model.norms.in_linear.filter(|_| says_norms) {
            section["use_rms_norm"] = json!(true);
            section["rms_norm_eps"] = json!(decimal(eps));
        }
        section
    }
}

/// The family whose packed checkpoints hold such a model.
fn packed_family(model: &ModelConfig) -> Result<Family> {
    let inexpressible = |setting| Err(ConfigJsonError::Inexpressible { setting });
    let (norms, eps) = (model.norms, model.norms.eps);
    let outer = Norms {
        in_linear: None,
        ..norms
    };
    if model.rope.pairing != RopePairing::HalfRotation {
        return inexpressible("interleaved rotary pairs");
    }
    if model.pruned_ffn {
        return inexpressible(
            "blocks with pruned neurons; convert the source again without pruning",
        );
    }
    let latent = matches!(model.attention, Attention::Latent { .. });
    match (model.output, model.qk_latent_dim) {
        (Output::Logits, None) if latent && norms == Norms::sub_ln(eps) => Ok(Family::Latent),
        (Output::Logits, None) if !latent && outer == Norms::sub_ln(eps) => Ok(Family::BitNet),
        (Output::Logits, None) if !latent && outer == Norms::pre(eps) => Ok(Family::Llama),
        (Output::Embedding, None) if norms == qwen3_norms(eps) => Ok(Family::Qwen3Embedding),
        (Output::TernaryLogits, Some(_)) if is_bitnet700(model) => Ok(Family::BitNet700),
        _ => inexpressible("these norms with this attention and output"),
    }
}

/// True where everything that bitnet700 fixes is as it fixes it.
fn is_bitnet700(model: &ModelConfig) -> bool {
    let one_head_each = Attention::Grouped {
        n_kv_heads: model.n_heads,
        head_dim: model.hidden_size / model.n_heads,
    };
    model.norms == bitnet700_norms()
        && model.attention == one_head_each
        && model.hidden_size.is_multiple_of(model.n_heads)
        && model.activation == Activation::SquaredRelu
        && model.rope.theta == BITNET700_THETA
}

/// The family that a model is written as.
fn family_of(model: &ModelConfig) -> Result<(Family, WeightForm)> {
    let inexpressible = |setting| Err(ConfigJsonError::Inexpressible { setting });
    if model.qk_latent_dim.is_some() || model.output != Output::Logits {
        return inexpressible("projected heads, or another output than logits of a dense head");
    }
    if model.rope.pairing != RopePairing::HalfRotation {
        return inexpressible("interleaved rotary pairs");
    }
    let (norms, eps) = (model.norms, model.norms.eps);
    let outer = Norms {
        in_linear: None,
        ..norms
    };
    let family = match model.attention {
        Attention::Latent { .. } if norms == Norms::sub_ln(eps) => Family::Latent,
        Attention::Latent { .. } => {
            return inexpressible("latent attention without both sub-norms, or with others");
        }
        Attention::Grouped { .. } if outer == Norms::sub_ln(eps) => Family::BitNet,
        Attention::Grouped { .. } if outer == Norms::pre(eps) => Family::Llama,
        Attention::Grouped { .. } => return inexpressible("one sub-norm, or other norms"),
    };
    match (family, model.weight_scale) {
        (family, WeightScale::Divide) => Ok((family, WeightForm::Masters)),
        (Family::Latent, WeightScale::Multiply) => {
            inexpressible("latent attention with scales that multiply")
        }
        (family, multiply) => Ok((family, WeightForm::Packed(multiply))),
    }
}

fn model_keys(model: &ModelConfig) -> Value {
    let theta = decimal(model.rope.theta);
    let mut config = json!({
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_seq_len,
        "hidden_act": activation_name(model.activation),
        "rms_norm_eps": decimal(model.norms.eps),
        "rope_theta": theta,
        "rope_parameters": { "rope_type": "default", "rope_theta": theta },
        "tie_word_embeddings": model.tie_embeddings,
    });
    attention_keys(model, &mut config);
    config
}

fn attention_keys(model: &ModelConfig, config: &mut Value) {
    match model.attention {
        Attention::Grouped {
            n_kv_heads,
            head_dim,
        } => {
            config["num_key_value_heads"] = json!(n_kv_heads);
            config["head_dim"] = json!(head_dim);
        }
        Attention::Latent {
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
        } => {
            config["num_key_value_heads"] = json!(model.n_heads);
            config["kv_lora_rank"] = json!(kv_lora_rank);
            config["qk_nope_head_dim"] = json!(qk_nope_head_dim);
            config["qk_rope_head_dim"] = json!(qk_rope_head_dim);
            config["v_head_dim"] = json!(v_head_dim);
        }
    }
}

/// The f64 with the shortest decimal form that reads back as this f32: 0.00001, not 0.00000999999974.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::SquaredRelu => "relu2",
        Activation::Silu => "silu",
    }
}

fn token_value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

fn read_model(config: &Value, detected: Detected) -> Result<ModelConfig> {
    refuse_biases(config)?;
    refuse_local_attention(config)?;
    let family = detected.family;
    let output = match family {
        Family::Qwen3Embedding => Output::Embedding,
        _ => Output::Logits,
    };
    Ok(ModelConfig {
        hidden_size: size(config, "hidden_size")?,
        intermediate_size: size(config, "intermediate_size")?,
        n_layers: size(config, "num_hidden_layers")?,
        n_heads: size(config, "num_attention_heads")?,
        attention: read_attention(config, family)?,
        vocab_size: size(config, "vocab_size")?,
        max_seq_len: size(config, "max_position_embeddings")?,
        rope: Rope {
            theta: read_theta(config)?,
            pairing: RopePairing::HalfRotation,
        },
        activation: read_activation(config, family)?,
        norms: read_norms(config, detected)?,
        tie_embeddings: output == Output::Logits && flag(config, "tie_word_embeddings")?,
        weight_scale: detected.weights.weight_scale(),
        qk_latent_dim: None,
        output,
        pruned_ffn: false,
    })
}

fn read_norms(config: &Value, detected: Detected) -> Result<Norms> {
    let eps = number(config, "rms_norm_eps")?;
    let norms = match detected.family {
        Family::Llama => Norms::pre(eps),
        Family::Qwen3Embedding => qwen3_norms(eps),
        _ => Norms::sub_ln(eps),
    };
    let in_linear = detected.in_linear.map(|eps| eps as f32);
    Ok(Norms {
        in_linear: in_linear.or(norms.in_linear),
        ..norms
    })
}

const fn qwen3_norms(eps: f32) -> Norms {
    Norms {
        qk_norm: true,
        in_linear: Some(eps),
        ..Norms::pre(eps)
    }
}

const BITNET700_THETA: f32 = 10_000.0;

/// Of every LayerNorm: `layer_norm_eps` is not read by the model's code.
const fn bitnet700_norms() -> Norms {
    const EPS: f32 = 1e-6;
    Norms {
        kind: NormKind::Layer,
        block: false,
        in_linear: Some(EPS),
        ..Norms::pre(EPS)
    }
}

/// `bitnet700` has keys of its own, and fixes in its code what others configure.
fn read_bitnet700(config: &Value) -> Result<ModelConfig> {
    if config["activation_function"] != "relu" {
        let reason = "the model's code squares a ReLU";
        return Err(unsupported("activation_function", config, reason));
    }
    let n_heads = size(config, "num_attention_heads")?;
    let hidden_size = size(config, "hidden_size")?;
    Ok(ModelConfig {
        hidden_size,
        intermediate_size: size(config, "intermediate_size")?,
        n_layers: size(config, "num_hidden_layers")?,
        n_heads,
        attention: Attention::Grouped {
            n_kv_heads: n_heads,
            head_dim: implied_head_dim(config, n_heads)?,
        },
        vocab_size: size(config, "vocab_size")?,
        max_seq_len: size(config, "max_position_embeddings")?,
        rope: Rope {
            theta: BITNET700_THETA,
            pairing: RopePairing::HalfRotation,
        },
        activation: Activation::SquaredRelu,
        norms: bitnet700_norms(),
        tie_embeddings: false,
        weight_scale: WeightScale::Divide,
        qk_latent_dim: Some(size(config, "latent_dim")?),
        output: Output::TernaryLogits,
        pruned_ffn: false,
    })
}

fn refuse_biases(config: &Value) -> Result<()> {
    for key in ["attention_bias", "mlp_bias"] {
        if present(config, key).is_some_and(|v| v != &json!(false)) {
            return Err(unsupported(key, config, "ternary models have no biases"));
        }
    }
    Ok(())
}

/// Attention must reach every earlier position in every layer.
fn refuse_local_attention(config: &Value) -> Result<()> {
    const REASON: &str = "sliding windows are not built";
    let everywhere = |layer: &Value| layer == "full_attention";
    match present(config, "layer_types") {
        None => (),
        Some(Value::Array(layers)) if layers.iter().all(everywhere) => (),
        Some(_) => return Err(unsupported("layer_types", config, REASON)),
    }
    // Where a class has a switch for the window, the switch decides.
    match (
        present(config, "use_sliding_window"),
        present(config, "sliding_window"),
    ) {
        (Some(Value::Bool(false)), _) | (None, None) => Ok(()),
        (None, Some(_)) => Err(unsupported("sliding_window", config, REASON)),
        (Some(_), _) => Err(unsupported("use_sliding_window", config, REASON)),
    }
}

fn read_attention(config: &Value, family: Family) -> Result<Attention> {
    let n_heads = size(config, "num_attention_heads")?;
    let n_kv_heads = size_or(config, "num_key_value_heads", || Ok(n_heads))?;
    if family != Family::Latent {
        let head_dim = size_or(config, "head_dim", || implied_head_dim(config, n_heads))?;
        return Ok(Attention::Grouped {
            n_kv_heads,
            head_dim,
        });
    }
    if n_kv_heads != n_heads {
        let reason = "latent attention has a key per head: it must equal num_attention_heads";
        return Err(unsupported("num_key_value_heads", config, reason));
    }
    Ok(Attention::Latent {
        kv_lora_rank: size(config, "kv_lora_rank")?,
        qk_nope_head_dim: size(config, "qk_nope_head_dim")?,
        qk_rope_head_dim: size(config, "qk_rope_head_dim")?,
        v_head_dim: size(config, "v_head_dim")?,
    })
}

fn implied_head_dim(config: &Value, n_heads: usize) -> Result<usize> {
    let hidden_size = size(config, "hidden_size")?;
    match hidden_size.checked_rem(n_heads) {
        Some(0) => Ok(hidden_size / n_heads),
        _ => Err(unsupported(
            "hidden_size",
            config,
            "without head_dim it must be a multiple of num_attention_heads",
        )),
    }
}

fn read_activation(config: &Value, family: Family) -> Result<Activation> {
    let default = match family {
        Family::BitNet | Family::Latent => Activation::SquaredRelu,
        _ => Activation::Silu,
    };
    match present(config, "hidden_act").map(Value::as_str) {
        None => Ok(default),
        Some(Some("relu2")) => Ok(Activation::SquaredRelu),
        Some(Some("silu")) => Ok(Activation::Silu),
        Some(_) => Err(unsupported(
            "hidden_act",
            config,
            "it must be relu2 or silu",
        )),
    }
}

/// The base of the rotary frequencies, where both generations of keys may speak and must agree.
fn read_theta(config: &Value) -> Result<f32> {
    refuse_scaling(config, "rope_scaling")?;
    refuse_scaling(config, "rope_parameters")?;
    let old = optional_number(config, "rope_theta")?;
    let new = match present(config, "rope_parameters") {
        Some(parameters) => optional_number(parameters, "rope_theta")?,
        None => None,
    };
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let reason = "rope_parameters.rope_theta differs from it";
            Err(unsupported("rope_theta", config, reason))
        }
        (Some(theta), _) | (None, Some(theta)) => Ok(theta),
        (None, None) => Err(ConfigJsonError::Missing { key: "rope_theta" }),
    }
}

/// Refuses every rotary embedding but the plain one.
fn refuse_scaling(config: &Value, key: &'static str) -> Result<()> {
    let plain = |(name, value): (&String, &Value)| match name.as_str() {
        "rope_type" | "type" => value == "default",
        "rope_theta" => true,
        _ => value.is_null(),
    };
    match present(config, key) {
        None => Ok(()),
        Some(Value::Object(map)) if map.iter().all(plain) => Ok(()),
        Some(_) => Err(unsupported(
            key,
            config,
            "only the default rotary embedding is read",
        )),
    }
}

/// Token ids of a key that may be absent, null, one id or a list.
///
/// # Errors
///
/// [`ConfigJsonError::WrongType`] for anything else.
pub fn token_ids(config: &Value, key: &'static str) -> Result<Vec<u32>> {
    let wrong = || wrong_type(key, "a token id or a list of them", config);
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match present(config, key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|v| id(v).ok_or_else(wrong)).collect(),
        Some(value) => Ok(vec![id(value).ok_or_else(wrong)?]),
    }
}

/// The value of a key that is there and not null.
fn present<'v>(config: &'v Value, key: &str) -> Option<&'v Value> {
    config.get(key).filter(|value| !value.is_null())
}

fn size(config: &Value, key: &'static str) -> Result<usize> {
    size_or(config, key, || Err(ConfigJsonError::Missing { key }))
}

fn size_or(
    config: &Value,
    key: &'static str,
    default: impl FnOnce() -> Result<usize>,
) -> Result<usize> {
    match present(config, key) {
        None => default(),
        Some(value) => value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| wrong_type(key, "a whole number", config)),
    }
}

fn number(config: &Value, key: &'static str) -> Result<f32> {
    optional_number(config, key)?.ok_or(ConfigJsonError::Missing { key })
}

fn optional_number(config: &Value, key: &'static str) -> Result<Option<f32>> {
    let read = |value: &Value| {
        value
            .as_f64()
            .map(|x| x as f32)
            .ok_or_else(|| wrong_type(key, "a number", config))
    };
    present(config, key).map(read).transpose()
}

fn flag(config: &Value, key: &'static str) -> Result<bool> {
    let value = present(config, key).ok_or(ConfigJsonError::Missing { key })?;
    value
        .as_bool()
        .ok_or_else(|| wrong_type(key, "true or false", config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    fn read(config: &Value) -> Result<CheckpointConfig> {
        CheckpointConfig::from_json(config, TensorNames::unknown())
    }

    fn tiny() -> Value {
        let mut model = Preset::Tiny.config();
        model.attention = Attention::Grouped {
            n_kv_heads: 4,
            head_dim: 32,
        };
        CheckpointConfig::new(model).unwrap().to_json("float32")
    }

    #[test]
    fn every_model_of_this_project_survives_the_round_trip() {
        let grouped = Preset::BitNet2b4t.config();
        let with = |norms: Norms, in_linear| ModelConfig {
            norms: Norms { in_linear, ..norms },
            weight_scale: WeightScale::Divide,
            ..grouped
        };
        let (pre, sub_ln) = (Norms::pre(1e-5), Norms::sub_ln(1e-5));
        let others = [
            with(sub_ln, None),
            with(pre, None),
            with(pre, Some(1e-6)),
            with(sub_ln, Some(2e-6)),
        ];
        let presets = Preset::ALL.map(Preset::config);
        for model in presets.into_iter().chain(others) {
            let mut config = CheckpointConfig::new(model).unwrap();
            config.bos_token_id = Some(1);
            config.eos_token_ids = vec![2, 3];
            let json = config.to_json("bfloat16");
            let text = serde_json::to_string(&json).unwrap();
            let back = read(&serde_json::from_str(&text).unwrap()).unwrap();
            assert_eq!(back, config, "{model:?}");
        }
    }

    #[test]
    fn floats_are_written_as_people_write_them() {
        let json = tiny();
        assert_eq!(json["rms_norm_eps"].to_string(), "0.00001");
        assert_eq!(json["rope_theta"].to_string(), "10000.0");
    }

    #[test]
    fn both_generations_of_keys_are_read() {
        let expected = read(&tiny()).unwrap();
        let mut old = tiny();
        old.as_object_mut().unwrap().remove("rope_parameters");
        old["rope_scaling"] = Value::Null;
        assert_eq!(read(&old).unwrap(), expected);
        let mut new = tiny();
        new.as_object_mut().unwrap().remove("rope_theta");
        assert_eq!(read(&new).unwrap(), expected);
    }

    #[test]
    fn what_the_public_class_leaves_out_has_its_defaults() {
        let mut json = tiny();
        let map = json.as_object_mut().unwrap();
        for key in ["head_dim", "num_key_value_heads", "hidden_act"] {
            map.remove(key);
        }
        let model = read(&json).unwrap().model;
        let attention = Attention::Grouped {
            n_kv_heads: 8,
            head_dim: 32,
        };
        assert_eq!(model.attention, attention);
        assert_eq!(model.activation, Activation::SquaredRelu);
    }

    #[test]
    fn token_ids_may_be_absent_one_or_many() {
        let mut json = tiny();
        assert!(read(&json).unwrap().eos_token_ids.is_empty());
        json["eos_token_id"] = json!(7);
        assert_eq!(read(&json).unwrap().eos_token_ids, [7]);
        json["eos_token_id"] = json!([7, 9]);
        assert_eq!(read(&json).unwrap().eos_token_ids, [7, 9]);
    }

    #[test]
    fn each_bad_key_has_its_message() {
        let cases: [(&str, Value, &str); 17] = [
            ("hidden_size", Value::Null, "key hidden_size is missing"),
            (
                "hidden_size",
                json!("256"),
                "key hidden_size holds \"256\"; expected a whole number",
            ),
            (
                "hidden_size",
                json!(-1),
                "key hidden_size holds -1; expected a whole number",
            ),
            (
                "hidden_size",
                json!(70_000),
                "hidden_size is 70000; it must be between 1 and 65535",
            ),
            (
                "num_attention_heads",
                json!(0),
                "n_heads is 0; it must be between 1 and 65535",
            ),
            (
                "num_key_value_heads",
                json!(3),
                "n_heads 8 must be a multiple of n_kv_heads 3",
            ),
            (
                "hidden_act",
                json!("gelu"),
                "key hidden_act is \"gelu\": it must be relu2 or silu",
            ),
            (
                "rms_norm_eps",
                json!("x"),
                "key rms_norm_eps holds \"x\"; expected a number",
            ),
            (
                "rms_norm_eps",
                json!(1e-60),
                "norms.eps must be a finite number above zero",
            ),
            (
                "rope_theta",
                json!(5.0),
                "key rope_theta is 5.0: rope_parameters.rope_theta differs from it",
            ),
            (
                "rope_scaling",
                json!({"type": "linear", "factor": 2.0}),
                "key rope_scaling is {\"factor\":2.0,\"type\":\"linear\"}: \
                 only the default rotary embedding is read",
            ),
            (
                "rope_parameters",
                json!({"rope_type": "yarn"}),
                "key rope_parameters is {\"rope_type\":\"yarn\"}: \
                 only the default rotary embedding is read",
            ),
            (
                "rope_parameters",
                json!({"rope_type": "default", "partial_rotary_factor": 0.5}),
                "key rope_parameters is {\"partial_rotary_factor\":0.5,\"rope_type\":\"default\"}: \
                 only the default rotary embedding is read",
            ),
            (
                "attention_bias",
                json!(true),
                "key attention_bias is true: ternary models have no biases",
            ),
            (
                "tie_word_embeddings",
                Value::Null,
                "key tie_word_embeddings is missing",
            ),
            (
                "tie_word_embeddings",
                json!(1),
                "key tie_word_embeddings holds 1; expected true or false",
            ),
            (
                "eos_token_id",
                json!([2, -1]),
                "key eos_token_id holds [2,-1]; expected a token id or a list of them",
            ),
        ];
        for (key, value, message) in cases {
            let mut json = tiny();
            json[key] = value;
            assert_eq!(read(&json).unwrap_err().to_string(), message, "{key}");
        }
    }

    #[test]
    fn head_dim_is_not_guessed_where_heads_do_not_divide() {
        let mut json = tiny();
        json.as_object_mut().unwrap().remove("head_dim");
        json["num_attention_heads"] = json!(7);
        json["num_key_value_heads"] = json!(7);
        assert_eq!(
            read(&json).unwrap_err().to_string(),
            "key hidden_size is 256: without head_dim it must be a multiple of num_attention_heads"
        );
        json["num_attention_heads"] = json!(0);
        assert!(read(&json).is_err());
    }

    #[test]
    fn latent_attention_has_a_key_per_head() {
        let mut json = CheckpointConfig::new(Preset::Tiny.config())
            .unwrap()
            .to_json("float32");
        json["num_key_value_heads"] = json!(2);
        assert_eq!(
            read(&json).unwrap_err().to_string(),
            "key num_key_value_heads is 2: latent attention has a key per head: \
             it must equal num_attention_heads"
        );
    }

    #[test]
    fn settings_without_a_public_word_are_refused() {
        let refusal = |change: fn(&mut ModelConfig)| {
            let mut model = Preset::Tiny.config();
            change(&mut model);
            CheckpointConfig::new(model).unwrap_err().to_string()
        };
        assert_eq!(
            refusal(|m| m.norms.ffn_sub_norm = false),
            "config.json cannot express latent attention without both sub-norms, or with others"
        );
        assert_eq!(
            refusal(|m| {
                *m = Preset::BitNet2b4t.config();
                m.norms.ffn_sub_norm = false;
            }),
            "config.json cannot express one sub-norm, or other norms"
        );
        assert_eq!(
            refusal(|m| m.rope.pairing = RopePairing::Interleaved),
            "config.json cannot express interleaved rotary pairs"
        );
        assert_eq!(
            refusal(|m| m.weight_scale = WeightScale::Multiply),
            "config.json cannot express latent attention with scales that multiply"
        );
    }
}
