//! Everything that the core does without `std`, in a library with a panic handler of its own.
//!
//! If a crate below links `std`, there are two panic handlers; if one links `alloc`, there is no
//! global allocator. Either way this does not build, on targets whose toolchain has both.
#![no_std]

use bitnet_formats::fixed::config_of;
use bitnet_runtime::{
    Archive, KvType, LoadOptions, LogitsHash, MemoryPlan, Model, RunError, Sampler, SamplerConfig,
    Session, SessionConfig, Step, Want,
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What a caller lends: a file, and buffers that begin on multiples of 64.
#[repr(C)]
pub struct Lent<'a> {
    file: &'a [u8],
    kv: &'a mut [u8],
    scratch: &'a mut [u8],
}

/// Reads `id`, samples ten tokens, and returns a hash of their logits; 0 where something is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn bitnet_no_std(lent: &mut Lent<'_>, id: u32) -> u64 {
    run(lent, id).unwrap_or(0)
}

fn run(lent: &mut Lent<'_>, id: u32) -> Result<u64, RunError> {
    let Ok(archive) = Archive::open(lent.file) else {
        return Ok(0);
    };
    if archive.verify().is_err() || config_of(lent.file).as_ref() != Some(archive.config()) {
        return Ok(0);
    }
    let config = SessionConfig {
        max_seq_len: 16,
        prefill_batch: 2,
        kv: KvType::Native,
        threads: 1,
    };
    let plan = MemoryPlan::new(archive.config(), &config)?;
    if plan.kv_bytes > lent.kv.len() {
        return Ok(0);
    }
    let model = Model::load(&archive, &mut [], &LoadOptions::default())?;
    let mut session = Session::new(&model, lent.kv, lent.scratch, &config)?;
    decode(&mut session, id)
}

fn decode(session: &mut Session<'_, '_, '_>, mut id: u32) -> Result<u64, RunError> {
    let mut hash = LogitsHash::new();
    let mut sampler = Sampler::new(SamplerConfig::default());
    session.prefill(&[id, id])?;
    session.truncate(1)?;
    for _ in 0..10 {
        session.begin(&[id], Want::Last)?;
        while session.step(7)? != Step::Done {}
        hash.update(session.logits());
        id = sampler.sample(session.logits(), &mut []);
    }
    Ok(hash.finish())
}
