//! The lent bytes, cut into arrays.

use core::ops::Range;

use bitnet_formats::float::f32_to_f16;
use bitnet_formats::{Attention, KvType, ModelConfig};
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::error::{Buffer, RunError};
use crate::kernels::CacheRows;
use crate::parts::{Positions, Split};
use crate::plan::{self, ALIGNMENT, SCRATCH_REGIONS, SessionConfig, WORKSPACE_REGIONS};

/// Checks a lent buffer and cuts it to the planned length.
pub(crate) fn lend(buffer: Buffer, bytes: &mut [u8], needed: usize) -> Result<&mut [u8], RunError> {
    let found = bytes.len();
    if found < needed {
        return Err(RunError::Buffer {
            buffer,
            needed,
            found,
        });
    }
    if !(bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
        return Err(RunError::Alignment { buffer });
    }
    Ok(&mut bytes[..needed])
}

/// Cuts an array into consecutive regions.
pub(crate) fn split<T, const N: usize>(mut array: &mut [T], sizes: [usize; N]) -> [&mut [T]; N] {
    sizes.map(|size| {
        let (region, rest) = core::mem::take(&mut array).split_at_mut(size);
        array = rest;
        region
    })
}

/// The first `n` elements of a region, which begins on a multiple of 64 bytes.
fn array<T: FromBytes + IntoBytes + KnownLayout>(region: &mut [u8], n: usize) -> &mut [T] {
    let bytes = &mut region[..n * size_of::<T>()];
    <[T]>::mut_from_bytes(bytes).expect("regions are aligned and whole")
}

/// Arrays of the scratch buffer, for a chunk of `n` tokens. Rows are tokens.
pub(crate) struct Scratch<'s> {
    /// Token ids, `[n]`.
    pub(crate) ids: &'s mut [u32],
    /// Residual stream, `[n, hidden_size]`.
    pub(crate) residual: &'s mut [f32],
    /// Quantised input of the next products, `[n, code_stride]`.
    pub(crate) codes: &'s mut [i8],
    /// Scales of the codes, `[n]`.
    pub(crate) act_scales: &'s mut [f32],
    /// Cosines then sines of each token's position, `[n, rope_dim]`.
    pub(crate) angles: &'s mut [f32],
    /// Arrays of attention or of the feed-forward layer.
    pub(crate) wide: &'s mut [f32],
    /// Hidden state for an int8 head, `[hidden_size]`.
    pub(crate) hidden_codes: &'s mut [i16],
    /// One for each thread.
    pub(crate) spaces: Workspaces<'s>,
    /// Logits of one position, `[vocab_size]`.
    pub(crate) logits: &'s mut [f32],
}

impl<'s> Scratch<'s> {
    /// Cuts a scratch buffer of the planned length.
    pub(crate) fn new(
        bytes: &'s mut [u8],
        regions: &ScratchRegions,
        model: &ModelConfig,
        session: &SessionConfig,
        n: usize,
    ) -> Self {
        let [
            ids,
            residual,
            codes,
            act_scales,
            angles,
            wide,
            hidden,
            spaces,
            logits,
        ] = split(bytes, regions.scratch);
        let wide_floats = wide.len() / 4;
        let queries = plan::tile_queries(model, session.prefill_batch);
        let lengths = [
            plan::widest_input(model),
            n,
            queries * session.max_seq_len,
            queries * plan::tile_width(model),
            plan::latent_rank(model),
            plan::latent_rank(model),
        ];
        Self {
            ids: array(ids, n),
            residual: array(residual, n * model.hidden_size),
            codes: array(codes, n * plan::code_stride(model)),
            act_scales: array(act_scales, n),
            angles: array(angles, n * model.rope_dim()),
            wide: array(wide, wide_floats),
            hidden_codes: array(hidden, model.hidden_size),
            spaces: Workspaces {
                bytes: spaces,
                regions: regions.workspace,
                lengths,
            },
            logits: array(logits, model.vocab_size),
        }
    }
}

