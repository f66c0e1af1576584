//! Every way a conversion can fail: one clear message, the right variant, nothing left behind.

mod util;

use std::fs;
use std::path::Path;

use bitnet_converter::{ConfigJsonError, ConvertError, EmbeddingType, PackOptions};
use bitnet_formats::ModelConfig;
use safetensors::Dtype;
use serde_json::json;
use util::{Draft, Tensor, encode, fixture, grouped, latent, names, run};

const Q: &str = "model.layers.1.self_attn.q_proj.weight";
const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
const KV_B: &str = "model.layers.1.self_attn.kv_b_proj.weight";

/// A way to break a checkpoint, and what must be said about it.
struct Case {
    model: fn() -> ModelConfig,
    pack: PackOptions,
    damage: fn(&mut Draft),
    message: &'static str,
    variant: fn(&ConvertError) -> bool,
}

impl Case {
    fn new(
        damage: fn(&mut Draft),
        variant: fn(&ConvertError) -> bool,
        message: &'static str,
    ) -> Self {
        Self {
            model: grouped,
            pack: PackOptions::default(),
            damage,
            message,
            variant,
        }
    }

    fn latent(self) -> Self {
        Self {
            model: latent,
            ..self
        }
    }

    fn embedding(self, embedding: EmbeddingType) -> Self {
        let pack = PackOptions {
            embedding,
            ..self.pack
        };
        Self { pack, ..self }
    }

    fn check(&self) {
        let mut draft = Draft::of((self.model)(), Dtype::F32);
        (self.damage)(&mut draft);
        let dir = draft.save();
        fails(
            dir.path(),
            dir.path(),
            self.pack,
            self.message,
            self.variant,
        );
    }
}

/// Converts `input` into `dir`, which must fail as stated and leave `dir` as it was.
fn fails(
    input: &Path,
    dir: &Path,
    pack: PackOptions,
    message: &str,
    variant: fn(&ConvertError) -> bool,
) {
    let before = names(dir);
    let error = run(input, &dir.join("out.btn"), pack).expect_err(message);
    let found = error.to_string().replace(dir.to_str().unwrap(), "DIR");
    assert_eq!(found, message);
    assert!(variant(&error), "{error:?}");
    assert_eq!(names(dir), before, "{message}");
}

/// Overwrites one element of an f32 tensor.
fn poke(draft: &mut Draft, name: &str, index: usize, value: f32) {
    let tensor = draft.tensor(name);
    tensor.data[4 * index..][..4].copy_from_slice(&value.to_le_bytes());
}

fn resize(draft: &mut Draft, name: &str, shape: &[usize]) {
    let tensor = draft.tensor(name);
    tensor.shape = shape.to_vec();
    tensor.data = vec![0; 4 * shape.iter().product::<usize>()];
}

#[test]
fn damaged_tensors() {
    let cases = [
        Case::new(
            |draft| draft.tensors.retain(|t| t.name != Q),
            |e| matches!(e, ConvertError::MissingTensor { .. }),
            "tensor model.layers.1.self_attn.q_proj.weight is missing; \
             the configuration asks for shape [32, 40]",
        ),
        Case::new(
            |draft| {
                let mut extra = draft.tensor(Q).clone();
                extra.name = "model.layers.1.self_attn.q_proj.bias".to_owned();
                draft.tensors.push(extra);
            },
            |e| matches!(e, ConvertError::ExtraTensor { count: 1, .. }),
            "tensor model.layers.1.self_attn.q_proj.bias belongs to no part of the model \
             (1 such in all) and would be dropped",
        ),
        Case::new(
            |draft| draft.config["num_hidden_layers"] = json!(1),
            |e| matches!(e, ConvertError::ExtraTensor { count: 11, .. }),
            "tensor model.layers.1.input_layernorm.weight belongs to no part of the model \
             (11 such in all) and would be dropped",
        ),
        Case::new(
            |draft| draft.config["tie_word_embeddings"] = json!(false),
            |e| matches!(e, ConvertError::MissingTensor { .. }),
            "tensor lm_head.weight is missing; the configuration asks for shape [40, 40]",
        ),
        Case::new(
            |draft| resize(draft, GATE, &[60, 39]),
            |e| matches!(e, ConvertError::Shape { .. }),
            "tensor model.layers.0.mlp.gate_proj.weight has shape [60, 39]; \
             the configuration asks for [60, 40]",
        ),
        Case::new(
            |draft| resize(draft, "model.norm.weight", &[1, 40]),
            |e| matches!(e, ConvertError::Shape { .. }),
            "tensor model.norm.weight has shape [1, 40]; the configuration asks for [40]",
        ),
        Case::new(
            |draft| draft.tensor(GATE).dtype = Dtype::I32,
            |e| {
                matches!(
                    e,
                    ConvertError::Dtype {
                        found: Dtype::I32,
                        ..
                    }
                )
            },
            "tensor model.layers.0.mlp.gate_proj.weight has dtype I32; expected F32, F16 or BF16",
        ),
        Case::new(
            |draft| poke(draft, GATE, 16 * 40 + 3, f32::NAN),
            |e| matches!(e, ConvertError::NonFinite { index: 643, .. }),
            "tensor model.layers.0.mlp.gate_proj.weight holds NaN at index 643; \
             the checkpoint is damaged",
        ),
        Case::new(
            |draft| {
                poke(
                    draft,
                    "model.layers.1.mlp.ffn_sub_norm.weight",
                    59,
                    f32::NEG_INFINITY,
                )
            },
            |e| matches!(e, ConvertError::NonFinite { index: 59, .. }),
            "tensor model.layers.1.mlp.ffn_sub_norm.weight holds -inf at index 59; \
             the checkpoint is damaged",
        ),
        Case::new(
            |draft| poke(draft, "model.embed_tokens.weight", 1_599, f32::INFINITY),
            |e| matches!(e, ConvertError::NonFinite { index: 1_599, .. }),
            "tensor model.embed_tokens.weight holds inf at index 1599; the checkpoint is damaged",
        ),
        Case::new(
            |draft| poke(draft, KV_B, 48, f32::NAN),
            |e| matches!(e, ConvertError::NonFinite { index: 48, .. }),
            "tensor model.layers.1.self_attn.kv_b_proj.weight holds NaN at index 48; \
             the checkpoint is damaged",
        )
        .latent(),
        Case::new(
            |draft| resize(draft, KV_B, &[80, 47]),
            |e| matches!(e, ConvertError::Shape { .. }),
            "tensor model.layers.1.self_attn.kv_b_proj.weight has shape [80, 47]; \
             the configuration asks for [80, 48]",
        )
        .latent(),
        Case::new(
            |draft| poke(draft, "model.embed_tokens.weight", 77, -1e5),
            |e| matches!(e, ConvertError::DoesNotFit { index: 77, .. }),
            "tensor model.embed_tokens.weight holds -100000 at index 77, which does not fit f16; \
             store it as f32 (--embedding f32)",
        )
        .embedding(EmbeddingType::F16),
    ];
    cases.iter().for_each(Case::check);
}

