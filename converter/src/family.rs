//! Whose checkpoint is this? Decided from what the configuration says and what the file holds.
//!
//! `model_type` alone decides nothing: the public BitNet checkpoints call themselves `bitnet`,
//! `bitnet-25` and even `llama`, and a loader that believes the last drops two norms per block.
//! What cannot be told for certain is refused by name.

use bitnet_formats::WeightScale;
use serde_json::Value;

use crate::error::ConfigJsonError;

/// A family of checkpoints: how attention is built, and how weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `BitNetForCausalLM` with the master weights of training.
    BitNetMaster,
    /// `BitNetForCausalLM` with four codes in a byte and a scale beside each matrix.
    BitNetPacked,
    /// This project's multi-head latent attention, with master weights.
    LatentMaster,
}

impl Family {
    /// Architecture, as `config.json` names it.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::BitNetMaster | Self::BitNetPacked => BITNET,
            Self::LatentMaster => LATENT,
        }
    }

    /// `model_type`, as `config.json` names it.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::BitNetMaster | Self::BitNetPacked => "bitnet",
            Self::LatentMaster => "bitnet_latent",
        }
    }

    /// True where matrices are packed codes, false where they are weights yet to be quantised.
    #[must_use]
    pub const fn is_packed(self) -> bool {
        matches!(self, Self::BitNetPacked)
    }

    /// How scales of this family enter a product.
    #[must_use]
    pub const fn weight_scale(self) -> WeightScale {
        match self {
            Self::BitNetPacked => WeightScale::Multiply,
            Self::BitNetMaster | Self::LatentMaster => WeightScale::Divide,
        }
    }

    /// Decides the family of a checkpoint with this `config.json` and tensors of these names.
    ///
    /// # Errors
    ///
    /// [`ConfigJsonError::Family`] for every checkpoint that is not certainly one of the three, and
    /// [`ConfigJsonError::Unsupported`] for a quantisation setting that changes the numbers.
    pub fn detect(config: &Value, names: TensorNames<'_>) -> Result<Self, ConfigJsonError> {
        refuse_known_strangers(names)?;
        match architecture(config)? {
            Some(LATENT) => Self::latent(quantization(config)?),
            Some(BITNET) => Self::bitnet(quantization(config)?, names),
            None if names.has_sub_norms() => Self::bitnet(quantization(config)?, names),
            Some("BitnetForCausalLM") => Err(refused("BitnetForCausalLM", INNER_NORM_REASON)),
            Some(other) => Err(refused(other, "its architecture is not BitNetForCausalLM")),
            None => Err(refused("nameless", "config.json names no architecture")),
        }
    }

    fn latent(quantization: Option<Quantization>) -> Result<Self, ConfigJsonError> {
        match quantization {
            None | Some(Quantization::Online) => Ok(Self::LatentMaster),
            Some(Quantization::Offline) => Err(refused("packed BitNetLatentForCausalLM", NO_SUCH)),
        }
    }

    fn bitnet(
        quantization: Option<Quantization>,
        names: TensorNames<'_>,
    ) -> Result<Self, ConfigJsonError> {
        match quantization {
            Some(Quantization::Online) => Ok(Self::BitNetMaster),
            Some(Quantization::Offline) => Ok(Self::BitNetPacked),
            None if names.has_sub_norms() => Ok(Self::BitNetMaster),
            None => Err(refused(
                BITNET,
                "it has neither quantization_config nor sub-norms",
            )),
        }
    }
}

const BITNET: &str = "BitNetForCausalLM";
const LATENT: &str = "BitNetLatentForCausalLM";
const INNER_NORM_REASON: &str = "its norms inside attention and feed-forward have other names";
const NO_SUCH: &str = "latent attention is converted from master weights only";

/// The tensor names of a checkpoint, as far as they tell its family.
#[derive(Clone, Copy)]
pub struct TensorNames<'a> {
    any: &'a dyn Fn(&str) -> bool,
}

impl<'a> TensorNames<'a> {
    /// Names behind a query: does any tensor's name end like this?
    #[must_use]
    pub fn new(any_ends_with: &'a dyn Fn(&str) -> bool) -> Self {
        Self { any: any_ends_with }
    }

    /// No names are known: the configuration alone must be enough.
    #[must_use]
    pub fn unknown() -> TensorNames<'static> {
        TensorNames { any: &|_| false }
    }

    fn any(self, suffix: &str) -> bool {
        (self.any)(suffix)
    }

    fn has_sub_norms(self) -> bool {
        self.any(".self_attn.attn_sub_norm.weight") && self.any(".mlp.ffn_sub_norm.weight")
    }
}

