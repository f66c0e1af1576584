//! Which tokens merge, and what comes first.

use super::header::{MergeRule, Ties};
use super::{LISTED_BYTES, TokenizerTables, size, word};

/// A pair that merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The token it becomes.
    pub id: u32,
    /// Pairs of lower rank merge first.
    pub rank: u32,
}

impl TokenizerTables<'_> {
    /// What two neighbours become whose bytes together are `pair` and whose border is at `split`;
    /// `None` where they do not merge.
    #[must_use]
    pub fn merge(&self, pair: &[u8], split: usize) -> Option<Merge> {
        let id = self.lookup(pair)?;
        let rank = match self.rule() {
            MergeRule::Any => self.rank(id)?,
            MergeRule::Split if usize::from(*self.splits.get(size(id)?)?) == split => {
                self.rank(id)?
            }
            MergeRule::Split => return None,
            MergeRule::Listed => self.listed_rank(id, split)?,
        };
        Some(Merge { id, rank })
    }

    /// True where the rank of a pair is the id of what it becomes.
    #[must_use]
    pub fn ranks_are_ids(&self) -> bool {
        self.rule() != MergeRule::Listed && !self.header.has_order
    }

    /// True where of two pairs of equal rank the one with the lower left id merges first; the place
    /// in the text decides otherwise.
    #[must_use]
    pub fn ties_by_left_id(&self) -> bool {
        self.header.ties == Ties::LeftId
    }

    /// The place of a token in the order of merging.
    fn rank(&self, id: u32) -> Option<u32> {
        if self.header.has_order {
            word(self.order, size(id)?)
        } else {
            Some(id)
        }
    }

    fn listed_rank(&self, id: u32, split: usize) -> Option<u32> {
        let key = listed_key(id, u8::try_from(split).ok()?);
        let at = self
            .listed
            .binary_search_by_key(&key, |entry| listed(entry).0)
            .ok()?;
        Some(listed(self.listed.get(at)?).1)
    }
}

/// What a list of merges is sorted by: the token made, then the bytes of its left part.
pub(super) fn listed_key(id: u32, split: u8) -> u64 {
    u64::from(id) << 8 | u64::from(split)
}

/// Key and rank of a listed merge: u32 id, u8 bytes of the left part, u24 rank.
pub(super) fn listed(entry: &[u8; LISTED_BYTES]) -> (u64, u32) {
    let [a, b, c, d, split, e, f, g] = *entry;
    let id = u32::from_le_bytes([a, b, c, d]);
    (listed_key(id, split), u32::from_le_bytes([e, f, g, 0]))
}
