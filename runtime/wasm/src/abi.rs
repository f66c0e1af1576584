//! What the host sees: exports, one import, linear memory.
//!
//! Numbers only. A function that can fail returns a status below zero, and [`error`] then has the
//! message. Addresses are offsets in the exported memory, which is in its place for good after
//! [`load`]: before, an address is stale once `load` has run.

use core::cell::UnsafeCell;

use bitnet_runtime::sampler::Candidate;
use bitnet_runtime::{
    ALIGNMENT, Archive, Isa, Kernels, LoadOptions, Model, ModelConfig, SamplerConfig, Tokenizer,
};

use crate::error::{Error, Message};
use crate::generator::{Generator, Progress};
use crate::header;
use crate::layout::{Layout, Options};
use crate::text::Text;

/// Status of calls that achieved what they are for, and of a step whose budget is used up.
const OK: i32 = 0;
/// A step that chose a token: [`token`] has it.
const TOKEN: i32 = 1;
/// A step at which the model ended its text.
const STOP: i32 = 2;
/// A step at which the context is full.
const FULL: i32 = 3;
const ERROR: i32 = -1;

/// Version of this interface.
const ABI: u32 = 2;

const PAGE_BYTES: u64 = 65_536;

#[link(wasm_import_module = "host")]
unsafe extern "C" {
    /// Writes the bytes of the file at `offset` to memory; 0 when that is done. The host must not call
    /// an export from here.
    #[link_name = "read"]
    safe fn host_read(offset: u32, to: *mut u8, bytes: u32) -> u32;
}

unsafe extern "C" {
    /// The linker's mark where the module's own data and stack end.
    static __heap_base: u8;
}

/// Numbers for the host, in this order.
#[repr(C)]
struct Info {
    /// Version of this interface.
    abi: u32,
    /// Kernels: 0 scalar, 1 portable, 2 simd128.
    isa: u32,
    hidden_size: u32,
    n_layers: u32,
    vocab_size: u32,
    /// Positions the model was trained for.
    max_seq_len: u32,
    /// Positions of the session.
    context: u32,
    self_tests: u32,
    /// Stack, code tables and static data.
    module_bytes: u32,
    file_bytes: u32,
    /// Decoded weights of a packed file.
    weight_bytes: u32,
    kv_bytes: u32,
    scratch_bytes: u32,
    /// Sampler and prompt.
    other_bytes: u32,
    /// Size of the linear memory once the model is loaded.
    memory_bytes: u32,
}

/// Everything the instance has.
struct State {
    info: Info,
    message: Message,
    buffer: header::Buffer,
    /// True once the memory is given away.
    loaded: bool,
    generator: Option<Generator<'static, 'static, 'static>>,
    text: Option<Text<'static, 'static>>,
    token: u32,
}

struct Shared<T>(UnsafeCell<T>);

// SAFETY: the module has no threads: it is compiled without atomics, and its memory is not shared.
unsafe impl<T> Sync for Shared<T> {}

/// The model, apart from the state because the generator in there borrows it.
static MODEL: Shared<Option<Model<'static>>> = Shared(UnsafeCell::new(None));

static STATE: Shared<State> = Shared(UnsafeCell::new(State {
    info: Info {
        abi: ABI,
        isa: 0,
        hidden_size: 0,
        n_layers: 0,
        vocab_size: 0,
        max_seq_len: 0,
        context: 0,
        self_tests: 0,
        module_bytes: 0,
        file_bytes: 0,
        weight_bytes: 0,
        kv_bytes: 0,
        scratch_bytes: 0,
        other_bytes: 0,
        memory_bytes: 0,
    },
    message: Message::new(),
    buffer: [0; size_of::<header::Buffer>()],
    loaded: false,
    generator: None,
    text: None,
    token: 0,
}));

/// The state, for the length of one export.
fn state() -> &'static mut State {
    // SAFETY: every export calls this once and first, and drops the reference when it returns; there is
    // one thread, and the only call out of the module, `host_read`, must not call back.
    unsafe { &mut *STATE.0.get() }
}

/// Puts the model where it stays.
fn keep(model: Model<'static>) -> &'static Model<'static> {
    // SAFETY: `State::load` comes here at most once, and nobody else names the place, so this is the only
    // reference that is ever made to it.
    unsafe { (*MODEL.0.get()).insert(model) }
}

