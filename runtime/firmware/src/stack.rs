//! How much of the stack was ever used.
//!
//! At reset the free memory is painted with one value; what has another value was used.

use core::ptr::addr_of;

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

/// Most bytes of the stack that were in use at once, and the bytes there are.
#[must_use]
pub fn high_water() -> (usize, usize) {
    let (top, bottom) = (addr_of!(_stack_start), addr_of!(_stack_end));
    let mut lowest = bottom;
    // SAFETY: both symbols bound the stack's memory, which is aligned to words and always readable;
    // nothing else writes below the stack pointer.
    while lowest < top && unsafe { lowest.read_volatile() } == cortex_m_rt::STACK_PAINT_VALUE {
        lowest = lowest.wrapping_add(1);
    }
    (
        top as usize - lowest as usize,
        top as usize - bottom as usize,
    )
}
