//! The model that ships with the project: small, intact, and computed here as it was where it was made.

use std::path::Path;

use bitnet_runtime::{Archive, TernaryLayout, WeightHold};
use bitnet_tests::{Run, logits_hash};

fn shipped() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/austen-nano.btn");
    std::fs::read(path).expect("the model ships with the project")
}

#[test]
fn the_file_is_valid_and_small() {
    let bytes = shipped();
    assert!(bytes.len() < 1_000_000, "{} bytes", bytes.len());
    Archive::open(&bytes).unwrap().verify().unwrap();
}

/// The hashes in the file were computed once; every later version and machine must find the same.
#[test]
fn its_self_test_vectors_hold_in_every_layout() {
    let bytes = shipped();
    let archive = Archive::open(&bytes).unwrap();
    let mut cases = 0;
    for case in archive.self_tests() {
        let ids: Vec<u32> = case.ids().collect();
        for hold in [WeightHold::InPlace, WeightHold::Copy(TernaryLayout::T2R16)] {
            let mut run = Run {
                kv: case.kv,
                ..Run::default()
            };
            run.load.hold = hold;
            assert_eq!(
                logits_hash(&bytes, &ids, run),
                case.logits_hash,
                "{ids:?} {hold:?}"
            );
            cases += 1;
        }
    }
    assert_eq!(cases, 6);
}
