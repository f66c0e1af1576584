//! Threads allocate nothing either.
//!
//! The counter sees every thread of the process, so this is the only test of its binary.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_formats::Preset;
use bitnet_tests::synthetic::{Storage, model};
use bitnet_tests::{Run, with_session};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator; counting in an atomic neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

#[test]
fn a_session_with_threads_allocates_nothing() {
    let file = model(&Preset::Nano.config(), Storage::default(), 5);
    let run = Run {
        threads: 3,
        ..Run::default()
    };
    let allocated = with_session(&file, run, |session| {
        session.prefill(&[1, 2, 3]).unwrap();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        session.prefill(&[4, 5, 6, 7]).unwrap();
        for id in 0..20 {
            session.decode(id).unwrap();
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    assert_eq!(allocated, 0);

    let before = ALLOCATIONS.load(Ordering::Relaxed);
    drop(std::hint::black_box(vec![1u8; 100]));
    assert_eq!(
        ALLOCATIONS.load(Ordering::Relaxed) - before,
        1,
        "the counter counts"
    );
}
