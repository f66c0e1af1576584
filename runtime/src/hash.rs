//! The fingerprint of a run.

/// 64-bit FNV-1a over the little-endian f32 bits of logits, in order.
///
/// ```
/// let mut hash = bitnet_runtime::LogitsHash::new();
/// hash.update(&[1.0, -2.0]);
/// assert_eq!(hash.finish(), 0x0979_e9ee_2da2_2858);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsHash(u64);

impl LogitsHash {
    /// The hash of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds the logits of one position.
    pub fn update(&mut self, logits: &[f32]) {
        for byte in logits.iter().flat_map(|logit| logit.to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The hash of all logits so far.
    #[must_use]
    pub const fn finish(self) -> u64 {
        self.0
    }
}

impl Default for LogitsHash {
    fn default() -> Self {
        Self::new()
    }
}
