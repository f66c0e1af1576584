//! Byte-pair encoding of one word.
//!
//! The rule: as long as two neighbours merge, the pair of lowest rank does, and of equal ranks the
//! first one. Looking for it anew after each merge would take the square of the word's length, which
//! a text without spaces makes long; so the ranks of all pairs stand in a tournament tree, whose root
//! names the best one and which a merge changes along three paths to the root. A word of n bytes
//! takes O(n log n) time and four arrays of n entries.
//!
//! Symbols are named by the place of their first byte. Neighbours are next to each other in the
//! word's bytes, so a pair is looked up by the bytes it covers.

use bitnet_formats::TokenizerTables;
use bitnet_formats::tokenizer::Alphabet;
use zerocopy::IntoBytes;

use super::error::EncodeError;
use super::{WORD_ARRAYS, lend, utf8};

/// Rank of a place without a pair.
const NO_PAIR: u32 = u32::MAX;
/// Marks the id of a symbol whose bytes are not its token's text: it never merges.
const FIXED: u32 = 1 << 31;

/// A word in the course of merging. Arrays have an entry for each byte of the word.
pub(super) struct Word<'a, 'w, 's> {
    tables: &'a TokenizerTables<'w>,
    bytes: &'a [u8],
    /// Token of the symbol that begins here.
    ids: &'s mut [u32],
    /// Bytes of the symbol that begins here, and of the one that ends here.
    spans: &'s mut [u32],
    /// Rank of the pair of the symbol that begins here and the next one.
    ranks: &'s mut [u32],
    /// Entry i is the better of 2 i and 2 i + 1; entries from n on would be the places themselves.
    tree: &'s mut [u32],
}

impl<'a, 'w, 's> Word<'a, 'w, 's> {
    /// A word that is not empty, as its first symbols.
    pub(super) fn new(
        tables: &'a TokenizerTables<'w>,
        bytes: &'a [u8],
        scratch: &'s mut [u32],
    ) -> Result<Self, EncodeError> {
        let n = bytes.len();
        let (arrays, _) = lend(scratch, n.saturating_mul(WORD_ARRAYS), 0)?;
        let (ids, arrays) = arrays.split_at_mut(n);
        let (spans, arrays) = arrays.split_at_mut(n);
        let (ranks, tree) = arrays.split_at_mut(n);
        let mut word = Self {
            tables,
            bytes,
            ids,
            spans,
            ranks,
            tree,
        };
        word.ranks.fill(NO_PAIR);
        word.cut();
        word.rank_all();
        Ok(word)
    }

    /// Merges until nothing merges.
    pub(super) fn merge_all(&mut self) {
        while let Some(place) = self.best() {
            let next = self.end(place);
            let end = self.end(next);
            self.ids[place] = self.made(place, end);
            self.set_span(place, end);
            self.set_rank(next, NO_PAIR);
            self.set_rank(place, self.pair_rank(place));
            if place > 0 {
                let before = place - self.spans[place - 1] as usize;
                self.set_rank(before, self.pair_rank(before));
            }
        }
    }

