//! Models with random weights.

use std::io::{Cursor, Write};

use bitnet_formats::float::{f32_to_bf16, f32_to_f16};
use bitnet_formats::quant::quantize_row;
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{
    Activation, ArchiveWriter, Attention, Dtype, ModelConfig, NormKind, Norms, Output, Preset,
    Rope, RopePairing, SectionKind, TensorClass, TensorRole, TensorSpec, TernaryLayout,
    WeightScale,
};

use crate::random::Random;

/// How a synthetic model is stored.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    /// Layout of the ternary weights.
    pub ternary: TernaryLayout,
    /// Type of embedding and head.
    pub dense: Dtype,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            ternary: TernaryLayout::T5R16,
            dense: Dtype::F32,
        }
    }
}

/// A small random shape: any attention, any convention.
pub fn random_config(random: &mut Random) -> ModelConfig {
    let n_heads: usize = random.pick(&[1, 2, 3, 4]);
    let attention = match random.below(2) {
        0 => Attention::Grouped {
            n_kv_heads: if n_heads.is_multiple_of(2) {
                random.pick(&[1, 2, n_heads])
            } else {
                n_heads
            },
            head_dim: 2 * (1 + random.below(20)),
        },
        _ => Attention::Latent {
            kv_lora_rank: 16 * (1 + random.below(4)),
            qk_nope_head_dim: 1 + random.below(40),
            qk_rope_head_dim: 2 * (1 + random.below(8)),
            v_head_dim: 16 * (1 + random.below(3)),
        },
    };
    let config = ModelConfig {
        hidden_size: 1 + random.below(140),
        intermediate_size: 1 + random.below(200),
        n_layers: 1 + random.below(3),
        n_heads,
        attention,
        vocab_size: 1 + random.below(300),
        max_seq_len: 1 + random.below(50),
        rope: Rope {
            theta: 10_000.0,
            pairing: random.pick(&[RopePairing::HalfRotation, RopePairing::Interleaved]),
        },
        activation: random.pick(&[Activation::SquaredRelu, Activation::Silu]),
        norms: Norms {
            attn_sub_norm: random.below(2) == 0,
            ffn_sub_norm: random.below(2) == 0,
            ..Norms::pre(1e-5)
        },
        tie_embeddings: random.below(2) == 0,
        weight_scale: random.pick(&[WeightScale::Multiply, WeightScale::Divide]),
        qk_latent_dim: None,
        output: Output::Logits,
        pruned_ffn: false,
    };
    match config.attention {
        Attention::Grouped { head_dim, .. } if random.below(2) == 0 => {
            departing(random, config, head_dim)
        }
        _ => config,
    }
}

/// What only grouped attention goes with: other norms, projected heads, other outputs.
fn departing(random: &mut Random, config: ModelConfig, head_dim: usize) -> ModelConfig {
    let narrow = 1 + random.below(head_dim);
    let in_linear = random.pick(&[None, Some(1e-6)]);
    let output = random.pick(&[Output::Logits, Output::TernaryLogits, Output::Embedding]);
    ModelConfig {
        norms: Norms {
            kind: random.pick(&[NormKind::Rms, NormKind::Layer]),
            // Random weights without any norm grow beyond an f16 cache.
            block: in_linear.is_none() || random.below(2) == 0,
            qk_norm: random.below(2) == 0,
            in_linear,
            ..config.norms
        },
        qk_latent_dim: random.pick(&[None, Some(narrow)]),
        tie_embeddings: config.tie_embeddings && output == Output::Logits,
        output,
        ..config
    }
}

/// A file of this shape with random weights. The weights depend on the seed alone, not on how they
/// are stored.
///
/// # Panics
///
/// If the configuration is not valid.
#[must_use]
pub fn model(config: &ModelConfig, storage: Storage, seed: u64) -> Vec<u8> {
    model_with(config, storage, seed, &[])
}

/// The same with the rotary frequencies that follow from their base, as converted files have them.
///
/// # Panics
///
/// If the configuration is not valid.
#[must_use]
pub fn with_computed_frequencies(config: &ModelConfig, storage: Storage, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    write(config, &[], |spec| match spec.role {
        TensorRole::RopeInvFreq => {
            let computed = bytes_of(&config.rope.inv_freq(spec.cols));
            (Dtype::F32, 0.0, computed)
        }
        _ => random_tensor(spec, storage, &mut random),
    })
}

