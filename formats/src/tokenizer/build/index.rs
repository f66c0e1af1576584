//! The index of tokens by their bytes.

use std::vec::Vec;

use super::{PartsError, TokenPart};
use crate::tokenizer::MAX_BUCKET;
use crate::tokenizer::vocabulary::Slot;

/// Buckets of tokens.
pub(super) struct Index {
    pub(super) bits: u32,
    pub(super) ends: Vec<u32>,
    pub(super) entries: Vec<u32>,
}

impl Index {
    /// About four tokens a bucket, so that looking one up reads one or two lines of a cache.
    pub(super) fn new(tokens: &[TokenPart]) -> Result<Self, PartsError> {
        let indexed = tokens.iter().filter(|t| t.matchable && !t.bytes.is_empty());
        let start = (indexed.count() / 4).next_power_of_two().trailing_zeros();
        (start..start + 3)
            .map(|bits| Self::with_bits(tokens, bits))
            .find(|index| index.widest() <= MAX_BUCKET)
            .ok_or(PartsError::TooMany {
                what: "tokens of one hash",
            })
    }

    fn with_bits(tokens: &[TokenPart], bits: u32) -> Self {
        let mut buckets = std::vec![Vec::new(); 1 << bits];
        for (id, token) in (0_u32..).zip(tokens) {
            if token.matchable && !token.bytes.is_empty() {
                let slot = Slot::of(&token.bytes, bits);
                let entry = id | u32::from(slot.fingerprint) << 24;
                buckets[slot.bucket as usize].push(entry);
            }
        }
        let ends = buckets.iter().scan(0, |end, bucket| {
            *end += bucket.len() as u32;
            Some(*end)
        });
        Self {
            bits,
            ends: ends.collect(),
            entries: buckets.iter().flatten().copied().collect(),
        }
    }

    fn widest(&self) -> usize {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let widths = starts.zip(&self.ends).map(|(start, end)| end - start);
        widths.max().unwrap_or(0) as usize
    }
}
