//! A heap buffer that a session can be lent.

use std::ops::{Deref, DerefMut};
use std::vec::Vec;

use crate::plan::ALIGNMENT;

/// Zeroed bytes that begin on a multiple of 64.
///
/// Plain bytes with room for the alignment, not a type that is aligned: allocators give zeroed bytes
/// from fresh pages, which the system lends when they are first used, and clear anything else by
/// hand. So a long context costs nothing before it is filled.
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of `len` bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT - 1];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_as_long_as_asked() {
        for len in [0, 1, 63, 64, 65, 100_000] {
            let mut buffer = AlignedBuffer::zeroed(len);
            assert!(buffer.as_ptr().cast::<[u8; 64]>().addr().is_multiple_of(64));
            assert!(buffer.len() == len && buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
        }
    }
}
