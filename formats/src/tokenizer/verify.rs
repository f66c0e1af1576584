//! The full check of a tokenizer section: what `open` takes on trust.

use super::added::{AddedToken, KNOWN_FLAGS};
use super::merges::listed;
use super::vocabulary::Slot;
use super::{MAX_BUCKET, TokenizerTables, size, word};
use crate::error::FormatError;
use crate::section::SectionKind;

impl TokenizerTables<'_> {
    /// Reads every table: offsets add up, every index entry is found again, lists are sorted, ids
    /// exist.
    ///
    /// # Errors
    ///
    /// The section is not one that a writer makes.
    pub fn verify(&self) -> Result<(), FormatError> {
        let sound = self.tokens_are_sound()
            && self.index_is_sound()
            && self.merges_are_sound()
            && self.added_are_sound()
            && self.unicode_is_sound();
        if sound {
            Ok(())
        } else {
            Err(FormatError::SectionContent(SectionKind::Tokenizer))
        }
    }

    fn tokens_are_sound(&self) -> bool {
        let mut end = 0_u64;
        let mut longest = 0;
        for (at, len) in self.lengths.iter().enumerate() {
            let block = word(self.block_offsets, at / super::BLOCK_TOKENS);
            if at % super::BLOCK_TOKENS == 0 && block.map(u64::from) != Some(end) {
                return false;
            }
            longest = longest.max(u16::from(*len));
            end += u64::from(*len);
        }
        end == self.text.len() as u64 && longest == self.header.longest_token
    }

    fn index_is_sound(&self) -> bool {
        let buckets = self.bucket_ends.len();
        let all = word(self.bucket_ends, buckets - 1).and_then(size) == Some(self.index.len());
        all && (0..buckets).all(|at| self.bucket_is_sound(at))
    }

    fn bucket_is_sound(&self, at: usize) -> bool {
        let Some(bucket) = self.bucket(at) else {
            return false;
        };
        bucket.len() <= MAX_BUCKET
            && bucket.iter().all(|[a, b, c, fingerprint]| {
                let id = u32::from_le_bytes([*a, *b, *c, 0]);
                let Some(bytes) = self.token(id).filter(|bytes| !bytes.is_empty()) else {
                    return false;
                };
                let slot = Slot::of(bytes, self.header.bucket_bits);
                size(slot.bucket) == Some(at)
                    && slot.fingerprint == *fingerprint
                    && self.lookup(bytes) == Some(id)
            })
    }

    fn merges_are_sound(&self) -> bool {
        let inside = |(split, len): (&u8, &u8)| *split == 0 || split < len;
        let splits = self.splits.iter().zip(self.lengths).all(inside);
        let keys = || self.listed.iter().map(|entry| listed(entry).0);
        let sorted = keys().zip(keys().skip(1)).all(|(a, b)| a < b);
        splits && sorted && keys().all(|key| self.is_split(key))
    }

    fn is_split(&self, key: u64) -> bool {
        let id = u32::try_from(key >> 8).ok();
        let len = id.and_then(|id| self.token(id)).map(<[u8]>::len);
        let split = usize::try_from(key & 0xff).ok();
        split >= Some(1) && split < len
    }

    fn added_are_sound(&self) -> bool {
        let legal = self.added.iter().enumerate().all(|(at, entry)| {
            let token = self.added_entry(at);
            token.is_some_and(|token| self.may_begin(&token))
                && entry[4] & !KNOWN_FLAGS == 0
                && entry[7] == 0
        });
        let ids = || self.added_by_id.iter().map(|at| self.id_at(at));
        let by_id = ids().all(|id| id.is_some()) && ids().zip(ids().skip(1)).all(|(a, b)| a < b);
        legal && by_id && self.names_are_sorted()
    }

    fn may_begin(&self, token: &AddedToken<'_>) -> bool {
        let first = token.name.first();
        first.is_some_and(|byte| self.added_may_begin(token.stage, *byte))
    }

    fn id_at(&self, at: &[u8; 4]) -> Option<u32> {
        Some(self.added_entry(size(u32::from_le_bytes(*at))?)?.id)
    }

    fn names_are_sorted(&self) -> bool {
        let raw = size(self.header.n_raw).unwrap_or(0);
        let name = |at: usize| self.added_entry(at).map(|entry| entry.name);
        (1..self.added.len()).all(|at| at == raw || name(at - 1) < name(at))
    }
}
