//! Whose checkpoint is this? Decided from what the configuration says and what the file holds.
//!
//! `model_type` alone decides nothing: the public BitNet checkpoints call themselves `bitnet`,
//! `bitnet-25` and even `llama`, and a loader that believes the last drops two norms per block.
//! What cannot be told for certain is refused by name.

use bitnet_formats::WeightScale;
use serde_json::Value;

use crate::error::ConfigJsonError;
use crate::names::Naming;

type Result<T> = std::result::Result<T, ConfigJsonError>;

/// A family of checkpoints: what the network computes, and the names of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `BitNetForCausalLM`: sub-norms, squared ReLU.
    BitNet,
    /// `BitnetForCausalLM` of the bitnet_b1_58 models: the same graph with SiLU and other names.
    B1_58,
    /// This project's multi-head latent attention.
    Latent,
    /// `LlamaForCausalLM` with ternary linears: Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E.
    Llama,
    /// `bitnet-embedding`: the body of Qwen3 with a norm in every linear; gives embeddings.
    Qwen3Embedding,
    /// `bitnet700`: LayerNorms inside the linears alone, queries and keys projected, a ternary head.
    BitNet700,
}

impl Family {
    /// Architecture, as `config.json` names it; what the weights' own code calls it where
    /// `config.json` does not.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::BitNet => BITNET,
            Self::B1_58 => B1_58,
            Self::Latent => LATENT,
            Self::Llama => LLAMA,
            Self::Qwen3Embedding => "Qwen3Model",
            Self::BitNet700 => "bitnet700",
        }
    }

    /// `model_type`, as `config.json` names it.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::BitNet => "bitnet",
            Self::Latent => "bitnet_latent",
            Self::B1_58 | Self::Llama => "llama",
            Self::Qwen3Embedding => "qwen3",
            Self::BitNet700 => "bitnet700",
        }
    }

    /// The names of its tensors.
    #[must_use]
    pub const fn naming(self) -> Naming {
        match self {
            Self::BitNet | Self::Latent | Self::Llama => Naming::PUBLIC,
            Self::B1_58 => Naming::B1_58,
            Self::Qwen3Embedding => Naming::EMBEDDING,
            Self::BitNet700 => Naming::BITNET700,
        }
    }
}

/// How a checkpoint stores its ternary matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// Four codes in a byte, and a scale beside each matrix.
    Packed(WeightScale),
    /// The weights of training, quantised in f32 as training did.
    Masters,
    /// The weights of training, quantised in bf16 arithmetic as the onebitllms exporter does.
    MastersBf16,
    /// Floats that are all -a, 0 or a already.
    Dequantised,
    /// Floats of which the configuration does not say whether they are ternary.
    Undecided,
}

impl WeightForm {
    /// True where matrices are packed codes.
    #[must_use]
    pub const fn is_packed(self) -> bool {
        matches!(self, Self::Packed(_))
    }

    /// How its scales enter a product.
    #[must_use]
    pub const fn weight_scale(self) -> WeightScale {
        match self {
            Self::Packed(convention) => convention,
            Self::Dequantised => WeightScale::Multiply,
            Self::Masters | Self::MastersBf16 | Self::Undecided => WeightScale::Divide,
        }
    }

    /// What a provenance line calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packed(_) => "packed codes",
            Self::Masters => "master weights",
            Self::MastersBf16 => "master weights, quantised in bf16",
            Self::Dequantised => "dequantised codes",
            Self::Undecided => "undecided",
        }
    }
}

/// What the configuration and the tensor names tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detected {
    /// Whose it is.
    pub family: Family,
    /// How it stores ternary matrices.
    pub weights: WeightForm,
    /// Epsilon of the norms inside linears, where there are such and the configuration says it.
    pub in_linear: Option<f64>,
}

impl Detected {
    const fn new(family: Family, weights: WeightForm) -> Self {
        let in_linear = None;
        Self {
            family,
            weights,
            in_linear,
        }
    }

    /// Decides the family of a checkpoint with this `config.json` and tensors of these names.
    ///
    /// # Errors
    ///
    /// [`ConfigJsonError::Family`] for every checkpoint that is not certainly one of those known, and
    /// [`ConfigJsonError::Unsupported`] for a quantisation setting that changes the numbers.
    pub fn of(config: &Value, names: TensorNames<'_>) -> Result<Self> {
        refuse_known_strangers(config, names)?;
        if let Some(detected) = told_by_names(config, names)? {
            return Ok(detected);
        }
        let quantization = Quantization::read(config)?;
        match architecture(config)? {
            Some(LATENT) => latent(quantization),
            Some(BITNET) => bitnet(quantization, names),
            None | Some(LLAMA) if names.has_sub_norms() => bitnet(quantization, names),
            Some(LLAMA) => Ok(llama(quantization)),
            Some(other) => Err(refused(other, UNKNOWN)),
            None => Err(refused("nameless", "config.json names no architecture")),
        }
    }
}

