//! GGUF files that are wrong in one way each, and the error that each must give.

mod util;

use std::fs;

use bitnet_converter::gguf::{Gguf, GgufError as E};
use bitnet_converter::{ConvertError, PackOptions};
use util::run;

/// A GGUF file before it is written.
#[derive(Clone)]
struct Draft {
    version: u32,
    keys: Vec<(Vec<u8>, Vec<u8>)>,
    tensors: Vec<(&'static str, Vec<u64>, u32, u64)>,
    data: usize,
    /// Tensors and keys, where the header is to count others.
    counts: Option<(u64, u64)>,
}

fn uint(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

fn float(value: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), value.to_le_bytes()].concat()
}

fn text(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &string(value.as_bytes())].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

const F32: u32 = 0;
const F16: u32 = 1;
const TQ2_0: u32 = 35;

/// The header of a small model; its embedding is all that it holds.
fn good() -> Draft {
    let mut draft = Draft {
        version: 3,
        keys: Vec::new(),
        tensors: vec![("token_embd.weight", vec![256, 4], F16, 0)],
        data: 4096,
        counts: None,
    };
    draft.set("general.architecture", text("bitnet-b1.58"));
    for (key, value) in [
        ("embedding_length", 256),
        ("feed_forward_length", 256),
        ("block_count", 1),
        ("attention.head_count", 4),
        ("context_length", 16),
    ] {
        draft.set(&format!("bitnet-b1.58.{key}"), uint(value));
    }
    let eps = "bitnet-b1.58.attention.layer_norm_rms_epsilon";
    draft.set(eps, float(1e-5));
    draft
}

impl Draft {
    fn set(&mut self, key: &str, value: Vec<u8>) {
        self.unset(key);
        self.keys.push((key.into(), value));
    }

    fn unset(&mut self, key: &str) {
        self.keys.retain(|(k, _)| k != key.as_bytes());
    }

