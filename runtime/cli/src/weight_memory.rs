//! Memory for copied weights, in pages of 2 MiB where the system gives them.
//!
//! A pass over the weights touches every page once: with small pages, each needs an address
//! translation of its own, which costs a share of the bandwidth on many machines.

use std::ops::{Deref, DerefMut};

use anyhow::{Context, Result};
use bitnet_runtime::AlignedBuffer;
use memmap2::MmapMut;

use crate::{machine, output};

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes that begin on a multiple of 64.
pub(crate) struct WeightMemory {
    source: Source,
    start: usize,
    len: usize,
}

enum Source {
    /// Begins on a multiple of [`HUGE_PAGE`].
    Map(MmapMut),
    Heap(AlignedBuffer),
}

impl WeightMemory {
    /// Memory of `len` bytes. Where it holds a huge page at all, huge pages are asked for; what is
    /// left at the end stays in small ones, so no more memory is taken than asked.
    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        if len < HUGE_PAGE {
            return Ok(Self {
                source: Source::Heap(AlignedBuffer::zeroed(len)),
                start: 0,
                len,
            });
        }
        let map = MmapMut::map_anon(len.saturating_add(HUGE_PAGE));
        let map =
            map.with_context(|| format!("no memory for {} of weights", output::bytes(len)))?;
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        ask_for_huge_pages(&map, start, len / HUGE_PAGE * HUGE_PAGE);
        Ok(Self {
            source: Source::Map(map),
            start,
            len,
        })
    }

    /// Bytes that are in huge pages now: known once they have been written, and where the system
    /// tells.
    pub(crate) fn huge_bytes(&self) -> Option<usize> {
        match self.source {
            Source::Heap(_) => Some(0),
            Source::Map(_) => machine::huge_bytes(self.as_ptr_range()),
        }
    }
}

impl Deref for WeightMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes: &[u8] = match &self.source {
            Source::Map(map) => map,
            Source::Heap(buffer) => buffer,
        };
        &bytes[self.start..][..self.len]
    }
}

impl DerefMut for WeightMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes: &mut [u8] = match &mut self.source {
            Source::Map(map) => map,
            Source::Heap(buffer) => buffer,
        };
        &mut bytes[self.start..][..self.len]
    }
}

/// A hint: where it is refused, the pages are small.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(map: &MmapMut, start: usize, len: usize) {
    let _ = map.advise_range(memmap2::Advice::HugePage, start, len);
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_map: &MmapMut, _start: usize, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_of_the_asked_length() {
        for len in [0, 1, 63, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 12_345] {
            let mut memory = WeightMemory::zeroed(len).unwrap();
            assert_eq!(memory.len(), len);
            assert!(memory.as_ptr().addr().is_multiple_of(64));
            assert!(memory.iter().all(|byte| *byte == 0));
            memory.fill(7);
            assert!(memory.iter().all(|byte| *byte == 7));
            if let Some(huge) = memory.huge_bytes() {
                assert!(
                    huge.is_multiple_of(HUGE_PAGE) && huge <= len,
                    "{huge} of {len}"
                );
            }
        }
    }

    #[test]
    fn too_much_is_an_error() {
        let error = WeightMemory::zeroed(isize::MAX as usize - HUGE_PAGE);
        let message = format!("{:#}", error.err().unwrap());
        assert!(message.starts_with("no memory for "), "{message}");
    }
}
