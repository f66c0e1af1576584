//! A sequence in progress.

use crate::buffers::{self, LayerCache, Scratch, ScratchRegions, lend};
use crate::error::{Buffer, RunError};
use crate::forward::{Forward, Stage};
use crate::model::{Block, Model};
#[cfg(feature = "std")]
use crate::parallel::Threads;
use crate::parts::Workers;
use crate::plan::{MemoryPlan, SessionConfig, layer_cache_regions};

/// One sequence: a cache, a scratch buffer, a position.
///
/// `'m` is the borrow of the model, `'b` the lent buffers. After [`new`](Self::new) nothing
/// allocates and nothing can fail for lack of memory.
pub struct Session<'m, 'w, 'b> {
    model: &'m Model<'w>,
    config: SessionConfig,
    kv: &'b mut [u8],
    scratch: &'b mut [u8],
    kv_regions: [usize; 3],
    scratch_regions: ScratchRegions,
    workers: Workers<'m>,
    len: usize,
    chunk: Option<Chunk<'w>>,
}

/// Which positions of a chunk need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the chunk only fills the cache.
    Nothing,
    /// The last position's.
    Last,
    /// The last position's that may be the largest; the others are negative infinity. What
    /// [`argmax`](crate::argmax) makes of them is what it makes of all. With a coarse head
    /// ([`LoadOptions`](crate::LoadOptions)) this reads less; without, it is [`Last`](Self::Last).
    Best,
    /// Every position's, in order.
    Each,
}

/// What a call of [`Session::step`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The budget is used up; step again.
    Pending,
    /// [`Session::logits`] now holds those of this position.
    Logits {
        /// Position of the token that was read.
        position: usize,
    },
    /// The chunk is done.
    Done,
}

/// How far a chunk has come.
#[derive(Clone, Copy)]
pub(crate) struct Chunk<'w> {
    n_tokens: usize,
    want: Want,
    pub(crate) layer: usize,
    /// The weights of the layer. Looking them up takes as long as a small unit of work, so it is
    /// done once a layer and not in every step.
    pub(crate) block: Block<'w>,
    stage: Stage,
    unit: usize,
    head_token: usize,
    /// Whether only the logits that may be the largest are computed.
    is_cut: bool,
}

/// What follows a stage that is complete.
enum Next {
    /// Another stage of the same layer, or of the head.
    Stage,
    /// The first stage of the next block.
    Layer,
    /// The logits of a position are complete.
    Logits,
    /// The blocks are through and no logits are wanted.
    End,
}

impl<'w> Chunk<'w> {
    pub(crate) fn new(model: &Model<'w>, n_tokens: usize, want: Want) -> Self {
        Self {
            n_tokens,
            want,
            layer: 0,
            block: model.block(0),
            stage: Stage::Embed,
            unit: 0,
            head_token: match want {
                Want::Each => 0,
                _ => n_tokens - 1,
            },
            is_cut: want == Want::Best && model.coarse_head().is_some(),
        }
    }

    fn advance(&mut self, n_layers: usize) -> Next {
        self.unit = 0;
        let next = match self.stage {
            Stage::Head => return Next::Logits,
            Stage::HeadIn if self.is_cut => Some(Stage::CoarseHead),
            Stage::CoarseHead => Some(Stage::Select),
            Stage::HeadIn | Stage::Select => Some(Stage::Head),
            stage => stage.next_in_block(),
        };
        if let Some(stage) = next {
            self.stage = stage;
            return Next::Stage;
        }
        if self.layer + 1 < n_layers {
            self.layer += 1;
            self.stage = Stage::AttnIn;
            return Next::Layer;
        }
        self.stage = Stage::HeadIn;
        if self.want == Want::Nothing {
            Next::End
        } else {
            Next::Stage
        }
    }
}

impl<'m, 'w, 'b> Session<'m, 'w, 'b> {
    /// Begins an empty sequence in lent buffers of at least the planned sizes, aligned to 64 bytes.
    ///
    /// # Errors
    ///
    /// The options do not fit the model, or a buffer is too small or not aligned.
    pub fn new(
        model: &'m Model<'w>,
        kv: &'b mut [u8],
        scratch: &'b mut [u8],
        config: &SessionConfig,
    ) -> Result<Self, RunError> {
        let plan = MemoryPlan::new(model.config(), config)?;
        Ok(Self {
            model,
            config: *config,
            kv: lend(Buffer::Cache, kv, plan.kv_bytes)?,
            scratch: lend(Buffer::Scratch, scratch, plan.scratch_bytes)?,
            kv_regions: layer_cache_regions(model.config(), config)?.0,
            scratch_regions: ScratchRegions::new(model.config(), config)?,
            workers: Workers::alone(),
            len: 0,
            chunk: None,
        })
    }

