//! The tokenizer section: tables that are used where they lie.
//!
//! A section holds the bytes of every token, a hash index over them, how tokens merge, and how text
//! is cut before merging. Nothing is built when it is opened: [`TokenizerTables`] borrows the section
//! and every access is checked against its bounds, so that no bytes whatever can make a reader
//! panic. `SPEC.md` gives the layout; [`TokenizerParts`] writes it; the runtime turns text into ids
//! with it.

mod added;
#[cfg(feature = "std")]
mod build;
mod header;
mod merges;
mod unicode;
mod verify;
mod vocabulary;

pub use added::{AddedToken, MatchStage};
#[cfg(feature = "std")]
pub use build::{
    AddedPart, CharClasses, MergeSource, Normalization, PartsError, TokenPart, TokenizerParts,
};
pub use header::{Alphabet, MAX_STEPS, Prefix, SplitStep, Strip, TOKENIZER_VERSION};
pub use merges::Merge;
pub use unicode::{CharClass, is_space};

use crate::error::FormatError;
use crate::section::SectionKind;
use header::{HEADER_BYTES, Header, MergeRule};
use unicode::BLOCK_BYTES;

/// Longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 255;
/// Most entries of one bucket of the index that a lookup reads.
const MAX_BUCKET: usize = 64;
/// Tokens whose lengths are added up to find where one of them begins.
const BLOCK_TOKENS: usize = 16;
/// Bytes of an added token's entry.
const ADDED_BYTES: usize = 16;
/// Bytes of a listed merge.
const LISTED_BYTES: usize = 8;

/// A tokenizer section, opened. Owns nothing.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerTables<'w> {
    header: Header,
    lengths: &'w [u8],
    block_offsets: &'w [[u8; 4]],
    text: &'w [u8],
    bucket_ends: &'w [[u8; 4]],
    index: &'w [[u8; 4]],
    splits: &'w [u8],
    listed: &'w [[u8; LISTED_BYTES]],
    order: &'w [[u8; 4]],
    added: &'w [[u8; ADDED_BYTES]],
    added_by_id: &'w [[u8; 4]],
    added_text: &'w [u8],
    template: &'w [[u8; 4]],
    class_index: &'w [u8],
    class_blocks: &'w [[u8; BLOCK_BYTES]],
    decompositions: &'w [[u8; 8]],
    decomposed: &'w [[u8; 4]],
    compositions: &'w [[u8; 12]],
    combining: &'w [[u8; 8]],
}

impl<'w> TokenizerTables<'w> {
    /// Opens a section: its header, and that the tables fill it exactly.
    ///
    /// # Errors
    ///
    /// A newer version, a value the header may not have, or another length.
    pub fn open(bytes: &'w [u8]) -> Result<Self, FormatError> {
        let header = Header::decode(bytes)?;
        let content = FormatError::SectionContent(SectionKind::Tokenizer);
        Self::cut(header, bytes).ok_or(content)
    }

    fn cut(header: Header, bytes: &'w [u8]) -> Option<Self> {
        let mut rest = bytes.get(HEADER_BYTES..)?;
        let n_tokens = size(header.n_tokens)?;
        let n_added = size(header.n_added)?;
        let tables = Self {
            lengths: take::<1>(&mut rest, n_tokens)?.as_flattened(),
            block_offsets: take(&mut rest, n_tokens.div_ceil(BLOCK_TOKENS))?,
            text: take::<1>(&mut rest, size(header.text_bytes)?)?.as_flattened(),
            bucket_ends: take(&mut rest, 1_usize.checked_shl(header.bucket_bits)?)?,
            index: take(&mut rest, size(header.n_index)?)?,
            splits: take::<1>(&mut rest, header.n_splits()?)?.as_flattened(),
            listed: take(&mut rest, size(header.n_listed)?)?,
            order: take(&mut rest, if header.has_order { n_tokens } else { 0 })?,
            added: take(&mut rest, n_added)?,
            added_by_id: take(&mut rest, n_added)?,
            added_text: take::<1>(&mut rest, size(header.added_text_bytes)?)?.as_flattened(),
            template: take(&mut rest, header.template_len())?,
            class_index: take::<1>(&mut rest, header.n_class_index.into())?.as_flattened(),
            class_blocks: take(&mut rest, header.n_class_blocks.into())?,
            decompositions: take(&mut rest, size(header.n_decompositions)?)?,
            decomposed: take(&mut rest, size(header.n_decomposed)?)?,
            compositions: take(&mut rest, size(header.n_compositions)?)?,
            combining: take(&mut rest, size(header.n_combining)?)?,
            header,
        };
        rest.is_empty().then_some(tables)
    }

