//! A model in flash writes text.
//!
//! The model is part of the program, so its memory plan is known while the program is compiled: the
//! buffers are statics of exactly the planned size, and a model or context that does not fit the
//! board does not compile.
//!
//! Command line: `ids=40,83,305` (the prompt), `tokens=40` (how many to write).
#![no_std]
#![no_main]

use bitnet_firmware::Aligned;
use bitnet_firmware::board::{NAME, RAM_BYTES};
use bitnet_firmware::console::{LINE_BYTES, argument, command_line, exit, print};
use bitnet_firmware::counter::Counter;
use bitnet_firmware::figures::{MAX_PROMPT, generate, largest_step, parse_ids, self_test};
use bitnet_firmware::stack;
use bitnet_formats::fixed::config_of;
use bitnet_runtime::{
    Archive, KvType, LoadOptions, MemoryPlan, Model, ModelConfig, Session, SessionConfig,
};
use cortex_m_rt::entry;

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("BITNET_MODEL")));

const CONFIG: ModelConfig = match config_of(&MODEL.0) {
    Some(config) => config,
    None => panic!("BITNET_MODEL is no .btn file of this version"),
};

const SESSION: SessionConfig = SessionConfig {
    max_seq_len: 128,
    prefill_batch: 1,
    kv: KvType::Native,
    threads: 1,
};

const PLAN: MemoryPlan = match MemoryPlan::new(&CONFIG, &SESSION) {
    Ok(plan) => plan,
    Err(_) => panic!("128 positions do not fit the model"),
};

/// What is left for the stack and a few statics; the stack's mark is printed, and checked here.
const STACK_BYTES: usize = 16 << 10;

const _: () = assert!(
    PLAN.kv_bytes + PLAN.scratch_bytes + STACK_BYTES <= RAM_BYTES,
    "the model does not fit the memory of the board"
);

#[entry]
fn main() -> ! {
    static mut KV: Aligned<[u8; PLAN.kv_bytes]> = Aligned([0; PLAN.kv_bytes]);
    static mut SCRATCH: Aligned<[u8; PLAN.scratch_bytes]> = Aligned([0; PLAN.scratch_bytes]);
    let peripherals = cortex_m::Peripherals::take().expect("main runs once");
    let counter = Counter::start(peripherals.SYST);
    exit(run(&counter, &mut KV.0, &mut SCRATCH.0))
}

fn run(counter: &Counter, kv: &mut [u8], scratch: &mut [u8]) -> bool {
    let mut line = [0; LINE_BYTES];
    let line = command_line(&mut line);
    let mut ids = [0; MAX_PROMPT];
    let prompt = argument(line, "ids").unwrap_or("40,83,305");
    let Some(n) = parse_ids(prompt, &mut ids) else {
        print(format_args!(
            "# ids={prompt}: at most {MAX_PROMPT} numbers with commas\n"
        ));
        return false;
    };
    let tokens = argument(line, "tokens").map_or(Ok(40), str::parse);
    let Ok(tokens) = tokens else {
        print(format_args!("# tokens= needs a number: {line:?}\n"));
        return false;
    };
    let archive = match Archive::open(&MODEL.0) {
        Ok(archive) => archive,
        Err(error) => {
            print(format_args!("# the model: {error}\n"));
            return false;
        }
    };
    match report(counter, &archive, (kv, scratch), &ids[..n], tokens) {
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
    (kv, scratch): (&mut [u8], &mut [u8]),
    prompt: &[u32],
    tokens: usize,
) -> Result<bool, bitnet_runtime::RunError> {
    let model = Model::load(archive, &mut [], &LoadOptions::default())?;
    let mut session = Session::new(&model, kv, scratch, &SESSION)?;
    generate(&mut session, counter, prompt, tokens)?;
    print(format_args!(
        "# board {NAME}, kernels {}\n",
        model.kernels().isa().name()
    ));

    let mut same = true;
    let mut first = None;
    for budget in [usize::MAX, 1, 7, 64] {
        let (hash, ok) = self_test(&model, (kv, scratch), &SESSION, budget)?;
        same &= ok && *first.get_or_insert(hash) == hash;
        print(format_args!(
            "# self-test {hash:016x} with budget {budget}: {}\n",
            verdict(ok)
        ));
    }
    let mut session = Session::new(&model, kv, scratch, &SESSION)?;
    for position in [0, SESSION.max_seq_len - 1] {
        let largest = largest_step(&mut session, counter, position)?;
        print(format_args!(
            "# largest step(1) at position {position}: {largest} instructions\n"
        ));
    }
    let (used, available) = stack::high_water();
    let memory = PLAN.kv_bytes + PLAN.scratch_bytes;
    print(format_args!(
        "# memory: cache {} B, scratch {} B, statics {} B, stack {used} B; {} B of {RAM_BYTES} B\n",
        PLAN.kv_bytes,
        PLAN.scratch_bytes,
        RAM_BYTES - available - memory,
        RAM_BYTES - available + used,
    ));
    Ok(same && used <= STACK_BYTES)
}

const fn verdict(ok: bool) -> &'static str {
    if ok {
        "as in the file"
    } else {
        "NOT as in the file"
    }
}
