//! The public `config.json`, written and read.
//!
//! With grouped-query attention the file is that of the `BitNetForCausalLM` class. Latent attention
//! has no class of that family; its file is the same with DeepSeek-V2's names for the sizes.

use bitnet_formats::{Activation, Attention, ModelConfig, Norms, Rope, RopePairing, WeightScale};
use serde::{Deserialize, Serialize};

const GROUPED: (&str, &str) = ("BitNetForCausalLM", "bitnet");
const LATENT: (&str, &str) = ("BitNetLatentForCausalLM", "bitnet_latent");

/// The keys in file order. Absent ones belong to the other kind of attention.
#[derive(Debug, Serialize, Deserialize)]
struct Public {
    architectures: Vec<String>,
    model_type: String,
    hidden_act: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_dim: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_lora_rank: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qk_nope_head_dim: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qk_rope_head_dim: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v_head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(default)]
    rope_parameters: Option<RopeParameters>,
    tie_word_embeddings: bool,
    /// False where the model has no norm before `o_proj`; written only then.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    attn_sub_norm: bool,
    /// False where the model has no norm before `down_proj`; written only then.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    ffn_sub_norm: bool,
    #[serde(default)]
    bos_token_id: Option<u32>,
    #[serde(default)]
    eos_token_id: Option<u32>,
    #[serde(default = "float32")]
    dtype: String,
    #[serde(default = "float32")]
    torch_dtype: String,
    /// Absent for a network trained without quantisers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization_config: Option<Quantization>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RopeParameters {
    rope_type: String,
    rope_theta: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Quantization {
    quant_method: String,
    linear_class: String,
    quantization_mode: String,
    modules_to_not_convert: Option<Vec<String>>,
}