const BITNET: &str = "BitNetForCausalLM";
const B1_58: &str = "BitnetForCausalLM";
const LATENT: &str = "BitNetLatentForCausalLM";
const LLAMA: &str = "LlamaForCausalLM";
const UNKNOWN: &str = "its architecture is none of BitNetForCausalLM, BitnetForCausalLM, \
                       LlamaForCausalLM and BitNetLatentForCausalLM";

fn latent(quantization: Option<Quantization>) -> Result<Detected> {
    match quantization {
        None => Ok(Detected::new(Family::Latent, WeightForm::Masters)),
        Some(quantization) if quantization.in_linear.is_none() => {
            Ok(quantization.of(Family::Latent))
        }
        Some(_) => Err(refused(LATENT, "its linears have norms of their own")),
    }
}

fn bitnet(quantization: Option<Quantization>, names: TensorNames<'_>) -> Result<Detected> {
    match quantization {
        Some(quantization) => Ok(quantization.of(Family::BitNet)),
        None if names.has_sub_norms() => Ok(Detected::new(Family::BitNet, WeightForm::Masters)),
        None => Err(refused(
            BITNET,
            "it has neither quantization_config nor sub-norms",
        )),
    }
}

/// Without a `quantization_config` the weights themselves must tell whether they are ternary.
fn llama(quantization: Option<Quantization>) -> Detected {
    match quantization {
        Some(quantization) => quantization.of(Family::Llama),
        None => Detected::new(Family::Llama, WeightForm::Undecided),
    }
}

/// Families that their tensors tell, whatever the configuration says.
fn told_by_names(config: &Value, names: TensorNames<'_>) -> Result<Option<Detected>> {
    let family = if names.any(".attention.latent_q.weight") {
        Family::BitNet700
    } else if names.any(".self_attn.inner_attn_ln.weight") && names.any(".mlp.ffn_layernorm.weight")
    {
        Family::B1_58
    } else if names.any(".self_attn.q_proj.norm.weight") {
        qwen3_embedding(config, names)?
    } else {
        return Ok(None);
    };
    // Their own files are masters and say nothing of quantisation; this project packs them.
    let weights = Quantization::read(config)?.map(|quantization| quantization.of(family).weights);
    let weights = weights.unwrap_or(WeightForm::Masters);
    Ok(Some(Detected::new(family, weights)))
}

fn qwen3_embedding(config: &Value, names: TensorNames<'_>) -> Result<Family> {
    const NORM_IN_LINEAR: &str = "norm-in-projection";
    if names.any(".pre_feedforward_layernorm.weight") {
        return Err(refused(
            "bitnet-embedding-270m (Gemma 3)",
            "norms after the sub-layers, local attention and GELU are not built",
        ));
    }
    match config.get("model_type").and_then(Value::as_str) {
        Some("qwen3") if names.any(".self_attn.q_norm.weight") => Ok(Family::Qwen3Embedding),
        _ => Err(refused(
            NORM_IN_LINEAR,
            "only the Qwen3 body of bitnet-embedding is read",
        )),
    }
}

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

/// What is known and not converted, by its tensors or its name.
fn refuse_known_strangers(config: &Value, names: TensorNames<'_>) -> Result<()> {
    const BONSAI: &str = "its weights have a scale for every 128 inputs, its embeddings are ternary, \
                          and its activations are not quantised";
    const MLX: &str = "MLX packs other codes; convert the original checkpoint";
    let called = |word: &str| {
        let name = config.get("_name_or_path").and_then(Value::as_str);
        name.is_some_and(|name| name.to_ascii_lowercase().contains(word))
    };
    if called("bonsai") {
        return Err(refused("Ternary Bonsai", BONSAI));
    }
    if names.any(".q_proj.scales") {
        return Err(refused("MLX", MLX));
    }
    Ok(())
}

