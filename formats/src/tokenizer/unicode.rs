//! What the section says about characters: classes for cutting, and normalisation form C.
//!
//! The tables travel with the file, so that a text has the same ids under every version of Unicode
//! that a program may know. A file whose rules need none has none.

use super::{TokenizerTables, size, word};

/// Code points of one block of the class table.
pub(super) const BLOCK_CHARS: usize = 128;
/// Its bytes: four code points in one.
pub(super) const BLOCK_BYTES: usize = BLOCK_CHARS / 4;

/// What cutting asks of a character. White space is told by [`is_space`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharClass {
    /// None of those below.
    Other,
    /// A letter, general category L.
    Letter,
    /// A number, general category N.
    Number,
    /// Punctuation, general category P.
    Punctuation,
}

/// White space: the property of that name, which has not changed since Unicode 6.3.
#[must_use]
pub const fn is_space(c: char) -> bool {
    matches!(
        c,
        '\t'..='\r'
            | ' '
            | '\u{85}'
            | '\u{a0}'
            | '\u{1680}'
            | '\u{2000}'..='\u{200a}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{202f}'
            | '\u{205f}'
            | '\u{3000}'
    )
}

impl TokenizerTables<'_> {
    /// Version of Unicode of the class table, major and minor; zero where there is none.
    #[must_use]
    pub const fn unicode_version(&self) -> (u8, u8) {
        self.header.unicode_version
    }

    /// The class of a character.
    #[must_use]
    pub fn class(&self, c: char) -> CharClass {
        match self.class_bits(c).unwrap_or(0) {
            1 => CharClass::Letter,
            2 => CharClass::Number,
            3 => CharClass::Punctuation,
            _ => CharClass::Other,
        }
    }

    fn class_bits(&self, c: char) -> Option<u8> {
        let at = size(c.into())?;
        let block = usize::from(*self.class_index.get(at / BLOCK_CHARS)?);
        let byte = *self.class_blocks.get(block)?.get(at % BLOCK_CHARS / 4)?;
        Some(byte >> (at % 4 * 2) & 3)
    }

    /// The canonical decomposition of a character, to the end; empty where it has none. Hangul
    /// syllables are not in the table: theirs is arithmetic.
    pub fn decomposition(&self, c: char) -> impl ExactSizeIterator<Item = u32> {
        let found = self.decompositions.binary_search_by_key(&u32::from(c), key);
        let chars = found.ok().and_then(|at| self.decomposed_chars(at));
        super::ids(chars.unwrap_or(&[]))
    }

    /// The characters of an entry: they begin where those of the entry before end.
    fn decomposed_chars(&self, at: usize) -> Option<&[[u8; 4]]> {
        let end = |at: usize| size(word(self.decompositions.get(at)?.as_chunks().0, 1)?);
        let start = at.checked_sub(1).map_or(Some(0), end)?;
        self.decomposed.get(start..end(at)?)
    }

    /// The character two others compose to. Hangul is not in the table.
    #[must_use]
    pub fn composition(&self, first: char, second: char) -> Option<char> {
        let pair = (u32::from(first), u32::from(second));
        let at = self
            .compositions
            .binary_search_by_key(&pair, |entry| {
                (key(entry), word(entry.as_chunks().0, 1).unwrap_or(0))
            })
            .ok()?;
        char::from_u32(word(self.compositions.get(at)?.as_chunks().0, 2)?)
    }

    /// The canonical combining class of a character.
    #[must_use]
    pub fn combining_class(&self, c: char) -> u8 {
        let after = self
            .combining
            .partition_point(|range| key(range) <= c.into());
        let range = after.checked_sub(1).and_then(|at| self.combining.get(at));
        range
            .filter(|[_, _, _, _, b, c_, d, _]| u32::from_le_bytes([*b, *c_, *d, 0]) >= c.into())
            .map_or(0, |range| range[7])
    }

    /// Index entries name blocks, and lists are sorted.
    pub(super) fn unicode_is_sound(&self) -> bool {
        let n_blocks = self.class_blocks.len();
        let blocks = self
            .class_index
            .iter()
            .all(|block| usize::from(*block) < n_blocks);
        let pair = |entry: &[u8; 12]| (key(entry), word(entry.as_chunks().0, 1));
        blocks
            && self.decompositions.is_sorted_by(|a, b| key(a) < key(b))
            && (0..self.decompositions.len()).all(|at| self.decomposed_chars(at).is_some())
            && self.compositions.is_sorted_by(|a, b| pair(a) < pair(b))
            && self.combining.is_sorted_by(|a, b| key(a) < key(b))
    }
}

/// The code point an entry begins with.
fn key<const N: usize>(entry: &[u8; N]) -> u32 {
    word(entry.as_chunks().0, 0).unwrap_or(u32::MAX)
}
