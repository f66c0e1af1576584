//! The `config.json` of a checkpoint. Its keys are the converter's; this adds the one thing that
//! only training knows: whether the quantisers were on.

use bitnet_converter::config_json::token_ids;
use bitnet_converter::family::{TensorNames, WeightForm};
use bitnet_converter::{CheckpointConfig, Family};
use bitnet_formats::ModelConfig;
use serde_json::{Value, json};

/// `quantization_mode` of a network trained without quantisers. Readers that expect ternary weights
/// refuse it, as they should.
const UNQUANTIZED: &str = "none";

/// The `config.json` of a model; `quantize` is false for one trained without quantisers. An
/// `end_of_text` is where readers stop.
///
/// # Errors
///
/// What the public keys cannot express.
pub fn write(
    config: &ModelConfig,
    quantize: bool,
    end_of_text: Option<u32>,
) -> Result<String, String> {
    let mut public = CheckpointConfig::new(*config).map_err(|e| e.to_string())?;
    public.eos_token_ids = end_of_text.into_iter().collect();
    let mut json = public.to_json("float32");
    if !quantize {
        json["quantization_config"]["quantization_mode"] = json!(UNQUANTIZED);
    }
    Ok(format!("{json:#}\n"))
}

/// The checkpoint that a `config.json` describes, together with the names of its tensors, and whether
/// it is a network with quantisers.
///
/// # Errors
///
/// What is missing, or what this crate cannot run.
pub fn read(json: &str, names: TensorNames<'_>) -> Result<(CheckpointConfig, bool), String> {
    let mut json: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let quantize = json["quantization_config"]["quantization_mode"] != UNQUANTIZED;
    if !quantize {
        json["quantization_config"]["quantization_mode"] = json!("online");
    }
    let public = CheckpointConfig::from_json(&json, names);
    let public = public.map_err(|e| e.to_string())?;
    if public.weights.is_packed() {
        return Err(
            "the weights are packed codes. Training goes on from master weights, which rounding to \
             codes loses; give the checkpoint that these were packed from"
                .into(),
        );
    }
    if let Some(reason) = not_trained(&public) {
        let architecture = public.family.architecture();
        return Err(format!(
            "the trainer does not train {architecture}: {reason}"
        ));
    }
    // Who says nothing of quantisers means a network without; training may put them in.
    let quantize = quantize && public.weights != WeightForm::Undecided;
    Ok((public, quantize))
}

/// Why models of a kind that the converter reads cannot be trained.
fn not_trained(public: &CheckpointConfig) -> Option<&'static str> {
    match public.family {
        Family::Qwen3Embedding => Some("it gives embeddings, and there are no logits to learn by"),
        Family::BitNet700 => {
            Some("LayerNorms, a projection of every head and a ternary head are not built")
        }
        Family::BitNet | Family::B1_58 | Family::Latent | Family::Llama => None,
    }
}

/// A `config.json` with the ids that begin and end a text in the checkpoint that a run starts from, and
/// its own after them.
///
/// # Errors
///
/// If it is no `config.json`.
pub fn with_token_ids(json: &str, bos: Option<u32>, eos: &[u32]) -> Result<String, String> {
    let mut json: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let own = token_ids(&json, "eos_token_id").map_err(|e| e.to_string())?;
    let mut all = eos.to_vec();
    all.extend(own.into_iter().filter(|id| !eos.contains(id)));
    if let Some(bos) = bos {
        json["bos_token_id"] = json!(bos);
    }
    json["eos_token_id"] = match all[..] {
        [] => Value::Null,
        [id] => json!(id),
        _ => json!(all),
    };
    Ok(format!("{json:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::{Activation, Norms, Preset, WeightScale};

    fn read_alone(json: &str) -> Result<(ModelConfig, bool), String> {
        read(json, TensorNames::unknown()).map(|(config, quantize)| (config.model, quantize))
    }

    fn grouped() -> ModelConfig {
        ModelConfig {
            weight_scale: WeightScale::Divide,
            tie_embeddings: false,
            ..Preset::BitNet2b4t.config()
        }
    }

    #[test]
    fn every_kind_round_trips() {
        let plain = ModelConfig {
            norms: Norms::pre(1e-6),
            activation: Activation::Silu,
            ..grouped()
        };
        let twice = ModelConfig {
            norms: Norms {
                in_linear: Some(2e-6),
                ..plain.norms
            },
            ..plain
        };
        for config in [Preset::Tiny.config(), grouped(), plain, twice] {
            for quantize in [true, false] {
                let json = write(&config, quantize, Some(3)).unwrap();
                assert_eq!(read_alone(&json).unwrap(), (config, quantize));
            }
        }
    }

    /// A plain Llama checkpoint says nothing of quantisers, since it has none.
    #[test]
    fn silence_means_no_quantisers() {
        let plain = ModelConfig {
            norms: Norms::pre(1e-6),
            ..grouped()
        };
        let json = write(&plain, true, None).unwrap();
        let mut json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["architectures"][0], "LlamaForCausalLM");
        json.as_object_mut().unwrap().remove("quantization_config");
        assert_eq!(read_alone(&json.to_string()).unwrap(), (plain, false));
    }

    /// What was trained without quantisers must not be converted as if it had been.
    #[test]
    fn the_converter_refuses_an_unquantised_network() {
        let json = write(&grouped(), false, None).unwrap();
        let json = serde_json::from_str(&json).unwrap();
        assert!(CheckpointConfig::from_json(&json, TensorNames::unknown()).is_err());
    }

    #[test]
    fn what_cannot_be_expressed_or_run_is_refused() {
        let bare = ModelConfig {
            norms: Norms {
                attn_sub_norm: false,
                ..grouped().norms
            },
            ..grouped()
        };
        assert!(
            write(&bare, true, None)
                .unwrap_err()
                .contains("one sub-norm")
        );
        let packed = write(&grouped(), true, None)
            .unwrap()
            .replace("online", "offline");
        assert!(read_alone(&packed).unwrap_err().contains("packed"));
        assert!(read_alone("{}").is_err());
    }
}
