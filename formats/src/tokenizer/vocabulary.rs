//! Tokens by id, and ids by text.

use super::{BLOCK_TOKENS, MAX_BUCKET, TokenizerTables, size, span, word};

/// Where a token is in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) bucket: u32,
    /// Tells most other tokens of the bucket apart without looking at their bytes.
    pub(super) fingerprint: u8,
}

impl Slot {
    /// 32-bit FNV-1a, its bits spread by a multiplication: the highest name the bucket.
    pub(super) fn of(bytes: &[u8], bucket_bits: u32) -> Self {
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        let spread = (hash ^ (hash >> 15)).wrapping_mul(0x9e37_79b1);
        Self {
            bucket: spread.checked_shr(32 - bucket_bits).unwrap_or(0),
            fingerprint: spread.to_le_bytes()[0],
        }
    }
}

impl<'w> TokenizerTables<'w> {
    /// The bytes of a token of the vocabulary, `None` beyond it. Empty where no token has this id.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<&'w [u8]> {
        let at = size(id)?;
        let len = usize::from(*self.lengths.get(at)?);
        let before = self.lengths.get(at - at % BLOCK_TOKENS..at)?;
        let before: usize = before.iter().map(|len| usize::from(*len)).sum();
        let block = size(word(self.block_offsets, at / BLOCK_TOKENS)?)?;
        span(self.text, block.checked_add(before)?, len)
    }

    /// The token with these bytes, if text can hold it.
    #[must_use]
    pub fn lookup(&self, bytes: &[u8]) -> Option<u32> {
        let slot = Slot::of(bytes, self.header.bucket_bits);
        let entries = self.bucket(size(slot.bucket)?)?;
        entries.iter().take(MAX_BUCKET).find_map(|entry| {
            let [a, b, c, fingerprint] = *entry;
            let id = u32::from_le_bytes([a, b, c, 0]);
            (fingerprint == slot.fingerprint && self.token(id) == Some(bytes)).then_some(id)
        })
    }

    pub(super) fn bucket(&self, bucket: usize) -> Option<&'w [[u8; 4]]> {
        let start = match bucket.checked_sub(1) {
            Some(before) => size(word(self.bucket_ends, before)?)?,
            None => 0,
        };
        self.index
            .get(start..size(word(self.bucket_ends, bucket)?)?)
    }
}