/// Where the arrays of a scratch buffer are.
pub(crate) struct ScratchRegions {
    scratch: [usize; SCRATCH_REGIONS],
    workspace: [usize; WORKSPACE_REGIONS],
}

impl ScratchRegions {
    pub(crate) fn new(model: &ModelConfig, session: &SessionConfig) -> Result<Self, RunError> {
        Ok(Self {
            scratch: plan::scratch_regions(model, session)?.0,
            workspace: plan::workspace_regions(model, session)?.0,
        })
    }
}

/// Arrays that one thread works in and nobody reads afterwards.
pub(crate) struct Workspace<'s> {
    /// One token's input of a BitLinear after its norm.
    pub(crate) normed: &'s mut [f32],
    /// Output factors of the product in progress, `[n]`.
    pub(crate) factors: &'s mut [f32],
    /// Scores of a tile of queries, `[tile_queries, max_seq_len]`.
    pub(crate) scores: &'s mut [f32],
    /// Outputs of a tile of queries, `[tile_queries, tile_width]`.
    pub(crate) mixed: &'s mut [f32],
    /// Query of one head over the latent, `[kv_lora_rank]`.
    pub(crate) q_latent: &'s mut [f32],
    /// Output of one head over the latent, `[kv_lora_rank]`.
    pub(crate) o_latent: &'s mut [f32],
}

/// The workspaces of all threads.
pub(crate) struct Workspaces<'s> {
    bytes: &'s mut [u8],
    regions: [usize; WORKSPACE_REGIONS],
    lengths: [usize; WORKSPACE_REGIONS],
}

impl Workspaces<'_> {
    fn each_bytes(&self) -> usize {
        self.regions.iter().sum()
    }

    /// Number of threads there are workspaces for.
    #[cfg(feature = "std")]
    pub(crate) fn count(&self) -> usize {
        self.bytes.len() / self.each_bytes()
    }

    /// That of the calling thread.
    pub(crate) fn first(&mut self) -> Workspace<'_> {
        let each_bytes = self.each_bytes();
        Workspace::new(&mut self.bytes[..each_bytes], self.regions, self.lengths)
    }

    /// All of them.
    #[cfg(feature = "std")]
    pub(crate) fn each(&mut self) -> impl Iterator<Item = Workspace<'_>> {
        let (regions, lengths, each_bytes) = (self.regions, self.lengths, self.each_bytes());
        let each = self.bytes.chunks_exact_mut(each_bytes);
        each.map(move |bytes| Workspace::new(bytes, regions, lengths))
    }
}

impl<'s> Workspace<'s> {
    fn new(
        bytes: &'s mut [u8],
        regions: [usize; WORKSPACE_REGIONS],
        lengths: [usize; WORKSPACE_REGIONS],
    ) -> Self {
        let [normed, factors, scores, mixed, q_latent, o_latent] = split(bytes, regions);
        Self {
            normed: array(normed, lengths[0]),
            factors: array(factors, lengths[1]),
            scores: array(scores, lengths[2]),
            mixed: array(mixed, lengths[3]),
            q_latent: array(q_latent, lengths[4]),
            o_latent: array(o_latent, lengths[5]),
        }
    }
}

/// The logits in a scratch buffer: its last region.
pub(crate) fn logits<'s>(
    bytes: &'s [u8],
    regions: &ScratchRegions,
    vocab_size: usize,
) -> &'s [f32] {
    let start = bytes.len() - regions.scratch[SCRATCH_REGIONS - 1];
    let bytes = &bytes[start..][..4 * vocab_size];
    <[f32]>::ref_from_bytes(bytes).expect("regions are aligned and whole")
}

