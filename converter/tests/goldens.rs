//! Codes and scales against checkpoints and vectors made by other people's code.

use std::path::{Path, PathBuf};

use bitnet_converter::sidecar::Sidecars;
use bitnet_converter::{Checkpoint, CheckpointSource, Family, Source, WeightForm};
use bitnet_formats::quant::{absmean, quantize_activations, ternary_code, weight_scale};
use bitnet_formats::{Activation, Attention, TensorClass, TensorRole, TensorSpec, WeightScale};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Widens a float tensor. Written apart from the crate's own decoding.
fn floats(view: &TensorView<'_>) -> Vec<f32> {
    match view.dtype() {
        Dtype::F32 => view
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        Dtype::BF16 => view
            .data()
            .chunks(2)
            .map(|b| f32::from_le_bytes([0, 0, b[0], b[1]]))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn codes(view: &TensorView<'_>) -> Vec<i8> {
    assert_eq!(view.dtype(), Dtype::I8);
    view.data().iter().map(|b| *b as i8).collect()
}

/// Codes and scale that a checkpoint's tensor should give, from the definition alone.
fn expected(file: &SafeTensors<'_>, name: &str, spec: &TensorSpec) -> (Vec<i8>, f32) {
    let view = file.tensor(name).unwrap();
    if view.dtype() == Dtype::U8 {
        let scale = floats(&file.tensor(&format!("{name}_scale")).unwrap())[0];
        return (unpack(&view, spec), scale);
    }
    let weights = floats(&view);
    let sum: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
    let scale = 1.0 / ((sum / weights.len() as f64) as f32).max(1e-5);
    let code = |w: &f32| (w * scale).round_ties_even().clamp(-1.0, 1.0) as i8;
    (weights.iter().map(code).collect(), scale)
}

fn unpack(view: &TensorView<'_>, spec: &TensorSpec) -> Vec<i8> {
    let mut codes = vec![0; spec.rows * spec.cols];
    for (at, byte) in view.data().iter().enumerate() {
        for quarter in 0..4 {
            let code = (byte / 4u8.pow(quarter)) % 4;
            codes[quarter as usize * view.data().len() + at] = code as i8 - 1;
        }
    }
    codes
}

fn ulps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

/// Compares every ternary tensor of a fixture; returns how many there were.
fn compare(name: &str, (family, weights): (Family, WeightForm), scale_ulps: u32) -> usize {
    let dir = fixture(name);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let sidecars = Sidecars::read(&checkpoint).unwrap();
    assert_eq!(
        (sidecars.config.family, sidecars.config.weights),
        (family, weights)
    );
    let source = CheckpointSource::new(&checkpoint, &sidecars.config).unwrap();
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ternary = |spec: &TensorSpec| spec.role.class() == TensorClass::Ternary;
    let specs: Vec<_> = source.config().tensors().filter(ternary).collect();
    for spec in &specs {
        let tensor = public_name(spec);
        let (codes, scale) = expected(&file, &tensor, spec);
        let mut groups = source.ternary(spec).unwrap();
        assert!(ulps(groups.scale(), scale) <= scale_ulps, "{tensor}");
        let mut found = Vec::new();
        while let Some(group) = groups.next_group().unwrap() {
            found.extend_from_slice(group);
        }
        assert!(found == codes, "{tensor}: codes differ");
    }
    specs.len()
}

/// The names of this test's own, so that a wrong table cannot agree with itself.
fn public_name(spec: &TensorSpec) -> String {
    let projection = match spec.role {
        TensorRole::Q => "self_attn.q_proj",
        TensorRole::K => "self_attn.k_proj",
        TensorRole::V => "self_attn.v_proj",
        TensorRole::O => "self_attn.o_proj",
        TensorRole::Gate => "mlp.gate_proj",
        TensorRole::Up => "mlp.up_proj",
        TensorRole::Down => "mlp.down_proj",
        other => panic!("{other:?} is not of this architecture"),
    };
    format!("model.layers.{}.{projection}.weight", spec.layer.unwrap())
}

const MASTERS: (Family, WeightForm) = (Family::BitNet, WeightForm::Masters);
const PACKED: (Family, WeightForm) = (Family::BitNet, WeightForm::Packed(WeightScale::Multiply));

#[test]
fn f32_masters() {
    assert_eq!(compare("bitnet_online_f32", MASTERS, 2), 14);
}

#[test]
fn bf16_masters() {
    assert_eq!(compare("bitnet_online_bf16", MASTERS, 2), 14);
}

#[test]
fn packed_codes() {
    assert_eq!(compare("bitnet_packed", PACKED, 0), 21);
}

/// Both generations of keys, as the library wrote them.
#[test]
fn configurations() {
    use bitnet_converter::config_json::CheckpointConfig;
    use bitnet_converter::family::TensorNames;
    for name in ["bitnet_online_f32", "bitnet_online_bf16", "bitnet_packed"] {
        let read = |file| {
            let text = std::fs::read_to_string(fixture(name).join(file)).unwrap();
            let json = serde_json::from_str(&text).unwrap();
            CheckpointConfig::from_json(&json, TensorNames::unknown()).unwrap()
        };
        let config = read("config.json");
        assert_eq!(config, read("config.v4style.json"));
        assert_eq!(config.bos_token_id, Some(1));
        assert_eq!(config.model.activation, Activation::SquaredRelu);
    }
    let checkpoint = Checkpoint::open(&fixture("bitnet_packed")).unwrap();
    let model = Sidecars::read(&checkpoint).unwrap().config.model;
    assert_eq!(model.rope.theta, 500_000.0);
    assert_eq!(model.weight_scale, WeightScale::Multiply);
    let attention = Attention::Grouped {
        n_kv_heads: 2,
        head_dim: 40,
    };
    assert_eq!(model.attention, attention);
}

#[test]
fn weight_quantiser_vectors() {
    let bytes = std::fs::read(fixture("quantizers/quantizers.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let get = |name: &str| file.tensor(name).unwrap();
    let mut cases: Vec<_> = file.names();
    cases.retain(|name| name.starts_with("weight.") && name.ends_with(".absmean"));
    assert_eq!(cases.len(), 6);
    for name in cases {
        let case = name.strip_suffix(".absmean").unwrap();
        let weights = floats(&get(&format!("{case}.in")));
        let mean = absmean(&weights);
        // The vectors give the mean after its floor.
        assert!(ulps(mean.max(1e-5), floats(&get(name))[0]) <= 2, "{case}");
        let scale = weight_scale(mean);
        let found: Vec<i8> = weights.iter().map(|w| ternary_code(*w, scale)).collect();
        assert_eq!(found, codes(&get(&format!("{case}.codes"))), "{case}");
        let dequantised = floats(&get(&format!("{case}.dequant_f32")));
        for (code, expected) in found.iter().zip(dequantised) {
            assert!(
                ulps(f32::from(*code) / scale, expected) <= 2 || expected == 0.0,
                "{case}"
            );
        }
    }
}

#[test]
fn activation_quantiser_vectors() {
    let bytes = std::fs::read(fixture("quantizers/quantizers.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (x, scales) = (
        file.tensor("act.in").unwrap(),
        floats(&file.tensor("act.scale").unwrap()),
    );
    let cols = x.shape()[1];
    let (x, expected) = (floats(&x), codes(&file.tensor("act.codes").unwrap()));
    let mut found = vec![0; cols];
    assert_eq!(scales.len(), 12);
    for (row, scale) in scales.iter().enumerate() {
        let row = row * cols..(row + 1) * cols;
        let s = quantize_activations(&x[row.clone()], &mut found).unwrap();
        // The library multiplies 127 by a rounded reciprocal: one rounding more than a division.
        assert!(ulps(s, *scale) <= 1);
        assert_eq!(found, expected[row]);
    }
}

/// Bytes of GGUF's ternary blocks as its own library wrote them: read to the same codes, written to the
/// same bytes.
#[test]
fn gguf_ternary_vectors() {
    use bitnet_converter::gguf::kinds::{
        I2sLayout, tq_scale, tq1_0_block, tq1_0_codes, tq2_0_block, tq2_0_codes,
    };
    let bytes = std::fs::read(fixture("quantizers/quantizers.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| file.tensor(name).unwrap().data().to_vec();
    for (kind, size) in [("TQ1_0", 54), ("TQ2_0", 66)] {
        let blocks = data(&format!("gguf.{kind}.bytes"));
        let values = floats(&file.tensor(&format!("gguf.{kind}.dequant")).unwrap());
        assert_eq!(blocks.len() / size, 12);
        for (block, values) in blocks.chunks(size).zip(values.chunks(256)) {
            let (mut codes, scale) = ([0; 256], tq_scale(block));
            let half = u16::from_le_bytes(block[size - 2..].try_into().unwrap());
            let written = if kind == "TQ1_0" {
                tq1_0_codes(block.try_into().unwrap(), &mut codes);
                tq1_0_block(&codes, half).to_vec()
            } else {
                tq2_0_codes(block.try_into().unwrap(), &mut codes).unwrap();
                tq2_0_block(&codes, half).to_vec()
            };
            assert_eq!(written, block, "{kind}");
            let found: Vec<f32> = codes.iter().map(|c| f32::from(*c) * scale).collect();
            assert_eq!(found, values, "{kind}");
        }
    }
    let (packed, expected) = (
        data("gguf.I2_S.bytes"),
        codes(&file.tensor("gguf.I2_S.codes").unwrap()),
    );
    let scale = floats(&file.tensor("gguf.I2_S.scale").unwrap())[0];
    assert_eq!(packed[expected.len() / 4..][..4], scale.to_le_bytes());
    for (block, expected) in packed.chunks(32).zip(expected.chunks(128)) {
        let mut found = [0; 128];
        I2sLayout::X86
            .codes(block.try_into().unwrap(), &mut found)
            .unwrap();
        assert_eq!(found, expected);
    }
}
