//! How many bytes a session needs, as a function of the model's shape and the options.

use bitnet_formats::{Attention, KvType, ModelConfig};

use crate::error::RunError;
use crate::kernels::CODE_PADDING;

/// Every buffer and every array in it begins on a multiple of this.
pub const ALIGNMENT: usize = 64;

/// What a session is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Positions the cache holds: 1 to the model's `max_seq_len`.
    pub max_seq_len: usize,
    /// Most tokens that pass through a block together; prompts are cut into chunks of this.
    pub prefill_batch: usize,
    /// How keys and values are cached.
    pub kv: KvType,
    /// Most threads that work at once, the caller's included: each needs a workspace of its own.
    pub threads: usize,
}

/// The exact bytes of the two buffers a session is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Keys and values of one sequence.
    pub kv_bytes: usize,
    /// Everything else; free for another session whenever no chunk is in progress.
    pub scratch_bytes: usize,
}

impl MemoryPlan {
    /// The plan of a session.
    ///
    /// # Errors
    ///
    /// The options do not fit the model, or the sizes exceed the address space.
    pub fn new(model: &ModelConfig, session: &SessionConfig) -> Result<Self, RunError> {
        let (asked, max) = (session.max_seq_len, model.max_seq_len);
        if asked == 0 || asked > max {
            return Err(RunError::SeqLen { asked, max });
        }
        if session.prefill_batch == 0 {
            return Err(RunError::PrefillBatch);
        }
        if session.threads == 0 {
            return Err(RunError::NoThread);
        }
        let kv_bytes = layer_cache_regions(model, session)?.total()?;
        let kv_bytes = kv_bytes
            .checked_mul(model.n_layers)
            .ok_or(RunError::TooLarge)?;
        let scratch_bytes = scratch_regions(model, session)?.total()?;
        Ok(Self {
            kv_bytes,
            scratch_bytes,
        })
    }
}

/// Lengths in bytes of arrays that follow each other, each aligned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions<const N: usize>(pub(crate) [usize; N]);

impl<const N: usize> Regions<N> {
    /// From `(elements, bytes per element)`.
    fn new(sizes: [(u128, usize); N]) -> Result<Self, RunError> {
        let mut bytes = [0; N];
        for (bytes, (n, size)) in bytes.iter_mut().zip(sizes) {
            let aligned = (n * size as u128).next_multiple_of(ALIGNMENT as u128);
            *bytes = usize::try_from(aligned).map_err(|_| RunError::TooLarge)?;
        }
        Ok(Self(bytes))
    }

    /// Bytes of all arrays.
    pub(crate) fn total(&self) -> Result<usize, RunError> {
        let sum = self
            .0
            .iter()
            .try_fold(0usize, |sum, bytes| sum.checked_add(*bytes));
        sum.filter(|sum| *sum <= isize::MAX as usize)
            .ok_or(RunError::TooLarge)
    }
}

/// The arrays of one layer's cache: keys and values, or latent codes, factors and rope keys.
pub(crate) fn layer_cache_regions(
    model: &ModelConfig,
    session: &SessionConfig,
) -> Result<Regions<3>, RunError> {
    let positions = session.max_seq_len as u128;
    match model.attention {
        Attention::Grouped {
            n_kv_heads,
            head_dim,
        } => {
            let size = if session.kv == KvType::F32 { 4 } else { 2 };
            let n = positions * (n_kv_heads * head_dim) as u128;
            Regions::new([(n, size), (n, size), (0, 1)])
        }
        Attention::Latent { .. } if session.kv == KvType::F16 => Err(RunError::LatentCache),
        Attention::Latent {
            kv_lora_rank,
            qk_rope_head_dim,
            ..
        } => Regions::new([
            (positions * kv_lora_rank as u128, 1),
            (positions, 4),
            (positions * qk_rope_head_dim as u128, 4),
        ]),
    }
}

/// Number of arrays in the scratch buffer.
pub(crate) const SCRATCH_REGIONS: usize = 9;

/// The arrays of the scratch buffer, in the order of [`crate::buffers::Scratch`].
pub(crate) fn scratch_regions(
    model: &ModelConfig,
    session: &SessionConfig,
) -> Result<Regions<SCRATCH_REGIONS>, RunError> {
    let batch = session.prefill_batch as u128;
    let per_token = |n: usize| batch * n as u128;
    // Queries, keys and head outputs are dead before gate and up are born: they share one array.
    let wide = attention_width(model).max(2 * model.intermediate_size);
    let workspace = workspace_regions(model, session)?.total()?;
    Regions::new([
        (batch, 4),                                       // ids
        (per_token(model.hidden_size), 4),                // residual
        (per_token(code_stride(model)), 1),               // codes
        (batch, 4),                                       // act_scales
        (per_token(model.rope_dim()), 4),                 // angles
        (per_token(wide), 4),                             // wide
        (model.hidden_size as u128, 2),                   // hidden_codes
        (workspace as u128 * session.threads as u128, 1), // workspaces
        (model.vocab_size as u128, 4),                    // logits
    ])
}

/// Number of arrays in the workspace of a thread.
pub(crate) const WORKSPACE_REGIONS: usize = 6;

