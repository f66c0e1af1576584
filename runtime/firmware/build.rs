//! Writes the memory layout of the board that `BITNET_BOARD` names, and its figures as constants.

use std::{env, fs, path::Path};

/// A board: where its code and data go, and how fast its counter runs.
struct Board {
    name: &'static str,
    /// Origin and length of the memory that holds code and model.
    flash: (u32, u32),
    /// Origin and length of one contiguous memory for buffers, statics and stack.
    ram: (u32, u32),
    /// Clock of the core, and so of its SysTick counter.
    clock_hz: u32,
}

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

const BOARDS: [Board; 6] = [
    // STM32F405: 192 KiB of RAM, of which 64 are apart; the 128 that are contiguous are used.
    Board {
        name: "netduinoplus2",
        flash: (0x0800_0000, MIB),
        ram: (0x2000_0000, 128 * KIB),
        clock_hz: 168_000_000,
    },
    mps2("mps2-an385", 0, 0x2000_0000, 25_000_000),
    mps2("mps2-an386", 0, 0x2000_0000, 25_000_000),
    mps2("mps2-an500", 0, 0x2000_0000, 25_000_000),
    // The secure aliases: the core starts there.
    mps2("mps2-an505", 0x1000_0000, 0x3800_0000, 20_000_000),
    // Instruction and data memory of the core.
    Board {
        name: "mps3-an547",
        flash: (0, 512 * KIB),
        ram: (0x2000_0000, 512 * KIB),
        clock_hz: 32_000_000,
    },
];

const fn mps2(name: &'static str, flash: u32, ram: u32, clock_hz: u32) -> Board {
    Board {
        name,
        flash: (flash, 4 * MIB),
        ram: (ram, 2 * MIB),
        clock_hz,
    }
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let name = setting("BITNET_BOARD", "netduinoplus2");
    let Some(board) = BOARDS.iter().find(|board| board.name == name) else {
        let names = BOARDS.map(|board| board.name).join(", ");
        panic!("no board {name}; there are {names}");
    };
    let here = env::var("CARGO_MANIFEST_DIR").unwrap();
    let shipped = format!("{here}/../../models/austen-nano.btn");
    let model = setting("BITNET_MODEL", &shipped);
    println!("cargo::rerun-if-changed={model}");
    println!("cargo::rustc-env=BITNET_MODEL={model}");

    let out = env::var("OUT_DIR").unwrap();
    let write = |file: &str, text: String| fs::write(Path::new(&out).join(file), text).unwrap();
    write("memory.x", layout(board));
    write("board.rs", constants(board));
    println!("cargo::rustc-link-search={out}");
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
}

fn setting(name: &str, default: &str) -> String {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn layout(board: &Board) -> String {
    let ((flash, flash_bytes), (ram, ram_bytes)) = (board.flash, board.ram);
    format!(
        "MEMORY\n{{\n  FLASH : ORIGIN = {flash:#x}, LENGTH = {flash_bytes}\n  \
         RAM : ORIGIN = {ram:#x}, LENGTH = {ram_bytes}\n}}\n"
    )
}

fn constants(board: &Board) -> String {
    format!(
        "pub const NAME: &str = {:?};\npub const RAM_BYTES: usize = {};\npub const CLOCK_HZ: u32 = {};\n",
        board.name, board.ram.1, board.clock_hz
    )
}
