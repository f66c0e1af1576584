//! Converted checkpoints against the numbers of the library that defined them.
//!
//! The only large difference correct code can show comes from an activation on the other side of a
//! rounding boundary: one int8 step, which later positions then carry on. The short sequences were
//! chosen so that a relative noise of 1e-6 moves no activation across one; the long ones were not.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_converter::gguf::I2sLayout;
use bitnet_converter::{
    Conversion, ConvertError, DenseWeights, EmbeddingType, PackOptions, ReadOptions, convert,
};
use bitnet_formats::quant::{linear_factor, quantize_activations};
use bitnet_formats::{
    Archive, ModelConfig, NormKind, Output, TensorRole, TernaryView, WeightScale,
};
use bitnet_runtime::kernels::{Activations, CODE_PADDING, Store, TernaryGemm};
use bitnet_runtime::{Kernels, argmax};
use bitnet_tests::{Run, logits_hash, with_session};
use safetensors::SafeTensors;
use serde_json::Value;

const FIXTURES: [&str; 8] = [
    "bitnet_online_f32",
    "bitnet_online_bf16",
    "bitnet_packed",
    "b158_large",
    "llama_packed",
    "llama_packed_rmsnorm",
    "falcon_e",
    "bitnet700_fixed",
];

/// The same as GGUF files, which have no traces of single linears.
const GGUF: [&str; 4] = ["gguf/TQ2_0", "gguf/TQ1_0", "gguf/I2_S", "gguf/llama_TQ2_0"];

fn with_logits() -> impl Iterator<Item = Golden> {
    FIXTURES.into_iter().chain(GGUF).map(Golden::new)
}

/// A converted checkpoint, and what it must give.
struct Golden {
    name: &'static str,
    model: Vec<u8>,
    tensors: Vec<u8>,
    text: Value,
}

impl Golden {
    fn new(name: &'static str) -> Self {
        let dir = fixture(name);
        let gguf = dir.join("model.gguf");
        let model = converted(if gguf.exists() { &gguf } else { &dir });
        let text = |dir: &Path| -> Value {
            let text = fs::read_to_string(dir.join("golden.json")).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        // Two encodings of one model have one golden.
        let dir = match text(&dir)["same_as"].as_str() {
            Some(other) => dir.join(other),
            None => dir,
        };
        Self {
            name,
            model,
            tensors: fs::read(dir.join("golden.safetensors")).unwrap(),
            text: text(&dir),
        }
    }

    /// A table of f32 by name, as rows.
    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        let values: Vec<f32> = view.data().chunks(4).map(value).collect();
        let width = *view.shape().last().unwrap();
        values.chunks(width).map(<[_]>::to_vec).collect()
    }

    fn sequence(&self, name: &str) -> Vec<u32> {
        ids(&self.text["sequences"][name])
    }

