//! What conversions write: the same numbers as the source, the same bytes every time.

mod util;

use std::fs;
use std::ops::ControlFlow;

use bitnet_converter::{
    Conversion, ConvertError, EmbeddingType, PackOptions, TernaryType, TokenizerStore, convert,
    convert_dummy,
};
use bitnet_formats::{
    Archive, Attention, Dtype, ModelConfig, Preset, SectionKind, TensorClass, TensorRole,
    TensorSpec,
};
use proptest::prelude::*;
use safetensors::Dtype as Stored;
use util::{Draft, bytes_of, fixture, grouped, latent, names, run, weights};

const T2: PackOptions = PackOptions {
    embedding: EmbeddingType::I8,
    ternary: TernaryType::T2,
    tokenizer: TokenizerStore::Tables,
};

fn embedding(embedding: EmbeddingType) -> PackOptions {
    PackOptions {
        embedding,
        ..PackOptions::default()
    }
}

/// Packed is smaller, holds the same codes, runs the same, and gives the plain file back.
#[test]
fn packed_and_back() {
    for config in [latent(), grouped()] {
        let dir = Draft::of(config, Stored::BF16).save();
        let out = |name: &str| dir.path().join(name);
        run(dir.path(), &out("t5.btn"), PackOptions::default()).unwrap();
        let ternary = TernaryType::Packed;
        let packed = PackOptions {
            ternary,
            ..PackOptions::default()
        };
        let direct = run(dir.path(), &out("direct.btn"), packed).unwrap();
        run(&out("t5.btn"), &out("packed.btn"), packed).unwrap();
        run(
            &out("packed.btn"),
            &out("again.btn"),
            PackOptions::default(),
        )
        .unwrap();
        let [t5, direct_file, packed, again] = ["t5.btn", "direct.btn", "packed.btn", "again.btn"]
            .map(|name| fs::read(out(name)).unwrap());
        assert!(t5 == again && direct_file.len() == packed.len() && packed.len() < t5.len());
        assert_eq!(hashes(&packed), hashes(&t5));
        assert!(!hashes(&t5).is_empty());
        let archive = Archive::open(&packed).unwrap();
        archive.verify().unwrap();
        let stored: u64 = archive
            .tensors()
            .filter(|(spec, _)| spec.role.class() == TensorClass::Ternary)
            .map(|(_, entry)| entry.bytes)
            .sum();
        let kinds = direct
            .report
            .kinds()
            .iter()
            .filter(|kind| kind.counts.is_some());
        assert_eq!(kinds.map(|kind| kind.bytes).sum::<u64>(), stored);
    }
}

fn hashes(file: &[u8]) -> Vec<u64> {
    let archive = Archive::open(file).unwrap();
    archive.self_tests().map(|test| test.logits_hash).collect()
}

fn unpack(archive: &Archive<'_>, spec: &TensorSpec) -> Vec<i8> {
    let view = archive.ternary(spec.role, spec.layer).unwrap();
    let mut codes = vec![0; spec.rows * spec.cols];
    let groups = view.bytes().chunks(view.layout.group_bytes(spec.cols));
    for (bytes, codes) in groups.zip(codes.chunks_mut(16 * spec.cols)) {
        view.layout.unpack_group(bytes, spec.cols, codes);
    }
    codes
}

/// Codes of master weights, computed apart from the crate.
fn quantised(name: &str, n: usize) -> Vec<i8> {
    let w = weights(name, n);
    let mean = (w.iter().map(|w| f64::from(w.abs())).sum::<f64>() / n as f64) as f32;
    let scale = 1.0 / mean;
    w.iter()
        .map(|w| (w * scale).round_ties_even().clamp(-1.0, 1.0) as i8)
        .collect()
}