    /// Goes on with a sequence whose cache another session of the same model and options filled.
    ///
    /// A cache belongs to a sequence and a scratch buffer to a worker: any number of sequences can
    /// take turns on one scratch buffer, each with its own cache and the position it had reached.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), or the position is beyond the session's `max_seq_len`.
    pub fn resume(
        model: &'m Model<'w>,
        kv: &'b mut [u8],
        scratch: &'b mut [u8],
        config: &SessionConfig,
        position: usize,
    ) -> Result<Self, RunError> {
        let session = Self::new(model, kv, scratch, config)?;
        let max = config.max_seq_len;
        if position > max {
            return Err(RunError::ContextFull {
                used: position,
                asked: 0,
                max,
            });
        }
        Ok(Self {
            len: position,
            ..session
        })
    }

    /// Lends threads to the session: [`SessionConfig::threads`] of them, or all if they are fewer,
    /// work on every stage from now on. The logits are the same bits for any number.
    #[cfg(feature = "std")]
    pub const fn lend(&mut self, threads: &'m Threads) {
        self.workers = Workers::lent(threads);
    }

    /// Reads tokens, in chunks, and returns the logits after the last: `[vocab_size]`. A model whose
    /// output is an embedding returns that of all tokens so far: `[hidden_size]`, of length one.
    ///
    /// # Errors
    ///
    /// No token, an id outside the vocabulary, no room in the context, or as [`step`](Self::step).
    /// Nothing is read unless all tokens are legal and fit.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<&[f32], RunError> {
        self.read(ids, Want::Last)
    }

    /// Reads tokens, in chunks, and returns the logits that are wanted of the last; if none are,
    /// their content is unspecified.
    ///
    /// # Errors
    ///
    /// As [`prefill`](Self::prefill).
    pub fn read(&mut self, ids: &[u32], want: Want) -> Result<&[f32], RunError> {
        self.check(ids)?;
        let batch = self.config.prefill_batch;
        let (body, last) = ids.split_at((ids.len() - 1) / batch * batch);
        for chunk in body.chunks(batch) {
            self.begin(chunk, Want::Nothing)?;
            self.finish(|_, _| ())?;
        }
        self.begin(last, want)?;
        self.finish(|_, _| ())?;
        Ok(self.logits())
    }

    /// Reads one token and returns the logits after it.
    ///
    /// # Errors
    ///
    /// As [`prefill`](Self::prefill).
    pub fn decode(&mut self, id: u32) -> Result<&[f32], RunError> {
        self.prefill(&[id])
    }

    /// Reads tokens and gives the logits after each to `visit`, with the position.
    ///
    /// # Errors
    ///
    /// As [`prefill`](Self::prefill).
    pub fn score(
        &mut self,
        ids: &[u32],
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        self.check(ids)?;
        for chunk in ids.chunks(self.config.prefill_batch) {
            self.begin(chunk, Want::Each)?;
            self.finish(&mut visit)?;
        }
        Ok(())
    }

    /// Begins a chunk of at most `prefill_batch` tokens; [`step`](Self::step) does the work.
    ///
    /// # Errors
    ///
    /// A chunk is in progress, this one is too long, or as [`prefill`](Self::prefill).
    pub fn begin(&mut self, ids: &[u32], want: Want) -> Result<(), RunError> {
        self.check(ids)?;
        let (asked, max) = (ids.len(), self.config.prefill_batch);
        if asked > max {
            return Err(RunError::Chunk { asked, max });
        }
        let scratch = self.carve(ids.len());
        scratch.ids.copy_from_slice(ids);
        self.chunk = Some(Chunk::new(self.model, ids.len(), want));
        Ok(())
    }

    /// Does at most `budget` units of work (at least one): row groups of 16 rows, heads, tokens.
    /// The result does not depend on the budgets.
    ///
    /// # Errors
    ///
    /// A value that is not finite, or a processor set to round otherwise than by default; the chunk is
    /// dropped and the sequence is as before it.
    pub fn step(&mut self, budget: usize) -> Result<Step, RunError> {
        let Some(mut chunk) = self.chunk.take() else {
            return Ok(Step::Done);
        };
        let n_layers = self.model.config().n_layers;
        let mut left = budget.max(1);
        let mut forward = self.forward(&chunk);
        while left > 0 {
            let total = forward.units(chunk.stage);
            let end = total.min(chunk.unit.saturating_add(left));
            forward.run(chunk.stage, chunk.unit..end)?;
            left -= end - chunk.unit;
            chunk.unit = end;
            if end < total {
                break;
            }
            match chunk.advance(n_layers) {
                Next::Stage => (),
                Next::Layer => {
                    chunk.block = self.model.block(chunk.layer);
                    forward = self.forward(&chunk);
                }
                Next::Logits => return Ok(self.after_logits(chunk)),
                Next::End => return Ok(self.after_chunk(&chunk)),
            }
        }
        self.chunk = Some(chunk);
        Ok(Step::Pending)
    }

    fn after_logits(&mut self, mut chunk: Chunk<'w>) -> Step {
        let position = self.len + chunk.head_token;
        if chunk.head_token + 1 < chunk.n_tokens {
            chunk.head_token += 1;
            chunk.stage = Stage::HeadIn;
            self.chunk = Some(chunk);
        } else {
            self.after_chunk(&chunk);
        }
        Step::Logits { position }
    }

    fn after_chunk(&mut self, chunk: &Chunk<'w>) -> Step {
        self.len += chunk.n_tokens;
        Step::Done
    }

    /// The logits of the last [`Step::Logits`]; their content is unspecified before the first.
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        let output_size = self.model.config().output_size();
        buffers::logits(self.scratch, &self.scratch_regions, output_size)
    }

    /// Number of positions in the cache.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.len
    }

    /// Positions that are left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.config.max_seq_len - self.len
    }

    /// True while a chunk is in progress.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.chunk.is_some()
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &'m Model<'w> {
        self.model
    }

    /// Forgets the chunk in progress, if any; the sequence is as before it.
    pub fn cancel(&mut self) {
        self.chunk = None;
    }

    /// Rewinds to an earlier position.
    ///
    /// # Errors
    ///
    /// The position has not been reached, or a chunk is in progress.
    pub fn truncate(&mut self, position: usize) -> Result<(), RunError> {
        if self.is_busy() {
            return Err(RunError::Busy);
        }
        if position > self.len {
            return Err(RunError::Position {
                asked: position,
                used: self.len,
            });
        }
        self.len = position;
        Ok(())
    }

    fn check(&self, ids: &[u32]) -> Result<(), RunError> {
        if self.is_busy() {
            return Err(RunError::Busy);
        }
        if ids.is_empty() {
            return Err(RunError::Empty);
        }
        let vocab_size = self.model.config().vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(RunError::Token {
                id: *id,
                vocab_size,
            });
        }
        if ids.len() > self.remaining() {
            let (used, max) = (self.len, self.config.max_seq_len);
            return Err(RunError::ContextFull {
                used,
                asked: ids.len(),
                max,
            });
        }
        Ok(())
    }

    /// Steps to the end of the chunk.
    fn finish(&mut self, mut visit: impl FnMut(usize, &[f32])) -> Result<(), RunError> {
        loop {
            match self.step(usize::MAX)? {
                Step::Logits { position } => visit(position, self.logits()),
                Step::Pending => (),
                Step::Done => return Ok(()),
            }
        }
    }

    fn carve(&mut self, n_tokens: usize) -> Scratch<'_> {
        let model = self.model.config();
        Scratch::new(
            self.scratch,
            &self.scratch_regions,
            model,
            &self.config,
            n_tokens,
        )
    }

    pub(crate) fn forward(&mut self, chunk: &Chunk<'w>) -> Forward<'_, 'w> {
        let (model, session) = (self.model.config(), &self.config);
        let (kv, scratch) = (&mut *self.kv, &mut *self.scratch);
        Forward {
            model: self.model,
            config: model,
            block: chunk.block,
            scratch: Scratch::new(
                scratch,
                &self.scratch_regions,
                model,
                session,
                chunk.n_tokens,
            ),
            cache: LayerCache::new(kv, self.kv_regions, chunk.layer, model, session),
            workers: self.workers,
            layer: chunk.layer,
            start: self.len,
            capacity: session.max_seq_len,
            head_token: chunk.head_token,
            is_cut: chunk.is_cut,
        }
    }
}