    fn bytes(&self) -> Vec<u8> {
        let counted = (self.tensors.len() as u64, self.keys.len() as u64);
        let (n_tensors, n_keys) = self.counts.unwrap_or(counted);
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(n_tensors.to_le_bytes());
        out.extend(n_keys.to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(string(key));
            out.extend(value);
        }
        for (name, dims, kind, offset) in &self.tensors {
            out.extend(string(name.as_bytes()));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }
}

/// What is wrong, how it is brought about, and the error's variant.
type Case = (&'static str, fn(&mut Draft), fn(&E) -> bool);

const CASES: &[Case] = &[
    ("version", |d| d.version = 1, |e| matches!(e, E::Version(1))),
    (
        "other byte order",
        |d| d.version = 3u32.swap_bytes(),
        |e| matches!(e, E::Version(_)),
    ),
    (
        "more keys than there are",
        |d| {
            d.counts = Some((1, 500));
            d.data = 0;
        },
        |e| matches!(e, E::LongString { .. }),
    ),
    (
        "a key as long as a key may be",
        |d| d.keys[0].0 = vec![b'k'; 1 << 20],
        |e| matches!(e, E::Missing(key) if key == "general.architecture"),
    ),
    (
        "a list beyond the file",
        |d| {
            d.set(
                "k",
                [
                    &9u32.to_le_bytes()[..],
                    &8u32.to_le_bytes(),
                    &(1u64 << 20).to_le_bytes(),
                ]
                .concat(),
            )
        },
        |e| matches!(e, E::Truncated { .. }),
    ),
    (
        "tensors",
        |d| d.counts = Some((1 << 40, 1)),
        |e| {
            matches!(
                e,
                E::TooMany {
                    what: "tensors",
                    ..
                }
            )
        },
    ),
    (
        "keys",
        |d| d.counts = Some((1, u64::MAX)),
        |e| matches!(e, E::TooMany { what: "keys", .. }),
    ),
    (
        "long string",
        |d| d.keys[0].0 = vec![b'k'; (1 << 20) + 1],
        |e| {
            matches!(
                e,
                E::LongString {
                    found: 0x10_0001,
                    ..
                }
            )
        },
    ),
    (
        "key of other bytes",
        |d| d.keys[0].0 = vec![0xff],
        |e| matches!(e, E::NotUtf8),
    ),
    (
        "type of value",
        |d| d.set("k", 13u32.to_le_bytes().to_vec()),
        |e| matches!(e, E::ValueType { kind: 13, .. }),
    ),
    (
        "list of lists",
        |d| d.set("k", [9u32.to_le_bytes(), 9u32.to_le_bytes()].concat()),
        |e| matches!(e, E::ValueType { kind: 9, .. }),
    ),
    (
        "key twice",
        |d| d.keys.push(d.keys[0].clone()),
        |e| matches!(e, E::Duplicate(key) if key == "general.architecture"),
    ),
    (
        "tensor twice",
        |d| d.tensors.push(("token_embd.weight", vec![32], F32, 2048)),
        |e| matches!(e, E::Duplicate(name) if name == "token_embd.weight"),
    ),
    (
        "alignment",
        |d| d.set("general.alignment", uint(24)),
        |e| matches!(e, E::Alignment(24)),
    ),
    (
        "no dimensions",
        |d| d.tensors[0].1.clear(),
        |e| matches!(e, E::Shape(_)),
    ),
    (
        "empty shape",
        |d| d.tensors[0].1[1] = 0,
        |e| matches!(e, E::Shape(_)),
    ),
    (
        "product beyond 64 bits",
        |d| d.tensors[0].1 = vec![1 << 40, 1 << 40],
        |e| matches!(e, E::Shape(_)),
    ),
    (
        "type of tensor",
        |d| d.tensors[0].2 = 999,
        |e| matches!(e, E::Kind { .. }),
    ),
    (
        "part of a block",
        |d| (d.tensors[0].1[0], d.tensors[0].2) = (255, TQ2_0),
        |e| {
            matches!(
                e,
                E::Blocks {
                    cols: 255,
                    block: 256,
                    ..
                }
            )
        },
    ),
    (
        "beyond the file",
        |d| d.data = 2047,
        |e| matches!(e, E::Place { .. }),
    ),
    (
        "offset of all ones",
        |d| d.tensors[0].3 = u64::MAX,
        |e| matches!(e, E::Place { .. }),
    ),
    (
        "off the alignment",
        |d| d.tensors[0].3 = 8,
        |e| matches!(e, E::Place { .. }),
    ),
    (
        "overlap",
        |d| d.tensors.push(("other", vec![32], F32, 2016)),
        |e| matches!(e, E::Overlap(..)),
    ),
    (
        "no architecture",
        |d| d.unset("general.architecture"),
        |e| matches!(e, E::Missing(key) if key == "general.architecture"),
    ),
    (
        "no embedding",
        |d| d.tensors[0].0 = "other",
        |e| matches!(e, E::Missing(key) if key == "tensor token_embd.weight"),
    ),
    (
        "a size that is text",
        |d| d.set("bitnet-b1.58.block_count", text("1")),
        |e| matches!(e, E::WrongType { .. }),
    ),
    (
        "experts",
        |d| d.set("bitnet-b1.58.expert_count", uint(8)),
        |e| matches!(e, E::Unsupported { .. }),
    ),
    (
        "another architecture",
        |d| d.set("general.architecture", text("mamba")),
        |e| matches!(e, E::Arch { .. }),
    ),
    (
        "no heads",
        |d| d.set("bitnet-b1.58.attention.head_count", uint(0)),
        |e| matches!(e, E::Config(_)),
    ),
    (
        "four billion layers",
        |d| d.set("bitnet-b1.58.block_count", uint(u32::MAX)),
        |e| matches!(e, E::Config(_)),
    ),
];

#[test]
fn every_way_has_its_error() {
    let mut messages = String::new();
    for (name, damage, expected) in CASES {
        let mut draft = good();
        damage(&mut draft);
        let error = error_of(&draft.bytes());
        assert!(expected(&error), "{name}: {error:?}");
        messages.push_str(&format!("{name}: {error}\n"));
    }
    insta::assert_snapshot!("messages", messages);
}

/// A block of 256 has its scale in its last two bytes of 66: f16, here twice as large in one block.
#[test]
fn scales_that_differ() {
    let good = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/gguf/TQ2_0/model.gguf"
    );
    let file = Gguf::open(good.as_ref()).unwrap();
    let tensor = file.tensor("blk.0.ffn_down.weight").unwrap();
    let mut bytes = fs::read(good).unwrap();
    let scale = &mut bytes[tensor.offset as usize + 64..][..2];
    let bits = u16::from_le_bytes([scale[0], scale[1]]) + (1 << 10);
    scale.copy_from_slice(&bits.to_le_bytes());
    let error = error_of(&bytes);
    assert!(
        matches!(&error, E::BlockScales { tensor, first, second }
            if tensor == "blk.0.ffn_down.weight" && *first == 2.0 * second),
        "{error:?}"
    );
}

/// Programs tell formats apart by these bytes; a library's caller may not have.
#[test]
fn files_of_other_formats() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("m.gguf");
    for bytes in [&b""[..], b"GGU", b"GGML1234"] {
        fs::write(&input, bytes).unwrap();
        let error = Gguf::open(&input).unwrap_err();
        let source = E::NotGguf;
        assert!(
            matches!(&error, ConvertError::Gguf { source: found, .. } if *found == source),
            "{error:?}"
        );
    }
}

/// The undamaged header is sound: what the model lacks is the next thing that is wrong.
#[test]
fn nothing_else_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("m.gguf");
    fs::write(&input, good().bytes()).unwrap();
    let error = run(&input, &dir.path().join("out.btn"), PackOptions::default()).unwrap_err();
    assert!(!matches!(error, ConvertError::Gguf { .. }), "{error:?}");
}

fn error_of(bytes: &[u8]) -> E {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("m.gguf");
    fs::write(&input, bytes).unwrap();
    match run(&input, &dir.path().join("out.btn"), PackOptions::default()) {
        Err(ConvertError::Gguf { source, .. }) => source,
        other => panic!("{:?}", other.map(|_| "it converts")),
    }
}