    /// What the symbols are that merging begins with.
    #[must_use]
    pub const fn alphabet(&self) -> Alphabet {
        self.header.alphabet
    }

    /// Ids below this are tokens of the vocabulary; added tokens may have higher ones.
    #[must_use]
    pub const fn n_tokens(&self) -> u32 {
        self.header.n_tokens
    }

    /// Bytes of the longest token of the vocabulary.
    #[must_use]
    pub const fn longest_token(&self) -> usize {
        self.header.longest_token as usize
    }

    /// True where a word that is a token is that token, whatever merging would make of it.
    #[must_use]
    pub const fn whole_words_first(&self) -> bool {
        self.header.flag(header::WHOLE_WORDS)
    }

    /// True where a character without a token becomes the tokens `<0x00>` to `<0xFF>` of its bytes.
    #[must_use]
    pub const fn byte_fallback(&self) -> bool {
        self.header.flag(header::BYTE_FALLBACK)
    }

    /// True where neighbouring unknown characters become one unknown token.
    #[must_use]
    pub const fn fuse_unknown(&self) -> bool {
        self.header.flag(header::FUSE_UNKNOWN)
    }

    /// True where text is brought to Unicode normalisation form C first.
    #[must_use]
    pub const fn nfc(&self) -> bool {
        self.header.flag(header::NFC)
    }

    /// True where U+2581 stands for a space: both are stored, and matched, as a space.
    #[must_use]
    pub const fn marks_spaces(&self) -> bool {
        self.header.flag(header::MARKED_SPACES)
    }

    /// The token of characters that have none.
    #[must_use]
    pub const fn unknown(&self) -> Option<u32> {
        self.header.unknown
    }

    /// Where a space is put before text.
    #[must_use]
    pub const fn prefix(&self) -> Prefix {
        self.header.prefix
    }

    /// What decoding takes off the beginning.
    #[must_use]
    pub const fn strip(&self) -> Strip {
        self.header.strip
    }

    /// How text is cut into words, one step after the other, each within the pieces of the last.
    #[must_use]
    pub fn steps(&self) -> &[SplitStep] {
        self.header.steps()
    }

    /// Ids that stand before every text.
    pub fn ids_before(&self) -> impl ExactSizeIterator<Item = u32> + 'w {
        let n = usize::from(self.header.n_before).min(self.template.len());
        ids(self.template.split_at(n).0)
    }

    /// Ids that stand after every text.
    pub fn ids_after(&self) -> impl ExactSizeIterator<Item = u32> + 'w {
        let n = usize::from(self.header.n_before).min(self.template.len());
        ids(self.template.split_at(n).1)
    }

    fn rule(&self) -> MergeRule {
        self.header.rule
    }
}

fn ids(words: &[[u8; 4]]) -> impl ExactSizeIterator<Item = u32> {
    words.iter().map(|id| u32::from_le_bytes(*id))
}

fn size(n: u32) -> Option<usize> {
    usize::try_from(n).ok()
}

/// Cuts `n` entries of `N` bytes from the front.
fn take<'w, const N: usize>(rest: &mut &'w [u8], n: usize) -> Option<&'w [[u8; N]]> {
    let (table, tail) = rest.split_at_checked(n.checked_mul(N)?)?;
    *rest = tail;
    Some(table.as_chunks().0)
}

/// An entry of a table of u32.
fn word(table: &[[u8; 4]], at: usize) -> Option<u32> {
    table.get(at).map(|bytes| u32::from_le_bytes(*bytes))
}

/// The bytes at an offset.
fn span(text: &[u8], offset: usize, len: usize) -> Option<&[u8]> {
    text.get(offset..offset.checked_add(len)?)
}