/// Keys or values of all positions and heads of a layer, `[kv_head][position][head_dim]`.
pub(crate) enum KvRows<'c> {
    F32(&'c mut [f32]),
    F16(&'c mut [u16]),
}

impl KvRows<'_> {
    /// The rows of the positions from `start` on, to be written.
    pub(crate) fn positions(&mut self, capacity: usize, start: usize, width: usize) -> NewRows<'_> {
        match self {
            Self::F32(rows) => NewRows::F32(Positions::new(rows, capacity, start, width)),
            Self::F16(rows) => NewRows::F16(Positions::new(rows, capacity, start, width)),
        }
    }

    /// Some rows of `width` elements.
    pub(crate) fn rows(&self, rows: Range<usize>, width: usize) -> CacheRows<'_> {
        let elements = rows.start * width..rows.end * width;
        match self {
            Self::F32(rows) => CacheRows::F32(&rows[elements]),
            Self::F16(rows) => CacheRows::F16(&rows[elements]),
        }
    }
}

/// Rows of a cache that are about to be written; a unit is a position.
pub(crate) enum NewRows<'c> {
    F32(Positions<'c, f32>),
    F16(Positions<'c, u16>),
}

impl NewRows<'_> {
    /// Stores the `width` elements of each head, rounding to the nearest f16 where the cache is f16.
    pub(crate) fn write(&mut self, unit: usize, heads: &[f32], width: usize) {
        for (h, values) in heads.chunks_exact(width).enumerate() {
            match self {
                Self::F32(rows) => rows.row(h, unit).copy_from_slice(values),
                Self::F16(rows) => {
                    let row = rows.row(h, unit).iter_mut();
                    row.zip(values).for_each(|(half, v)| *half = f32_to_f16(*v));
                }
            }
        }
    }
}

impl Split for NewRows<'_> {
    fn split_at(self, unit: usize) -> (Self, Self) {
        match self {
            Self::F32(rows) => {
                let (low, high) = rows.split_at(unit);
                (Self::F32(low), Self::F32(high))
            }
            Self::F16(rows) => {
                let (low, high) = rows.split_at(unit);
                (Self::F16(low), Self::F16(high))
            }
        }
    }
}

/// What attention keeps of earlier positions, one layer.
pub(crate) enum LayerCache<'c> {
    /// Rotated keys, and values.
    Grouped {
        keys: KvRows<'c>,
        values: KvRows<'c>,
    },
    /// What `kv_b_proj` would read: the quantised latent `[position][kv_lora_rank]`, the factor that
    /// takes its products to keys and values `[position]`, and the rotated shared key
    /// `[position][qk_rope_head_dim]`.
    Latent {
        codes: &'c mut [i8],
        factors: &'c mut [f32],
        rope_keys: &'c mut [f32],
    },
}

impl<'c> LayerCache<'c> {
    /// Cuts out the cache of one layer.
    pub(crate) fn new(
        bytes: &'c mut [u8],
        regions: [usize; 3],
        layer: usize,
        model: &ModelConfig,
        session: &SessionConfig,
    ) -> Self {
        let layer_bytes: usize = regions.iter().sum();
        let bytes = &mut bytes[layer * layer_bytes..][..layer_bytes];
        let [first, second, third] = split(bytes, regions);
        let positions = session.max_seq_len;
        match model.attention {
            Attention::Grouped {
                n_kv_heads,
                head_dim,
            } => {
                let n = positions * n_kv_heads * head_dim;
                let rows = |region| match session.kv {
                    KvType::F32 => KvRows::F32(array(region, n)),
                    KvType::Native | KvType::F16 => KvRows::F16(array(region, n)),
                };
                Self::Grouped {
                    keys: rows(first),
                    values: rows(second),
                }
            }
            Attention::Latent {
                kv_lora_rank,
                qk_rope_head_dim,
                ..
            } => Self::Latent {
                codes: array(first, positions * kv_lora_rank),
                factors: array(second, positions),
                rope_keys: array(third, positions * qk_rope_head_dim),
            },
        }
    }
}
