//! What the programs for Cortex-M boards share: console, counter, stack mark, command line.
//!
//! All of it goes through semihosting, which QEMU and every debug probe serve.
#![no_std]

// Named because it brings the critical sections that semihosting links against.
use cortex_m as _;

pub mod board;
pub mod console;
pub mod counter;
pub mod figures;
pub mod stack;

/// Bytes that begin on a multiple of 64, as the runtime asks of models and buffers.
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::print(format_args!("\n# panic: {info}\n"));
    console::exit(false)
}

#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    console::print(format_args!("\n# hard fault at {:#010x}\n", frame.pc()));
    console::exit(false)
}
