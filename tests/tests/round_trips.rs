//! A model through other formats and back is the same model: codes, scales, norms, embedding, logits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_converter::gguf::Kind;
use bitnet_converter::{Conversion, EmbeddingType, Export, PackOptions, convert};
use bitnet_formats::{Activation, Attention};
use bitnet_formats::{Archive, Dtype, ModelConfig, Norms, Preset, TernaryLayout, WeightScale};
use bitnet_runtime::{LoadOptions, WeightHold};
use bitnet_tests::packed::packed;
use bitnet_tests::synthetic::{self, Storage};
use bitnet_tests::{Run, logits_hash};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// Converts with embedding and head stored so.
fn converted(input: &Path, embedding: EmbeddingType) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model.btn");
    let conversion = Conversion {
        pack: PackOptions {
            embedding,
            ..PackOptions::default()
        },
        self_test: false,
        ..Conversion::default()
    };
    convert(input, &output, conversion).unwrap();
    fs::read(output).unwrap()
}

/// Everything but the sections that tell where a file comes from.
fn assert_same_model(name: &str, a: &[u8], b: &[u8]) {
    let (a_file, b_file) = (Archive::open(a).unwrap(), Archive::open(b).unwrap());
    assert_eq!(a_file.config(), b_file.config(), "{name}");
    for ((spec, x), (_, y)) in a_file.tensors().zip(b_file.tensors()) {
        let payload = |file: &[u8], offset: u64, bytes: u64| {
            file[offset as usize..][..bytes as usize].to_vec()
        };
        assert_eq!(
            (x.dtype, x.scale.to_bits()),
            (y.dtype, y.scale.to_bits()),
            "{name} {spec:?}"
        );
        let same = payload(a, x.offset, x.bytes) == payload(b, y.offset, y.bytes);
        assert!(same, "{name} {spec:?}");
    }
    let ids: Vec<u32> = (0..7)
        .map(|i| i * 13 % a_file.config().vocab_size as u32)
        .collect();
    let hash = |file: &[u8]| format!("{:016x}", logits_hash(file, &ids, Run::default()));
    assert_eq!(hash(a), hash(b), "{name}");
}

fn export<'a, 'w>(archive: &'a Archive<'w>) -> Export<'a, 'w> {
    Export {
        archive,
        release: &|| (),
    }
}

fn checkpoint_of(file: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(file).unwrap();
    export(&archive)
        .checkpoint(&dir.path().join("out"))
        .unwrap();
    dir
}

fn gguf_of(file: &[u8], kind: Kind) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(file).unwrap();
    export(&archive)
        .gguf(&dir.path().join("m.gguf"), kind)
        .unwrap();
    dir
}

#[test]
fn through_a_checkpoint() {
    for name in [
        "bitnet_online_f32",
        "bitnet_online_bf16",
        "bitnet_packed",
        "b158_large",
        "llama_packed",
        "llama_packed_rmsnorm",
        "falcon_e",
        "bitnet700_fixed",
        "embedding_qwen3",
    ] {
        for embedding in [EmbeddingType::Source, EmbeddingType::I8] {
            let file = converted(&fixture(name), embedding);
            let dir = checkpoint_of(&file);
            assert_same_model(name, &file, &converted(&dir.path().join("out"), embedding));
        }
    }
}

/// Our own architecture, trained, with its tokenizer: latent attention and int8 rows.
#[test]
fn a_trained_model_through_a_checkpoint() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/austen-nano.btn");
    let file = fs::read(path).unwrap();
    let dir = checkpoint_of(&file);
    let back = converted(&dir.path().join("out"), EmbeddingType::I8);
    assert_same_model("austen-nano", &file, &back);
    let sections = |file: &[u8]| {
        let archive = Archive::open(file).unwrap();
        use bitnet_formats::SectionKind as S;
        [
            S::Tokenizer,
            S::ChatTemplate,
            S::Chat,
            S::SpecialTokens,
            S::Licence,
        ]
        .map(|kind| archive.section(kind).map(<[u8]>::to_vec))
    };
    assert_eq!(sections(&file), sections(&back));
}

