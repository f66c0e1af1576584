//! Models with random weights.

use std::io::{Cursor, Write};

use bitnet_formats::float::{f32_to_bf16, f32_to_f16};
use bitnet_formats::quant::quantize_row;
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{
    Activation, ArchiveWriter, Attention, Dtype, ModelConfig, Norms, Rope, RopePairing,
    TensorClass, TensorRole, TensorSpec, TernaryLayout, WeightScale,
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
    ModelConfig {
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
            eps: 1e-5,
            attn_sub_norm: random.below(2) == 0,
            ffn_sub_norm: random.below(2) == 0,
        },
        tie_embeddings: random.below(2) == 0,
        weight_scale: random.pick(&[WeightScale::Multiply, WeightScale::Divide]),
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
    let mut writer =
        ArchiveWriter::new(Cursor::new(Vec::new()), config, &[]).expect("a valid config");
    let mut random = Random(seed);
    while let Some(spec) = writer.next_tensor() {
        let (dtype, scale, payload) = match spec.role.class() {
            TensorClass::Ternary => {
                let scale = 0.5 + random.below(1_000) as f32 / 500.0;
                (
                    Dtype::Ternary(storage.ternary),
                    scale,
                    ternary(&spec, storage.ternary, &mut random),
                )
            }
            TensorClass::Matrix => (storage.dense, 0.0, dense(&spec, storage.dense, &mut random)),
            TensorClass::Vector => (Dtype::F32, 0.0, vector(&spec, &mut random)),
        };
        writer.begin_tensor(dtype, scale).expect("a legal tensor");
        writer.write_all(&payload).expect("room for the payload");
    }
    writer
        .finish()
        .expect("all tensors")
        .into_inner()
        .into_inner()
}

fn ternary(spec: &TensorSpec, layout: TernaryLayout, random: &mut Random) -> Vec<u8> {
    let mut packed = vec![0; layout.packed_bytes(spec.rows, spec.cols) as usize];
    for (g, bytes) in packed.chunks_mut(layout.group_bytes(spec.cols)).enumerate() {
        let rows = GROUP_ROWS.min(spec.rows - g * GROUP_ROWS);
        let codes: Vec<i8> = (0..rows * spec.cols)
            .map(|_| random.below(3) as i8 - 1)
            .collect();
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
