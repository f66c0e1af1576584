//! The machine's own best read loop, which passes over weights are held against.

use anyhow::{Result, ensure};
use bitnet_runtime::Kernels;

use crate::timing::{Samples, together};

/// How far ahead of its loads the loop is tried to ask for memory, in bytes.
const DISTANCES: [usize; 5] = [0, 1_024, 2_048, 4_096, 8_192];
/// A timing reads at least this much, so that starting threads does not count.
const BYTES_PER_TIMING: usize = 64 << 20;

/// Reads some memory over and over, on some threads, each its share of every part.
pub(crate) struct ReadLoop<'a> {
    parts: Vec<&'a [u8]>,
    threads: usize,
    passes: usize,
    /// The best distance.
    pub(crate) prefetch: usize,
}

impl<'a> ReadLoop<'a> {
    /// Finds the best distance, and checks what is read against a plain loop.
    pub(crate) fn new(parts: Vec<&'a [u8]>, threads: usize) -> Result<Self> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let mut read = Self {
            parts,
            threads,
            passes: BYTES_PER_TIMING.div_ceil(bytes.max(1)),
            prefetch: 0,
        };
        read.check()?;
        let best = DISTANCES.map(|prefetch| {
            read.prefetch = prefetch;
            let mut samples = Samples::default();
            (0..3).for_each(|_| samples.push(read.seconds()));
            (samples.min(), prefetch)
        });
        let best = best.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        read.prefetch = best.expect("some distances").1;
        Ok(read)
    }

    /// Bytes of one pass.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Seconds of one pass over all parts.
    pub(crate) fn seconds(&self) -> f64 {
        let kernels = Kernels::detect();
        let all = together(self.threads, |thread| {
            for _ in 0..self.passes {
                std::hint::black_box(self.read(&kernels, thread));
            }
        });
        all / self.passes as f64
    }

    /// One thread's share.
    fn read(&self, kernels: &Kernels, thread: usize) -> u64 {
        let shares = self.parts.iter().map(|part| {
            let lines = part.len() / 64;
            let cut = |thread| match thread == self.threads {
                true => part.len(),
                false => lines * thread / self.threads * 64,
            };
            &part[cut(thread)..cut(thread + 1)]
        });
        shares.fold(0, |all, share| all ^ kernels.read(share, self.prefetch))
    }

    fn check(&self) -> Result<()> {
        let plain = Kernels::scalar();
        let expected = self
            .parts
            .iter()
            .fold(0, |all, part| all ^ plain.read(part, 0));
        let kernels = Kernels::detect();
        let found = (0..self.threads).fold(0, |all, thread| all ^ self.read(&kernels, thread));
        ensure!(
            found == expected,
            "the read loop of {} does not read what is there; please report it",
            kernels.isa().name()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_all_of_it() {
        let bytes: Vec<u8> = (0..1_000).map(|i| (i * i / 7) as u8).collect();
        for threads in [1, 2, 3, 30] {
            let parts = vec![&bytes[..777], &bytes[777..], &[]];
            let read = ReadLoop::new(parts, threads).unwrap();
            assert_eq!(read.bytes(), 1_000);
            assert!(read.seconds() > 0.0 && DISTANCES.contains(&read.prefetch));
        }
    }
}
