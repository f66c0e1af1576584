//! `--embed`: vectors of texts, from the checkpoint of another library's model.

mod util;

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_converter::{Conversion, EmbeddingType, PackOptions, convert};
use safetensors::SafeTensors;
use serde_json::Value;
use util::{BOS, Place, grouped, mute, speaking, tokenizer_json};

/// `eos_token_id` of the checkpoint: the token that stands for the text before it.
const END: u32 = 2;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/embedding_qwen3")
}

/// The checkpoint as `m.btn`, with the tokenizer of bytes or with none.
fn converted(tokenizer: Option<&str>) -> Place {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture().join(name), source.join(name)).unwrap();
    }
    if let Some(json) = tokenizer {
        fs::write(source.join("tokenizer.json"), json).unwrap();
    }
    let conversion = Conversion {
        pack: PackOptions {
            embedding: EmbeddingType::Source,
            ..PackOptions::default()
        },
        self_test: false,
        ..Conversion::default()
    };
    convert(&source, &place.path("m.btn"), conversion).unwrap();
    fs::remove_dir_all(source).unwrap();
    place
}

fn floats(json: &Value) -> Vec<f32> {
    let numbers = json.as_array().unwrap().iter();
    numbers.map(|x| x.as_f64().unwrap() as f32).collect()
}

/// The numbers of plain output.
fn parse(line: &str) -> Vec<f32> {
    line.split_whitespace()
        .map(|x| x.parse().unwrap())
        .collect()
}

fn expected(length: &str) -> Vec<f32> {
    let bytes = fs::read(fixture().join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(&format!("embedding.{length}")).unwrap();
    let values = tensor.data().chunks_exact(4);
    values
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// At the tolerances of the model's hidden states. The other library's keys and values are f32.
#[test]
fn vectors_are_those_of_the_other_library() {
    let place = converted(None);
    let golden: Value =
        serde_json::from_slice(&fs::read(fixture().join("golden.json")).unwrap()).unwrap();
    for (length, tolerance) in [
        ("len1", 1e-5),
        ("len7", 1e-5),
        ("len33", 1e-3),
        ("len64", 1e-3),
    ] {
        let ids: Vec<_> = golden["sequences"][length]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        let ids = ids.join(",");
        let args = ["m.btn", "--ids", &ids];
        let json = place.run(&[&args[..], &["--json"]].concat()).json();
        let found = floats(&json["embedding"]);
        let expected = expected(length);
        assert_eq!(found.len(), expected.len());
        let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let largest = largest.fold(0.0, f32::max);
        assert!(largest < tolerance, "{length}: {largest}");
        let norm: f64 = found.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((norm.sqrt() - 1.0).abs() < 1e-6, "{length}: {norm}");
        // Neither how it is printed nor how it is read changes a bit.
        let other = [&args[..], &["--prefill-batch", "1"]].concat();
        assert_eq!(parse(&place.run(&other).success()), found);
    }
}

#[test]
fn a_text_ends_with_the_token_that_stands_for_it() {
    let place = converted(Some(&tokenizer_json()));
    let ids = |text: &str| -> Vec<u32> {
        let bytes = text.bytes().map(u32::from);
        [BOS].into_iter().chain(bytes).chain([END]).collect()
    };
    for text in ["", "a", "-x", "Zur\u{fc}ck"] {
        let ids = ids(text);
        let json = place.run(&["m.btn", "--embed", text, "--json"]).json();
        assert_eq!(json["ids"], serde_json::json!(ids), "{text}");
        let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let by_ids = place.run(&["m.btn", "--ids", &list]).success();
        assert_eq!(parse(&by_ids), floats(&json["embedding"]), "{text}");
        let given = place.run_with_input(&["m.btn", "--embed", "-"], text.as_bytes());
        assert_eq!(given.success(), by_ids, "{text}");
    }
    let a = place.run(&["m.btn", "--embed", "a"]).success();
    assert_ne!(a, place.run(&["m.btn", "--embed", "b"]).success());
}

#[test]
fn what_cannot_be_embedded_says_why() {
    let embedding = converted(Some(&tokenizer_json()));
    embedding.write("speaking.btn", speaking(&grouped()));
    embedding.write("mute.btn", mute(&grouped()));
    embedding.write("silent.btn", converted(None).read("m.btn"));
    let long = "a".repeat(127);
    let cases: &[&[&str]] = &[
        &["speaking.btn", "--embed", "a"],
        &["mute.btn", "--embed", "a"],
        &["silent.btn", "--embed", "a"],
        &["m.btn", "--embed", &long],
        &["m.btn", "--ids", "1,320"],
        &["m.btn", "--ids", "1", "--logits", "l.safetensors"],
        &["m.btn", "--prompt", "a"],
        &["m.btn", "--chat"],
        &["m.btn", "--perplexity", "m.btn"],
    ];
    let messages = cases.iter().map(|args| {
        let message = embedding.run(args).failure(1);
        assert_eq!(message.lines().count(), 1, "{message}");
        let shown = args.join(" ").replace(&long, "aaa...");
        format!("$ bitnet-run {shown}\n{message}")
    });
    insta::assert_snapshot!("messages", messages.collect::<String>());
}
