//! Self-test vectors: fixed prompts and the hashes of the logits they must give on any machine.

use bitnet_formats::metadata::push_self_test;
use bitnet_formats::{Archive, Attention, KvType, ModelConfig};
use bitnet_runtime::{
    AlignedBuffer, LoadOptions, LogitsHash, Model, RunError, Session, SessionConfig, Step, Want,
    weight_plan,
};

/// Lengths of the prompts: one token, and two that are no multiple of a chunk.
const LENGTHS: [usize; 3] = [1, 5, 13];
/// Tokens that pass through a block together.
const PREFILL_BATCH: usize = 4;
/// Row groups between two releases: 16 rows of a wide head are some 40 kB.
const BUDGET: usize = 512;

/// A prompt, the cache it runs on, and the hash of its logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    kv: KvType,
    ids: Vec<u32>,
    logits_hash: u64,
}

/// The prompts for a model, hashes still zero.
///
/// Latent attention has one cache; grouped attention is tested on its native f16 and on f32.
#[must_use]
pub fn prompts(config: &ModelConfig) -> Vec<Vector> {
    let caches: &[KvType] = match config.attention {
        Attention::Latent { .. } => &[KvType::Native],
        Attention::Grouped { .. } => &[KvType::Native, KvType::F32],
    };
    let prompt = |kv: &KvType, n: usize| Vector {
        kv: *kv,
        ids: ids(n.min(config.max_seq_len), config.vocab_size),
        logits_hash: 0,
    };
    let of_cache = |kv| LENGTHS.map(|n| prompt(kv, n));
    caches.iter().flat_map(of_cache).collect()
}

/// Ids spread over the vocabulary: multiples of a large prime, from one that depends on `n`.
fn ids(n: usize, vocab_size: usize) -> Vec<u32> {
    const STRIDE: usize = 1_000_003;
    (0..n)
        .map(|i| ((n + i) * STRIDE % vocab_size) as u32)
        .collect()
}

/// The bytes of a self-test section.
#[must_use]
pub fn encode(vectors: &[Vector]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for vector in vectors {
        push_self_test(&mut bytes, vector.kv, &vector.ids, vector.logits_hash);
    }
    bytes
}

/// Runs the prompts through a file and fills in the hashes. `release` is called between pieces of
/// work that each read at most some ten megabytes of weights.
///
/// # Errors
///
/// The model gives a value that is not finite, or does not fit this machine.
pub fn run(
    archive: &Archive<'_>,
    vectors: &mut [Vector],
    release: &dyn Fn(),
) -> Result<(), RunError> {
    let options = LoadOptions::smallest(archive);
    let mut weights = AlignedBuffer::zeroed(weight_plan(archive, &options)?);
    let model = Model::load(archive, &mut weights, &options)?;
    for vector in vectors {
        vector.logits_hash = logits_hash(&model, vector, release)?;
    }
    Ok(())
}

fn logits_hash(model: &Model<'_>, vector: &Vector, release: &dyn Fn()) -> Result<u64, RunError> {
    let config = SessionConfig {
        max_seq_len: vector.ids.len(),
        prefill_batch: PREFILL_BATCH,
        kv: vector.kv,
        threads: 1,
    };
    let plan = model.plan(&config)?;
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    let mut session = Session::new(model, &mut kv, &mut scratch, &config)?;
    let mut hash = LogitsHash::new();
    for chunk in vector.ids.chunks(PREFILL_BATCH) {
        session.begin(chunk, Want::Each)?;
        while session.is_busy() {
            if let Step::Logits { .. } = session.step(BUDGET)? {
                hash.update(session.logits());
            }
            release();
        }
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;
    use bitnet_formats::metadata::SelfTests;

    #[test]
    fn prompts_are_legal_for_every_preset_and_a_tiny_vocabulary() {
        let mut small = Preset::Nano.config();
        (small.vocab_size, small.max_seq_len) = (2, 3);
        for config in Preset::ALL.map(Preset::config).into_iter().chain([small]) {
            let vectors = prompts(&config);
            let bytes = encode(&vectors);
            let decoded = SelfTests::decode(&bytes, &config).unwrap();
            assert_eq!(decoded.count(), vectors.len());
        }
    }

    #[test]
    fn prompts_differ_from_each_other() {
        let vectors = prompts(&Preset::Nano.config());
        let starts: Vec<_> = vectors.iter().map(|v| v.ids[0]).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts[0] != starts[1] && starts[1] != starts[2]);
    }
}