    /// The tokens, from left to right.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let mut place = 0;
        core::iter::from_fn(move || {
            let id = *self.ids.get(place)?;
            place = self.end(place);
            Some(id & !FIXED)
        })
    }

    /// Cuts the word into its first symbols.
    fn cut(&mut self) {
        let mut place = 0;
        // Where the unknown symbol begins that ends here, if one does.
        let mut unknown_from = None;
        while place < self.bytes.len() {
            let end = place + symbol_len(self.tables, &self.bytes[place..]);
            if let Some(id) = self.tables.lookup(&self.bytes[place..end]) {
                self.put(place, end, id);
                unknown_from = None;
            } else if self.put_bytes(place, end) {
                unknown_from = None;
            } else {
                let fused = unknown_from.filter(|_| self.tables.fuse_unknown());
                let from = fused.unwrap_or(place);
                self.put(from, end, unknown(self.tables));
                unknown_from = Some(from);
            }
            place = end;
        }
    }

    /// The bytes of a character as tokens of their own; false where the tokenizer has none for them.
    fn put_bytes(&mut self, start: usize, end: usize) -> bool {
        let token = |at: usize| self.tables.lookup(&byte_name(self.bytes[at]));
        if !self.tables.byte_fallback() || (start..end).any(|at| token(at).is_none()) {
            return false;
        }
        for at in start..end {
            let id = self.tables.lookup(&byte_name(self.bytes[at]));
            self.put(at, at + 1, id.unwrap_or(0) | FIXED);
        }
        true
    }

    fn put(&mut self, start: usize, end: usize, id: u32) {
        self.ids[start] = id;
        self.set_span(start, end);
    }

    fn set_span(&mut self, start: usize, end: usize) {
        let span = (end - start) as u32;
        self.spans[start] = span;
        self.spans[end - 1] = span;
    }

    fn end(&self, place: usize) -> usize {
        place + self.spans[place] as usize
    }

    /// What the pair becomes that begins at `place` and ends before `end`.
    fn made(&self, place: usize, end: usize) -> u32 {
        if self.tables.ranks_are_ids() {
            return self.ranks[place];
        }
        let id = self.tables.lookup(&self.bytes[place..end]);
        id.unwrap_or(self.ids[place])
    }

    fn pair_rank(&self, place: usize) -> u32 {
        let next = self.end(place);
        if next >= self.bytes.len() {
            return NO_PAIR;
        }
        let end = self.end(next);
        let fixed = (self.ids[place] | self.ids[next]) & FIXED != 0;
        if fixed || end - place > self.tables.longest_token() {
            return NO_PAIR;
        }
        let merge = self.tables.merge(&self.bytes[place..end], next - place);
        merge.map_or(NO_PAIR, |merge| merge.rank)
    }

    /// Ranks all pairs and builds the tree.
    fn rank_all(&mut self) {
        let mut place = 0;
        while place < self.bytes.len() {
            self.ranks[place] = self.pair_rank(place);
            place = self.end(place);
        }
        for node in (1..self.tree.len()).rev() {
            self.tree[node] = self.winner(node);
        }
    }

    /// The place of the best pair.
    fn best(&self) -> Option<usize> {
        // A word of one byte has no inner node.
        let place = self.tree.get(1).map_or(0, |place| *place as usize);
        (self.ranks[place] != NO_PAIR).then_some(place)
    }

    fn set_rank(&mut self, place: usize, rank: u32) {
        self.ranks[place] = rank;
        let mut node = (place + self.tree.len()) / 2;
        while node > 0 {
            self.tree[node] = self.winner(node);
            node /= 2;
        }
    }

    fn winner(&self, node: usize) -> u32 {
        let n = self.tree.len();
        let child = |node: usize| match node.checked_sub(n) {
            Some(place) => place as u32,
            None => self.tree[node],
        };
        let (a, b) = (child(2 * node), child(2 * node + 1));
        if self.key(a) < self.key(b) { a } else { b }
    }

    /// What pairs are compared by.
    fn key(&self, place: u32) -> (u32, u32, u32) {
        let at = place as usize;
        let left = if self.tables.ties_by_left_id() {
            self.ids[at]
        } else {
            0
        };
        (self.ranks[at], left, place)
    }
}

/// Bytes of the first symbol.
fn symbol_len(tables: &TokenizerTables<'_>, bytes: &[u8]) -> usize {
    match tables.alphabet() {
        Alphabet::Bytes => 1,
        Alphabet::Characters => utf8::first_char(bytes).map_or(1, |(_, len)| len),
    }
}

/// Only called where every character has something to become.
fn unknown(tables: &TokenizerTables<'_>) -> u32 {
    tables.unknown().unwrap_or(0) | FIXED
}

/// The text of a byte's token, `<0x0A>`.
fn byte_name(byte: u8) -> [u8; 6] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |value: u8| DIGITS[usize::from(value & 15)];
    [b'<', b'0', b'x', digit(byte >> 4), digit(byte), b'>']
}

/// A copy of the word without what has no token, the rest of the scratch memory, and the number of
/// characters left out.
pub(super) fn without_unknown<'s>(
    tables: &TokenizerTables<'_>,
    word: &[u8],
    scratch: &'s mut [u32],
) -> Result<(&'s [u8], &'s mut [u32], usize), EncodeError> {
    let (copy, rest) = lend(scratch, word.len().div_ceil(4), 0)?;
    let copy = copy.as_mut_bytes();
    let (mut kept, mut dropped, mut place) = (0, 0, 0);
    while place < word.len() {
        let len = symbol_len(tables, &word[place..]);
        let symbol = &word[place..place + len];
        if tables.lookup(symbol).is_some() {
            copy[kept..kept + len].copy_from_slice(symbol);
            kept += len;
        } else {
            dropped += 1;
        }
        place += len;
    }
    Ok((&copy[..kept], rest, dropped))
}
