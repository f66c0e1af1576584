//! Any bytes as the weights of a checkpoint whose configuration is that of a small one.
#![no_main]

use std::fs;
use std::ops::ControlFlow;

use bitnet_converter::convert::load;
use bitnet_converter::{Checkpoint, Conversion, PackOptions, ReadOptions, convert};
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
        pack: PackOptions::default(),
        read: ReadOptions::default(),
        prune_dead: false,
        verify: false,
        self_test: false,
        read_back: load,
        progress: &mut |_, _| ControlFlow::Continue(()),
    };
    _ = convert(dir.path(), &dir.path().join("out.btn"), conversion);
});