    fn logits(&self, ids: &[u32]) -> Vec<Vec<f32>> {
        with_session(&self.model, Run::default(), |session| {
            let mut rows = Vec::new();
            session
                .score(ids, |_, logits| rows.push(logits.to_vec()))
                .unwrap();
            rows
        })
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// The `.btn` file of a checkpoint, embedding and head as the checkpoint has them.
fn converted(checkpoint: &Path) -> Vec<u8> {
    try_convert(checkpoint, DenseWeights::Refuse).unwrap()
}

fn try_convert(checkpoint: &Path, dense: DenseWeights) -> Result<Vec<u8>, ConvertError> {
    let read = ReadOptions {
        dense,
        ..ReadOptions::default()
    };
    convert_with(checkpoint, read)
}

fn convert_with(checkpoint: &Path, read: ReadOptions) -> Result<Vec<u8>, ConvertError> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model.btn");
    let conversion = Conversion {
        pack: PackOptions {
            embedding: EmbeddingType::Source,
            ..PackOptions::default()
        },
        read,
        self_test: false,
        ..Conversion::default()
    };
    convert(checkpoint, &output, conversion)?;
    Ok(fs::read(output).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

/// How far two tables are apart.
#[derive(Clone, Copy, Debug, Default)]
struct Difference {
    largest: f32,
    mean: f64,
    /// Row and column of the largest.
    at: (usize, usize),
}

impl Difference {
    fn of(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Self {
        assert_eq!(found.len(), expected.len());
        let mut difference = Self::default();
        let mut sum = 0.0;
        for (r, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_eq!(found.len(), expected.len());
            for (c, (a, b)) in found.iter().zip(expected).enumerate() {
                // A value that is no number is as far off as can be.
                let d = Some((a - b).abs()).filter(|d| !d.is_nan());
                let d = d.unwrap_or(f32::INFINITY);
                sum += f64::from(d);
                if d > difference.largest {
                    (difference.largest, difference.at) = (d, (r, c));
                }
            }
        }
        difference.mean = sum / (found.len() * found[0].len()) as f64;
        difference
    }
}

/// The linears of a block, by the names the goldens have for them, and the norms inside them.
const LINEARS: [(&str, TensorRole, TensorRole); 9] = [
    ("q_proj", TensorRole::Q, TensorRole::QInputNorm),
    ("k_proj", TensorRole::K, TensorRole::KInputNorm),
    ("v_proj", TensorRole::V, TensorRole::VInputNorm),
    ("o_proj", TensorRole::O, TensorRole::OInputNorm),
    ("gate_proj", TensorRole::Gate, TensorRole::GateInputNorm),
    ("up_proj", TensorRole::Up, TensorRole::UpInputNorm),
    ("down_proj", TensorRole::Down, TensorRole::DownInputNorm),
    (
        "latent_q",
        TensorRole::LatentQ,
        TensorRole::LatentQInputNorm,
    ),
    (
        "latent_k",
        TensorRole::LatentK,
        TensorRole::LatentKInputNorm,
    ),
];

#[test]
fn linears_of_the_first_block() {
    for golden in FIXTURES
        .into_iter()
        .chain(["embedding_qwen3"])
        .map(Golden::new)
    {
        let archive = Archive::open(&golden.model).unwrap();
        let file = SafeTensors::deserialize(&golden.tensors).unwrap();
        let mut inputs = file.names();
        inputs.retain(|name| name.starts_with("trace.len7.") && name.ends_with(".in"));
        let expected = if golden.name.starts_with("bitnet700") {
            9
        } else {
            7
        };
        assert_eq!(inputs.len(), expected, "{}", golden.name);
        for input in inputs {
            let module = input.trim_end_matches(".in");
            let linear = module.rsplit('.').next().unwrap();
            let (_, role, norm) = LINEARS
                .into_iter()
                .find(|(name, ..)| *name == linear)
                .unwrap();
            let mut x = golden.rows(input);
            if let Some(gain) = archive.vector(norm, Some(0)) {
                let gain: Vec<f32> = gain.iter().collect();
                x.iter_mut()
                    .for_each(|x| inner_norm(archive.config(), &gain, x));
            }
            let expected = golden.rows(&format!("{module}.out"));
            check_linear(&golden, &archive, role, &x, &expected);
        }
    }
}

/// Every set of kernels, in units of each row's largest value.
fn check_linear(
    golden: &Golden,
    archive: &Archive<'_>,
    role: TensorRole,
    input: &[Vec<f32>],
    expected: &[Vec<f32>],
) {
    let weights = archive.ternary(role, Some(0)).unwrap();
    for kernels in Kernels::available() {
        let found = linear(kernels, weights, archive.config().weight_scale, input);
        let (found, expected) = relative(found, expected);
        let difference = Difference::of(&found, &expected);
        println!("{} {role:?} {kernels:?}: {difference:?}", golden.name);
        assert!(
            difference.largest <= 2e-5,
            "{} {role:?} {kernels:?}: {difference:?}",
            golden.name
        );
    }
}

/// The norm inside a linear, from its definition and in f64.
fn inner_norm(config: &ModelConfig, gain: &[f32], x: &mut [f32]) {
    let n = x.len() as f64;
    let mean = match config.norms.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|x| f64::from(*x)).sum::<f64>() / n,
    };
    let square = x
        .iter()
        .map(|x| (f64::from(*x) - mean).powi(2))
        .sum::<f64>()
        / n;
    let root = (square + f64::from(config.norms.in_linear.unwrap())).sqrt();
    for (x, gain) in x.iter_mut().zip(gain) {
        *x = ((f64::from(*x) - mean) / root) as f32 * gain;
    }
}

/// Rows through quantiser, kernel and factor, all at once.
fn linear(
    kernels: Kernels,
    weights: TernaryView<'_>,
    convention: WeightScale,
    input: &[Vec<f32>],
) -> Vec<Vec<f32>> {
    let stride = weights.cols.next_multiple_of(CODE_PADDING);
    let mut codes = vec![0; input.len() * stride];
    let mut factors = Vec::new();
    for (x, codes) in input.iter().zip(codes.chunks_mut(stride)) {
        let act_scale = quantize_activations(x, &mut codes[..weights.cols]).unwrap();
        factors.push(linear_factor(convention, weights.scale, act_scale));
    }
    let mut out = vec![f32::NAN; input.len() * weights.rows];
    let job = TernaryGemm {
        weights,
        groups: 0..weights.n_groups(),
        activations: Activations::new(&codes, stride),
        factors: &factors,
        store: Store::Set,
    };
    kernels.ternary_gemm(&job, &mut out);
    out.chunks(weights.rows).map(<[_]>::to_vec).collect()
}

fn relative(found: Vec<Vec<f32>>, expected: &[Vec<f32>]) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let divide = |row: &[f32], by: f32| row.iter().map(|x| x / by).collect();
    let rows = found.iter().zip(expected);
    rows.map(|(found, expected)| {
        let largest = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        assert!(largest > 0.0);
        (divide(found, largest), divide(expected, largest))
    })
    .unzip()
}

#[test]
fn logits_of_short_sequences() {
    for golden in with_logits() {
        for length in ["len1", "len7"] {
            let found = golden.logits(&golden.sequence(length));
            let expected = golden.rows(&format!("logits.{length}"));
            let difference = Difference::of(&found, &expected);
            println!("{} {length}: {difference:?}", golden.name);
            assert!(
                difference.largest < 1e-4,
                "{} {length}: {difference:?}",
                golden.name
            );
        }
    }
}

#[test]
fn logits_of_long_sequences() {
    for golden in with_logits() {
        for length in ["len33", "len64"] {
            let found = golden.logits(&golden.sequence(length));
            let expected = golden.rows(&format!("logits.{length}"));
            let difference = Difference::of(&found, &expected);
            println!("{} {length}: {difference:?}", golden.name);
            assert!(
                difference.largest < 0.5 && difference.mean < 0.02,
                "{} {length}: {difference:?}",
                golden.name
            );
            for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
                if margin(expected) > 0.1 {
                    assert_eq!(
                        argmax(found),
                        argmax(expected),
                        "{} {length}, position {position}: {difference:?}",
                        golden.name
                    );
                }
            }
        }
    }
}

