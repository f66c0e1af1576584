//! The memory that `--dry-run` announces is what a run then holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_formats::Preset;
use bitnet_trainer::keys;
use bitnet_trainer::memory::MemoryEstimate;
use bitnet_trainer::settings::Settings;
use bitnet_trainer::trainer::Trainer;

/// The system allocator, counting the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` unchanged, which keeps the contract; counting touches no
// memory that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `alloc` above, hence from `System`, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_estimate_is_within_three_percent() {
    let cases: [&[&str]; 4] = [
        &[],
        &["model.attention=grouped", "model.n_kv_heads=2"],
        &["train.batch=3", "train.context=200"],
        &["model.tie_embeddings=false", "train.batch=1"],
    ];
    for sets in cases {
        let mut settings = Settings::preset(Preset::Nano);
        for assignment in sets {
            keys::apply(&mut settings, assignment).unwrap();
        }
        let before = IN_USE.load(Ordering::Relaxed);
        let trainer = Trainer::new(settings.clone(), None);
        let held = (IN_USE.load(Ordering::Relaxed) - before) as f64;
        let estimate = MemoryEstimate::new(&settings).total_bytes() as f64;
        assert!(
            (held / estimate - 1.0).abs() < 0.03,
            "{sets:?}: {held} {estimate}"
        );
        assert_eq!(trainer.step(), 0);
    }
}
