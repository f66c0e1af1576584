//! Text to and from the host.

use core::fmt::{self, Write};

use cortex_m_semihosting::{debug, hio, nr, syscall};

/// Longest command line, in bytes.
pub const LINE_BYTES: usize = 512;

/// Writes to the host's standard output. What cannot be written is lost: there is nobody to tell.
pub fn write(bytes: &[u8]) {
    if let Ok(mut out) = hio::hstdout() {
        let _ = out.write_all(bytes);
    }
}

/// Writes formatted text.
pub fn print(text: fmt::Arguments<'_>) {
    if let Ok(mut out) = hio::hstdout() {
        let _ = out.write_fmt(text);
    }
}

/// Ends the program; the host's emulator exits with 0 or 1.
pub fn exit(success: bool) -> ! {
    debug::exit(if success {
        debug::EXIT_SUCCESS
    } else {
        debug::EXIT_FAILURE
    });
    loop {
        cortex_m::asm::wfi();
    }
}

/// The command line of the host's emulator; empty where there is none or it is too long.
pub fn command_line(buffer: &mut [u8; LINE_BYTES]) -> &str {
    buffer.fill(0);
    let block = [buffer.as_mut_ptr() as usize, buffer.len() - 1];
    // SAFETY: GET_CMDLINE writes at most the given length to the given buffer, which is borrowed for
    // the call.
    unsafe { syscall(nr::GET_CMDLINE, &block) };
    let line = buffer.split(|byte| *byte == 0).next().unwrap_or(&[]);
    core::str::from_utf8(line).unwrap_or("")
}

/// The value of `name=value` in a command line.
pub fn argument<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
