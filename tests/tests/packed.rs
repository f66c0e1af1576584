//! Packed files: the same model, decoded when it is loaded.

use bitnet_formats::{Dtype, FormatError, ModelConfig, Preset};
use bitnet_runtime::{
    AlignedBuffer, Archive, LoadOptions, Model, RunError, TernaryLayout, Threads, WeightHold,
    weight_plan,
};
use bitnet_tests::packed::packed;
use bitnet_tests::random::Random;
use bitnet_tests::synthetic::{Storage, model, random_config, skewed};
use bitnet_tests::{Run, logits_hash};

const LAYOUTS: [TernaryLayout; 2] = TernaryLayout::ALL;

fn copied(layout: TernaryLayout) -> LoadOptions {
    LoadOptions {
        hold: WeightHold::Copy(layout),
        ..LoadOptions::default()
    }
}

/// Matrices of several chunks, and a shape with remainders everywhere.
fn wide() -> ModelConfig {
    ModelConfig {
        hidden_size: 1_501,
        intermediate_size: 3_003,
        n_layers: 1,
        vocab_size: 50,
        max_seq_len: 16,
        ..Preset::Nano.config()
    }
}

#[test]
fn logits_do_not_change() {
    let mut random = Random(21);
    for _ in 0..25 {
        let config = random_config(&mut random);
        let seed = random.bits();
        let plain = match random.below(2) {
            0 => model(&config, Storage::default(), seed),
            _ => skewed(&config, seed),
        };
        let file = packed(&plain);
        Archive::open(&file).unwrap().verify().unwrap();
        let ids = random.ids(config.max_seq_len, config.vocab_size);
        let expected = logits_hash(&plain, &ids, Run::default());
        for layout in LAYOUTS {
            let run = Run {
                load: copied(layout),
                ..Run::default()
            };
            assert_eq!(logits_hash(&file, &ids, run), expected, "{config:?}");
        }
    }
}

/// The buffer is the one that a copy of the plain file needs, byte for byte, on any number of threads.
#[test]
fn threads_fill_the_buffer_alike() {
    for plain in [model(&wide(), Storage::default(), 9), skewed(&wide(), 9)] {
        fill_alike(&plain, &packed(&plain));
    }
}

fn fill_alike(plain: &[u8], file: &[u8]) {
    for layout in LAYOUTS {
        let buffer = |file: &[u8], threads: Option<usize>| {
            let archive = Archive::open(file).unwrap();
            let options = copied(layout);
            let mut buffer = AlignedBuffer::zeroed(weight_plan(&archive, &options).unwrap());
            buffer.fill(0xcc);
            let loaded = match threads {
                None => Model::load(&archive, &mut buffer, &options),
                Some(n) => Model::load_on(&Threads::new(n), &archive, &mut buffer, &options),
            };
            loaded.unwrap();
            buffer.to_vec()
        };
        let expected = buffer(plain, None);
        assert!(buffer(file, None) == expected, "{layout:?}");
        for threads in [1, 2, 5] {
            assert!(buffer(plain, Some(threads)) == expected, "{layout:?}");
            assert!(buffer(file, Some(threads)) == expected, "{layout:?}");
        }
    }
}

#[test]
fn a_packed_file_does_not_run_in_place() {
    let plain = model(&Preset::Nano.config(), Storage::default(), 4);
    let file = packed(&plain);
    assert!(file.len() < plain.len());
    let [plain, archive] = [&plain, &file].map(|file| Archive::open(file).unwrap());
    let in_place = LoadOptions::default();
    assert_eq!(
        weight_plan(&archive, &in_place),
        Err(RunError::PackedInPlace)
    );
    let error = Model::load(&archive, &mut [], &in_place).unwrap_err();
    assert_eq!(error, RunError::PackedInPlace);
    assert!(error.to_string().contains("--pack t5"));
    assert!(archive.has_packed() && !plain.has_packed());
    assert_eq!(LoadOptions::smallest(&plain), in_place);
    assert_eq!(
        LoadOptions::smallest(&archive),
        copied(TernaryLayout::T5R16)
    );
    for layout in LAYOUTS {
        let [packed, plain] = [&archive, &plain].map(|a| weight_plan(a, &copied(layout)));
        assert_eq!(packed, plain);
    }
}

/// What a program that trusts its files makes of a damaged one.
enum Loaded {
    Error,
    /// As bytes of the weight buffer.
    Weights(Vec<u8>),
}

fn load(file: &[u8], layout: TernaryLayout, threads: Option<&Threads>) -> Loaded {
    let archive = Archive::open(file).unwrap();
    let options = copied(layout);
    let mut buffer = AlignedBuffer::zeroed(weight_plan(&archive, &options).unwrap());
    let model = match threads {
        None => Model::load(&archive, &mut buffer, &options),
        Some(threads) => Model::load_on(threads, &archive, &mut buffer, &options),
    };
    match model.err() {
        None => Loaded::Weights(buffer.to_vec()),
        Some(RunError::Packed { .. }) => Loaded::Error,
        Some(error) => panic!("{error}"),
    }
}

/// Files with a bit of a packed tensor changed, in every other case near its head.
fn damaged(file: &[u8], n: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut random = Random(8);
    let archive = Archive::open(file).unwrap();
    let is_packed = |dtype| Dtype::from_code(dtype) == Some(Dtype::Packed);
    let entries = archive.tensors().map(|(_, entry)| entry);
    let entries: Vec<_> = entries.filter(|entry| is_packed(entry.dtype)).collect();
    (0..n).map(move |_| {
        let entry = random.pick(&entries);
        let reach = random.pick(&[40, entry.bytes as usize]);
        let at = entry.offset as usize + random.below(reach);
        let mut damaged = file.to_vec();
        damaged[at] ^= 1 << random.below(8);
        damaged
    })
}

/// Verifying finds every damage. What trusts the file gets an error or other weights, in the same way
/// on any number of threads: never bytes that are no code, and never the weights that were meant.
///
/// Chunks of classes end in states that hardly any other bytes lead to. Flat ones have no bits to
/// spare: nearly every number is that of some trits.
#[test]
fn damage_is_found_or_changes_weights() {
    let config = Preset::Nano.config();
    let flat = packed(&model(&config, Storage::default(), 4));
    let classes = packed(&skewed(&config, 4));
    let threads = Threads::new(3);
    for (file, least_errors) in [(flat, 0), (classes, 150)] {
        let mut errors = 0;
        for (damaged, layout) in damaged(&file, 150).zip(LAYOUTS.into_iter().cycle()) {
            let verified = Archive::open(&damaged).unwrap().verify();
            assert!(matches!(verified, Err(FormatError::Checksum { .. })));
            let in_turn = load(&damaged, layout, None);
            match (in_turn, load(&damaged, layout, Some(&threads))) {
                (Loaded::Error, Loaded::Error) => errors += 1,
                (Loaded::Weights(found), Loaded::Weights(parallel)) => {
                    assert!(found == parallel);
                    assert!(found.iter().all(|byte| layout.is_code(*byte)));
                    let Loaded::Weights(meant) = load(&file, layout, None) else {
                        panic!("the file itself loads");
                    };
                    assert!(found != meant, "damage without effect");
                }
                _ => panic!("threads disagree"),
            }
        }
        assert!(errors >= least_errors, "{errors} of 150 are errors");
    }
}
