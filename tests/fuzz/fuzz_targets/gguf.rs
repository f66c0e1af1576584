//! Any bytes as a GGUF file, converted as far as they go.
#![no_main]

use std::fs;

use bitnet_converter::gguf::Gguf;
use bitnet_converter::{Conversion, convert};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    fs::write(&file, bytes).unwrap();
    if Gguf::open(&file).is_err() {
        return;
    }
    let conversion = Conversion {
        verify: false,
        self_test: false,
        ..Conversion::default()
    };
    _ = convert(&file, &dir.path().join("out.btn"), conversion);
});