/// What [`load`] makes.
type Parts<'s> = (
    &'s mut Generator<'static, 'static, 'static>,
    &'s mut Text<'static, 'static>,
);

impl State {
    fn report(&mut self, error: Error) -> i32 {
        self.message.set(&error);
        ERROR
    }

    fn status(&mut self, result: Result<i32, Error>) -> i32 {
        result.unwrap_or_else(|error| self.report(error))
    }

    /// The generator and the text that it reads and writes.
    fn parts(&mut self) -> Result<Parts<'_>, Error> {
        let parts = self.generator.as_mut().zip(self.text.as_mut());
        parts.ok_or(Error::NotLoaded)
    }

    /// Status of a call on the generator.
    fn with_generator(
        &mut self,
        call: impl FnOnce(&mut Generator<'static, 'static, 'static>) -> Result<i32, Error>,
    ) -> i32 {
        let result = self.parts().and_then(|(generator, _)| call(generator));
        self.status(result)
    }

    fn prompt_ids(&mut self, n: usize) -> i32 {
        let result = self.parts().and_then(|(generator, text)| {
            generator.prompt(n)?;
            text.follow(&generator.ids_mut()[..n]);
            Ok(OK)
        });
        self.status(result)
    }

    fn prompt_text(&mut self, bytes: usize) -> i32 {
        let result = self.parts().and_then(|(generator, text)| {
            generator.ready()?;
            let first = generator.position() == 0;
            let n = text.encode(bytes, first, generator.ids_mut())?;
            generator.prompt(n)?;
            text.follow(&generator.ids_mut()[..n]);
            Ok(n as i32)
        });
        self.status(result)
    }

    fn step(&mut self, budget: usize) -> i32 {
        let result = self.parts().and_then(|(generator, text)| {
            let progress = generator.step(budget)?;
            if let Progress::Token(id) = progress {
                text.push(id);
            }
            Ok(progress)
        });
        if let Ok(Progress::Token(id)) = result {
            self.token = id;
        }
        self.status(result.map(|progress| match progress {
            Progress::Pending => OK,
            Progress::Token(_) => TOKEN,
            Progress::Stop => STOP,
            Progress::Full => FULL,
        }))
    }

    /// Reads the configuration and fills in the plan.
    fn plan(&mut self, file_bytes: u32, options: &Options) -> Result<Layout, Error> {
        let head = header::read_head(file_bytes, &mut self.buffer, read)?;
        let layout = Layout::new(&head, file_bytes, options)?;
        let memory_bytes = memory_bytes(&layout)?;
        self.info = Info {
            isa: match Kernels::detect().isa() {
                Isa::Scalar => 0,
                Isa::Portable => 1,
                _ => 2,
            },
            self_tests: self.info.self_tests,
            ..describe(&head.config, &layout, memory_bytes)
        };
        Ok(layout)
    }

    fn load(&mut self, file_bytes: u32, options: &Options, verify: bool) -> Result<(), Error> {
        if self.loaded {
            return Err(Error::Loaded);
        }
        let layout = self.plan(file_bytes, options)?;
        grow_to(u64::from(self.info.memory_bytes))?;
        self.loaded = true;
        let [file, weights, kv, scratch, candidates, ids, room, words] = carve(&layout)?;
        read(0, file)?;
        let archive = Archive::open(file)?;
        if verify {
            // Packed weights are decoded below.
            archive.verify_undecoded()?;
        }
        let options = LoadOptions {
            hold: layout.hold,
            ..LoadOptions::default()
        };
        let model = keep(Model::load(&archive, weights, &options)?);
        let generator = Generator::new(
            model,
            (kv, scratch),
            &layout.session,
            as_slice(ids),
            as_slice(candidates),
        )?;
        let tokenizer = model.archive().tokenizer()?.map(Tokenizer::new);
        self.info.self_tests = generator.self_tests() as u32;
        self.generator = Some(generator);
        self.text = Some(Text::new(tokenizer, room, as_slice(words)));
        Ok(())
    }
}