/// The best logit less the second best.
fn margin(logits: &[f32]) -> f32 {
    let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for logit in logits {
        if *logit > best {
            (best, second) = (*logit, best);
        } else {
            second = second.max(*logit);
        }
    }
    best - second
}

#[test]
fn greedy_continuations() {
    for golden in with_logits() {
        let cases = golden.text["greedy"].as_object().unwrap();
        assert_eq!(cases.len(), 3);
        for (length, case) in cases {
            let expected = ids(&case["continuation"]);
            let found = with_session(&golden.model, Run::default(), |session| {
                let mut logits = session.prefill(&ids(&case["prompt"])).unwrap();
                let mut found = Vec::new();
                loop {
                    found.push(argmax(logits));
                    if found.len() == expected.len() {
                        break found;
                    }
                    logits = session.decode(found[found.len() - 1]).unwrap();
                }
            });
            assert_eq!(found, expected, "{} {length}", golden.name);
        }
    }
}

/// What llama.cpp says after the same tokens. It quantises activations by blocks of 256, which these rows
/// are, so its choice is ours but where two tokens are close.
#[test]
fn greedy_texts_of_another_engine() {
    for name in ["gguf/TQ2_0", "gguf/TQ1_0", "gguf/llama_TQ2_0"] {
        let golden = Golden::new(name);
        let text = fs::read_to_string(fixture(name).join("llamacpp.json")).unwrap();
        let text: Value = serde_json::from_str(&text).unwrap();
        let (prompt, greedy) = (ids(&text["prompt_ids"]), ids(&text["greedy"]));
        let all = [&prompt[..], &greedy].concat();
        let logits = golden.logits(&all[..all.len() - 1]);
        let ranks: Vec<_> = greedy
            .iter()
            .zip(&logits[prompt.len() - 1..])
            .map(|(id, logits)| logits.iter().filter(|l| **l > logits[*id as usize]).count())
            .collect();
        println!("{name}: ranks {ranks:?}");
        let best = ranks.iter().filter(|rank| **rank == 0).count();
        assert!(
            best >= 15 && ranks.iter().all(|rank| *rank < 2),
            "{name}: {ranks:?}"
        );
    }
}