/// Families told by tensors that no supported checkpoint has, whatever their configuration says.
fn refuse_known_strangers(names: TensorNames<'_>) -> Result<(), ConfigJsonError> {
    let strangers = [
        (
            ".self_attn.inner_attn_ln.weight",
            "bitnet_b1_58 (inner_attn_ln)",
            INNER_NORM_REASON,
        ),
        (".q_proj.rms_norm.weight", "rms_norm BitLinear", IN_LINEAR),
        (".q_proj.norm.weight", "norm-in-projection", IN_LINEAR),
        (
            ".latent_q.weight",
            "latent_q",
            "its attention is not that of DeepSeek-V2",
        ),
    ];
    match strangers.iter().find(|(suffix, ..)| names.any(suffix)) {
        Some((_, family, reason)) => Err(refused(family, reason)),
        None => Ok(()),
    }
}

const IN_LINEAR: &str = "every projection has a norm of its own";

/// The one architecture, if `architectures` is there.
fn architecture(config: &Value) -> Result<Option<&str>, ConfigJsonError> {
    const EXPECTED: &str = "a list of one class name";
    match config.get("architectures") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::String(name)] => Ok(Some(name)),
            _ => Err(wrong_type("architectures", EXPECTED, config)),
        },
        Some(_) => Err(wrong_type("architectures", EXPECTED, config)),
    }
}

/// What `quantization_config` says about the stored weights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quantization {
    /// Masters, quantised while training.
    Online,
    /// Packed codes.
    Offline,
}

fn quantization(config: &Value) -> Result<Option<Quantization>, ConfigJsonError> {
    let section = match config.get("quantization_config") {
        None | Some(Value::Null) => return Ok(None),
        Some(section) => section,
    };
    expect_text(
        section,
        "quant_method",
        "bitnet",
        "only BitNet quantisation is read",
    )?;
    expect_text(
        section,
        "linear_class",
        "autobitlinear",
        "the scale of other classes divides",
    )?;
    refuse_norms_in_linears(section)?;
    refuse_dense_modules(section)?;
    match section.get("quantization_mode").and_then(Value::as_str) {
        Some("online") => Ok(Some(Quantization::Online)),
        Some("offline") => Ok(Some(Quantization::Offline)),
        _ => Err(unsupported(
            "quantization_mode",
            section,
            "it must be online or offline",
        )),
    }
}

fn expect_text(
    section: &Value,
    key: &'static str,
    expected: &str,
    reason: &'static str,
) -> Result<(), ConfigJsonError> {
    if section.get(key).and_then(Value::as_str) == Some(expected) {
        return Ok(());
    }
    Err(unsupported(key, section, reason))
}

fn refuse_norms_in_linears(section: &Value) -> Result<(), ConfigJsonError> {
    match section.get("use_rms_norm") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(()),
        Some(_) => Err(unsupported("use_rms_norm", section, IN_LINEAR)),
    }
}

/// Embedding and head are always dense; a list that exempts more describes another model.
fn refuse_dense_modules(section: &Value) -> Result<(), ConfigJsonError> {
    const KEY: &str = "modules_to_not_convert";
    let dense = |name: &Value| {
        matches!(
            name.as_str(),
            Some("lm_head" | "embed_tokens" | "model.embed_tokens")
        )
    };
    match section.get(KEY) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.iter().all(dense) => Ok(()),
        Some(_) => Err(unsupported(
            KEY,
            section,
            "only embedding and head may stay dense",
        )),
    }
}

fn refused(family: &str, reason: &'static str) -> ConfigJsonError {
    ConfigJsonError::Family {
        family: family.to_owned(),
        reason,
    }
}

/// The error for a key whose value is understood and refused.
pub(crate) fn unsupported(
    key: &'static str,
    object: &Value,
    reason: &'static str,
) -> ConfigJsonError {
    ConfigJsonError::Unsupported {
        key,
        found: found(key, object),
        reason,
    }
}

/// The error for a key that holds the wrong type of value.
pub(crate) fn wrong_type(
    key: &'static str,
    expected: &'static str,
    object: &Value,
) -> ConfigJsonError {
    ConfigJsonError::WrongType {
        key,
        expected,
        found: found(key, object),
    }
}

