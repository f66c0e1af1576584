//! Any text as a config.json: read, and where it makes sense written and read again.
#![no_main]

use bitnet_converter::CheckpointConfig;
use bitnet_converter::family::TensorNames;
use libfuzzer_sys::fuzz_target;

/// Names that lead to each family.
const NAMES: [&[&str]; 5] = [
    &[],
    &[
        ".self_attn.attn_sub_norm.weight",
        ".mlp.ffn_sub_norm.weight",
    ],
    &[
        ".self_attn.inner_attn_ln.weight",
        ".mlp.ffn_layernorm.weight",
    ],
    &[".self_attn.q_proj.norm.weight", ".self_attn.q_norm.weight"],
    &[".attention.latent_q.weight"],
];

fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else {
        return;
    };
    for names in NAMES {
        let any = |suffix: &str| names.contains(&suffix);
        let Ok(config) = CheckpointConfig::from_json(&json, TensorNames::new(&any)) else {
            continue;
        };
        config.model.validate().expect("what is read is valid");
        if let Ok(packed) = CheckpointConfig::packed(config.model) {
            let written = packed.to_json("float32");
            let back = CheckpointConfig::from_json(&written, TensorNames::new(&any));
            // Families that their tensor names tell cannot be read back under other names.
            if let Ok(back) = back {
                assert_eq!(back.model.hidden_size, config.model.hidden_size);
            }
        }
    }
});