#[test]
fn damaged_configurations() {
    let config = |e: &ConvertError| matches!(e, ConvertError::Config { .. });
    let cases = [
        Case::new(
            |draft| draft.config["architectures"] = json!(["MistralForCausalLM"]),
            |e| {
                let ConvertError::Config { source, .. } = e else {
                    return false;
                };
                matches!(source, ConfigJsonError::Family { .. })
            },
            "DIR/config.json: this is a MistralForCausalLM checkpoint, which is not supported: its \
             architecture is none of BitNetForCausalLM, BitnetForCausalLM, LlamaForCausalLM and \
             BitNetLatentForCausalLM",
        ),
        Case::new(
            |draft| draft.config["hidden_act"] = json!("gelu"),
            config,
            "DIR/config.json: key hidden_act is \"gelu\": it must be relu2 or silu",
        ),
        Case::new(
            |draft| draft.config["rope_scaling"] = json!({"rope_type": "llama3"}),
            config,
            "DIR/config.json: key rope_scaling is {\"rope_type\":\"llama3\"}: \
             only the default rotary embedding is read",
        ),
        Case::new(
            |draft| draft.config["hidden_size"] = json!(null),
            config,
            "DIR/config.json: key hidden_size is missing",
        ),
        Case::new(
            |draft| draft.config["kv_lora_rank"] = json!(40),
            config,
            "DIR/config.json: kv_lora_rank is 40; it must be a multiple of 16",
        )
        .latent(),
    ];
    cases.iter().for_each(Case::check);
}

