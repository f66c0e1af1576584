//! Any bytes as a `.btn` file: opened, verified, listed, and run for a token where it is small.
//!
//! Checksums are mended first, so that what is behind them is reached.
#![no_main]

use bitnet_formats::header::PREAMBLE_BYTES;
use bitnet_runtime::{AlignedBuffer, Archive, LoadOptions, Model, Session, SessionConfig};
use libfuzzer_sys::fuzz_target;

/// Most scratch or cache that a run may take here.
const MOST_BYTES: usize = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    mend(&mut bytes);
    let Ok(archive) = Archive::open(&bytes) else {
        return;
    };
    // Damaged values behind sound tables must not break memory safety.
    _ = archive.verify();
    _ = bitnet_converter::inspect::Listing(&archive).to_json();
    run(&archive);
});

fn run(archive: &Archive<'_>) {
    let Ok(model) = Model::load(archive, &mut [], &LoadOptions::default()) else {
        return;
    };
    let config = SessionConfig {
        max_seq_len: 2.min(model.config().max_seq_len),
        prefill_batch: 2,
        kv: bitnet_runtime::KvType::F32,
        threads: 1,
    };
    let Ok(plan) = model.plan(&config) else {
        return;
    };
    if plan.kv_bytes.max(plan.scratch_bytes) > MOST_BYTES {
        return;
    }
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    if let Ok(mut session) = Session::new(&model, &mut kv, &mut scratch, &config) {
        _ = session.prefill(&[0]);
    }
}

/// Length, checksum of the tables, checksum of the preamble: SPEC.md, "Preamble".
fn mend(bytes: &mut [u8]) {
    if bytes.len() < PREAMBLE_BYTES {
        return;
    }
    let length = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    let count = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (sections, tensors) = (count(32), count(36));
    let end = PREAMBLE_BYTES
        .saturating_add(sections.saturating_mul(32))
        .saturating_add(tensors.saturating_mul(64));
    if let Some(tables) = bytes.get(PREAMBLE_BYTES..end) {
        let crc = crc32fast::hash(tables);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
}
