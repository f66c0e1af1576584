//! Any bytes as the weights of a checkpoint whose configuration is that of a small one.
#![no_main]

use std::fs;

use bitnet_converter::{Checkpoint, Conversion, convert};
use libfuzzer_sys::fuzz_target;

const CONFIG: &[u8] = include_bytes!("../../fixtures/llama_packed_rmsnorm/config.json");

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("model.safetensors");
    fs::write(&weights, bytes).unwrap();
    if Checkpoint::open(&weights).is_err() {
        return;
    }
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let conversion = Conversion {
        verify: false,
        self_test: false,
        ..Conversion::default()
    };
    _ = convert(dir.path(), &dir.path().join("out.btn"), conversion);
});
