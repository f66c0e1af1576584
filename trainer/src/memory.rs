//! How much memory a run takes, before it starts.

use bitnet_formats::{ModelConfig, TensorClass};

use crate::model::attention::Widths;
use crate::model::head_rows;
use crate::settings::Settings;

const F32: u64 = 4;

/// Bytes a run will hold. Text, tokenizer and program come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters of the model.
    pub parameters: u64,
    /// Master weights, gradients, both moments, and the codes of the BitLinears.
    pub weight_bytes: u64,
    /// Activations and their gradients, of all sequences of a micro-batch.
    pub activation_bytes: u64,
}

impl MemoryEstimate {
    /// For these settings, with `vocab_size` filled in.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let (config, train) = (&settings.model, &settings.train);
        let parameters = config.parameter_count();
        let ternary: u64 = config
            .tensors()
            .filter(|t| t.role.class() == TensorClass::Ternary)
            .map(|t| t.rows as u64 * t.cols as u64)
            .sum();
        let len = train.context as u64;
        // Codes take a byte; without quantisers they are the values themselves.
        let code = if train.quantize { 1 } else { F32 };
        let sequence = F32 * sequence_elements(config, len) + code * sequence_codes(config, len);
        Self {
            parameters,
            weight_bytes: F32 * 4 * parameters + code * ternary,
            activation_bytes: train.batch as u64 * sequence,
        }
    }

    /// All of it.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes
    }
}

/// Codes of a sequence: the input of every BitLinear of every block, once.
fn sequence_codes(config: &ModelConfig, len: u64) -> u64 {
    let widths = Widths::of(config);
    let inputs = 2 * config.hidden_size + widths.heads + widths.latent + config.intermediate_size;
    len * (config.n_layers * inputs) as u64
}

/// Floats of a sequence: a tape per block, gradients of one block, head and residual stream.
fn sequence_elements(config: &ModelConfig, len: u64) -> u64 {
    let widths = Widths::of(config);
    let (hidden, ffn) = (config.hidden_size as u64, config.intermediate_size as u64);
    let heads = widths.heads as u64;
    let projections = (widths.q + widths.kv_a + widths.kv_b) as u64;
    // Residual twice; heads; gate, up, product.
    let tape = 2 * hidden + heads + 3 * ffn + projections + config.n_heads as u64;
    let grads = 3 * hidden + 2 * heads + 4 * ffn + projections + widths.latent as u64;
    let stream = 4 * hidden;
    let logits = (head_rows(config, len as usize) * config.vocab_size) as u64;
    let one_head = 4 * (config.qk_head_dim() + config.v_head_dim()) as u64 + 2 * len.min(64);
    len * (config.n_layers as u64 * tape + grads + stream + one_head) + logits
}
