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
        let per_sequence = sequence_elements(config, train.context as u64);
        Self {
            parameters,
            weight_bytes: F32 * (4 * parameters + ternary),
            activation_bytes: F32 * train.batch as u64 * per_sequence,
        }
    }

    /// All of it.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes
    }
}

/// Floats of a sequence: a tape per block, gradients of one block, head and residual stream.
fn sequence_elements(config: &ModelConfig, len: u64) -> u64 {
    let widths = Widths::of(config);
    let (hidden, ffn) = (config.hidden_size as u64, config.intermediate_size as u64);
    let heads = widths.heads as u64;
    let projections = (widths.q + widths.kv_a + widths.kv_b + widths.latent) as u64;
    // Residual twice, two normed inputs; heads and normed heads; gate, up, product, normed product.
    let tape = 4 * hidden + 2 * heads + 4 * ffn + projections + config.n_heads as u64;
    let grads = 3 * hidden + 2 * heads + 4 * ffn + projections;
    let stream = 4 * hidden;
    let logits = (head_rows(config, len as usize) * config.vocab_size) as u64;
    let one_head = 4 * (config.qk_head_dim() + config.v_head_dim()) as u64 + 2 * len.min(64);
    len * (config.n_layers as u64 * tape + grads + stream + one_head) + logits
}