#[test]
fn through_gguf_and_a_checkpoint() {
    for name in ["TQ1_0", "TQ2_0", "I2_S", "llama_TQ2_0"] {
        let gguf = fixture("gguf").join(name).join("model.gguf");
        let file = converted(&gguf, EmbeddingType::Source);
        for kind in [Kind::TQ1_0, Kind::TQ2_0] {
            let dir = gguf_of(&file, kind);
            let back = converted(&dir.path().join("m.gguf"), EmbeddingType::Source);
            assert_same_model(name, &file, &back);
        }
        let dir = checkpoint_of(&file);
        let back = converted(&dir.path().join("out"), EmbeddingType::Source);
        assert_same_model(name, &file, &back);
        let dir = gguf_of(&back, Kind::TQ1_0);
        let again = converted(&dir.path().join("m.gguf"), EmbeddingType::Source);
        assert_same_model(name, &file, &again);
    }
}

/// What is written from a packed file is what is written from the plain one, byte for byte.
#[test]
fn packed_files_leave_alike() {
    let latent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/austen-nano.btn");
    let grouped = fixture("gguf").join("TQ1_0").join("model.gguf");
    let grouped = converted(&grouped, EmbeddingType::Source);
    for plain in [fs::read(latent).unwrap(), grouped.clone()] {
        let [plain, coded] = [checkpoint_of(&plain), checkpoint_of(&packed(&plain))];
        let [plain, coded] = [plain, coded].map(|dir| contents(&dir.path().join("out")));
        assert!(plain == coded);
    }
    for kind in [Kind::TQ1_0, Kind::TQ2_0] {
        let [plain, coded] = [gguf_of(&grouped, kind), gguf_of(&packed(&grouped), kind)];
        assert!(contents(plain.path()) == contents(coded.path()));
    }
}

/// Names and bytes of the files in a folder.
fn contents(dir: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let read = files.map(|file| (file.file_name(), fs::read(file.path()).unwrap()));
    let contents: BTreeMap<_, _> = read.collect();
    assert!(!contents.is_empty());
    contents
}

/// Scales of either convention that no f16 holds, heads that are permuted on the way.
#[test]
fn scales_of_both_conventions_survive_gguf() {
    let base = ModelConfig {
        hidden_size: 256,
        intermediate_size: 512,
        n_layers: 2,
        n_heads: 4,
        attention: Attention::Grouped {
            n_kv_heads: 2,
            head_dim: 64,
        },
        vocab_size: 64,
        max_seq_len: 32,
        ..Preset::BitNetLarge.config()
    };
    let llama = ModelConfig {
        norms: Norms::pre(1e-5),
        tie_embeddings: false,
        ..base
    };
    let relu2 = ModelConfig {
        activation: Activation::SquaredRelu,
        ..base
    };
    let storage = Storage {
        ternary: TernaryLayout::T5R16,
        dense: Dtype::F16,
    };
    for (name, config) in [("bitnet", base), ("llama", llama), ("bitnet-b1.58", relu2)] {
        for weight_scale in [WeightScale::Multiply, WeightScale::Divide] {
            let config = ModelConfig {
                weight_scale,
                ..config
            };
            // Converted once, so that the rotary frequencies are those of their base.
            let synthetic = synthetic::with_computed_frequencies(&config, storage, 5);
            for kind in [Kind::TQ1_0, Kind::TQ2_0] {
                let dir = gguf_of(&synthetic, kind);
                let gguf = dir.path().join("m.gguf");
                let back = converted(&gguf, EmbeddingType::Source);
                assert_same_model(name, &synthetic, &back);
            }
        }
    }
}

