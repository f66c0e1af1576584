//! The module in a WebAssembly engine, called as a page calls it.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use wasmi::{Caller, Engine, Instance, Linker, Memory, Module, Store, WasmParams, WasmResults};

/// An instance of the module, with the file that it may read.
pub struct Host {
    store: Store<Arc<[u8]>>,
    instance: Instance,
    memory: Memory,
}

/// Names of the numbers at `info()`, in order.
const INFO: [&str; 15] = [
    "abi",
    "isa",
    "hidden_size",
    "n_layers",
    "vocab_size",
    "max_seq_len",
    "context",
    "self_tests",
    "module_bytes",
    "file_bytes",
    "weight_bytes",
    "kv_bytes",
    "scratch_bytes",
    "other_bytes",
    "memory_bytes",
];

/// What a step gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The budget is used up.
    Pending,
    /// A token.
    Token(u32),
    /// The model ended the text.
    Stop,
    /// The context is full.
    Full,
}

impl Host {
    /// Instantiates the module.
    ///
    /// # Errors
    ///
    /// The module is not valid for the engine, or wants imports other than `host.read`.
    pub fn new(module: &[u8], file: Arc<[u8]>) -> Result<Self> {
        let engine = Engine::default();
        let module = Module::new(&engine, module)?;
        let mut store = Store::new(&engine, file);
        let mut linker = Linker::new(&engine);
        linker.func_wrap("host", "read", read)?;
        let instance = linker.instantiate_and_start(&mut store, &module)?;
        let memory = instance.get_memory(&store, "memory");
        Ok(Self {
            memory: memory.context("no export `memory`")?,
            store,
            instance,
        })
    }

    /// Calls an export.
    ///
    /// # Errors
    ///
    /// There is no such export of these types, or it traps.
    pub fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, params: P) -> Result<R> {
        let func = self.instance.get_typed_func::<P, R>(&self.store, name);
        let func = func.with_context(|| format!("export `{name}`"))?;
        func.call(&mut self.store, params)
            .with_context(|| format!("in `{name}`"))
    }

    /// Calls an export whose status may be an error.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), or the message of the module.
    pub fn checked<P: WasmParams>(&mut self, name: &str, params: P) -> Result<i32> {
        let status = self.call(name, params)?;
        if status < 0 {
            let at: u32 = self.call("error", ())?;
            let bytes: u32 = self.call("error_bytes", ())?;
            bail!("{}", String::from_utf8(self.bytes(at, bytes).to_vec())?);
        }
        Ok(status)
    }

    /// Loads the file.
    ///
    /// # Errors
    ///
    /// The message of the module.
    pub fn load(&mut self, context: u32, batch: u32) -> Result<()> {
        let file_bytes = self.store.data().len() as u32;
        self.checked("load", (file_bytes, context, batch, 1))?;
        Ok(())
    }

    /// A number at `info()`.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    ///
    /// # Panics
    ///
    /// If there is no such number.
    pub fn info(&mut self, name: &str) -> Result<u32> {
        let index = INFO.iter().position(|known| *known == name);
        let at: u32 = self.call("info", ())?;
        let at = at + 4 * index.expect("a known name") as u32;
        Ok(u32::from_le_bytes(self.bytes(at, 4).try_into()?))
    }

    /// Begins to read a prompt.
    ///
    /// # Errors
    ///
    /// The message of the module.
    pub fn prompt_ids(&mut self, ids: &[u32]) -> Result<()> {
        let at: u32 = self.call("ids", ())?;
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.memory.write(&mut self.store, at as usize, &bytes)?;
        self.checked("prompt_ids", ids.len() as u32)?;
        Ok(())
    }

    /// Begins to read a text; returns its number of tokens.
    ///
    /// # Errors
    ///
    /// The message of the module.
    pub fn prompt_text(&mut self, text: &[u8]) -> Result<i32> {
        let at: u32 = self.call("text", ())?;
        self.memory.write(&mut self.store, at as usize, text)?;
        self.checked("prompt_text", text.len() as u32)
    }

    /// The text that the last step, or `finish`, completed.
    ///
    /// # Errors
    ///
    /// It is not UTF-8.
    pub fn piece(&mut self) -> Result<&str> {
        let at: u32 = self.call("piece", ())?;
        let bytes: u32 = self.call("piece_bytes", ())?;
        Ok(std::str::from_utf8(self.bytes(at, bytes))?)
    }

    /// One step.
    ///
    /// # Errors
    ///
    /// The message of the module.
    pub fn step(&mut self, budget: u32) -> Result<Step> {
        Ok(match self.checked("step", budget)? {
            0 => Step::Pending,
            1 => Step::Token(self.call("token", ())?),
            2 => Step::Stop,
            3 => Step::Full,
            other => bail!("a step with status {other}"),
        })
    }

    /// Size of the linear memory in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory.data_size(&self.store)
    }

    /// Bytes of the linear memory.
    ///
    /// # Panics
    ///
    /// If they are not all in it.
    #[must_use]
    pub fn bytes(&self, at: u32, bytes: u32) -> &[u8] {
        &self.memory.data(&self.store)[at as usize..][..bytes as usize]
    }
}

/// `host.read`: 0 when the bytes are delivered, 1 where the file or the memory has no such bytes.
fn read(mut caller: Caller<'_, Arc<[u8]>>, offset: u32, to: u32, bytes: u32) -> u32 {
    let file = caller.data().clone();
    let range = offset as usize..offset as usize + bytes as usize;
    let memory = caller.get_export("memory").and_then(|e| e.into_memory());
    let written = match (memory, file.get(range)) {
        (Some(memory), Some(part)) => memory.write(&mut caller, to as usize, part).is_ok(),
        _ => false,
    };
    u32::from(!written)
}
