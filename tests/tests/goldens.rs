//! Converted checkpoints against the numbers of the library that defined them.
//!
//! The only large difference correct code can show comes from an activation on the other side of a
//! rounding boundary: one int8 step, which later positions then carry on. The short sequences were
//! chosen so that a relative noise of 1e-6 moves no activation across one; the long ones were not.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bitnet_converter::convert::load;
use bitnet_converter::{Conversion, EmbeddingType, PackOptions, convert};
use bitnet_formats::quant::{linear_factor, quantize_activations};
use bitnet_formats::{Archive, TensorRole, TernaryView, WeightScale};
use bitnet_runtime::kernels::{Activations, CODE_PADDING, Store, TernaryGemm};
use bitnet_runtime::{Kernels, argmax};
use bitnet_tests::{Run, logits_hash, with_session};
use safetensors::SafeTensors;
use serde_json::Value;

const FIXTURES: [&str; 3] = ["bitnet_online_f32", "bitnet_online_bf16", "bitnet_packed"];

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
        let text = fs::read_to_string(dir.join("golden.json")).unwrap();
        Self {
            name,
            model: converted(&dir),
            tensors: fs::read(dir.join("golden.safetensors")).unwrap(),
            text: serde_json::from_str(&text).unwrap(),
        }
    }

    /// A table of f32 by name, as rows.
    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        let values: Vec<f32> = view.data().chunks(4).map(value).collect();
        values.chunks(view.shape()[1]).map(<[_]>::to_vec).collect()
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
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model.btn");
    let conversion = Conversion {
        pack: PackOptions {
            embedding: EmbeddingType::Source,
            ..PackOptions::default()
        },
        self_test: false,
        read_back: load,
        progress: &mut |_, _| ControlFlow::Continue(()),
    };
    convert(checkpoint, &output, conversion).unwrap();
    fs::read(output).unwrap()
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

/// The linears of a block, by the name the golden has for them.
const LINEARS: [(&str, TensorRole); 7] = [
    ("self_attn.q_proj", TensorRole::Q),
    ("self_attn.k_proj", TensorRole::K),
    ("self_attn.v_proj", TensorRole::V),
    ("self_attn.o_proj", TensorRole::O),
    ("mlp.gate_proj", TensorRole::Gate),
    ("mlp.up_proj", TensorRole::Up),
    ("mlp.down_proj", TensorRole::Down),
];

#[test]
fn linears_of_the_first_block() {
    for golden in FIXTURES.map(Golden::new) {
        let archive = Archive::open(&golden.model).unwrap();
        let convention = archive.config().weight_scale;
        for (module, role) in LINEARS {
            let input = golden.rows(&format!("trace.len7.{module}.in"));
            let expected = golden.rows(&format!("trace.len7.{module}.out"));
            let weights = archive.ternary(role, Some(0)).unwrap();
            for kernels in Kernels::available() {
                let found = linear(kernels, weights, convention, &input);
                // In units of each row's largest value.
                let (found, expected) = relative(found, &expected);
                let difference = Difference::of(&found, &expected);
                println!("{} {module} {kernels:?}: {difference:?}", golden.name);
                assert!(
                    difference.largest <= 2e-5,
                    "{} {module} {kernels:?}: {difference:?}",
                    golden.name
                );
            }
        }
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
    for golden in FIXTURES.map(Golden::new) {
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
    for golden in FIXTURES.map(Golden::new) {
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
    for golden in FIXTURES.map(Golden::new) {
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

/// The keys of the library's last two major versions say the same model.
#[test]
fn both_styles_of_config_json() {
    for name in FIXTURES {
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