fn describe(config: &ModelConfig, layout: &Layout, memory_bytes: u32) -> Info {
    Info {
        abi: ABI,
        isa: 0,
        hidden_size: config.hidden_size as u32,
        n_layers: config.n_layers as u32,
        vocab_size: config.vocab_size as u32,
        max_seq_len: config.max_seq_len as u32,
        context: layout.session.max_seq_len as u32,
        self_tests: 0,
        module_bytes: heap_base(),
        file_bytes: layout.file_bytes as u32,
        weight_bytes: layout.weight_bytes as u32,
        kv_bytes: layout.kv_bytes as u32,
        scratch_bytes: layout.scratch_bytes as u32,
        other_bytes: layout.sizes()[4..].iter().sum::<usize>() as u32,
        memory_bytes,
    }
}

/// Fills a slice with the bytes of the file at an offset.
fn read(offset: u32, to: &mut [u8]) -> Result<(), Error> {
    let bytes = to.len() as u32;
    match host_read(offset, to.as_mut_ptr(), bytes) {
        0 => Ok(()),
        _ => Err(Error::Read { offset, bytes }),
    }
}

/// First address that is free, a multiple of 64.
fn heap_base() -> u32 {
    let end = &raw const __heap_base as u32;
    end.next_multiple_of(ALIGNMENT as u32)
}

/// Size of a memory that holds the layout, in whole pages.
fn memory_bytes(layout: &Layout) -> Result<u32, Error> {
    let end = u64::from(heap_base()) + u64::from(layout.total()?);
    u32::try_from(end.next_multiple_of(PAGE_BYTES)).map_err(|_| Error::TooLarge)
}

/// The only place where memory grows.
fn grow_to(bytes: u64) -> Result<(), Error> {
    let pages = (bytes / PAGE_BYTES) as usize;
    let more = pages.saturating_sub(core::arch::wasm32::memory_size::<0>());
    if more > 0 && core::arch::wasm32::memory_grow::<0>(more) == usize::MAX {
        return Err(Error::Memory { bytes });
    }
    Ok(())
}

/// Cuts the memory above the module's own into the buffers of the layout.
fn carve(layout: &Layout) -> Result<[&'static mut [u8]; 8], Error> {
    let total = layout.total()? as usize;
    let base = core::ptr::without_provenance_mut::<u8>(heap_base() as usize);
    // SAFETY: the linker puts nothing above the heap base, there is no allocator, and `grow_to` made the
    // memory reach that far; `load` comes here once.
    let mut bytes = unsafe { core::slice::from_raw_parts_mut(base, total) };
    Ok(layout.sizes().map(|size| {
        let aligned = size.next_multiple_of(ALIGNMENT);
        let (region, rest) = core::mem::take(&mut bytes).split_at_mut(aligned);
        bytes = rest;
        &mut region[..size]
    }))
}

/// A plain number, or several: any bytes are a value.
trait Plain {}
impl Plain for u32 {}
impl Plain for Candidate {}

