//! The kernel harness of `bitnet-runtime` as a test program of its own, for WebAssembly.
//!
//! The crate's own test program needs libraries that do not build for wasm32-unknown-unknown; the
//! kernels and their tests need little, so they are compiled here once more, from the same files.
//! `cargo test --target wasm32-unknown-unknown --no-run` makes a module whose `main` runs all tests,
//! and traps if one fails.
#![cfg(test)]
#![allow(
    dead_code,
    unused_imports,
    reason = "the rest of the crate is not here to use it"
)]

use std::sync::atomic::{AtomicU32, Ordering};

use kernels::{Isa, Kernels};

#[path = "../../../src/kernels/mod.rs"]
pub mod kernels;
#[path = "../../../src/math.rs"]
pub mod math;

static RAN: AtomicU32 = AtomicU32::new(0);

/// The set that ran, of `Isa::ALL`: an engine cannot see what is printed, but it can ask.
#[test]
fn the_fastest_set_is_known() {
    let fastest = Isa::ALL
        .iter()
        .position(|isa| *isa == Kernels::detect().isa());
    RAN.store(1 + fastest.unwrap() as u32, Ordering::Relaxed);
}

/// 0 before the tests ran; then 1 where the scalar set is the fastest, and so on.
#[unsafe(no_mangle)]
extern "C" fn fastest_set() -> u32 {
    RAN.load(Ordering::Relaxed)
}