#[test]
fn packed_checkpoints() {
    let bytes = fs::read(fixture("bitnet_packed/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| Tensor {
            name: name.to_owned(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        })
        .collect();
    let config = fs::read_to_string(fixture("bitnet_packed/config.json")).unwrap();
    let draft = Draft {
        config: serde_json::from_str(&config).unwrap(),
        tensors,
    };
    let check = |damage: fn(&mut Draft), variant: fn(&ConvertError) -> bool, message: &str| {
        let mut draft = draft.clone();
        damage(&mut draft);
        let dir = draft.save();
        fails(
            dir.path(),
            dir.path(),
            PackOptions::default(),
            message,
            variant,
        );
    };
    check(
        // Stored row 2, column 7, bits 4-5: row 2 * 40 + 2 of the 160.
        |draft| draft.tensor(Q).data[2 * 160 + 7] |= 0b11_00_00,
        |e| {
            matches!(
                e,
                ConvertError::NotACode {
                    row: 82,
                    col: 7,
                    ..
                }
            )
        },
        "tensor model.layers.1.self_attn.q_proj.weight holds the code 3 at row 82, column 7; \
         codes are 0, 1 and 2",
    );
    check(
        |draft| draft.tensor(Q).dtype = Dtype::I8,
        |e| matches!(e, ConvertError::Dtype { .. }),
        "tensor model.layers.1.self_attn.q_proj.weight has dtype I8; expected U8 (packed codes)",
    );
    check(
        |draft| {
            draft
                .tensors
                .retain(|t| t.name != "model.layers.1.self_attn.q_proj.weight_scale");
        },
        |e| matches!(e, ConvertError::MissingTensor { .. }),
        "tensor model.layers.1.self_attn.q_proj.weight_scale is missing; \
         the configuration asks for shape [1]",
    );
    for (scale, shown) in [(0.0, "0"), (-0.5, "-0.5")] {
        let mut draft = draft.clone();
        let tensor = draft.tensor("model.layers.1.self_attn.q_proj.weight_scale");
        tensor.data = encode(Dtype::BF16, &[scale]);
        let dir = draft.save();
        let message = format!(
            "tensor model.layers.1.self_attn.q_proj.weight_scale holds the scale {shown}; \
             a scale is a finite number above zero"
        );
        let variant = |e: &ConvertError| matches!(e, ConvertError::BadScale { .. });
        fails(
            dir.path(),
            dir.path(),
            PackOptions::default(),
            &message,
            variant,
        );
    }
    check(
        |draft| draft.config["intermediate_size"] = json!(342),
        |e| matches!(e, ConvertError::PackedRows { rows: 342, .. }),
        "tensor model.layers.0.mlp.gate_proj.weight packs 342 rows; \
         packed checkpoints need a multiple of 4",
    );
}

#[test]
fn damaged_files() {
    let header = |e: &ConvertError| matches!(e, ConvertError::Header { .. });
    let check = |damage: fn(&Path), variant: fn(&ConvertError) -> bool, message: &str| {
        let dir = Draft::of(grouped(), Dtype::F32).save();
        damage(dir.path());
        fails(
            dir.path(),
            dir.path(),
            PackOptions::default(),
            message,
            variant,
        );
    };
    check(
        |dir| {
            let path = dir.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
        },
        header,
        "DIR/model.safetensors: tensors take 96256 bytes, the file holds 96246; is it truncated?",
    );
    check(
        |dir| fs::write(dir.join("model.safetensors"), b"\xff\xff\xff\x7f\0\0\0\0{}").unwrap(),
        header,
        "DIR/model.safetensors: the header claims 2147483647 bytes, but only 2 follow; \
         is the file truncated?",
    );
    check(
        |dir| fs::write(dir.join("config.json"), "{").unwrap(),
        |e| matches!(e, ConvertError::Json { .. }),
        "DIR/config.json: not valid JSON: EOF while parsing an object at line 1 column 1",
    );
    check(
        |dir| fs::write(dir.join("tokenizer.json"), "tokens").unwrap(),
        |e| matches!(e, ConvertError::Json { .. }),
        "DIR/tokenizer.json: not valid JSON: expected ident at line 1 column 2",
    );
    check(
        |dir| {
            fs::write(
                dir.join("generation_config.json"),
                r#"{"eos_token_id": "x"}"#,
            )
            .unwrap()
        },
        |e| matches!(e, ConvertError::Config { .. }),
        "DIR/generation_config.json: key eos_token_id holds \"x\"; \
         expected a token id or a list of them",
    );
    // What the system says differs by system; what was tried on which file does not.
    let dir = Draft::of(grouped(), Dtype::F32).save();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = run(
        dir.path(),
        &dir.path().join("out.btn"),
        PackOptions::default(),
    );
    let message = error.unwrap_err().to_string();
    let expected = format!("cannot open {}: ", dir.path().join("config.json").display());
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(names(dir.path()), ["model.safetensors"]);
}

#[test]
fn outputs_that_cannot_be() {
    let dir = Draft::of(grouped(), Dtype::F32).save();
    let before = names(dir.path());
    let message = |output: &Path| {
        let error = run(dir.path(), output, PackOptions::default()).unwrap_err();
        assert_eq!(names(dir.path()), before);
        error
            .to_string()
            .replace(dir.path().to_str().unwrap(), "DIR")
    };
    assert_eq!(message(dir.path()), "DIR is a folder; name a file in it");
    let nowhere = message(&dir.path().join("none/out.btn"));
    assert!(
        nowhere.starts_with("cannot create DIR/none/out.btn."),
        "{nowhere}"
    );
    let weights = dir.path().join("model.safetensors");
    let original = fs::read(&weights).unwrap();
    let expected = "DIR/model.safetensors is part of the input; name another file";
    assert_eq!(message(&weights), expected);
    let detour = message(&dir.path().join("./model.safetensors"));
    assert_eq!(detour.replace("/./", "/"), expected);
    assert!(fs::read(&weights).unwrap() == original);
}

/// A failed conversion leaves an older output as it was.
#[test]
fn an_older_output_survives_a_failure() {
    let mut draft = Draft::of(grouped(), Dtype::F32);
    poke(&mut draft, "model.norm.weight", 0, f32::NAN);
    let dir = draft.save();
    fs::write(dir.path().join("out.btn"), "older").unwrap();
    assert!(
        run(
            dir.path(),
            &dir.path().join("out.btn"),
            PackOptions::default()
        )
        .is_err()
    );
    assert_eq!(fs::read(dir.path().join("out.btn")).unwrap(), b"older");
    assert_eq!(
        names(dir.path()),
        ["config.json", "model.safetensors", "out.btn"]
    );
}