/// The one architecture, if `architectures` is there.
fn architecture(config: &Value) -> Result<Option<&str>> {
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

/// What `quantization_config` says.
#[derive(Clone, Copy, PartialEq)]
struct Quantization {
    /// How a packed scale enters a product; `None` for masters that are quantised while running.
    packed: Option<WeightScale>,
    /// Epsilon of the norms inside linears.
    in_linear: Option<f64>,
}

impl Quantization {
    fn read(config: &Value) -> Result<Option<Self>> {
        let section = match config.get("quantization_config") {
            None | Some(Value::Null) => return Ok(None),
            Some(section) => section,
        };
        if text(section, "quant_method") != Some("bitnet") {
            let reason = "only BitNet quantisation is read";
            return Err(unsupported("quant_method", section, reason));
        }
        refuse_dense_modules(section)?;
        Ok(Some(Self {
            packed: packed_scale(section)?,
            in_linear: norms_in_linears(section)?,
        }))
    }

    fn of(self, family: Family) -> Detected {
        let weights = self.packed.map_or(WeightForm::Masters, WeightForm::Packed);
        Detected {
            family,
            weights,
            in_linear: self.in_linear,
        }
    }
}

/// The two linear classes of the public loader: the scale that the older one stores divides. Only the
/// newer one knows masters.
fn packed_scale(section: &Value) -> Result<Option<WeightScale>> {
    let class = section.get("linear_class").filter(|class| !class.is_null());
    let mode = section
        .get("quantization_mode")
        .filter(|mode| !mode.is_null());
    let auto = match class.map(Value::as_str) {
        None | Some(Some("bitlinear")) => false,
        Some(Some("autobitlinear")) => true,
        Some(_) => {
            let reason = "it must be bitlinear or autobitlinear";
            return Err(unsupported("linear_class", section, reason));
        }
    };
    match (mode.map(Value::as_str), auto) {
        (Some(Some("online")), true) => Ok(None),
        (None | Some(Some("offline")), true) => Ok(Some(WeightScale::Multiply)),
        (None | Some(Some("offline")), false) => Ok(Some(WeightScale::Divide)),
        (Some(Some("online")), false) => {
            let reason = "the bitlinear class has no online mode";
            Err(unsupported("quantization_mode", section, reason))
        }
        (Some(_), _) => {
            let reason = "it must be online or offline";
            Err(unsupported("quantization_mode", section, reason))
        }
    }
}

fn norms_in_linears(section: &Value) -> Result<Option<f64>> {
    const DEFAULT_EPS: f64 = 1e-6;
    match section.get("use_rms_norm") {
        None | Some(Value::Null | Value::Bool(false)) => return Ok(None),
        Some(Value::Bool(true)) => (),
        Some(_) => return Err(wrong_type("use_rms_norm", "true or false", section)),
    }
    match section.get("rms_norm_eps") {
        None | Some(Value::Null) => Ok(Some(DEFAULT_EPS)),
        Some(eps) => match eps.as_f64() {
            Some(eps) => Ok(Some(eps)),
            None => Err(wrong_type("rms_norm_eps", "a number", section)),
        },
    }
}

fn text<'v>(section: &'v Value, key: &str) -> Option<&'v str> {
    section.get(key).and_then(Value::as_str)
}

