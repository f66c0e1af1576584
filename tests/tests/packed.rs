//! Packed files: the same model, decoded when it is loaded.

use bitnet_formats::{Dtype, FormatError, ModelConfig, Preset};
use bitnet_runtime::{
    AlignedBuffer, Archive, LoadOptions, Model, RunError, TensorClass, TernaryLayout, Threads,
    WeightHold, repack, weight_plan,
};
use bitnet_tests::packed::packed;
use bitnet_tests::random::Random;
use bitnet_tests::synthetic::{Storage, model, random_config};
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
        let plain = model(&config, Storage::default(), random.bits());
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
    let plain = model(&wide(), Storage::default(), 9);
    let file = packed(&plain);
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
        let expected = buffer(&plain, None);
        assert!(buffer(&file, None) == expected, "{layout:?}");
        for threads in [1, 2, 5] {
            assert!(buffer(&plain, Some(threads)) == expected, "{layout:?}");
            assert!(buffer(&file, Some(threads)) == expected, "{layout:?}");
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

/// Any byte of a packed tensor may be wrong: loading gives an error or some model, verifying an error.
#[test]
fn damaged_weights_are_an_error() {
    let mut random = Random(8);
    let file = packed(&model(&Preset::Nano.config(), Storage::default(), 4));
    let archive = Archive::open(&file).unwrap();
    let entries = archive.tensors().map(|(_, entry)| entry);
    let is_packed = |dtype| Dtype::from_code(dtype) == Some(Dtype::Packed);
    let entries: Vec<_> = entries.filter(|entry| is_packed(entry.dtype)).collect();
    let mut errors = 0;
    for _ in 0..150 {
        let entry = random.pick(&entries);
        // Every other time the head: elsewhere most damage gives other trits, which checksums find.
        let reach = random.pick(&[4, entry.bytes as usize]);
        let at = entry.offset as usize + random.below(reach);
        let mut damaged = file.clone();
        damaged[at] ^= 1 << random.below(8);
        let archive = Archive::open(&damaged).unwrap();
        assert!(matches!(
            archive.verify(),
            Err(FormatError::Checksum { .. })
        ));
        let options = copied(random.pick(&LAYOUTS));
        let mut buffer = AlignedBuffer::zeroed(weight_plan(&archive, &options).unwrap());
        let serial = Model::load(&archive, &mut buffer, &options).err();
        let mut buffer = AlignedBuffer::zeroed(buffer.len());
        let threads = Threads::new(3);
        let parallel = Model::load_on(&threads, &archive, &mut buffer, &options).err();
        assert_eq!(serial, parallel);
        if let Some(error) = serial {
            assert!(matches!(error, RunError::Packed { .. }), "{error}");
            errors += 1;
        }
    }
    assert!(errors > 30, "{errors} of 150 found without checksums");
}

/// How fast one core decodes, beside repacking T5 as T2, over the same matrices in turns. Run by hand:
/// `cargo test --release -p bitnet-tests --test packed -- --ignored --nocapture`.
#[test]
#[ignore = "a timing"]
fn decode_rate() {
    let plain = model(&wide(), Storage::default(), 1);
    let file = packed(&plain);
    let [plain, archive] = [&plain, &file].map(|file| Archive::open(file).unwrap());
    let specs = plain.config().tensors();
    let ternary = specs.filter(|spec| spec.role.class() == TensorClass::Ternary);
    let widest = ternary.max_by_key(|spec| spec.rows * spec.cols).unwrap();
    let t5 = plain.ternary(widest.role, widest.layer).unwrap();
    let coded = archive.packed(widest.role, widest.layer).unwrap().unwrap();
    let mut seconds = [const { Vec::new() }; 2];
    let mut out = vec![0; t5.bytes().len()];
    let mut wide = vec![0; TernaryLayout::T2R16.packed_bytes(t5.rows, t5.cols) as usize];
    for _ in 0..21 {
        let start = std::time::Instant::now();
        coded.decode(&mut out).unwrap();
        seconds[0].push(start.elapsed().as_secs_f64());
        let start = std::time::Instant::now();
        repack(&t5, TernaryLayout::T2R16, &mut wide);
        seconds[1].push(start.elapsed().as_secs_f64());
        assert!(out == t5.bytes());
    }
    for (name, seconds) in ["decode", "repack t5 to t2"].into_iter().zip(&mut seconds) {
        seconds.sort_by(f64::total_cmp);
        let trits = (t5.rows * t5.cols) as f64;
        println!("{name}: {:.2} Gtrit/s", trits / seconds[10] / 1e9);
    }
}
