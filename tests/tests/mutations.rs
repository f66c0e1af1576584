//! Files from strangers: good ones, damaged at random places with a fixed seed. Whatever comes, the
//! converter ends with a file or an error, without a panic, and within the memory it promises. One
//! that would never end shows as a test that never ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_converter::{Conversion, EmbeddingType, PackOptions, convert, tokenizer};
use bitnet_formats::TokenizerTables;
use bitnet_runtime::Tokenizer;
use bitnet_tests::random::Random;
use serde_json::{Value, json};

/// Most bytes that all tests here together may hold, whatever their input says of itself. The good
/// files are below a megabyte.
const MOST_BYTES: usize = 256 << 20;

/// Lends no more than [`MOST_BYTES`]: one byte more aborts the tests, naming the size.
struct Capped;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every pointer comes from the system's allocator with the arguments given, or is null, which
// stands for memory that is used up.
#[allow(unsafe_code, reason = "a global allocator")]
unsafe impl GlobalAlloc for Capped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed);
        if held.saturating_add(layout.size()) > MOST_BYTES {
            HELD.fetch_sub(layout.size(), Ordering::Relaxed);
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Capped = Capped;

#[test]
fn the_cap_is_kept() {
    let mut bytes: Vec<u8> = Vec::new();
    assert!(bytes.try_reserve_exact(MOST_BYTES + 1).is_err());
    assert!(bytes.try_reserve_exact(MOST_BYTES / 16).is_ok());
}

/// Numbers that are lengths, offsets or sizes somewhere.
const SIZES: [u64; 11] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    1 << 22,
    1 << 31,
    u32::MAX as u64,
    1 << 40,
    1 << 63,
    u64::MAX,
];

/// Damages one to three places among the first `header` bytes, and a few beyond.
fn damage_bytes(random: &mut Random, bytes: &mut Vec<u8>, header: usize) {
    for _ in 0..1 + random.below(3) {
        let reach = match random.below(5) {
            0 => bytes.len(),
            _ => header.min(bytes.len()),
        };
        if reach == 0 {
            return;
        }
        let at = random.below(reach);
        damage_at(random, bytes, at);
    }
}

fn damage_at(random: &mut Random, bytes: &mut Vec<u8>, at: usize) {
    let end = |n: usize| bytes.len().min(at + n);
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end(1 + random.below(9)))),
        2 => {
            let piece = bytes[at..end(8)].to_vec();
            bytes.splice(at..at, piece);
        }
        3 => {
            let width = end(random.pick(&[1, 2, 4, 8])) - at;
            let size = random.pick(&SIZES).to_le_bytes();
            bytes[at..at + width].copy_from_slice(&size[..width]);
        }
        _ => bytes[at] = random.bits() as u8,
    }
}

/// Puts another value in the place of one to three values of a JSON document.
fn damage_json(random: &mut Random, json: &mut Value) {
    for _ in 0..1 + random.below(3) {
        let mut place = &mut *json;
        // Deeper with each step that is not the last: most values are leaves.
        loop {
            let n = place.as_object().map_or(0, serde_json::Map::len)
                + place.as_array().map_or(0, Vec::len);
            if n == 0 || random.below(8) == 0 {
                break;
            }
            let i = random.below(n);
            place = match place {
                Value::Object(map) => map.values_mut().nth(i).unwrap(),
                Value::Array(list) => &mut list[i],
                _ => unreachable!("a leaf has no children"),
            };
        }
        *place = hostile(random, place);
    }
}

