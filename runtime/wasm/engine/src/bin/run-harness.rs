//! Runs the kernel harness, built for WebAssembly, in the engine:
//! `run-harness HARNESS.wasm NAME` checks that the set of that name ran.

use anyhow::{Context, Result, bail, ensure};
use bitnet_runtime::Isa;
use wasmi::{Engine, Linker, Module, Store};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(name), None) = (args.next(), args.next(), args.next()) else {
        bail!("usage: run-harness HARNESS.wasm NAME");
    };
    let bytes = std::fs::read(&path).with_context(|| path.clone())?;
    let engine = Engine::default();
    let module = Module::new(&engine, &bytes)?;
    let mut store = Store::new(&engine, ());
    let instance = Linker::new(&engine).instantiate_and_start(&mut store, &module)?;
    // `main` of C: the number of arguments and their address.
    let main = instance.get_typed_func::<(i32, i32), i32>(&store, "main")?;
    let status = main.call(&mut store, (0, 0));
    ensure!(status.context("a test failed")? == 0, "the harness failed");
    let fastest = instance.get_typed_func::<(), u32>(&store, "fastest_set")?;
    let fastest = (fastest.call(&mut store, ())? as usize).checked_sub(1);
    let fastest = fastest.context("no test ran")?;
    let ran = Isa::ALL[fastest].name();
    ensure!(ran == name, "the fastest set is {ran}, not {name}");
    println!("kernel harness: every set up to {ran} equals scalar");
    Ok(())
}