/// Bytes on a multiple of 64 as whole elements.
fn as_slice<T: Plain>(bytes: &'static mut [u8]) -> &'static mut [T] {
    // SAFETY: any bytes are a `u32` or a `Candidate`, and no reference to these is left but `bytes`.
    let (before, slice, after) = unsafe { bytes.align_to_mut() };
    assert!(before.is_empty() && after.is_empty());
    slice
}

/// Reads the header of a file and fills in what loading it with these options will take. `context` 0
/// asks for all positions of the model.
#[unsafe(no_mangle)]
extern "C" fn plan(file_bytes: u32, context: u32, batch: u32) -> i32 {
    let state = state();
    match state.plan(file_bytes, &Options { context, batch }) {
        Ok(_) => OK,
        Err(error) => state.report(error),
    }
}

/// Grows the memory to the plan, reads the file into it and checks it; with `verify` every byte.
/// Once for an instance.
#[unsafe(no_mangle)]
extern "C" fn load(file_bytes: u32, context: u32, batch: u32, verify: u32) -> i32 {
    let state = state();
    match state.load(file_bytes, &Options { context, batch }, verify != 0) {
        Ok(()) => OK,
        Err(error) => state.report(error),
    }
}

/// Address of [`Info`].
#[unsafe(no_mangle)]
extern "C" fn info() -> *const u32 {
    (&raw const state().info).cast()
}

/// Address of the last message, UTF-8.
#[unsafe(no_mangle)]
extern "C" fn error() -> *const u8 {
    state().message.as_bytes().as_ptr()
}

/// Bytes of the last message.
#[unsafe(no_mangle)]
extern "C" fn error_bytes() -> u32 {
    state().message.as_bytes().len() as u32
}

/// How tokens are chosen: temperature 0 takes the best always; `top_k` 0, `top_p` 1 and `min_p` 0 leave
/// all. The seed is given in halves.
#[unsafe(no_mangle)]
extern "C" fn sampler(
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    seed_low: u32,
    seed_high: u32,
) -> i32 {
    let config = SamplerConfig {
        temperature,
        top_k: top_k as usize,
        top_p,
        min_p,
        seed: u64::from(seed_high) << 32 | u64::from(seed_low),
    };
    state().with_generator(|generator| {
        generator.set_sampler(config);
        Ok(OK)
    })
}

/// Address of room for the ids of a prompt, as many as the context has positions; 0 before [`load`].
#[unsafe(no_mangle)]
extern "C" fn ids() -> *mut u32 {
    let generator = state().generator.as_mut();
    generator.map_or(core::ptr::null_mut(), |g| g.ids_mut().as_mut_ptr())
}

/// Begins to read the first `n` ids.
#[unsafe(no_mangle)]
extern "C" fn prompt_ids(n: u32) -> i32 {
    state().prompt_ids(n as usize)
}

/// Address of room for the text of a prompt; 0 before [`load`].
#[unsafe(no_mangle)]
extern "C" fn text() -> *mut u8 {
    let text = state().text.as_mut();
    text.map_or(core::ptr::null_mut(), |text| text.room_mut().as_mut_ptr())
}

/// Bytes of that room.
#[unsafe(no_mangle)]
extern "C" fn text_capacity() -> u32 {
    let text = state().text.as_mut();
    text.map_or(0, |text| text.room_mut().len() as u32)
}

/// Begins to read a text of this many bytes, UTF-8; returns its number of tokens.
#[unsafe(no_mangle)]
extern "C" fn prompt_text(bytes: u32) -> i32 {
    state().prompt_text(bytes as usize)
}

/// Characters of that text that have no token and were left out.
#[unsafe(no_mangle)]
extern "C" fn dropped() -> u32 {
    let text = state().text.as_ref();
    text.map_or(0, |text| text.dropped() as u32)
}

/// Goes on, for at most `budget` row groups of 16 rows, heads, or tokens.
#[unsafe(no_mangle)]
extern "C" fn step(budget: u32) -> i32 {
    state().step(budget as usize)
}

/// Ends the text: [`piece`] is what was kept back, an incomplete character.
#[unsafe(no_mangle)]
extern "C" fn finish() -> i32 {
    let state = state();
    let result = state.parts().map(|(_, text)| {
        text.finish();
        OK
    });
    state.status(result)
}

/// Address of the text that the last step completed, UTF-8.
#[unsafe(no_mangle)]
extern "C" fn piece() -> *const u8 {
    let text = state().text.as_ref();
    text.map_or(core::ptr::null(), |text| text.piece().as_ptr())
}

/// Bytes of that text.
#[unsafe(no_mangle)]
extern "C" fn piece_bytes() -> u32 {
    let text = state().text.as_ref();
    text.map_or(0, |text| text.piece().len() as u32)
}

/// The last token that a step chose.
#[unsafe(no_mangle)]
extern "C" fn token() -> u32 {
    state().token
}

/// Positions in use.
#[unsafe(no_mangle)]
extern "C" fn position() -> u32 {
    let generator = state().generator.as_ref();
    generator.map_or(0, |generator| generator.position() as u32)
}

/// Forgets everything that was read.
#[unsafe(no_mangle)]
extern "C" fn reset() -> i32 {
    state().with_generator(|generator| {
        generator.reset();
        Ok(OK)
    })
}

/// Replays a self-test of the file: 1 where the logits are the bits that the converter saw, else 0.
#[unsafe(no_mangle)]
extern "C" fn self_test(index: u32) -> i32 {
    state().with_generator(|generator| generator.self_test(index as usize).map(i32::from))
}

/// No panic can be reached from input; what is left of one is a trap.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
