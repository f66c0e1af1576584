//! Where things are in linear memory: the file, then everything that the plan lends.

use bitnet_runtime::sampler::Candidate;
use bitnet_runtime::{
    ALIGNMENT, KvType, MemoryPlan, SessionConfig, TernaryLayout, WeightHold, copy_plan,
};

use crate::error::Error;
use crate::header::Head;
use crate::text;

/// What a host asks for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Positions of the context; 0 for all that the model has.
    pub context: u32,
    /// Most tokens of a prompt that are read together.
    pub batch: u32,
}

/// Bytes of each buffer, in the order in which they stand, each on a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The session that the buffers are for.
    pub session: SessionConfig,
    /// Where weights are used: in the file, or in memory of their own where that is packed.
    pub hold: WeightHold,
    /// The model file.
    pub file_bytes: usize,
    /// Decoded weights of a packed file.
    pub weight_bytes: usize,
    /// Keys and values.
    pub kv_bytes: usize,
    /// What a step of the forward pass needs.
    pub scratch_bytes: usize,
    /// Candidates of the sampler, one for each token of the vocabulary.
    pub candidate_bytes: usize,
    /// Token ids of a prompt, as many as the context holds.
    pub id_bytes: usize,
    /// Text of a prompt.
    pub text_bytes: usize,
    /// Scratch memory of the tokenizer.
    pub encode_bytes: usize,
}

impl Layout {
    /// The layout for a model.
    ///
    /// # Errors
    ///
    /// The options do not fit the model, or 32 bits do not address the sum.
    pub fn new(head: &Head, file_bytes: u32, options: &Options) -> Result<Self, Error> {
        let config = &head.config;
        let max_seq_len = match options.context {
            0 => config.max_seq_len,
            context => context as usize,
        };
        let session = SessionConfig {
            max_seq_len,
            prefill_batch: (options.batch as usize).min(max_seq_len),
            kv: KvType::Native,
            threads: 1,
        };
        let plan = MemoryPlan::new(config, &session)?;
        let (hold, weight_bytes) = match head.packed {
            true => {
                let layout = TernaryLayout::T5R16;
                (WeightHold::Copy(layout), copy_plan(config, layout)?)
            }
            false => (WeightHold::InPlace, 0),
        };
        // Contexts are capped at 2^22 positions, so none of these exceeds 2^31.
        let text_bytes = max_seq_len * text::BYTES_PER_POSITION;
        let layout = Self {
            session,
            hold,
            file_bytes: file_bytes as usize,
            weight_bytes,
            kv_bytes: plan.kv_bytes,
            scratch_bytes: plan.scratch_bytes,
            candidate_bytes: config.vocab_size * size_of::<Candidate>(),
            id_bytes: max_seq_len * size_of::<u32>(),
            text_bytes,
            encode_bytes: text::scratch_words(text_bytes) * size_of::<u32>(),
        };
        layout.total()?;
        Ok(layout)
    }

    /// The sizes, in order.
    #[must_use]
    pub const fn sizes(&self) -> [usize; 8] {
        [
            self.file_bytes,
            self.weight_bytes,
            self.kv_bytes,
            self.scratch_bytes,
            self.candidate_bytes,
            self.id_bytes,
            self.text_bytes,
            self.encode_bytes,
        ]
    }

    /// Bytes from the first multiple of 64 on.
    ///
    /// # Errors
    ///
    /// 32 bits do not address them.
    pub fn total(&self) -> Result<u32, Error> {
        let aligned = |bytes: usize| (bytes as u64).next_multiple_of(ALIGNMENT as u64);
        let total: u64 = self.sizes().into_iter().map(aligned).sum();
        u32::try_from(total).map_err(|_| Error::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    const OPTIONS: Options = Options {
        context: 0,
        batch: 32,
    };

    fn nano_head(packed: bool) -> Head {
        Head {
            config: Preset::Nano.config(),
            packed,
        }
    }

    #[test]
    fn nano() {
        let layout = Layout::new(&nano_head(false), 294_465, &OPTIONS).unwrap();
        assert_eq!(layout.session.max_seq_len, 256);
        assert_eq!(layout.session.prefill_batch, 32);
        assert_eq!(layout.candidate_bytes, 512 * 8);
        assert_eq!(layout.id_bytes, 256 * 4);
        let buffers: usize = layout.sizes()[1..].iter().sum();
        assert_eq!(layout.total(), Ok((294_528 + buffers) as u32));
        let packed = Layout::new(&nano_head(true), 294_465, &OPTIONS).unwrap();
        let more = packed.total().unwrap() - layout.total().unwrap();
        assert_eq!(
            (layout.weight_bytes, packed.weight_bytes),
            (0, more as usize)
        );
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let head = nano_head(false);
        let with = |context, batch| Layout::new(&head, 1, &Options { context, batch });
        assert!(matches!(with(257, 1), Err(Error::Run(_))));
        assert!(matches!(with(256, 0), Err(Error::Run(_))));
        let file = Layout::new(&head, u32::MAX, &OPTIONS);
        assert_eq!(file, Err(Error::TooLarge));
    }
}
