//! Any text as a tokenizer.json. One that can be converted must cut any text: what follows the first
//! NUL of the input is one.
#![no_main]

use bitnet_converter::tokenizer;
use bitnet_formats::TokenizerTables;
use bitnet_runtime::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (json, text) = input.split_once('\0').unwrap_or((input, ""));
    let Ok(section) = tokenizer::section(json) else {
        return;
    };
    let tables = TokenizerTables::open(&section).expect("what is written can be read");
    let tokenizer = Tokenizer::new(tables);
    let mut scratch = vec![0; tokenizer.scratch_words(text.len())];
    let mut ids = vec![0; tokenizer.most_ids(text.len())];
    let encoded = tokenizer.encode(text, true, &mut scratch, &mut ids);
    encoded.expect("the room asked for is enough");
});
