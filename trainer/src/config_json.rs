//! The `config.json` of a checkpoint. Its keys are the converter's; this adds the one thing that
//! only training knows: whether the quantisers were on.

use bitnet_converter::config_json::token_ids;
use bitnet_converter::family::TensorNames;
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
/// it was trained with quantisers.
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
    if !matches!(
        public.family,
        Family::BitNet | Family::B1_58 | Family::Latent
    ) {
        let architecture = public.family.architecture();
        return Err(format!(
            "the trainer does not train {architecture}: its models have a norm before every linear, \
             and none inside"
        ));
    }
    if public.model.norms.in_linear.is_some() {
        return Err("the trainer has no norms inside linears".into());
    }
    Ok((public, quantize))
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
    use bitnet_formats::{Norms, Preset, WeightScale};

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
    fn both_kinds_round_trip() {
        for config in [Preset::Tiny.config(), grouped()] {
            for quantize in [true, false] {
                let json = write(&config, quantize, Some(3)).unwrap();
                assert_eq!(read_alone(&json).unwrap(), (config, quantize));
            }
        }
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
        assert!(write(&bare, true, None).unwrap_err().contains("sub-norms"));
        let packed = write(&grouped(), true, None)
            .unwrap()
            .replace("online", "offline");
        assert!(read_alone(&packed).unwrap_err().contains("packed"));
        assert!(read_alone("{}").is_err());
    }
}