/// Embedding and head are always dense; a list that exempts more describes another model.
fn refuse_dense_modules(section: &Value) -> Result<()> {
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

    type Detection = std::result::Result<(Family, WeightForm), String>;

    fn detect(config: Value, names: &[&str]) -> Detection {
        let any = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
        let detected = Detected::of(&config, TensorNames::new(&any));
        let detected = detected.map_err(|e| e.to_string())?;
        Ok((detected.family, detected.weights))
    }

    const DIVIDES: WeightForm = WeightForm::Packed(WeightScale::Divide);
    const MULTIPLIES: WeightForm = WeightForm::Packed(WeightScale::Multiply);

    fn quantized(mode: &str) -> Value {
        json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode})
    }

    const SUB_NORMS: [&str; 2] = [
        "model.layers.0.self_attn.attn_sub_norm.weight",
        "model.layers.0.mlp.ffn_sub_norm.weight",
    ];

    #[test]
    fn supported_families() {
        use Family as F;
        use WeightForm::{Masters, Undecided};
        let class = |name: &str, mode| json!({"architectures": [name], "quantization_config": quantized(mode)});
        let older = json!({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]});
        let older = json!({"architectures": [LLAMA], "quantization_config": older});
        let bare = |name: &str| json!({"architectures": [name]});
        let qwen3 = json!({"architectures": ["Qwen3Model"], "model_type": "qwen3"});
        let inner = [
            "layers.0.self_attn.q_proj.norm.weight",
            "layers.0.self_attn.q_norm.weight",
        ];
        let b1_58 = [
            "model.layers.0.self_attn.inner_attn_ln.weight",
            "model.layers.0.mlp.ffn_layernorm.weight",
        ];
        let latent_q = ["layers.0.attention.latent_q.weight"];
        let cases: [(Value, &[&str], Family, WeightForm); 13] = [
            (class(BITNET, "online"), &[], F::BitNet, Masters),
            (class(BITNET, "offline"), &[], F::BitNet, MULTIPLIES),
            (class(LATENT, "online"), &[], F::Latent, Masters),
            (class(LATENT, "offline"), &[], F::Latent, MULTIPLIES),
            (class(LLAMA, "offline"), &[], F::Llama, MULTIPLIES),
            (older, &[], F::Llama, DIVIDES),
            (bare(BITNET), &SUB_NORMS, F::BitNet, Masters),
            (
                json!({"model_type": "bitnet"}),
                &SUB_NORMS,
                F::BitNet,
                Masters,
            ),
            (bare(LLAMA), &SUB_NORMS, F::BitNet, Masters),
            (bare(LLAMA), &[], F::Llama, Undecided),
            (bare(B1_58), &b1_58, F::B1_58, Masters),
            (qwen3, &inner, F::Qwen3Embedding, Masters),
            (json!({}), &latent_q, F::BitNet700, Masters),
        ];
        for (config, names, family, weights) in cases {
            let text = config.to_string();
            assert_eq!(detect(config, names), Ok((family, weights)), "{text}");
        }
    }

    /// `model_type` never decides: a lie there changes nothing.
    #[test]
    fn the_model_type_is_not_believed() {
        let config = json!({
            "architectures": [BITNET], "model_type": "llama",
            "quantization_config": quantized("online"),
        });
        assert_eq!(
            detect(config, &[]),
            Ok((Family::BitNet, WeightForm::Masters))
        );
        let liar = json!({"architectures": ["MistralForCausalLM"], "model_type": "bitnet"});
        assert_eq!(
            detect(liar, &[]).unwrap_err(),
            "this is a MistralForCausalLM checkpoint, which is not supported: its architecture is \
             none of BitNetForCausalLM, BitnetForCausalLM, LlamaForCausalLM and \
             BitNetLatentForCausalLM"
        );
        // Llama by its model_type, with the two norms that a Llama loader would drop.
        let b1_58 = json!({"architectures": [LLAMA], "model_type": "llama"});
        let names = [
            "model.layers.0.self_attn.inner_attn_ln.weight",
            "model.layers.0.mlp.ffn_layernorm.weight",
        ];
        assert_eq!(
            detect(b1_58, &names),
            Ok((Family::B1_58, WeightForm::Masters))
        );
    }

    #[test]
    fn norms_in_linears_have_their_epsilon() {
        let with = |eps: Value| {
            let mut section = quantized("offline");
            section["use_rms_norm"] = json!(true);
            section["rms_norm_eps"] = eps;
            let config = json!({"architectures": [LLAMA], "quantization_config": section});
            Detected::of(&config, TensorNames::unknown()).map(|d| d.in_linear)
        };
        assert_eq!(with(json!(1e-5)), Ok(Some(1e-5)));
        assert_eq!(with(Value::Null), Ok(Some(1e-6)));
        let message = with(json!("x")).unwrap_err().to_string();
        assert_eq!(message, "key rms_norm_eps holds \"x\"; expected a number");
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
                config: json!({"_name_or_path": "prism-ml/Ternary-Bonsai-1.7B"}),
                names: &[],
                message: "this is a Ternary Bonsai checkpoint, which is not supported: its weights \
                          have a scale for every 128 inputs, its embeddings are ternary, and its \
                          activations are not quantised",
            },
            Case {
                config: json!({"architectures": ["Qwen3ForCausalLM"]}),
                names: &["model.layers.0.self_attn.q_proj.scales"],
                message: "this is a MLX checkpoint, which is not supported: \
                          MLX packs other codes; convert the original checkpoint",
            },
            Case {
                config: json!({"model_type": "gemma3_text"}),
                names: &[
                    "layers.0.self_attn.q_proj.norm.weight",
                    "layers.0.pre_feedforward_layernorm.weight",
                ],
                message: "this is a bitnet-embedding-270m (Gemma 3) checkpoint, which is not \
                          supported: norms after the sub-layers, local attention and GELU are not \
                          built",
            },
            Case {
                config: json!({"model_type": "llama"}),
                names: &["layers.0.self_attn.q_proj.norm.weight"],
                message: "this is a norm-in-projection checkpoint, which is not supported: \
                          only the Qwen3 body of bitnet-embedding is read",
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
                message: "key quantization_mode is \"online\": \
                          the bitlinear class has no online mode",
            },
            Case {
                config: with(|s| s["linear_class"] = json!("int4")),
                names: &[],
                message: "key linear_class is \"int4\": it must be bitlinear or autobitlinear",
            },
            Case {
                config: with(|s| s["quantization_mode"] = json!("eager")),
                names: &[],
                message: "key quantization_mode is \"eager\": it must be online or offline",
            },
            Case {
                config: with(|s| s["use_rms_norm"] = json!(1)),
                names: &[],
                message: "key use_rms_norm holds 1; expected true or false",
            },
            Case {
                config: with(|s| s["modules_to_not_convert"] = json!(["lm_head", "o_proj"])),
                names: &[],
                message: "key modules_to_not_convert is [\"lm_head\",\"o_proj\"]: \
                          only embedding and head may stay dense",
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