/// A file of this shape whose ternary rows differ in how many zeros they have, as trained ones do.
///
/// # Panics
///
/// If the configuration is not valid.
#[must_use]
pub fn skewed(config: &ModelConfig, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let storage = Storage::default();
    write(config, &[], |spec| {
        let (dtype, scale, payload) = random_tensor(spec, storage, &mut random);
        match dtype {
            Dtype::Ternary(layout) => (dtype, scale, skewed_rows(spec, layout, &mut random)),
            _ => (dtype, scale, payload),
        }
    })
}

fn skewed_rows(spec: &TensorSpec, layout: TernaryLayout, random: &mut Random) -> Vec<u8> {
    let (mut col, mut zeros) = (0, 0);
    ternary(spec, layout, || {
        if col % spec.cols == 0 {
            zeros = 300 + random.below(700);
        }
        col += 1;
        match random.below(1_000) < zeros {
            true => 0,
            false => random.pick(&[-1, 1]),
        }
    })
}

/// A model of three blocks: in the second, rows of gate or up are zero for half of the neurons; in the
/// third all rows of up are.
///
/// # Panics
///
/// If the configuration is not valid.
#[must_use]
pub fn with_dead_neurons(config: &ModelConfig, storage: Storage, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    write(config, &[], |spec| {
        let (dtype, scale, mut payload) = random_tensor(spec, storage, &mut random);
        let rows: &dyn Fn(usize) -> bool = match (spec.role, spec.layer) {
            (TensorRole::Gate, Some(1)) => &|row| row % 4 == 1 || row % 7 == 3,
            (TensorRole::Up, Some(1)) => &|row| row % 5 == 2,
            (TensorRole::Up, Some(2)) => &|_| true,
            _ => return (dtype, scale, payload),
        };
        let layout = storage.ternary;
        for (g, bytes) in payload
            .chunks_mut(layout.group_bytes(spec.cols))
            .enumerate()
        {
            let n = GROUP_ROWS.min(spec.rows - g * GROUP_ROWS);
            let mut codes = vec![0; n * spec.cols];
            layout.unpack_group(bytes, spec.cols, &mut codes);
            for (row, codes) in codes.chunks_exact_mut(spec.cols).enumerate() {
                if rows(g * GROUP_ROWS + row) {
                    codes.fill(0);
                }
            }
            layout.pack_group(&codes, spec.cols, bytes);
        }
        (dtype, scale, payload)
    })
}

/// The same as [`model`] with sections beside the weights, in file order.
///
/// # Panics
///
/// If the configuration is not valid, or a section cannot be added.
#[must_use]
pub fn model_with(
    config: &ModelConfig,
    storage: Storage,
    seed: u64,
    sections: &[(SectionKind, &[u8])],
) -> Vec<u8> {
    let mut random = Random(seed);
    write(config, sections, |spec| {
        random_tensor(spec, storage, &mut random)
    })
}

/// Type, scale and payload of a tensor of random values.
fn random_tensor(
    spec: &TensorSpec,
    storage: Storage,
    random: &mut Random,
) -> (Dtype, f32, Vec<u8>) {
    match spec.role.class() {
        TensorClass::Ternary => {
            let scale = 0.5 + random.below(1_000) as f32 / 500.0;
            (
                Dtype::Ternary(storage.ternary),
                scale,
                ternary(spec, storage.ternary, || random.below(3) as i8 - 1),
            )
        }
        TensorClass::Matrix => (storage.dense, 0.0, dense(spec, storage.dense, random)),
        TensorClass::Vector => (Dtype::F32, 0.0, vector(spec, random)),
    }
}

