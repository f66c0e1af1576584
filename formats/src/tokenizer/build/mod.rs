//! Writing a tokenizer section.
//!
//! [`TokenizerParts`] says what a tokenizer is, whatever file it comes from; each table of the section
//! has a file here that makes it.

mod added;
mod error;
mod index;
mod merges;
mod parts;
mod unicode;

use std::collections::HashMap;
use std::vec::Vec;

pub use error::PartsError;
pub use parts::{AddedPart, MergeSource, TokenPart, TokenizerParts};
pub use unicode::{CharClasses, Normalization};

use super::header::{BYTE_FALLBACK, FUSE_UNKNOWN, Header, MARKED_SPACES, NFC, WHOLE_WORDS};
use super::{BLOCK_TOKENS, MAX_STEPS, MAX_TOKEN_BYTES, SplitStep, TokenizerTables};
use added::Added;
use index::Index;
use merges::Merges;
use unicode::ClassTable;

impl TokenizerParts {
    /// The bytes of the section, the smallest the format knows for these merges.
    ///
    /// # Errors
    ///
    /// What makes the parts no tokenizer.
    pub fn encode(&self) -> Result<Vec<u8>, PartsError> {
        self.check_sizes()?;
        let texts = self.texts()?;
        let merges = Merges::new(self, &texts)?;
        let index = Index::new(&self.tokens)?;
        let added = Added::new(&self.added)?;
        let classes = self.class_table()?;
        let mut header = self.header(&merges, &index, &added)?;
        self.count_unicode(&classes, &mut header);
        let mut out = header.encode().to_vec();
        self.push_tokens(&mut out);
        push_words(&mut out, index.ends);
        push_words(&mut out, index.entries);
        out.extend(&merges.splits);
        out.extend(merges.listed.as_flattened());
        push_words(&mut out, merges.order);
        out.extend(&added.entries);
        push_words(&mut out, added.by_id);
        out.extend(&added.text);
        push_words(
            &mut out,
            self.ids_before.iter().chain(&self.ids_after).copied(),
        );
        out.extend(&classes.index);
        out.extend(classes.blocks.as_flattened());
        if let Some(normalization) = &self.normalization {
            normalization.push(&mut out);
        }
        TokenizerTables::open(&out)
            .and_then(|tables| tables.verify())
            .map_err(PartsError::ReadBack)?;
        Ok(out)
    }

    fn check_sizes(&self) -> Result<(), PartsError> {
        let limits = [
            ("tokens", self.tokens.len(), 1 << 22),
            ("added tokens", self.added.len(), 1 << 16),
            ("steps", self.steps.len(), MAX_STEPS),
            ("ids before a text", self.ids_before.len(), 1 << 15),
            ("ids after a text", self.ids_after.len(), 1 << 15),
        ];
        match limits.into_iter().find(|(_, found, max)| found > max) {
            Some((what, ..)) => Err(PartsError::TooMany { what }),
            None => Ok(()),
        }
    }

    /// Ids by text, of the tokens that text can hold.
    fn texts(&self) -> Result<HashMap<&[u8], u32>, PartsError> {
        let mut texts = HashMap::new();
        for (id, token) in (0..).zip(&self.tokens) {
            let bytes = token.bytes.len();
            if bytes > MAX_TOKEN_BYTES {
                return Err(PartsError::TokenTooLong { id, bytes });
            }
            if !token.matchable || token.bytes.is_empty() {
                continue;
            }
            if let Some(first) = texts.insert(&token.bytes[..], id) {
                return Err(PartsError::SameText { first, second: id });
            }
        }
        Ok(texts)
    }

    fn header(&self, merges: &Merges, index: &Index, added: &Added) -> Result<Header, PartsError> {
        let count = |what, n: usize| u32::try_from(n).map_err(|_| PartsError::TooMany { what });
        let longest = self.tokens.iter().map(|t| t.bytes.len()).max();
        let text_bytes = self.tokens.iter().map(|t| t.bytes.len()).sum();
        let mut steps = [SplitStep::Gpt2; MAX_STEPS];
        steps[..self.steps.len()].copy_from_slice(&self.steps);
        Ok(Header {
            alphabet: self.alphabet,
            rule: merges.rule,
            has_order: !merges.order.is_empty(),
            ties: merges.ties,
            flags: self.flags(),
            prefix: self.prefix,
            strip: self.strip,
            n_steps: self.steps.len() as u8,
            steps,
            n_tokens: self.tokens.len() as u32,
            n_added: self.added.len() as u32,
            unknown: self.unknown,
            text_bytes: count("bytes of tokens", text_bytes)?,
            n_index: index.entries.len() as u32,
            bucket_bits: index.bits,
            n_listed: merges.listed.len() as u32,
            added_text_bytes: count("bytes of added tokens", added.text.len())?,
            n_before: self.ids_before.len() as u16,
            n_after: self.ids_after.len() as u16,
            longest_token: longest.unwrap_or(0) as u16,
            n_raw: added.n_raw,
            first_bytes: added.first_bytes,
            unicode_version: (0, 0),
            n_class_index: 0,
            n_class_blocks: 0,
            n_decompositions: 0,
            n_decomposed: 0,
            n_compositions: 0,
            n_combining: 0,
        })
    }

    /// The table of classes that steps ask for; empty where none does.
    fn class_table(&self) -> Result<ClassTable, PartsError> {
        let punctuation =
            |step: &SplitStep| matches!(step, SplitStep::Punctuation | SplitStep::PunctuationRuns);
        if !self.steps.iter().any(|step| step.needs_classes()) {
            return Ok(ClassTable::default());
        }
        let classes = self.classes.as_ref().ok_or(PartsError::NoClasses)?;
        classes
            .table(self.steps.iter().any(punctuation))
            .ok_or(PartsError::TooMany {
                what: "kinds of blocks of characters",
            })
    }

    fn count_unicode(&self, classes: &ClassTable, header: &mut Header) {
        header.unicode_version = classes.version;
        header.n_class_index = classes.index.len() as u16;
        header.n_class_blocks = classes.blocks.len() as u16;
        if let Some(normalization) = &self.normalization {
            header.n_decompositions = normalization.decompositions.len() as u32;
            header.n_decomposed = normalization.decomposed() as u32;
            header.n_compositions = normalization.compositions.len() as u32;
            header.n_combining = normalization.combining.len() as u32;
        }
    }

    fn flags(&self) -> u8 {
        let flags = [
            (self.whole_words_first, WHOLE_WORDS),
            (self.byte_fallback, BYTE_FALLBACK),
            (self.fuse_unknown, FUSE_UNKNOWN),
            (self.normalization.is_some(), NFC),
            (self.marks_spaces, MARKED_SPACES),
        ];
        let set = flags.into_iter().filter(|(on, _)| *on);
        set.fold(0, |all, (_, flag)| all | flag)
    }

    /// Lengths, an offset for every block, text.
    fn push_tokens(&self, out: &mut Vec<u8>) {
        out.extend(self.tokens.iter().map(|token| token.bytes.len() as u8));
        let mut offset = 0;
        for block in self.tokens.chunks(BLOCK_TOKENS) {
            push_words(out, [offset]);
            offset += block.iter().map(|t| t.bytes.len() as u32).sum::<u32>();
        }
        out.extend(self.tokens.iter().flat_map(|token| &token.bytes));
    }
}

fn push_words(out: &mut Vec<u8>, words: impl IntoIterator<Item = u32>) {
    out.extend(words.into_iter().flat_map(u32::to_le_bytes));
}
