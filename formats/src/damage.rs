//! Files that are wrong in one way each, and the error that each must give.

use std::io::{Cursor, Write};

use crate::config::{Attention, ModelConfig};
use crate::dtype::Dtype;
use crate::error::{Covered, FormatError, PackedError, TensorProblem};
use crate::header::{PREAMBLE_BYTES, SECTION_ENTRY_BYTES, TENSOR_ENTRY_BYTES};
use crate::metadata::{KvType, encode_special_tokens, push_self_test};
use crate::presets::Preset;
use crate::schema::{TensorClass, TensorRole};
use crate::section::SectionKind;
use crate::ternary::TernaryLayout;
use crate::{Archive, ArchiveWriter};

/// A small model with both kinds of padding in every ternary tensor.
fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 44,
        intermediate_size: 37,
        n_layers: 2,
        n_heads: 2,
        vocab_size: 11,
        max_seq_len: 16,
        attention: Attention::Grouped {
            n_kv_heads: 1,
            head_dim: 6,
        },
        ..Preset::Nano.config()
    }
}

fn file() -> Vec<u8> {
    let full = config().intermediate_size;
    file_of(&config(), &[full, full])
}

/// A file whose blocks have these numbers of feed-forward neurons.
fn file_of(config: &ModelConfig, widths: &[usize]) -> Vec<u8> {
    let special = encode_special_tokens(None, &[3]);
    let mut tests = Vec::new();
    push_self_test(&mut tests, KvType::Native, &[1, 2], 7);
    let sections = [
        (SectionKind::TokenizerJson, &b"{}"[..]),
        (SectionKind::SpecialTokens, &special),
        (SectionKind::SelfTest, &tests),
    ];
    let out = Cursor::new(Vec::new());
    let mut writer = ArchiveWriter::with_ffn_widths(out, config, widths, &sections).unwrap();
    while let Some(spec) = writer.next_tensor() {
        let dtype = match spec.role {
            TensorRole::Embedding => Dtype::I8Rows,
            TensorRole::Q => Dtype::Ternary(TernaryLayout::T2R16),
            role if role.class() == TensorClass::Ternary => Dtype::Ternary(TernaryLayout::T5R16),
            _ => Dtype::F32,
        };
        let ternary = spec.role.class() == TensorClass::Ternary;
        writer
            .begin_tensor(dtype, if ternary { 1.5 } else { 0.0 })
            .unwrap();
        let zero = if spec.role == TensorRole::Q { 0x55 } else { 0 };
        let bytes = dtype.payload_bytes(spec.rows, spec.cols) as usize;
        writer.write_all(&vec![zero; bytes]).unwrap();
    }
    writer.finish().unwrap().into_inner().into_inner()
}