fn yes() -> bool {
    true
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_yes(flag: &bool) -> bool {
    *flag
}

fn float32() -> String {
    "float32".into()
}

/// The shortest decimal that reads back as this f32, so that 1e-5 is written as 1e-5.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

/// The `config.json` of a model; `quantize` is false for one trained without quantisers.
///
/// # Errors
///
/// From the JSON writer, for a float that is not finite.
pub fn write(config: &ModelConfig, quantize: bool) -> serde_json::Result<String> {
    let (architecture, model_type) = match config.attention {
        Attention::Grouped { .. } => GROUPED,
        Attention::Latent { .. } => LATENT,
    };
    let theta = decimal(config.rope.theta);
    let mut public = Public {
        architectures: vec![architecture.into()],
        model_type: model_type.into(),
        hidden_act: match config.activation {
            Activation::SquaredRelu => "relu2".into(),
            Activation::Silu => "silu".into(),
        },
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.n_layers,
        num_attention_heads: config.n_heads,
        num_key_value_heads: config.n_heads,
        head_dim: None,
        kv_lora_rank: None,
        qk_nope_head_dim: None,
        qk_rope_head_dim: None,
        v_head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_seq_len,
        rms_norm_eps: decimal(config.norms.eps),
        rope_theta: theta,
        rope_parameters: Some(RopeParameters {
            rope_type: "default".into(),
            rope_theta: theta,
        }),
        tie_word_embeddings: config.tie_embeddings,
        attn_sub_norm: config.norms.attn_sub_norm,
        ffn_sub_norm: config.norms.ffn_sub_norm,
        bos_token_id: None,
        eos_token_id: None,
        dtype: float32(),
        torch_dtype: float32(),
        quantization_config: quantize.then(|| Quantization {
            quant_method: "bitnet".into(),
            linear_class: "autobitlinear".into(),
            quantization_mode: "online".into(),
            modules_to_not_convert: None,
        }),
    };
    public.set_attention(config.attention);
    Ok(serde_json::to_string_pretty(&public)? + "\n")
}

/// The model a `config.json` describes, and whether it was trained with quantisers.
///
/// # Errors
///
/// What is missing, or what this crate cannot run.
pub fn read(json: &str) -> Result<(ModelConfig, bool), String> {
    let public: Public = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let config = ModelConfig {
        hidden_size: public.hidden_size,
        intermediate_size: public.intermediate_size,
        n_layers: public.num_hidden_layers,
        n_heads: public.num_attention_heads,
        attention: public.attention()?,
        vocab_size: public.vocab_size,
        max_seq_len: public.max_position_embeddings,
        rope: Rope {
            theta: public.rope_theta()? as f32,
            pairing: RopePairing::HalfRotation,
        },
        activation: match public.hidden_act.as_str() {
            "relu2" => Activation::SquaredRelu,
            "silu" => Activation::Silu,
            other => return Err(format!("hidden_act {other:?} is neither relu2 nor silu")),
        },
        norms: Norms {
            eps: public.rms_norm_eps as f32,
            attn_sub_norm: public.attn_sub_norm,
            ffn_sub_norm: public.ffn_sub_norm,
        },
        tie_embeddings: public.tie_word_embeddings,
        weight_scale: WeightScale::Divide,
    };
    config.validate().map_err(|e| e.to_string())?;
    Ok((config, public.is_quantized()?))
}

impl Public {
    fn set_attention(&mut self, attention: Attention) {
        match attention {
            Attention::Grouped {
                n_kv_heads,
                head_dim,
            } => {
                self.num_key_value_heads = n_kv_heads;
                self.head_dim = Some(head_dim);
            }
            Attention::Latent {
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => {
                self.kv_lora_rank = Some(kv_lora_rank);
                self.qk_nope_head_dim = Some(qk_nope_head_dim);
                self.qk_rope_head_dim = Some(qk_rope_head_dim);
                self.v_head_dim = Some(v_head_dim);
            }
        }
    }

    fn attention(&self) -> Result<Attention, String> {
        let needed = |name: &str, size: Option<usize>| {
            size.ok_or_else(|| format!("{name} is missing for model_type {:?}", self.model_type))
        };
        match self.model_type.as_str() {
            "bitnet" => Ok(Attention::Grouped {
                n_kv_heads: self.num_key_value_heads,
                head_dim: self
                    .head_dim
                    .unwrap_or(self.hidden_size / self.num_attention_heads.max(1)),
            }),
            "bitnet_latent" => Ok(Attention::Latent {
                kv_lora_rank: needed("kv_lora_rank", self.kv_lora_rank)?,
                qk_nope_head_dim: needed("qk_nope_head_dim", self.qk_nope_head_dim)?,
                qk_rope_head_dim: needed("qk_rope_head_dim", self.qk_rope_head_dim)?,
                v_head_dim: needed("v_head_dim", self.v_head_dim)?,
            }),
            other => Err(format!(
                "model_type {other:?} is neither \"bitnet\" nor \"bitnet_latent\""
            )),
        }
    }

    fn rope_theta(&self) -> Result<f64, String> {
        match &self.rope_parameters {
            Some(rope) if rope.rope_type != "default" => {
                Err(format!("rope_type {:?} is not supported", rope.rope_type))
            }
            Some(rope) if rope.rope_theta != self.rope_theta => {
                Err("rope_theta and rope_parameters.rope_theta differ".into())
            }
            _ => Ok(self.rope_theta),
        }
    }

    fn is_quantized(&self) -> Result<bool, String> {
        match &self.quantization_config {
            None => Ok(false),
            Some(q) if q.linear_class == "autobitlinear" && q.quantization_mode == "online" => {
                Ok(true)
            }
            Some(q) => Err(format!(
                "linear_class {:?} with quantization_mode {:?} holds no master weights",
                q.linear_class, q.quantization_mode
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    fn grouped() -> ModelConfig {
        ModelConfig {
            weight_scale: WeightScale::Divide,
            ..Preset::BitNet2b4t.config()
        }
    }

    #[test]
    fn both_kinds_round_trip() {
        let plain = ModelConfig {
            tie_embeddings: false,
            norms: Norms {
                eps: 1e-6,
                attn_sub_norm: false,
                ffn_sub_norm: true,
            },
            ..grouped()
        };
        for config in [Preset::Tiny.config(), grouped(), plain] {
            for quantize in [true, false] {
                let json = write(&config, quantize).unwrap();
                assert_eq!(read(&json).unwrap(), (config, quantize));
            }
        }
    }

    #[test]
    fn the_public_names_are_used() {
        let json: serde_json::Value =
            serde_json::from_str(&write(&grouped(), true).unwrap()).unwrap();
        assert_eq!(json["architectures"][0], "BitNetForCausalLM");
        assert_eq!(json["num_key_value_heads"], 5);
        assert_eq!(json["rms_norm_eps"], 1e-5);
        assert_eq!(json["rope_parameters"]["rope_theta"], 500_000.0);
        assert_eq!(json["quantization_config"]["quantization_mode"], "online");
        assert!(json["eos_token_id"].is_null());
    }

    #[test]
    fn what_cannot_run_is_refused() {
        let good = write(&grouped(), true).unwrap();
        let cases = [
            ("\"relu2\"", "\"gelu\"", "hidden_act \"gelu\""),
            (
                "\"bitnet\",\n  \"hidden",
                "\"llama\",\n  \"hidden",
                "model_type \"llama\"",
            ),
            ("\"online\"", "\"offline\"", "holds no master weights"),
            (
                "\"num_attention_heads\": 20",
                "\"num_attention_heads\": 0",
                "n_heads is 0",
            ),
            (
                "\"hidden_size\"",
                "\"width\"",
                "missing field `hidden_size`",
            ),
        ];
        for (from, to, expected) in cases {
            assert!(good.contains(from), "{from}");
            let message = read(&good.replacen(from, to, 1)).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