/// A model that says what it is told to: after id `i` the best next id is `successors[i]`, whatever
/// came before. The blocks add nothing, so that the last token alone decides.
///
/// # Panics
///
/// If a successor is no id, or a section cannot be added.
#[must_use]
pub fn bigrams(successors: &[u32], sections: &[(SectionKind, &[u8])]) -> Vec<u8> {
    let n = successors.len();
    let config = ModelConfig {
        hidden_size: n,
        intermediate_size: 16,
        n_layers: 1,
        n_heads: 1,
        attention: Attention::Grouped {
            n_kv_heads: 1,
            head_dim: 2,
        },
        vocab_size: n,
        max_seq_len: 64,
        tie_embeddings: false,
        ..Preset::Nano.config()
    };
    let one_at = |ones: &mut dyn FnMut(usize) -> usize| {
        let mut matrix = vec![0.0f32; n * n];
        (0..n).for_each(|i| matrix[ones(i)] = 1.0);
        bytes_of(&matrix)
    };
    let layout = TernaryLayout::T5R16;
    write(&config, sections, |spec| match spec.role {
        TensorRole::Embedding => (Dtype::F32, 0.0, one_at(&mut |id| id * n + id)),
        TensorRole::Head => {
            let entry = &mut |id: usize| successors[id] as usize * n + id;
            (Dtype::F32, 0.0, one_at(entry))
        }
        role if role.class() == TensorClass::Ternary => {
            (Dtype::Ternary(layout), 1.0, ternary(spec, layout, || 0))
        }
        _ => (Dtype::F32, 0.0, bytes_of(&vec![1.0; spec.cols])),
    })
}

/// Writes a file; `tensor` gives type, scale and payload of each tensor in file order.
fn write(
    config: &ModelConfig,
    sections: &[(SectionKind, &[u8])],
    mut tensor: impl FnMut(&TensorSpec) -> (Dtype, f32, Vec<u8>),
) -> Vec<u8> {
    let sink = Cursor::new(Vec::new());
    let mut writer = ArchiveWriter::new(sink, config, sections).expect("a valid config");
    while let Some(spec) = writer.next_tensor() {
        let (dtype, scale, payload) = tensor(&spec);
        writer.begin_tensor(dtype, scale).expect("a legal tensor");
        writer.write_all(&payload).expect("room for the payload");
    }
    let sink = writer.finish().expect("all tensors").into_inner();
    sink.into_inner()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn ternary(spec: &TensorSpec, layout: TernaryLayout, mut code: impl FnMut() -> i8) -> Vec<u8> {
    let mut packed = vec![0; layout.packed_bytes(spec.rows, spec.cols) as usize];
    for (g, bytes) in packed.chunks_mut(layout.group_bytes(spec.cols)).enumerate() {
        let rows = GROUP_ROWS.min(spec.rows - g * GROUP_ROWS);
        let codes: Vec<i8> = (0..rows * spec.cols).map(|_| code()).collect();
        layout.pack_group(&codes, spec.cols, bytes);
    }
    packed
}

fn dense(spec: &TensorSpec, dtype: Dtype, random: &mut Random) -> Vec<u8> {
    let rows: Vec<Vec<f32>> = (0..spec.rows)
        .map(|_| (0..spec.cols).map(|_| random.normal()).collect())
        .collect();
    let all = || rows.iter().flatten();
    match dtype {
        Dtype::F16 => all().flat_map(|v| f32_to_f16(*v).to_le_bytes()).collect(),
        Dtype::BF16 => all().flat_map(|v| f32_to_bf16(*v).to_le_bytes()).collect(),
        Dtype::I8Rows => int8_rows(&rows, spec.cols),
        _ => all().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn int8_rows(rows: &[Vec<f32>], cols: usize) -> Vec<u8> {
    let mut codes = vec![0i8; rows.len() * cols];
    let pairs = rows.iter().zip(codes.chunks_mut(cols));
    let scales =
        pairs.flat_map(|(row, codes)| quantize_row(row, codes).expect("finite").to_le_bytes());
    let mut bytes: Vec<u8> = scales.collect();
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    bytes.extend(codes.iter().map(|code| *code as u8));
    bytes
}

fn vector(spec: &TensorSpec, random: &mut Random) -> Vec<u8> {
    let value = |i: usize, random: &mut Random| match spec.role {
        // Any falling series will do; division gives the same bits on every machine.
        TensorRole::RopeInvFreq => 1.0 / (1 + i) as f32,
        _ => 1.0 + 0.2 * random.normal(),
    };
    (0..spec.cols)
        .flat_map(|i| value(i, random).to_le_bytes())
        .collect()
}
