//! A model that is too large for flash, loaded into memory at [`MODEL`] by a boot program, or by
//! QEMU: `-device loader,file=model.btn,addr=0x60000000,force-raw=on`.
//!
//! Its memory plan is computed from the file at run time; the buffers are cut from memory at [`ARENA`].
//!
//! Command line: `bytes=N` (the length of the file), `ids=40,83,305`, `tokens=4`, `context=32`.
#![no_std]
#![no_main]

use bitnet_firmware::board::NAME;
use bitnet_firmware::console::{LINE_BYTES, argument, command_line, exit, print};
use bitnet_firmware::counter::Counter;
use bitnet_firmware::figures::{MAX_PROMPT, generate, parse_ids};
use bitnet_firmware::stack;
use bitnet_runtime::{
    Archive, KvType, LoadOptions, LogitsHash, Model, RunError, Session, SessionConfig,
};
use cortex_m_rt::entry;

/// Where the file is: the external memory of mps3-an547.
const MODEL: usize = 0x6000_0000;
/// Most bytes of a file.
const MODEL_BYTES: usize = 1 << 30;
/// Where the buffers are: above it.
const ARENA: usize = MODEL + MODEL_BYTES;
/// Bytes for them.
const ARENA_BYTES: usize = 512 << 20;

#[entry]
fn main() -> ! {
    let peripherals = cortex_m::Peripherals::take().expect("main runs once");
    let counter = Counter::start(peripherals.SYST);
    let mut line = [0; LINE_BYTES];
    exit(run(&counter, command_line(&mut line)))
}

fn run(counter: &Counter, line: &str) -> bool {
    let number = |name, default| argument(line, name).map_or(Some(default), |n| n.parse().ok());
    let mut ids = [0; MAX_PROMPT];
    let prompt = parse_ids(argument(line, "ids").unwrap_or("40,83,305"), &mut ids);
    let (Some(n), Some(bytes), Some(tokens), Some(context)) = (
        prompt,
        number("bytes", 0),
        number("tokens", 4),
        number("context", 32),
    ) else {
        print(format_args!("# not understood: {line}\n"));
        return false;
    };
    // SAFETY: the board has memory there that nothing else in the program uses: code, statics and
    // stack are elsewhere by the linker's layout, and the two ranges do not overlap. `main` runs
    // once, so the exclusive borrow is the only one.
    let (file, arena) = unsafe {
        (
            core::slice::from_raw_parts(MODEL as *const u8, bytes.min(MODEL_BYTES)),
            core::slice::from_raw_parts_mut(ARENA as *mut u8, ARENA_BYTES),
        )
    };
    let archive = match Archive::open(file) {
        Ok(archive) => archive,
        Err(error) => {
            print(format_args!("# the model: {error}\n"));
            return false;
        }
    };
    let config = SessionConfig {
        max_seq_len: context,
        prefill_batch: 1,
        kv: KvType::Native,
        threads: 1,
    };
    match report(counter, &archive, arena, &config, &ids[..n], tokens) {
        Ok(ok) => ok,
        Err(error) => {
            print(format_args!("\n# {error}\n"));
            false
        }
    }
}

fn report(
    counter: &Counter,
    archive: &Archive<'_>,
    arena: &mut [u8],
    config: &SessionConfig,
    prompt: &[u32],
    tokens: usize,
) -> Result<bool, RunError> {
    let model = Model::load(archive, &mut [], &LoadOptions::default())?;
    let plan = model.plan(config)?;
    let (kv, scratch) = arena.split_at_mut(plan.kv_bytes);
    let mut session = Session::new(&model, kv, scratch, config)?;
    print(format_args!(
        "# board {NAME}, kernels {}\n",
        model.kernels().isa().name()
    ));
    print(format_args!(
        "# cache {} B, scratch {} B\n",
        plan.kv_bytes, plan.scratch_bytes
    ));
    let same = first_vector(&mut session)?;
    session.truncate(0)?;
    generate(&mut session, counter, prompt, tokens)?;
    let (used, available) = stack::high_water();
    print(format_args!("# stack {used} B of {available} B\n"));
    Ok(same)
}

/// Replays the first self-test vector of the file, which is a single token.
fn first_vector(session: &mut Session<'_, '_, '_>) -> Result<bool, RunError> {
    let Some(case) = session.model().archive().self_tests().next() else {
        print(format_args!("# the file has no self-test vectors\n"));
        return Ok(false);
    };
    let mut hash = LogitsHash::new();
    for id in case.ids() {
        session.score(&[id], |_, logits| hash.update(logits))?;
    }
    let ok = hash.finish() == case.logits_hash;
    let verdict = if ok {
        "as in the file"
    } else {
        "NOT as in the file"
    };
    print(format_args!(
        "# self-test {:016x}: {verdict}\n",
        hash.finish()
    ));
    Ok(ok)
}
