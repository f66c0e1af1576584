//! Small checkpoints made on the spot, to convert or to break.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_converter::convert::Outcome;
use bitnet_converter::names::checkpoint_tensors;
use bitnet_converter::{CheckpointConfig, Conversion, ConvertError, PackOptions, convert};
use bitnet_formats::float::{f32_to_bf16, f32_to_f16};
use bitnet_formats::{Attention, ModelConfig, Preset};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

/// A tensor before it is written.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// A checkpoint before it is written.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<Tensor>,
}

/// One small block of grouped attention.
pub(crate) fn grouped() -> ModelConfig {
    ModelConfig {
        hidden_size: 40,
        intermediate_size: 60,
        n_layers: 2,
        n_heads: 2,
        attention: Attention::Grouped {
            n_kv_heads: 1,
            head_dim: 16,
        },
        vocab_size: 40,
        max_seq_len: 16,
        ..Preset::Nano.config()
    }
}

/// The same with latent attention, every width different.
pub(crate) fn latent() -> ModelConfig {
    ModelConfig {
        attention: Attention::Latent {
            kv_lora_rank: 48,
            qk_nope_head_dim: 24,
            qk_rope_head_dim: 8,
            v_head_dim: 16,
        },
        tie_embeddings: false,
        ..grouped()
    }
}

/// Master weights of a model as f32, by name; seeded by the name.
pub(crate) fn weights(name: &str, n: usize) -> Vec<f32> {
    let mut state = name
        .bytes()
        .fold(17u64, |hash, b| hash.wrapping_mul(31) + u64::from(b));
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    // Values that f16 and bf16 hold exactly, so that every stored type means the same model.
    (0..n).map(|_| (next() * 128.0).round() / 128.0).collect()
}

impl Draft {
    /// A checkpoint of this model with random masters of this type.
    pub(crate) fn of(model: ModelConfig, dtype: Dtype) -> Self {
        let mut config = CheckpointConfig::new(model).unwrap();
        config.bos_token_id = Some(1);
        config.eos_token_ids = vec![3];
        let tensors = checkpoint_tensors(&model).map(|tensor| Tensor {
            data: encode(dtype, &weights(&tensor.name, tensor.rows * tensor.cols)),
            dtype,
            shape: tensor.shape(),
            name: tensor.name,
        });
        Self {
            config: config.to_json("float32"),
            tensors: tensors.collect(),
        }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        let found = self.tensors.iter_mut().find(|t| t.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Writes config.json and model.safetensors into a new folder.
    pub(crate) fn save(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        save_tensors(&dir.path().join("model.safetensors"), &self.tensors);
        dir
    }
}

pub(crate) fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let halves = |narrow: fn(f32) -> u16| {
        let bytes = values.iter().flat_map(|v| narrow(*v).to_le_bytes());
        bytes.collect()
    };
    match dtype {
        Dtype::F16 => halves(f32_to_f16),
        Dtype::BF16 => halves(f32_to_bf16),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

pub(crate) fn save_tensors(path: &Path, tensors: &[Tensor]) {
    fn view(t: &Tensor) -> TensorView<'_> {
        TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()
    }
    let views = tensors.iter().map(|t| (&t.name, view(t)));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Converts with the library, reading the output back into memory.
pub(crate) fn run(input: &Path, output: &Path, pack: PackOptions) -> Result<Outcome, ConvertError> {
    let conversion = Conversion {
        pack,
        ..Conversion::default()
    };
    convert(input, output, conversion)
}

/// Converts a draft and gives the bytes of the file.
pub(crate) fn bytes_of(draft: &Draft, pack: PackOptions) -> Vec<u8> {
    let dir = draft.save();
    let output = dir.path().join("out.btn");
    run(dir.path(), &output, pack).unwrap();
    fs::read(output).unwrap()
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Names in a folder, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}
