//! Reading memory and nothing else: what a pass over weights is measured against.
//!
//! The exclusive or of all words is the cheapest result that needs every byte, so the loop waits
//! for memory alone, and a plain loop can check it.

#[cfg(target_arch = "x86_64")]
use super::Isa;
use super::{Kernels, prefetch};

/// What the sets read at a time.
const BLOCK: usize = 256;

impl Kernels {
    /// Reads `bytes` once, front to back, asking for the memory `ahead` bytes after what is read (not
    /// at all for zero, and on machines without such an instruction).
    ///
    /// Returns the exclusive or of the little-endian 64-bit words; the last is filled up with zeros.
    #[must_use]
    pub fn read(&self, bytes: &[u8], ahead: usize) -> u64 {
        let (blocks, rest) = bytes.as_chunks();
        words(rest)
            ^ match self.isa() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these tables exist only where the machine has AVX-512 F (their modules).
                Isa::Avx512Vnni | Isa::Avx512Vbmi | Isa::Amx => unsafe {
                    x86::avx512(blocks, ahead)
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: both tables exist only where the machine has AVX2 (their modules).
                Isa::Avx2 | Isa::AvxVnni => unsafe { x86::avx2(blocks, ahead) },
                _ => portable(blocks, ahead),
            }
    }
}

/// The definition.
fn words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words.fold(u64::from_le_bytes(last), |all, word| all ^ word)
}

/// Independent words side by side, which compilers put into registers.
fn portable(blocks: &[[u8; BLOCK]], ahead: usize) -> u64 {
    let mut lanes = [0; BLOCK / 8];
    for block in blocks {
        ask_for(block, ahead);
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks().0) {
            *lane ^= u64::from_le_bytes(*word);
        }
    }
    lanes.into_iter().fold(0, |all, lane| all ^ lane)
}

/// Asks for the lines `ahead` bytes after those of a block.
#[inline(always)]
fn ask_for(block: &[u8; BLOCK], ahead: usize) {
    if ahead == 0 {
        return;
    }
    for line in block.as_chunks::<64>().0 {
        prefetch(line.as_ptr().cast::<i8>().wrapping_add(ahead));
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use super::{BLOCK, ask_for, words};

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(blocks: &[[u8; BLOCK]], ahead: usize) -> u64 {
        let mut lanes = [_mm512_setzero_si512(); BLOCK / 64];
        for block in blocks {
            ask_for(block, ahead);
            for (lane, line) in lanes.iter_mut().zip(block.as_chunks::<64>().0) {
                // SAFETY: 64 readable bytes, and the load asks for no alignment.
                let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
                *lane = _mm512_xor_si512(*lane, line);
            }
        }
        let mut bytes = [0; 64];
        let all = lanes.into_iter().reduce(|a, b| _mm512_xor_si512(a, b));
        // SAFETY: 64 writable bytes, and the store asks for no alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), all.expect("four lanes")) };
        words(&bytes)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(blocks: &[[u8; BLOCK]], ahead: usize) -> u64 {
        let mut lanes = [_mm256_setzero_si256(); BLOCK / 32];
        for block in blocks {
            ask_for(block, ahead);
            for (lane, half) in lanes.iter_mut().zip(block.as_chunks::<32>().0) {
                // SAFETY: 32 readable bytes, and the load asks for no alignment.
                let half = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
                *lane = _mm256_xor_si256(*lane, half);
            }
        }
        let mut bytes = [0; 32];
        let all = lanes.into_iter().reduce(|a, b| _mm256_xor_si256(a, b));
        // SAFETY: 32 writable bytes, and the store asks for no alignment.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), all.expect("eight lanes")) };
        words(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_reads_every_byte_once() {
        let bytes: Vec<u8> = (0..1_100u32)
            .map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8)
            .collect();
        for kernels in Kernels::available() {
            for (start, len) in (0..4).flat_map(|s| (0..1_096).map(move |len| (s, len))) {
                let bytes = &bytes[start..start + len];
                let expected = words(bytes);
                for ahead in [0, 64, 4_096] {
                    let found = kernels.read(bytes, ahead);
                    let name = kernels.isa().name();
                    assert_eq!(found, expected, "{name}, {len} bytes from {start}");
                }
            }
        }
    }

    /// Any changed bit changes the result.
    #[test]
    fn no_byte_is_skipped() {
        let mut bytes = vec![0xa5; 777];
        for kernels in Kernels::available() {
            let before = kernels.read(&bytes, 0);
            for i in 0..bytes.len() {
                bytes[i] ^= 1;
                assert_ne!(kernels.read(&bytes, 0), before, "byte {i}");
                bytes[i] ^= 1;
            }
        }
    }
}