/// Another layout than the writer's gives another model, but never an error.
#[test]
fn the_layout_of_i2s_is_not_in_the_file() {
    let golden = Golden::new("gguf/I2_S");
    let arm = ReadOptions {
        i2s: I2sLayout::Arm,
        ..ReadOptions::default()
    };
    let other = convert_with(&fixture("gguf/I2_S/model.gguf"), arm).unwrap();
    let ids = golden.sequence("len7");
    let hash = |model: &[u8]| logits_hash(model, &ids, Run::default());
    assert_ne!(hash(&other), hash(&golden.model));
}

/// The body of an embedding model: hidden states by their direction, and the pooled embedding.
#[test]
fn embeddings() {
    let golden = Golden::new("embedding_qwen3");
    let archive = Archive::open(&golden.model).unwrap();
    assert_eq!(archive.config().output, Output::Embedding);
    for (length, tolerance) in [
        ("len1", 1e-5),
        ("len7", 1e-5),
        ("len33", 1e-3),
        ("len64", 1e-3),
    ] {
        let found = golden.logits(&golden.sequence(length));
        let directions = golden.rows(&format!("last_hidden.{length}"));
        let directions: Vec<_> = directions.iter().map(|row| direction(row)).collect();
        let each = Difference::of(&found, &directions);
        let pooled = golden.rows(&format!("embedding.{length}"));
        let last = Difference::of(&found[found.len() - 1..], &pooled);
        println!("embedding_qwen3 {length}: {each:?}, pooled {last:?}");
        assert!(each.largest < tolerance, "{length}: {each:?}");
        assert!(last.largest < tolerance, "{length}: {last:?}");
    }
}

fn direction(row: &[f32]) -> Vec<f32> {
    let length = row
        .iter()
        .map(|x| f64::from(*x).powi(2))
        .sum::<f64>()
        .sqrt();
    row.iter()
        .map(|x| (f64::from(*x) / length) as f32)
        .collect()
}

/// Masters as onebitllms quantises them give what it packed; so do codes written out as floats, but for
/// the scale, which is then a float's reciprocal.
#[test]
fn masters_and_floats_of_a_packed_model() {
    let packed = Golden::new("falcon_e");
    let masters = try_convert(&fixture("falcon_e/prequantized"), DenseWeights::OneBitLlms).unwrap();
    let packed = Archive::open(&packed.model).unwrap();
    let masters = Archive::open(&masters).unwrap();
    assert_eq!(packed.config(), masters.config());
    let mut compared = 0;
    for (spec, _) in packed.tensors() {
        let Some(a) = packed.ternary(spec.role, spec.layer) else {
            continue;
        };
        let b = masters.ternary(spec.role, spec.layer).unwrap();
        assert!(a.scale == b.scale && a.bytes() == b.bytes(), "{spec:?}");
        compared += 1;
    }
    assert_eq!(compared, 14);
}

/// What was never ternary is refused, unless somebody insists.
#[test]
fn dense_models_are_refused() {
    let dense = fixture("falcon_e/prequantized");
    let message = try_convert(&dense, DenseWeights::Refuse)
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with(
            "the weights are not ternary: tensor model.layers.0.self_attn.q_proj.weight holds"
        ),
        "{message}"
    );
    let forced = try_convert(&dense, DenseWeights::ForceTernarise).unwrap();
    assert_eq!(
        Archive::open(&forced).unwrap().config().weight_scale,
        WeightScale::Divide
    );
    for (name, weights) in [
        ("falcon_e", "packed codes"),
        ("b158_large", "master weights"),
    ] {
        let message = try_convert(&fixture(name), DenseWeights::OneBitLlms)
            .unwrap_err()
            .to_string();
        let expected =
            format!("--masters onebitllms does not apply: the checkpoint holds {weights}");
        assert_eq!(message, expected);
    }
}

/// The keys of the library's last two major versions say the same model.
#[test]
fn both_styles_of_config_json() {
    let both = |name: &&str| fixture(name).join("config.v4style.json").exists();
    let names: Vec<_> = FIXTURES
        .into_iter()
        .filter(both)
        .chain(["embedding_qwen3"])
        .collect();
    assert_eq!(names.len(), 7);
    for name in names {
        let golden = Golden::new(name);
        let dir = tempfile::tempdir().unwrap();
        for (from, to) in [
            ("config.v4style.json", "config.json"),
            ("model.safetensors", "model.safetensors"),
        ] {
            fs::copy(fixture(name).join(from), dir.path().join(to)).unwrap();
        }
        let ids = golden.sequence("len33");
        let hash = |model: &[u8]| format!("{:016x}", logits_hash(model, &ids, Run::default()));
        assert_eq!(hash(&converted(dir.path())), hash(&golden.model), "{name}");
    }
}