/// The value of a key as an error message quotes it: at most 80 characters.
fn found(key: &str, object: &Value) -> String {
    let text = object
        .get(key)
        .map_or_else(|| "absent".to_owned(), ToString::to_string);
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn detect(config: Value, names: &[&str]) -> Result<Family, String> {
        let any = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
        Family::detect(&config, TensorNames::new(&any)).map_err(|e| e.to_string())
    }

    fn quantized(mode: &str) -> Value {
        json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode})
    }

    const SUB_NORMS: [&str; 2] = [
        "model.layers.0.self_attn.attn_sub_norm.weight",
        "model.layers.0.mlp.ffn_sub_norm.weight",
    ];

    #[test]
    fn supported_families() {
        let class = |name: &str, mode| json!({"architectures": [name], "quantization_config": quantized(mode)});
        assert_eq!(
            detect(class(BITNET, "online"), &[]),
            Ok(Family::BitNetMaster)
        );
        assert_eq!(
            detect(class(BITNET, "offline"), &[]),
            Ok(Family::BitNetPacked)
        );
        assert_eq!(
            detect(class(LATENT, "online"), &[]),
            Ok(Family::LatentMaster)
        );
        let bare = json!({"architectures": [BITNET]});
        assert_eq!(detect(bare, &SUB_NORMS), Ok(Family::BitNetMaster));
        let nameless = json!({"model_type": "bitnet"});
        assert_eq!(detect(nameless, &SUB_NORMS), Ok(Family::BitNetMaster));
    }

    /// `model_type` never decides: a lie there changes nothing.
    #[test]
    fn the_model_type_is_not_believed() {
        let config = json!({
            "architectures": [BITNET], "model_type": "llama",
            "quantization_config": quantized("online"),
        });
        assert_eq!(detect(config, &[]), Ok(Family::BitNetMaster));
        let liar = json!({"architectures": ["LlamaForCausalLM"], "model_type": "bitnet"});
        assert_eq!(
            detect(liar, &[]).unwrap_err(),
            "this is a LlamaForCausalLM checkpoint, which is not supported: \
             its architecture is not BitNetForCausalLM"
        );
    }

    #[test]
    fn each_stranger_is_refused_by_name() {
        struct Case {
            config: Value,
            names: &'static [&'static str],
            message: &'static str,
        }
        let with = |change: fn(&mut Value)| {
            let mut section = quantized("online");
            change(&mut section);
            json!({"architectures": [BITNET], "quantization_config": section})
        };
        let cases = [
            Case {
                config: json!({"architectures": ["BitnetForCausalLM"], "model_type": "llama"}),
                names: &["model.layers.0.self_attn.inner_attn_ln.weight"],
                message: "this is a bitnet_b1_58 (inner_attn_ln) checkpoint, which is not \
                          supported: its norms inside attention and feed-forward have other names",
            },
            Case {
                config: with(|_| ()),
                names: &["model.layers.0.self_attn.q_proj.rms_norm.weight"],
                message: "this is a rms_norm BitLinear checkpoint, which is not supported: \
                          every projection has a norm of its own",
            },
            Case {
                config: json!({"architectures": [BITNET]}),
                names: &[],
                message: "this is a BitNetForCausalLM checkpoint, which is not supported: \
                          it has neither quantization_config nor sub-norms",
            },
            Case {
                config: json!({}),
                names: &[],
                message: "this is a nameless checkpoint, which is not supported: \
                          config.json names no architecture",
            },
            Case {
                config: json!({"architectures": "BitNetForCausalLM"}),
                names: &[],
                message: "key architectures holds \"BitNetForCausalLM\"; \
                          expected a list of one class name",
            },
            Case {
                config: with(|s| s["quant_method"] = json!("gptq")),
                names: &[],
                message: "key quant_method is \"gptq\": only BitNet quantisation is read",
            },
            Case {
                config: with(|s| _ = s.as_object_mut().unwrap().remove("linear_class")),
                names: &[],
                message: "key linear_class is absent: the scale of other classes divides",
            },
            Case {
                config: with(|s| s["quantization_mode"] = json!("eager")),
                names: &[],
                message: "key quantization_mode is \"eager\": it must be online or offline",
            },
            Case {
                config: with(|s| s["use_rms_norm"] = json!(true)),
                names: &[],
                message: "key use_rms_norm is true: every projection has a norm of its own",
            },
            Case {
                config: with(|s| s["modules_to_not_convert"] = json!(["lm_head", "o_proj"])),
                names: &[],
                message: "key modules_to_not_convert is [\"lm_head\",\"o_proj\"]: \
                          only embedding and head may stay dense",
            },
            Case {
                config: json!({
                    "architectures": [LATENT], "quantization_config": quantized("offline"),
                }),
                names: &[],
                message: "this is a packed BitNetLatentForCausalLM checkpoint, which is not \
                          supported: latent attention is converted from master weights only",
            },
        ];
        for case in cases {
            assert_eq!(detect(case.config, case.names).unwrap_err(), case.message);
        }
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let object = json!({"key": "é".repeat(200)});
        let text = found("key", &object);
        assert_eq!(text.chars().count(), 83);
        assert!(text.ends_with("..."));
    }
}
