//! What a tokenizer is made of.

use std::vec::Vec;

use super::unicode::{CharClasses, Normalization};
use crate::tokenizer::{Alphabet, MatchStage, Prefix, SplitStep, Strip};

/// What a tokenizer is made of, whatever file it comes from.
#[derive(Clone, Debug)]
pub struct TokenizerParts {
    /// What merging begins with.
    pub alphabet: Alphabet,
    /// The vocabulary, by id.
    pub tokens: Vec<TokenPart>,
    /// Which tokens merge, and in which order.
    pub merges: MergeSource,
    /// True where a word that is a token is not merged.
    pub whole_words_first: bool,
    /// True where characters without a token become their bytes, `<0x00>` to `<0xFF>`.
    pub byte_fallback: bool,
    /// True where neighbouring unknown characters become one token.
    pub fuse_unknown: bool,
    /// Token of characters without one.
    pub unknown: Option<u32>,
    /// U+2581 stands for a space. Tokens and names are given with spaces already.
    pub marks_spaces: bool,
    /// Where a space is put before text.
    pub prefix: Prefix,
    /// What decoding takes off the beginning.
    pub strip: Strip,
    /// How text is cut into words.
    pub steps: Vec<SplitStep>,
    /// Tokens that text may hold as a whole.
    pub added: Vec<AddedPart>,
    /// Classes of characters; needed where a step asks for them.
    pub classes: Option<CharClasses>,
    /// Tables of normalisation form C, where text is brought to it first.
    pub normalization: Option<Normalization>,
    /// Ids before every text.
    pub ids_before: Vec<u32>,
    /// Ids after every text.
    pub ids_after: Vec<u32>,
}

/// A token of the vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenPart {
    /// What it decodes to; empty where no token has this id.
    pub bytes: Vec<u8>,
    /// True where text can come to be this token by merging.
    pub matchable: bool,
}

/// A token that text may hold as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedPart {
    /// Its id.
    pub id: u32,
    /// What it matches.
    pub name: Vec<u8>,
    /// What it decodes to.
    pub text: Vec<u8>,
    /// When it is looked for.
    pub stage: MatchStage,
    /// True where decoding may leave it out.
    pub special: bool,
    /// True where it takes the white space before it.
    pub lstrip: bool,
    /// True where it takes the white space after it.
    pub rstrip: bool,
}

/// Which tokens merge, and in which order.
#[derive(Clone, Debug)]
pub enum MergeSource {
    /// Left and right ids, the first merges first.
    Ranked(Vec<(u32, u32)>),
    /// Any two tokens that together are a token, the highest score of that token first, then the
    /// first in the text. One score for each token.
    Scores(Vec<f32>),
}