/// What nobody would write in the place of `good`.
fn hostile(random: &mut Random, good: &Value) -> Value {
    match random.below(10) {
        0 | 1 => random.pick(&SIZES).into(),
        2 => json!(-(random.below(1 << 40) as i64)),
        3 => random.pick(&[0.5, -0.0, 1e-320, 1e39, 1e308]).into(),
        4 => "\u{0}\u{10ffff}\u{fffd}".into(),
        5 => "(".repeat(300).into(),
        6 => (0..100).fold(Value::Null, |inner, _| json!([inner])),
        7 => json!([good, good, good]),
        8 => json!({ "type": good, "": good }),
        _ => [json!(null), json!([]), json!({}), json!(true), json!("")][random.below(5)].clone(),
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// Converts a file or folder; true where that works. No file is left where it does not.
fn converts(input: &Path, output: &Path) -> bool {
    let conversion = Conversion {
        pack: PackOptions {
            embedding: EmbeddingType::Source,
            ..PackOptions::default()
        },
        verify: false,
        self_test: false,
        ..Conversion::default()
    };
    let done = convert(input, output, conversion);
    if let Err(error) = &done {
        assert!(!error.to_string().is_empty());
        assert!(!output.exists(), "{error}");
    }
    done.is_ok()
}

/// Damages one file of a good input again and again. Some mutants are still good; most must not be.
fn mutate(name: &str, file: &str, rounds: usize, damage: impl Fn(&mut Random, &[u8]) -> Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture(name);
    for entry in fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file()
            && !path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("golden")
        {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let good = fs::read(source.join(file)).unwrap();
    let victim = dir.path().join(file);
    let is_gguf = victim.extension().is_some_and(|e| e == "gguf");
    let input = if is_gguf { &*victim } else { dir.path() };
    let output = dir.path().join("out.btn");
    let mut random = Random(name.bytes().map(u64::from).sum());
    let mut worked = 0;
    for _ in 0..rounds {
        fs::write(&victim, damage(&mut random, &good)).unwrap();
        if converts(input, &output) {
            worked += 1;
            fs::remove_file(&output).unwrap();
        }
    }
    println!("{name}/{file}: {worked} of {rounds} mutants convert");
    assert!(worked < rounds);
    fs::write(&victim, &good).unwrap();
    assert!(converts(input, &output), "the good file must convert");
}

/// [`mutate`], byte by byte.
fn mutate_bytes(name: &str, file: &str, header: usize, rounds: usize) {
    mutate(name, file, rounds, |random, good| {
        let mut bytes = good.to_vec();
        damage_bytes(random, &mut bytes, header);
        bytes
    });
}

#[test]
fn safetensors() {
    mutate_bytes("llama_packed_rmsnorm", "model.safetensors", 4_000, 250);
    mutate_bytes("bitnet700_fixed", "model.safetensors", 6_000, 100);
}

/// Headers that are sound JSON of the right length, and lie.
#[test]
fn safetensors_values() {
    mutate(
        "llama_packed_rmsnorm",
        "model.safetensors",
        250,
        |random, good| {
            let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
            let (header, data) = good[8..].split_at(length);
            let mut header = serde_json::from_slice(header).unwrap();
            damage_json(random, &mut header);
            let header = header.to_string();
            let length = (header.len() as u64).to_le_bytes();
            [&length, header.as_bytes(), data].concat()
        },
    );
}

#[test]
fn gguf() {
    for name in ["gguf/I2_S", "gguf/TQ1_0", "gguf/llama_TQ2_0"] {
        mutate_bytes(name, "model.gguf", 12_000, 200);
    }
}

#[test]
fn config_json() {
    for name in [
        "falcon_e",
        "b158_large",
        "embedding_qwen3",
        "bitnet700_fixed",
    ] {
        mutate_bytes(name, "config.json", 1_000, 60);
        mutate(name, "config.json", 100, |random, good| {
            let mut json = serde_json::from_slice(good).unwrap();
            damage_json(random, &mut json);
            json.to_string().into_bytes()
        });
    }
}

/// Tokenizers that are converted are tokenizers that run.
#[test]
fn tokenizer_json() {
    for (name, good) in [("bytes", of_bytes()), ("characters", of_characters())] {
        let text = good.to_string();
        assert!(encodes(&text), "the good {name} must work");
        let mut random = Random(7);
        let rounds = 80;
        let bytes = (0..rounds).filter(|_| {
            let mut bytes = text.clone().into_bytes();
            let header = bytes.len();
            damage_bytes(&mut random, &mut bytes, header);
            String::from_utf8(bytes).is_ok_and(|text| encodes(&text))
        });
        let bytes = bytes.count();
        let values = (0..rounds).filter(|_| {
            let mut json = good.clone();
            damage_json(&mut random, &mut json);
            encodes(&json.to_string())
        });
        let values = values.count();
        println!("{name}: {bytes} and {values} of {rounds} mutants work");
        assert!(bytes < rounds && values < rounds);
    }
}

/// True where a tokenizer.json gives tables, which must then cut any text.
fn encodes(json: &str) -> bool {
    let Ok(section) = tokenizer::section(json) else {
        return false;
    };
    let tables = TokenizerTables::open(&section).expect("what is written can be read");
    let tokenizer = Tokenizer::new(tables);
    for text in [
        "",
        "abc cab  bca\n",
        "<s>\u{fc}\u{0}\u{10ffff} 12345",
        "\u{2581}a\u{301}</s>",
    ] {
        let mut scratch = vec![0; tokenizer.scratch_words(text.len())];
        let mut ids = vec![0; tokenizer.most_ids(text.len())];
        let encoded = tokenizer.encode(text, true, &mut scratch, &mut ids);
        encoded.expect("the room asked for is enough");
    }
    true
}

fn special_tokens(first: usize) -> Value {
    let names = ["<s>", "</s>"].into_iter().enumerate();
    let token = |(i, name)| {
        json!({
            "id": first + i, "content": name, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    names.map(token).collect()
}

fn document(vocab: Vec<String>, parts: Value) -> Value {
    let special = special_tokens(vocab.len());
    let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let sequence = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = json!({
        "type": "TemplateProcessing", "single": [begin, sequence], "pair": [begin, sequence, sequence],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [vocab.len()], "tokens": ["<s>"] } },
    });
    let ids = vocab.iter().enumerate();
    let ids: serde_json::Map<_, _> = ids.map(|(id, t)| (t.clone(), id.into())).collect();
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special,
        "normalizer": null, "pre_tokenizer": null, "post_processor": template, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": true, "vocab": ids, "merges": [["a", "b"], ["ab", "c"], ["c", "a"]],
        },
    });
    for (path, value) in parts.as_object().unwrap() {
        *json.pointer_mut(path).unwrap() = value.clone();
    }
    json
}

/// Byte-level merges, words by a regular expression.
fn of_bytes() -> Value {
    let vocab = ('!'..='~').map(String::from);
    let vocab = vocab
        .chain(["ab", "abc", "ca"].map(str::to_owned))
        .collect();
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    document(vocab, json!({ "/pre_tokenizer": level, "/decoder": level }))
}

/// Merges of characters, with a token for every byte that is left.
fn of_characters() -> Value {
    let vocab = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = ["\u{2581}", "a", "b", "c", "ab", "abc", "ca", "<unk>"];
    let vocab = vocab.chain(tokens.map(str::to_owned)).collect();
    let steps = json!([
        { "type": "Prepend", "prepend": "\u{2581}" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
    ]);
    let decoders = json!([
        { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ]);
    document(
        vocab,
        json!({
            "/normalizer": { "type": "Sequence", "normalizers": steps },
            "/decoder": { "type": "Sequence", "decoders": decoders },
            "/model/byte_fallback": true, "/model/fuse_unk": true, "/model/unk_token": "<unk>",
            "/model/ignore_merges": false,
        }),
    )
}

/// A list that claims more than the file has, and one that claims as much as may be claimed.
#[test]
fn lengths_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend(0u64.to_le_bytes());
    header.extend(1u64.to_le_bytes());
    header.extend(1u64.to_le_bytes());
    header.push(b'k');
    header.extend(9u32.to_le_bytes());
    for (kind, count) in [
        (8u32, u64::MAX),
        (0, 1 << 22),
        (8, 1 << 22),
        (12, 1 << 40),
        (9, 3),
    ] {
        let mut bytes = header.clone();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend([0; 100]);
        fs::write(&file, &bytes).unwrap();
        assert!(
            !converts(&file, &dir.path().join("out.btn")),
            "{kind} {count}"
        );
    }
}
