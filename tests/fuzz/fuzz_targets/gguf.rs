//! Any bytes as a GGUF file, converted as far as they go.
#![no_main]

use std::fs;
use std::ops::ControlFlow;

use bitnet_converter::convert::load;
use bitnet_converter::gguf::Gguf;
use bitnet_converter::{Conversion, PackOptions, ReadOptions, convert};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    fs::write(&file, bytes).unwrap();
    if Gguf::open(&file).is_err() {
        return;
    }
    let conversion = Conversion {
        pack: PackOptions::default(),
        read: ReadOptions::default(),
        prune_dead: false,
        verify: false,
        self_test: false,
        read_back: load,
        progress: &mut |_, _| ControlFlow::Continue(()),
    };
    _ = convert(&file, &dir.path().join("out.btn"), conversion);
});
