//! Calls that cannot be served change nothing.

use bitnet_formats::Preset;
use bitnet_runtime::{RunError, Want};
use bitnet_tests::synthetic::{Storage, model};
use bitnet_tests::{Run, with_session};

#[test]
fn each_misuse_has_its_error_and_leaves_the_session_as_it_was() {
    let file = model(&Preset::Nano.config(), Storage::default(), 1);
    with_session(
        &file,
        Run {
            prefill_batch: 4,
            ..Run::default()
        },
        |session| {
            let expected = session.prefill(&[1, 2, 3]).unwrap().to_vec();
            session.truncate(0).unwrap();

            assert_eq!(session.prefill(&[]).unwrap_err(), RunError::Empty);
            let token = RunError::Token {
                id: 512,
                vocab_size: 512,
            };
            assert_eq!(session.prefill(&[1, 512]).unwrap_err(), token);
            let full = RunError::ContextFull {
                used: 0,
                asked: 257,
                max: 256,
            };
            assert_eq!(session.prefill(&[1; 257]).unwrap_err(), full);
            let chunk = RunError::Chunk { asked: 5, max: 4 };
            assert_eq!(session.begin(&[1; 5], Want::Last).unwrap_err(), chunk);
            let position = RunError::Position { asked: 1, used: 0 };
            assert_eq!(session.truncate(1).unwrap_err(), position);

            session.begin(&[1], Want::Last).unwrap();
            session.step(1).unwrap();
            assert_eq!(session.begin(&[1], Want::Last).unwrap_err(), RunError::Busy);
            assert_eq!(session.decode(1).unwrap_err(), RunError::Busy);
            assert_eq!(session.truncate(0).unwrap_err(), RunError::Busy);
            session.cancel();

            assert_eq!(session.prefill(&[1, 2, 3]).unwrap(), expected);
            assert_eq!(session.remaining(), 253);
        },
    );
}

/// Weights a verified file cannot hold: the error names the block, and nothing is NaN silently.
#[test]
fn a_value_that_overflows_is_an_error() {
    let config = Preset::Nano.config();
    let mut file = model(&config, Storage::default(), 1);
    let archive = bitnet_runtime::Archive::open(&file).unwrap();
    let entry = archive
        .tensors()
        .find(|(spec, _)| spec.layer == Some(2))
        .unwrap()
        .1;
    let at = entry.offset as usize;
    file[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    with_session(&file, Run::default(), |session| {
        let error = session.prefill(&[1, 2]).unwrap_err();
        assert_eq!(error, RunError::NonFinite { layer: 2 });
        assert_eq!(session.position(), 0);
        assert!(!session.is_busy());
    });
}
