//! Added tokens: names that text may hold as a whole, such as `<|end_of_text|>`.

use super::{ADDED_BYTES, TokenizerTables, size, span, word};

pub(super) const SPECIAL: u8 = 1;
pub(super) const LSTRIP: u8 = 2;
pub(super) const RSTRIP: u8 = 4;
pub(super) const KNOWN_FLAGS: u8 = 7;

/// When added tokens are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchStage {
    /// In the text as it is given.
    Raw,
    /// Between those, in normalised text.
    Normalized,
}

/// A token that text holds as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedToken<'w> {
    /// Its id.
    pub id: u32,
    /// When it is looked for.
    pub stage: MatchStage,
    /// What it matches.
    pub name: &'w [u8],
    /// What it decodes to.
    pub text: &'w [u8],
    /// True where decoding may leave it out.
    pub special: bool,
    /// True where it takes the white space before it.
    pub lstrip: bool,
    /// True where it takes the white space after it.
    pub rstrip: bool,
}

impl<'w> TokenizerTables<'w> {
    /// The added token with this id.
    #[must_use]
    pub fn added(&self, id: u32) -> Option<AddedToken<'w>> {
        let entry = |by_id: &[u8; 4]| size(u32::from_le_bytes(*by_id));
        let at = self.added_by_id.binary_search_by_key(&Some(id), |by_id| {
            let id = self.added.get(entry(by_id)?)?.first_chunk()?;
            Some(u32::from_le_bytes(*id))
        });
        self.added_entry(size(word(self.added_by_id, at.ok()?)?)?)
    }

    /// All added tokens, those matched raw first, each kind sorted by what it matches.
    pub fn all_added(&self) -> impl Iterator<Item = AddedToken<'w>> + '_ {
        (0..self.added.len()).filter_map(|at| self.added_entry(at))
    }

    /// True if an added token of this stage begins with this byte.
    #[must_use]
    pub fn added_may_begin(&self, stage: MatchStage, byte: u8) -> bool {
        let [raw, normalized] = &self.header.first_bytes;
        let bits = match stage {
            MatchStage::Raw => raw,
            MatchStage::Normalized => normalized,
        };
        let bits = bits.get(usize::from(byte / 8)).copied().unwrap_or(0);
        bits >> (byte % 8) & 1 == 1
    }

    /// The longest added token of this stage with which `text` begins.
    ///
    /// The names are sorted: after each byte of the text those that still fit are a range, and the
    /// first of them is the only one that may be complete.
    #[must_use]
    pub fn added_at(&self, stage: MatchStage, text: &[u8]) -> Option<AddedToken<'w>> {
        let raw = size(self.header.n_raw)?.min(self.added.len());
        let (mut low, mut high) = match stage {
            MatchStage::Raw => (0, raw),
            MatchStage::Normalized => (raw, self.added.len()),
        };
        let mut longest = None;
        for (depth, byte) in text.iter().enumerate() {
            let next = |at: usize| self.name(at).and_then(|name| name.get(depth)).copied();
            low = first_where(low, high, |at| next(at) >= Some(*byte));
            high = first_where(low, high, |at| next(at) > Some(*byte));
            if low >= high {
                break;
            }
            if self.name(low).is_some_and(|name| name.len() == depth + 1) {
                longest = Some(low);
            }
        }
        self.added_entry(longest?)
    }

    fn name(&self, at: usize) -> Option<&'w [u8]> {
        Some(self.added_entry(at)?.name)
    }

    /// u32 id, u8 flags, u8 length of the name, u8 length of the text, u8 zero, u32 offset of the
    /// name, u32 offset of the text.
    pub(super) fn added_entry(&self, at: usize) -> Option<AddedToken<'w>> {
        let entry: &[u8; ADDED_BYTES] = self.added.get(at)?;
        let words = entry.as_chunks::<4>().0;
        let flags = entry[4];
        let part = |len: u8, offset: u32| span(self.added_text, size(offset)?, len.into());
        let raw = at < size(self.header.n_raw)?;
        Some(AddedToken {
            id: word(words, 0)?,
            stage: match raw {
                true => MatchStage::Raw,
                false => MatchStage::Normalized,
            },
            name: part(entry[5], word(words, 2)?)?,
            text: part(entry[6], word(words, 3)?)?,
            special: flags & SPECIAL != 0,
            lstrip: flags & LSTRIP != 0,
            rstrip: flags & RSTRIP != 0,
        })
    }
}

/// The first index of `low..high` for which `test` holds, or `high`; `test` never goes back to false.
fn first_where(low: usize, high: usize, test: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = low.midpoint(high);
        if test(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}