fn check_codes(config: &ModelConfig, file: &[u8]) {
    let archive = Archive::open(file).unwrap();
    archive.verify().unwrap();
    assert_eq!(archive.config(), config);
    let ternary = |t: &TensorSpec| t.role.class() == TensorClass::Ternary;
    for spec in config.tensors().filter(ternary) {
        let layer = spec.layer.unwrap();
        let expected = match (spec.role, config.attention) {
            (
                TensorRole::KvBKey | TensorRole::KvBValue,
                Attention::Latent {
                    kv_lora_rank: rank,
                    qk_nope_head_dim: nope,
                    v_head_dim: v,
                    ..
                },
            ) => {
                let name = format!("model.layers.{layer}.self_attn.kv_b_proj.weight");
                let w = quantised(&name, config.n_heads * (nope + v) * rank);
                let at = |row: usize, col: usize| w[row * rank + col];
                let element = |row: usize, col: usize| match spec.role {
                    TensorRole::KvBKey => at(row / rank * (nope + v) + col, row % rank),
                    _ => at(row / v * (nope + v) + nope + row % v, col),
                };
                (0..spec.rows * spec.cols)
                    .map(|i| element(i / spec.cols, i % spec.cols))
                    .collect()
            }
            _ => {
                let name = bitnet_converter::names::tensor_name(spec.role, spec.layer).unwrap();
                quantised(&name, spec.rows * spec.cols)
            }
        };
        assert!(unpack(&archive, &spec) == expected, "{spec:?}");
    }
}

#[test]
fn codes_are_those_of_the_definition() {
    for config in [grouped(), latent()] {
        for dtype in [Stored::F32, Stored::F16, Stored::BF16] {
            let draft = Draft::of(config, dtype);
            check_codes(&config, &bytes_of(&draft, PackOptions::default()));
            check_codes(&config, &bytes_of(&draft, T2));
        }
    }
}

#[test]
fn embeddings_keep_their_values() {
    let draft = Draft::of(latent(), Stored::F16);
    let cases = [
        (EmbeddingType::Source, Dtype::F16, 0.0),
        (EmbeddingType::F32, Dtype::F32, 0.0),
        (EmbeddingType::F16, Dtype::F16, 0.0),
        (EmbeddingType::BF16, Dtype::BF16, 0.0),
        (EmbeddingType::I8, Dtype::I8Rows, 0.5 / 127.0 + 1e-6),
    ];
    for (option, dtype, tolerance) in cases {
        let file = bytes_of(&draft, embedding(option));
        let archive = Archive::open(&file).unwrap();
        for (role, name) in [
            (TensorRole::Embedding, "model.embed_tokens.weight"),
            (TensorRole::Head, "lm_head.weight"),
        ] {
            let matrix = archive.matrix(role).unwrap();
            assert_eq!(matrix.dtype, dtype);
            let expected = weights(name, matrix.rows * matrix.cols);
            let mut row = vec![0.0; matrix.cols];
            for (r, expected) in expected.chunks(matrix.cols).enumerate() {
                matrix.row(r).to_f32(&mut row);
                for (found, expected) in row.iter().zip(expected) {
                    assert!((found - expected).abs() <= tolerance, "{option:?} row {r}");
                }
            }
        }
    }
}

#[test]
fn norms_are_copied_and_frequencies_computed() {
    let file = bytes_of(&Draft::of(latent(), Stored::BF16), PackOptions::default());
    let archive = Archive::open(&file).unwrap();
    let gain = archive.vector(TensorRole::KvANorm, Some(1)).unwrap();
    let expected = weights("model.layers.1.self_attn.kv_a_layernorm.weight", 48);
    assert!(gain.iter().eq(expected));
    let frequencies = archive.vector(TensorRole::RopeInvFreq, None).unwrap();
    assert!(frequencies.iter().eq([1.0, 0.1, 0.01, 0.001]));
}

/// T5 and T2 hold the same codes, so the model computes the same bits.
#[test]
fn layouts_give_equal_logits() {
    for config in [grouped(), latent()] {
        let draft = Draft::of(config, Stored::F32);
        let (t5, t2) = (
            bytes_of(&draft, PackOptions::default()),
            bytes_of(&draft, T2),
        );
        assert!(t5 != t2);
        assert_eq!(hashes(&t5), hashes(&t2));
        assert_eq!(hashes(&t5).len(), if config.tie_embeddings { 6 } else { 3 });
        assert!(hashes(&t5).iter().all(|hash| *hash != 0));
    }
}