/// The arrays of one thread's workspace, in the order of [`crate::buffers::Workspace`].
pub(crate) fn workspace_regions(
    model: &ModelConfig,
    session: &SessionConfig,
) -> Result<Regions<WORKSPACE_REGIONS>, RunError> {
    let queries = tile_queries(model, session.prefill_batch) as u128;
    Regions::new([
        (widest_input(model) as u128, 4),           // normed
        (session.prefill_batch as u128, 4),         // factors
        (queries * session.max_seq_len as u128, 4), // scores
        (queries * tile_width(model) as u128, 4),   // mixed
        (latent_rank(model) as u128, 4),            // q_latent
        (latent_rank(model) as u128, 4),            // o_latent
    ])
}

/// Most queries that read the same cached rows together.
pub(crate) const TILE_QUERIES: usize = 4;

/// Queries of a tile of attention: no more than there can be for a key and value head.
pub(crate) fn tile_queries(model: &ModelConfig, n_tokens: usize) -> usize {
    match model.attention {
        Attention::Grouped { n_kv_heads, .. } => {
            let per_head = (model.n_heads / n_kv_heads).saturating_mul(n_tokens);
            per_head.min(TILE_QUERIES)
        }
        Attention::Latent { .. } => 1,
    }
}

/// Outputs of a query of a tile; latent attention has a place of its own for them.
pub(crate) const fn tile_width(model: &ModelConfig) -> usize {
    match model.attention {
        Attention::Grouped { .. } => model.v_head_dim(),
        Attention::Latent { .. } => 0,
    }
}

/// Widest input of a BitLinear.
pub(crate) fn widest_input(model: &ModelConfig) -> usize {
    let kv = latent_rank(model);
    model
        .hidden_size
        .max(model.intermediate_size)
        .max(model.attn_dim())
        .max(kv)
}

/// Codes of one token, padding included.
pub(crate) fn code_stride(model: &ModelConfig) -> usize {
    widest_input(model).next_multiple_of(CODE_PADDING)
}

/// Rank of the latent; zero for grouped attention.
pub(crate) const fn latent_rank(model: &ModelConfig) -> usize {
    match model.attention {
        Attention::Grouped { .. } => 0,
        Attention::Latent { kv_lora_rank, .. } => kv_lora_rank,
    }
}

/// Widths per token of the first and second key/value projection: keys and values, or the latent
/// with its rotary key and nothing.
pub(crate) const fn kv_widths(model: &ModelConfig) -> (usize, usize) {
    match model.attention {
        Attention::Grouped {
            n_kv_heads,
            head_dim,
        } => (n_kv_heads * head_dim, n_kv_heads * head_dim),
        Attention::Latent {
            kv_lora_rank,
            qk_rope_head_dim,
            ..
        } => (kv_lora_rank + qk_rope_head_dim, 0),
    }
}

/// Floats per token that attention needs: queries, key/value projections, head outputs.
fn attention_width(model: &ModelConfig) -> usize {
    let (first, second) = kv_widths(model);
    model.q_dim() + first + second + model.attn_dim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    fn plan(preset: Preset, max_seq_len: usize, kv: KvType) -> MemoryPlan {
        let session = SessionConfig {
            max_seq_len,
            prefill_batch: 16,
            kv,
            threads: 1,
        };
        MemoryPlan::new(&preset.config(), &session).unwrap()
    }

    /// Memory is a promise: a change of these numbers is a change of the product.
    #[test]
    fn plans_of_the_presets() {
        // 388 bytes per token and layer: 256 codes, one factor, 32 rope floats.
        assert_eq!(
            plan(Preset::BitNet700m, 2_048, KvType::Native).kv_bytes,
            388 * 2_048 * 21
        );
        assert_eq!(
            plan(Preset::BitNetLarge, 2_048, KvType::F16).kv_bytes,
            6_144 * 2_048 * 24
        );
        assert_eq!(
            plan(Preset::BitNetLarge, 2_048, KvType::F32).kv_bytes,
            12_288 * 2_048 * 24
        );
        assert_eq!(
            plan(Preset::Nano, 128, KvType::Native).kv_bytes,
            132 * 128 * 4
        );
        assert_eq!(
            plan(Preset::Nano, 128, KvType::Native).scratch_bytes,
            69_824
        );
        assert_eq!(
            plan(Preset::BitNet700m, 2_048, KvType::Native).scratch_bytes,
            1_234_112
        );
    }

    #[test]
    fn options_that_do_not_fit_are_errors() {
        let model = Preset::Nano.config();
        let plan = |max_seq_len, prefill_batch, kv| {
            MemoryPlan::new(
                &model,
                &SessionConfig {
                    max_seq_len,
                    prefill_batch,
                    kv,
                    threads: 1,
                },
            )
            .unwrap_err()
        };
        assert_eq!(
            plan(0, 1, KvType::Native),
            RunError::SeqLen { asked: 0, max: 256 }
        );
        assert_eq!(
            plan(257, 1, KvType::Native),
            RunError::SeqLen {
                asked: 257,
                max: 256
            }
        );
        assert_eq!(plan(8, 0, KvType::Native), RunError::PrefillBatch);
        assert_eq!(plan(8, 1, KvType::F16), RunError::LatentCache);
        assert_eq!(plan(8, usize::MAX, KvType::F32), RunError::TooLarge);
    }
}