#[test]
fn what_has_no_place_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m.gguf");
    let refusal = |file: &[u8]| {
        let archive = Archive::open(file).unwrap();
        export(&archive)
            .gguf(&out, Kind::TQ2_0)
            .unwrap_err()
            .to_string()
    };
    let latent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/austen-nano.btn");
    assert_eq!(
        refusal(&fs::read(latent).unwrap()),
        "this model cannot be written as GGUF: \
         no architecture there has latent attention over a quantised cache"
    );
    let narrow = converted(&fixture("b158_large"), EmbeddingType::Source);
    assert_eq!(
        refusal(&narrow),
        "this model cannot be written as GGUF: its ternary types take rows of a multiple of 256"
    );
    let embedding = converted(&fixture("embedding_qwen3"), EmbeddingType::Source);
    assert!(refusal(&embedding).contains("embeddings as output"));
    assert!(!out.exists());
}

/// A model in which some neurons are dead, packed without them: fewer neurons, the same bits.
#[test]
fn dead_neurons_go_without_a_trace() {
    let base = ModelConfig {
        hidden_size: 64,
        intermediate_size: 300,
        n_layers: 3,
        n_heads: 2,
        attention: Attention::Grouped {
            n_kv_heads: 1,
            head_dim: 32,
        },
        vocab_size: 50,
        max_seq_len: 32,
        ..Preset::BitNetLarge.config()
    };
    let no_norm = ModelConfig {
        norms: Norms::pre(1e-5),
        activation: Activation::SquaredRelu,
        ..base
    };
    let inner = ModelConfig {
        norms: Norms {
            in_linear: Some(1e-6),
            ..base.norms
        },
        ..base
    };
    for (name, config) in [
        ("sub-norms", base),
        ("none", no_norm),
        ("in linears", inner),
    ] {
        let whole = synthetic::with_dead_neurons(&config, Storage::default(), 11);
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("whole.btn"), dir.path().join("pruned.btn"));
        fs::write(&input, &whole).unwrap();
        let pack = |input: &Path, prune_dead| {
            let conversion = Conversion {
                pack: PackOptions {
                    embedding: EmbeddingType::Source,
                    ..PackOptions::default()
                },
                prune_dead,
                ..Conversion::default()
            };
            convert(input, &output, conversion)
        };
        let outcome = pack(&input, true).unwrap();
        let pruned = fs::read(&output).unwrap();
        let archive = Archive::open(&pruned).unwrap();
        let widths: Vec<_> = (0..3).map(|layer| archive.ffn_width(layer)).collect();
        println!("{name}: {widths:?} of 300");
        // One block is whole, one has lost some, one all but one.
        assert_eq!((widths[0], widths[2]), (300, 1), "{name}");
        assert!((120..250).contains(&widths[1]), "{name}: {widths:?}");
        let lost: usize = widths.iter().map(|width| 300 - width).sum();
        assert_eq!(outcome.pruned, Some(lost as u64));
        let ids: Vec<u32> = (0..30).map(|i| i * 7 % 50).collect();
        for hold in [WeightHold::InPlace, WeightHold::Copy(TernaryLayout::T2R16)] {
            let run = Run {
                load: LoadOptions {
                    hold,
                    ..LoadOptions::default()
                },
                ..Run::default()
            };
            assert_eq!(
                logits_hash(&pruned, &ids, run),
                logits_hash(&whole, &ids, run),
                "{name}"
            );
        }
        // Packed again it stays as it is; it has no form elsewhere.
        let again = dir.path().join("again.btn");
        fs::copy(&output, &again).unwrap();
        pack(&again, false).unwrap();
        assert_eq!(fs::read(&output).unwrap(), pruned, "{name}");
        assert!(
            pack(&again, true)
                .unwrap_err()
                .to_string()
                .contains("pruned already")
        );
        assert!(
            export(&archive)
                .checkpoint(&dir.path().join("out"))
                .is_err()
        );
    }
}
