//! What `fit` writes with grouped-query attention is what the `transformers` library reads.
//!
//! `tests/pytorch/transformers_round_trip.py` trained the fixture with `fit`, loaded it there as
//! `BitNetForCausalLM`, and stored the logits.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_trainer::checkpoint::RunFolder;
use bitnet_trainer::config_json;
use bitnet_trainer::model::Sequence;
use bitnet_trainer::tensor::flat;
use safetensors::SafeTensors;
use serde_json::Value;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/transformers")
}

/// The prompts of 33 and 64 ids meet no rounding boundary either.
#[test]
fn logits_are_those_of_the_library() {
    let (model, _) = RunFolder::new(fixture()).load_model().unwrap();
    let text = fs::read_to_string(fixture().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let bytes = fs::read(fixture().join("golden.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    for (length, ids) in golden["sequences"].as_object().unwrap() {
        let ids = ids.as_array().unwrap().iter();
        let ids: Vec<u32> = ids.map(|id| id.as_u64().unwrap() as u32).collect();
        let mut seq = Sequence::to_evaluate(model.config(), ids.len());
        let logits = model.all_logits(&ids, &mut seq).unwrap();
        let expected = expected.tensor(&format!("logits.{length}")).unwrap();
        assert_eq!(expected.shape(), logits.shape());
        let words = expected.data().chunks_exact(4);
        let words = words.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let apart = flat(&logits).iter().zip(words).map(|(a, b)| (a - b).abs());
        let largest = apart.fold(0.0, f32::max);
        println!("{length}: {largest:e}");
        assert!(largest < 1e-4, "{length}: {largest}");
    }
}

/// The library was given these very bytes: names, shapes, types, and every key of config.json.
#[test]
fn checkpoints_are_written_as_the_library_read_them() {
    let (model, tokenizer) = RunFolder::new(fixture()).load_model().unwrap();
    let folder = tempfile::tempdir().unwrap();
    RunFolder::new(folder.path()).save_model(&model).unwrap();
    let written = fs::read(folder.path().join("model.safetensors")).unwrap();
    assert!(written == fs::read(fixture().join("model.safetensors")).unwrap());
    let written = config_json::write(model.config(), true, tokenizer.end_of_text()).unwrap();
    let read = fs::read_to_string(fixture().join("config.json")).unwrap();
    assert_eq!(written, read);
}
