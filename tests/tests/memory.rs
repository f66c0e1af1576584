//! Memory is exact and known first.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bitnet_formats::Attention;
use bitnet_runtime::{
    AlignedBuffer, Archive, Buffer, KvType, LoadOptions, Model, RunError, Session, SessionConfig,
    TernaryLayout, WeightHold, weight_plan,
};
use bitnet_tests::packed::packed;
use bitnet_tests::random::Random;
use bitnet_tests::synthetic::{Storage, model, random_config};

/// Counts the allocations of the thread that asks for it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system's allocator; counting in a thread-local
// without destructor neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

/// Fifty random shapes, sessions and prompts: buffers of exactly the planned sizes run, without an
/// allocation from the first call to the last token, and one byte less is a named error.
#[test]
fn exact_buffers_run_and_one_byte_less_is_an_error() {
    let mut random = Random(2);
    for _ in 0..50 {
        let config = random_config(&mut random);
        let file = model(&config, Storage::default(), random.bits());
        let archive = Archive::open(&file).unwrap();
        let copies = [TernaryLayout::T5R16, TernaryLayout::T2R16].map(WeightHold::Copy);
        let [t5, t2] = copies;
        let hold = random.pick(&[WeightHold::InPlace, t5, t2]);
        let coded = packed(&file);
        let coded = Archive::open(&coded).unwrap();
        let session = SessionConfig {
            max_seq_len: 1 + random.below(config.max_seq_len),
            prefill_batch: 1 + random.below(20),
            kv: match config.attention {
                Attention::Grouped { .. } => {
                    random.pick(&[KvType::Native, KvType::F16, KvType::F32])
                }
                Attention::Latent { .. } => random.pick(&[KvType::Native, KvType::F32]),
            },
            threads: 1 + random.below(3),
        };
        let ids = random.ids(session.max_seq_len, config.vocab_size);
        let load = LoadOptions {
            hold,
            ..LoadOptions::default()
        };
        check(&archive, &load, &session, &ids);
        let hold = random.pick(&copies);
        check(&coded, &LoadOptions { hold, ..load }, &session, &ids);
    }
}

fn check(archive: &Archive, load: &LoadOptions, config: &SessionConfig, ids: &[u32]) {
    let needed = weight_plan(archive, load).unwrap();
    let mut short = AlignedBuffer::zeroed(needed.saturating_sub(1));
    if needed > 0 {
        let error = Model::load(archive, &mut short, load).unwrap_err();
        let buffer = Buffer::Weights;
        assert_eq!(
            error,
            RunError::Buffer {
                buffer,
                needed,
                found: needed - 1
            }
        );
    }
    let mut weights = AlignedBuffer::zeroed(needed);
    let model = Model::load(archive, &mut weights, load).unwrap();
    let plan = model.plan(config).unwrap();
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);

    let error = |kv: &mut [u8], scratch: &mut [u8]| {
        Session::new(&model, kv, scratch, config).err().unwrap()
    };
    let kv_short = error(&mut kv[..plan.kv_bytes - 1], &mut scratch);
    let (needed, found) = (plan.kv_bytes, plan.kv_bytes - 1);
    assert_eq!(
        kv_short,
        RunError::Buffer {
            buffer: Buffer::Cache,
            needed,
            found
        }
    );
    assert_eq!(
        kv_short.to_string(),
        format!("the cache buffer has {found} bytes and needs {needed}")
    );
    let scratch_short = error(&mut kv, &mut scratch[..plan.scratch_bytes - 1]);
    let (needed, found) = (plan.scratch_bytes, plan.scratch_bytes - 1);
    assert_eq!(
        scratch_short,
        RunError::Buffer {
            buffer: Buffer::Scratch,
            needed,
            found
        }
    );

    let before = allocations();
    let mut session = Session::new(&model, &mut kv, &mut scratch, config).unwrap();
    let (first, rest) = ids.split_at(1 + (ids.len() - 1) / 2);
    session.prefill(first).unwrap();
    for id in rest {
        session.decode(*id).unwrap();
    }
    assert_eq!(allocations() - before, 0, "{config:?}");

    // The context is full to the last position, and says so.
    let full = RunError::ContextFull {
        used: ids.len(),
        asked: 1,
        max: config.max_seq_len,
    };
    assert_eq!(session.decode(0).unwrap_err(), full);
}

#[test]
fn the_counter_counts() {
    let before = allocations();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert_eq!(allocations() - before, 1);
}

#[test]
fn buffers_must_be_aligned() {
    let mut random = Random(3);
    let config = random_config(&mut random);
    let file = model(&config, Storage::default(), 1);
    let archive = Archive::open(&file).unwrap();
    let model = Model::load(&archive, &mut [], &LoadOptions::default()).unwrap();
    let config = SessionConfig {
        max_seq_len: 1,
        prefill_batch: 1,
        kv: KvType::Native,
        threads: 1,
    };
    let plan = model.plan(&config).unwrap();
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes + 1);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    let error = Session::new(&model, &mut kv[1..], &mut scratch, &config)
        .err()
        .unwrap();
    assert_eq!(
        error,
        RunError::Alignment {
            buffer: Buffer::Cache
        }
    );
}