/// Makes all checksums match again, so that only the damage itself is wrong.
fn reseal(bytes: &mut [u8]) {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (n_sections, n_tensors) = (word(bytes, 32) as usize, word(bytes, 36) as usize);
    for i in 0..n_sections.min(5) {
        let at = section(i);
        let (offset, len) = (word(bytes, at + 8) as usize, word(bytes, at + 16) as usize);
        if let Some(section) = bytes.get(offset..offset.saturating_add(len)) {
            let crc = crc32fast::hash(section);
            bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let header = PREAMBLE_BYTES + n_sections * SECTION_ENTRY_BYTES + n_tensors * TENSOR_ENTRY_BYTES;
    if let Some(tables) = bytes.get(PREAMBLE_BYTES..header) {
        let crc = crc32fast::hash(tables);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[PREAMBLE_BYTES..]);
    bytes[44..48].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// What verifying finds. Who leaves decoding to others finds the same, but for what they will find.
fn check(bytes: &[u8]) -> Result<(), FormatError> {
    let archive = Archive::open(bytes)?;
    let found = archive.verify();
    let undecoded = match found {
        Err(FormatError::Tensor {
            problem: TensorProblem::Packed(_),
            ..
        }) => Ok(()),
        found => found,
    };
    assert_eq!(archive.verify_undecoded(), undecoded);
    found
}

// Places in the file: 5 sections and 25 tensors make a header of 1824 bytes.
const CONFIG: u64 = 1_856;
const TOKENIZER: usize = 1_920;
const SPECIAL: usize = 1_984;
const SELF_TEST: usize = 2_048;
const WEIGHTS: usize = 2_112;
const FILE: u64 = 8_816;

fn section(index: usize) -> usize {
    PREAMBLE_BYTES + index * SECTION_ENTRY_BYTES
}

fn tensor(index: usize) -> usize {
    section(5) + index * TENSOR_ENTRY_BYTES
}

#[test]
fn the_undamaged_file_is_valid_and_reads_back() {
    let bytes = file();
    let archive = Archive::open(&bytes).unwrap();
    archive.verify().unwrap();
    assert_eq!(*archive.config(), config());
    assert_eq!(archive.text(SectionKind::TokenizerJson), Some("{}"));
    assert_eq!(
        archive
            .special_tokens()
            .unwrap()
            .stop_ids()
            .collect::<Vec<_>>(),
        [3]
    );
    assert_eq!(archive.self_tests().count(), 1);
    let q = archive.ternary(TensorRole::Q, Some(1)).unwrap();
    assert_eq!(
        (q.rows, q.cols, q.scale, q.layout),
        (12, 44, 1.5, TernaryLayout::T2R16)
    );
    assert_eq!(
        archive.vector(TensorRole::FinalNorm, None).unwrap().len(),
        44
    );
    assert!(archive.matrix(TensorRole::Head).is_none());
    assert!(archive.ternary(TensorRole::Q, Some(2)).is_none());
    assert!(archive.ternary(TensorRole::AttnNorm, Some(0)).is_none());
}

/// The bytes of a small file, as one number: it may change only with the format's version.
#[test]
fn the_format_has_not_moved() {
    assert_eq!(crc32fast::hash(&file()), 2_767_877_454);
}

/// Damage with good checksums: each rule of the format must be found by its own check.
#[test]
fn every_rule_has_its_error() {
    type Damage = fn(&mut Vec<u8>);
    let tensor_problem = |index, problem| FormatError::Tensor { index, problem };
    let cases: &[(&str, Damage, FormatError)] = &[
        ("magic", |b| b[0] = b'X', FormatError::NotBtn),
        (
            "version",
            |b| b[8] = 2,
            FormatError::Version {
                found: 2,
                supported: 1,
            },
        ),
        (
            "feature",
            |b| b[25] = 1,
            FormatError::Features { unknown: 256 },
        ),
        (
            "preamble reserved",
            |b| b[50] = 1,
            FormatError::Reserved { offset: 48 },
        ),
        (
            "sections",
            |b| b[32] = 65,
            FormatError::TooManySections { found: 65, max: 64 },
        ),
        (
            "tensors",
            |b| b[36] += 1,
            FormatError::SectionPlace {
                index: 0,
                expected: CONFIG + 64,
                found: CONFIG,
            },
        ),
        (
            "trailing",
            |b| b.push(0),
            FormatError::TrailingBytes {
                stated: FILE,
                found: FILE + 1,
            },
        ),
        (
            "section flag",
            |b| b[section(1) + 4] = 2,
            FormatError::Reserved { offset: 100 },
        ),
        (
            "section reserved",
            |b| b[section(0) + 28] = 2,
            FormatError::Reserved { offset: 92 },
        ),
        (
            "unknown required",
            |b| {
                b[section(1)] = 99;
                b[section(1) + 4] = 1
            },
            FormatError::UnknownSection { kind: 99 },
        ),
        (
            "duplicate",
            |b| b[section(1)] = 18,
            FormatError::DuplicateSection(SectionKind::SpecialTokens),
        ),
        (
            "missing config",
            |b| {
                b[section(0)] = 99;
                b[section(0) + 4] = 0
            },
            FormatError::MissingSection(SectionKind::Config),
        ),
        (
            "missing weights",
            |b| {
                b[section(4)] = 99;
                b[section(4) + 4] = 0
            },
            FormatError::MissingSection(SectionKind::Weights),
        ),
        (
            "section length",
            |b| b[section(4) + 16] += 1,
            FormatError::Truncated {
                needed: FILE + 1,
                found: FILE,
            },
        ),
        (
            "config version",
            |b| b[CONFIG as usize] = 9,
            FormatError::ConfigVersion {
                found: 9,
                supported: 2,
            },
        ),
        (
            "config content",
            |b| b[CONFIG as usize + 2] = 0,
            FormatError::Config(crate::ConfigError::OutOfRange {
                field: "hidden_size",
                value: 0,
                max: 65_535,
            }),
        ),
        (
            "tokenizer text",
            |b| b[TOKENIZER] = 0xff,
            FormatError::SectionContent(SectionKind::TokenizerJson),
        ),
        (
            "special tokens",
            |b| b[SPECIAL + 4] = 9,
            FormatError::SectionContent(SectionKind::SpecialTokens),
        ),
        (
            "self-test id",
            |b| b[SELF_TEST + 16] = 11,
            FormatError::SectionContent(SectionKind::SelfTest),
        ),
        (
            "role",
            |b| b[tensor(3)] = 20,
            tensor_problem(3, TensorProblem::Identity),
        ),
        (
            "layer",
            |b| b[tensor(3) + 2] = 1,
            tensor_problem(3, TensorProblem::Identity),
        ),
        (
            "dtype",
            |b| b[tensor(3) + 4] = 16,
            tensor_problem(3, TensorProblem::Dtype(16)),
        ),
        (
            "granularity",
            |b| b[tensor(3) + 5] = 1,
            tensor_problem(3, TensorProblem::Granularity(1)),
        ),
        (
            "rows",
            |b| b[tensor(3) + 8] = 13,
            tensor_problem(
                3,
                TensorProblem::Shape {
                    expected: (12, 44),
                    found: (13, 44),
                },
            ),
        ),
        (
            "tensor reserved",
            |b| b[tensor(0) + 63] = 1,
            FormatError::Reserved { offset: 260 },
        ),
        (
            "scale",
            |b| b[tensor(3) + 35] = 0xff,
            tensor_problem(
                3,
                TensorProblem::Scale(f32::from_le_bytes([0, 0, 0xc0, 0xff])),
            ),
        ),
        (
            "dense scale",
            |b| b[tensor(2) + 33] = 1,
            tensor_problem(2, TensorProblem::Scale(f32::from_bits(256))),
        ),
        (
            "packed head",
            |b| b[tensor(3) + 4] = 2,
            tensor_problem(3, TensorProblem::Packed(PackedError::Head)),
        ),
        (
            "packed chunk",
            |b| {
                b[tensor(3) + 4] = 2;
                let start = u16::from_le_bytes([b[tensor(3) + 16], b[tensor(3) + 17]]);
                b[usize::from(start)] = 0;
            },
            tensor_problem(3, TensorProblem::Packed(PackedError::Chunk { index: 0 })),
        ),
        (
            "packed length",
            |b| {
                b[tensor(3) + 4] = 2;
                b[tensor(3) + 24] = 0;
            },
            tensor_problem(
                3,
                TensorProblem::Place {
                    expected: (2_944, 1),
                    found: (2_944, 0),
                },
            ),
        ),
        (
            "embedding scale",
            |b| b[WEIGHTS..WEIGHTS + 4].copy_from_slice(&[0, 0, 0x80, 0x7f]),
            tensor_problem(0, TensorProblem::NonFinite { row: 0 }),
        ),
        (
            "tensor padding",
            |b| b[WEIGHTS + 64 + 11 * 44] = 1,
            tensor_problem(
                0,
                TensorProblem::Padding {
                    offset: (WEIGHTS + 64 + 11 * 44) as u64,
                },
            ),
        ),
        (
            "section padding",
            |b| b[TOKENIZER + 2] = 1,
            FormatError::Reserved {
                offset: TOKENIZER as u64 + 2,
            },
        ),
    ];
    let mut failures = Vec::new();
    for (name, damage, expected) in cases {
        let mut bytes = file();
        damage(&mut bytes);
        reseal(&mut bytes);
        match check(&bytes) {
            // NaN scales compare by their text.
            Err(error) if format!("{error:?}") == format!("{expected:?}") => (),
            other => failures.push(format!("{name}: {other:?}, expected {expected:?}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn bytes_that_are_no_code_and_padding_trits_are_found() {
    let bytes = file();
    let archive = Archive::open(&bytes).unwrap();
    let entries: Vec<_> = archive.tensors().collect();
    for (index, (spec, entry)) in entries.iter().enumerate() {
        if spec.role.class() != TensorClass::Ternary {
            continue;
        }
        let (bad, last_row) = match spec.role {
            TensorRole::Q => (0x57, 0x56),
            _ => (10, 1),
        };
        let mut damaged = bytes.clone();
        damaged[entry.offset as usize + 3] = bad;
        reseal(&mut damaged);
        let problem = TensorProblem::NotACode {
            offset: entry.offset + 3,
            byte: bad,
        };
        assert_eq!(check(&damaged), Err(FormatError::Tensor { index, problem }));
        let mut damaged = bytes.clone();
        let end = (entry.offset + entry.bytes) as usize;
        damaged[end - 1] = last_row;
        reseal(&mut damaged);
        let problem = TensorProblem::Padding {
            offset: end as u64 - 64,
        };
        assert_eq!(
            check(&damaged),
            Err(FormatError::Tensor { index, problem }),
            "{spec:?}"
        );
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_an_error() {
    let bytes = file();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(check(&damaged).is_err(), "bit flipped in byte {at}");
    }
    for len in 0..bytes.len() {
        assert!(
            matches!(check(&bytes[..len]), Err(FormatError::Truncated { .. })),
            "cut to {len}"
        );
    }
}

#[test]
fn short_files_that_begin_otherwise_are_not_btn_files() {
    assert_eq!(check(b"hello"), Err(FormatError::NotBtn));
    let (needed, found) = (64, 3);
    assert_eq!(
        check(b"\x89BT"),
        Err(FormatError::Truncated { needed, found })
    );
}

#[test]
fn checksums_are_named() {
    let damaged = |at: usize| {
        let mut bytes = file();
        bytes[at] ^= 0x10;
        match check(&bytes) {
            Err(FormatError::Checksum { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(damaged(17), Covered::Preamble);
    assert_eq!(damaged(tensor(5) + 33), Covered::Tables);
    assert_eq!(damaged(file().len() - 64), Covered::Section(4));
    assert_eq!(damaged(TOKENIZER + 2), Covered::Body);
}

/// No header however mad may panic or read out of bounds, with good checksums or without.
#[test]
fn random_headers_do_not_panic() {
    let bytes = file();
    let mut state = 1u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut opened = 0;
    for _ in 0..20_000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + random() % 3 {
            let at = 12 + random() % (WEIGHTS - 12);
            damaged[at] = [0, 1, 0x7f, 0x80, 0xff, random() as u8][random() % 6];
        }
        reseal(&mut damaged);
        if let Ok(archive) = Archive::open(&damaged) {
            opened += 1;
            let _ = archive.verify();
            archive
                .self_tests()
                .for_each(|test| test.ids().for_each(drop));
        }
    }
    assert!(
        opened > 1_000,
        "only {opened} damaged files were opened: the test sees too little"
    );
}

/// The rows of a block's gate say how many neurons it has: some, no more than the configuration allows,
/// as many as its other tensors, and in a file that may have fewer at all.
#[test]
fn widths_of_blocks_are_not_believed() {
    let full = config();
    let pruned = ModelConfig {
        pruned_ffn: true,
        ..full
    };
    let widths = [20, 37];
    check(&file_of(&pruned, &widths)).unwrap();
    let index = |role| full.tensor_index(role, Some(0)).unwrap();
    let (gate, up, down) = (
        index(TensorRole::Gate),
        index(TensorRole::Up),
        index(TensorRole::Down),
    );
    // Rows and columns of a tensor of 20 neurons, as they are and as they are stated.
    let cases = [
        (gate, (37, 44), (0u32, 44u32)),
        (gate, (37, 44), (38, 44)),
        (gate, (37, 44), (u32::MAX, 44)),
        (gate, (20, 44), (20, 43)),
        (up, (20, 44), (19, 44)),
        (up, (20, 44), (37, 44)),
        (down, (44, 20), (44, 0)),
        (down, (44, 20), (44, 37)),
    ];
    for (index, expected, found) in cases {
        let mut bytes = file_of(&pruned, &widths);
        let at = tensor(index) + 8;
        bytes[at..at + 4].copy_from_slice(&found.0.to_le_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&found.1.to_le_bytes());
        reseal(&mut bytes);
        let problem = TensorProblem::Shape { expected, found };
        let error = FormatError::Tensor { index, problem };
        assert_eq!(check(&bytes), Err(error), "{found:?}");
    }
    // A legal width of another payload.
    let mut bytes = file_of(&pruned, &widths);
    bytes[tensor(gate) + 8] = 37;
    reseal(&mut bytes);
    let error = check(&bytes).unwrap_err();
    let place = |problem| matches!(problem, TensorProblem::Place { .. });
    assert!(
        matches!(error, FormatError::Tensor { index, problem } if index == gate && place(problem)),
        "{error:?}"
    );
    // Fewer neurons in a file that does not say it may have fewer.
    let mut bytes = file();
    bytes[tensor(gate) + 8] = 20;
    reseal(&mut bytes);
    let problem = TensorProblem::Shape {
        expected: (37, 44),
        found: (20, 44),
    };
    let error = FormatError::Tensor {
        index: gate,
        problem,
    };
    assert_eq!(check(&bytes), Err(error));
    let writer = |widths: &[usize]| {
        let out = Cursor::new(Vec::new());
        ArchiveWriter::with_ffn_widths(out, &pruned, widths, &[]).is_ok()
    };
    assert!(writer(&[1, 37]));
    assert!(!writer(&[0, 37]) && !writer(&[38, 37]) && !writer(&[20]));
}
