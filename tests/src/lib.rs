//! What the end-to-end tests share: synthetic models, runs of them, and the programs.

pub mod packed;
pub mod programs;
pub mod random;
pub mod synthetic;

use bitnet_runtime::{AlignedBuffer, Archive, KvType, LoadOptions, LogitsHash, Model};
use bitnet_runtime::{Session, SessionConfig, Threads, weight_plan};

/// Options of a run; the logits must not depend on any of them but `kv`.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Tokens per chunk.
    pub prefill_batch: usize,
    /// Cache.
    pub kv: KvType,
    /// Threads that are lent to the session.
    pub threads: usize,
    /// Where the ternary weights are.
    pub load: LoadOptions,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            prefill_batch: 16,
            kv: KvType::F32,
            threads: 1,
            load: LoadOptions::default(),
        }
    }
}

/// Loads a file, lends it buffers of exactly the planned sizes, and gives `body` a session.
///
/// # Panics
///
/// If anything fails.
pub fn with_session<T>(bytes: &[u8], run: Run, body: impl FnOnce(&mut Session) -> T) -> T {
    let archive = Archive::open(bytes).expect("a valid file");
    let mut weights = AlignedBuffer::zeroed(weight_plan(&archive, &run.load).expect("a plan"));
    let model = Model::load(&archive, &mut weights, &run.load).expect("a model");
    let config = SessionConfig {
        max_seq_len: model.config().max_seq_len,
        prefill_batch: run.prefill_batch,
        kv: run.kv,
        threads: run.threads,
    };
    let plan = model.plan(&config).expect("a plan");
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    let mut session = Session::new(&model, &mut kv, &mut scratch, &config).expect("a session");
    let threads = Threads::new(run.threads);
    session.lend(&threads);
    body(&mut session)
}

/// The hash of the logits after every token.
///
/// # Panics
///
/// If anything fails.
#[must_use]
pub fn logits_hash(bytes: &[u8], ids: &[u32], run: Run) -> u64 {
    with_session(bytes, run, |session| {
        let mut hash = LogitsHash::new();
        session
            .score(ids, |_, logits| hash.update(logits))
            .expect("finite logits");
        hash.finish()
    })
}