#[test]
fn equal_input_gives_equal_bytes() {
    for config in [grouped(), latent()] {
        let draft = Draft::of(config, Stored::F32);
        let file = bytes_of(&draft, PackOptions::default());
        assert!(file == bytes_of(&draft, PackOptions::default()));
        let mut sorted = draft.clone();
        sorted.tensors.reverse();
        assert!(file == bytes_of(&sorted, PackOptions::default()));
    }
}

/// The same values in another float type give the same model, but for the note of their type.
#[test]
fn the_stored_type_does_not_matter() {
    let [a, b, c] = [Stored::F32, Stored::F16, Stored::BF16]
        .map(|dtype| bytes_of(&Draft::of(latent(), dtype), PackOptions::default()));
    assert_eq!(hashes(&a), hashes(&b));
    assert_eq!(hashes(&a), hashes(&c));
}

#[test]
fn shards_convert_like_one_file() {
    let draft = Draft::of(grouped(), Stored::F32);
    let dir = draft.save();
    let out = |name: &str| dir.path().join(name);
    run(dir.path(), &out("one.btn"), PackOptions::default()).unwrap();
    fs::remove_file(out("model.safetensors")).unwrap();
    let (first, second) = draft.tensors.split_at(7);
    util::save_tensors(&out("a.safetensors"), first);
    util::save_tensors(&out("b.safetensors"), second);
    let place = |tensors: &[util::Tensor], file: &str| {
        let entry = |t: &util::Tensor| (t.name.clone(), serde_json::json!(file));
        tensors.iter().map(entry).collect::<Vec<_>>()
    };
    let mut map = place(first, "a.safetensors");
    map.extend(place(second, "b.safetensors"));
    let index = serde_json::json!({ "weight_map": serde_json::Map::from_iter(map) });
    fs::write(out("model.safetensors.index.json"), index.to_string()).unwrap();
    run(dir.path(), &out("two.btn"), PackOptions::default()).unwrap();
    assert!(fs::read(out("one.btn")).unwrap() == fs::read(out("two.btn")).unwrap());
}

#[test]
fn sidecars_go_into_the_file() {
    let mut draft = Draft::of(grouped(), Stored::F32);
    // Some exporters store this buffer; it follows from the configuration.
    draft.tensors.push(util::Tensor {
        name: "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(),
        dtype: Stored::F32,
        shape: vec![8],
        data: vec![0; 32],
    });
    let dir = draft.save();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let json = r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "decoder": {"type": "Fuse"}}"#;
    put("tokenizer.json", json);
    put(
        "tokenizer_config.json",
        r#"{"chat_template": "{{ messages }}"}"#,
    );
    put("generation_config.json", r#"{"eos_token_id": [9, 3]}"#);
    put("LICENSE", "as you like");
    let output = dir.path().join("out.btn");
    let outcome = run(dir.path(), &output, PackOptions::default()).unwrap();
    assert!(outcome.has_tokenizer);
    let file = fs::read(output).unwrap();
    assert_eq!(outcome.file_bytes, file.len() as u64);
    let archive = Archive::open(&file).unwrap();
    let text = |kind| archive.text(kind).unwrap();
    assert_eq!(archive.tokenizer().unwrap().unwrap().lookup(b"a"), Some(0));
    assert_eq!(archive.section(SectionKind::TokenizerJson), None);
    assert_eq!(text(SectionKind::ChatTemplate), "{{ messages }}");
    assert_eq!(text(SectionKind::Licence), "as you like");
    let tool = concat!("tool: bitnet-convert ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(
        text(SectionKind::Provenance),
        format!("{tool}architecture: BitNetForCausalLM\nweights: master weights\nembedding: F32\n")
    );
    let tokens = archive.special_tokens().unwrap();
    assert_eq!(tokens.bos, Some(1));
    assert!(tokens.stop_ids().eq([3, 9]));
    for (store, expected) in [
        (TokenizerStore::Json, Some(json)),
        (TokenizerStore::None, None),
    ] {
        let output = dir.path().join("other.btn");
        let pack = PackOptions {
            tokenizer: store,
            ..PackOptions::default()
        };
        assert!(!run(dir.path(), &output, pack).unwrap().has_tokenizer);
        let file = fs::read(output).unwrap();
        let archive = Archive::open(&file).unwrap();
        assert_eq!(archive.text(SectionKind::TokenizerJson), expected);
        assert!(archive.tokenizer().unwrap().is_none());
    }
}

#[test]
fn both_generations_of_keys_give_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |keys: &str, output: &str| {
        for (from, to) in [
            (keys, "config.json"),
            ("model.safetensors", "model.safetensors"),
        ] {
            fs::copy(fixture("bitnet_packed").join(from), dir.path().join(to)).unwrap();
        }
        let output = dir.path().join(output);
        run(dir.path(), &output, PackOptions::default()).unwrap();
        fs::read(output).unwrap()
    };
    assert!(write("config.json", "a.btn") == write("config.v4style.json", "b.btn"));
}

fn dummy(preset: Preset, seed: u64) -> (bitnet_converter::Report, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("dummy.btn");
    let outcome = convert_dummy(preset, seed, &output, Conversion::default()).unwrap();
    (outcome.report, fs::read(output).unwrap())
}

#[test]
fn dummies_are_seeded_and_run() {
    let (report, file) = dummy(Preset::Nano, 7);
    assert!(file == dummy(Preset::Nano, 7).1);
    assert!(file != dummy(Preset::Nano, 8).1);
    assert_eq!(hashes(&file).len(), 3);
    let kinds = report.kinds().iter();
    for (kind, [_, zeros, _]) in kinds.filter_map(|kind| Some((kind, kind.counts?))) {
        let share = zeros as f64 / kind.weights as f64;
        assert!((0.37..0.43).contains(&share), "{kind:?}");
    }
}

/// Stopped after any number of weights, a conversion leaves nothing behind.
#[test]
fn a_stopped_conversion_leaves_nothing() {
    let dir = Draft::of(latent(), Stored::F32).save();
    let before = names(dir.path());
    for stop_at in [1, 2_000, 20_000] {
        let conversion = Conversion {
            progress: &mut |done, total| {
                assert!(done <= total);
                match done >= stop_at {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            },
            ..Conversion::default()
        };
        let stopped = convert(dir.path(), &dir.path().join("out.btn"), conversion);
        assert!(matches!(stopped, Err(ConvertError::Stopped)));
        assert_eq!(names(dir.path()), before);
    }
}

#[test]
fn progress_ends_at_the_total() {
    let dir = Draft::of(grouped(), Stored::F32).save();
    let mut last = (0, 1);
    let conversion = Conversion {
        self_test: false,
        progress: &mut |done, total| {
            last = (done, total);
            ControlFlow::Continue(())
        },
        ..Conversion::default()
    };
    let outcome = convert(dir.path(), &dir.path().join("out.btn"), conversion).unwrap();
    let weights: u64 = outcome.report.kinds().iter().map(|kind| kind.weights).sum();
    assert_eq!(last, (weights, weights));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any legal shape converts, and its codes are those of the definition.
    #[test]
    fn random_shapes(
        (hidden, ffn) in (1usize..40, 1usize..70),
        (n_heads, half, groups) in (1usize..5, 1usize..9, any::<bool>()),
        latent_ranks in prop::option::of((1usize..4, 1usize..40, 1usize..3)),
        vocab_size in 1usize..50,
    ) {
        let attention = match latent_ranks {
            None => Attention::Grouped {
                n_kv_heads: if groups { n_heads } else { 1 },
                head_dim: 2 * half,
            },
            Some((rank, nope, v)) => Attention::Latent {
                kv_lora_rank: 16 * rank,
                qk_nope_head_dim: nope,
                qk_rope_head_dim: 2 * half,
                v_head_dim: 16 * v,
            },
        };
        let config = ModelConfig {
            hidden_size: hidden,
            intermediate_size: ffn,
            n_heads,
            attention,
            vocab_size,
            ..grouped()
        };
        let draft = Draft::of(config, Stored::F32);
        check_codes(&config, &bytes_of(&draft, PackOptions::default()));
    }
}
