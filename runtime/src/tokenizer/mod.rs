//! Text to token ids and back, over the tables in the file.
//!
//! Nothing is built when a [`Tokenizer`] is made, and nothing allocates: the caller lends scratch
//! memory and room for the ids. Ids are those of the `tokenizers` library for the same rules, letter
//! for letter; time is linear in the text, times the logarithm of its longest word.
//!
//! The way of a text:
//! 1. added tokens are cut out (`added`);
//! 2. what stands between is normalised (`normalize`), and once more searched for added tokens;
//! 3. rules cut it into words (`pre_tokenize`);
//! 4. a word's symbols merge, the best pair first (`bpe`).

mod added;
mod bpe;
mod decode;
mod error;
mod nfc;
mod normalize;
mod pre_tokenize;
mod utf8;

use bitnet_formats::TokenizerTables;
use bitnet_formats::tokenizer::{Alphabet, MatchStage, Prefix};

pub use decode::Decoder;
pub use error::EncodeError;

use added::Splits;
use bpe::Word;
use normalize::Stretch;

/// Words of scratch memory a byte of a word takes: four arrays of [`Word`].
const WORD_ARRAYS: usize = 4;

/// A tokenizer. Owns nothing: `'w` is the life of the file.
///
/// ```
/// use bitnet_runtime::{Archive, tokenizer::Tokenizer};
/// # fn encode(bytes: &[u8]) -> Option<Vec<u32>> {
/// let archive = Archive::open(bytes).ok()?;
/// let tokenizer = Tokenizer::new(archive.tokenizer().ok()??);
/// let text = "It was";
/// let mut scratch = vec![0; tokenizer.scratch_words(text.len())];
/// let mut ids = vec![0; tokenizer.most_ids(text.len())];
/// let encoded = tokenizer.encode(text, true, &mut scratch, &mut ids).ok()?;
/// ids.truncate(encoded.len);
/// # Some(ids)
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer<'w> {
    tables: TokenizerTables<'w>,
    /// True where a character may have no token, no bytes and no unknown token to become.
    may_drop: bool,
}

/// What encoding a text gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ids written.
    pub len: usize,
    /// Characters that no token stands for and that are left out.
    pub dropped: usize,
}

impl<'w> Tokenizer<'w> {
    /// A tokenizer over tables.
    #[must_use]
    pub fn new(tables: TokenizerTables<'w>) -> Self {
        let may_drop = tables.unknown().is_none()
            && match tables.alphabet() {
                Alphabet::Bytes => (0..=255).any(|byte| tables.lookup(&[byte]).is_none()),
                Alphabet::Characters => !tables.byte_fallback(),
            };
        Self { tables, may_drop }
    }

    /// The tables.
    #[must_use]
    pub const fn tables(&self) -> &TokenizerTables<'w> {
        &self.tables
    }

    /// Words of scratch memory with which a text of this many bytes never fails. Mostly far less is
    /// needed: what counts is the longest word, unless the rules know no words.
    #[must_use]
    pub fn scratch_words(&self, text_bytes: usize) -> usize {
        let longest = self.normalized_bytes(text_bytes).saturating_add(1);
        let copy = if self.copies() {
            text_words(longest)
        } else {
            0
        };
        let kept = if self.may_drop {
            longest.div_ceil(4)
        } else {
            0
        };
        copy.saturating_add(kept)
            .saturating_add(longest.saturating_mul(WORD_ARRAYS))
    }

    /// Most ids a text of this many bytes becomes, those of begin and end included.
    #[must_use]
    pub fn most_ids(&self, text_bytes: usize) -> usize {
        let around = self.tables.ids_before().len() + self.tables.ids_after().len();
        // A space may stand before every stretch of text, and a stretch has at least a byte.
        let spaces = match self.tables.prefix() {
            Prefix::Never => 0,
            Prefix::First => 1,
            Prefix::Normalized | Prefix::Always => text_bytes,
        };
        let ids = self.normalized_bytes(text_bytes).saturating_add(spaces);
        ids.saturating_add(around)
    }

    /// Most bytes of a text after normalisation: form C makes it at most three times as long.
    fn normalized_bytes(&self, text_bytes: usize) -> usize {
        let times = if self.tables.nfc() { 3 } else { 1 };
        text_bytes.saturating_mul(times)
    }

    /// True where text is not used as it is given.
    fn copies(&self) -> bool {
        self.tables.nfc() || self.tables.marks_spaces() || self.tables.prefix() != Prefix::Never
    }

    /// Writes the ids of `text` to `ids`. `special` adds the ids that stand before and after every
    /// text; names of added tokens in the text become those tokens either way.
    ///
    /// # Errors
    ///
    /// `scratch` or `ids` is too short. [`scratch_words`](Self::scratch_words) and
    /// [`most_ids`](Self::most_ids) always suffice.
    pub fn encode(
        &self,
        text: &str,
        special: bool,
        scratch: &mut [u32],
        ids: &mut [u32],
    ) -> Result<Encoded, EncodeError> {
        let mut out = Output {
            ids,
            encoded: Encoded::default(),
        };
        if special {
            self.tables.ids_before().try_for_each(|id| out.push(id))?;
        }
        let mut splits = Splits::new(MatchStage::Raw);
        while let Some(split) = splits.next(&self.tables, text.as_bytes()) {
            match split.token {
                Some(id) => out.push(id)?,
                None => {
                    let first = split.start == 0;
                    let text = &text.as_bytes()[split.start..split.end];
                    self.stretch(text, first, scratch, &mut out)?;
                }
            }
        }
        if special {
            self.tables.ids_after().try_for_each(|id| out.push(id))?;
        }
        Ok(out.encoded)
    }

    /// Text between added tokens; `first` if it begins the text.
    fn stretch(
        &self,
        text: &[u8],
        first: bool,
        scratch: &mut [u32],
        out: &mut Output<'_>,
    ) -> Result<(), EncodeError> {
        if self.copies() {
            let (mut stretch, rest) = Stretch::new(&self.tables, text, scratch)?;
            let mut splits = Splits::new(MatchStage::Normalized);
            while let Some(split) = splits.next(&self.tables, stretch.text()) {
                match split.token {
                    Some(id) => out.push(id)?,
                    None => {
                        let first = first && split.start == 0;
                        let text = stretch.prefixed(self.tables.prefix(), first, &split);
                        self.words(text, rest, out)?;
                    }
                }
            }
            return Ok(());
        }
        let mut splits = Splits::new(MatchStage::Normalized);
        while let Some(split) = splits.next(&self.tables, text) {
            match split.token {
                Some(id) => out.push(id)?,
                None => self.words(&text[split.start..split.end], scratch, out)?,
            }
        }
        Ok(())
    }

    fn words(
        &self,
        text: &[u8],
        scratch: &mut [u32],
        out: &mut Output<'_>,
    ) -> Result<(), EncodeError> {
        pre_tokenize::split(&self.tables, self.tables.steps(), text, &mut |word| {
            self.word(word, scratch, out)
        })
    }

    fn word(
        &self,
        word: &[u8],
        scratch: &mut [u32],
        out: &mut Output<'_>,
    ) -> Result<(), EncodeError> {
        let may_be_token = word.len() == 1 || self.tables.whole_words_first();
        let may_be_token = may_be_token && word.len() <= self.tables.longest_token();
        if may_be_token && let Some(id) = self.tables.lookup(word) {
            return out.push(id);
        }
        if self.may_drop {
            let (kept, rest, dropped) = bpe::without_unknown(&self.tables, word, scratch)?;
            out.encoded.dropped += dropped;
            return merge(&self.tables, kept, rest, out);
        }
        merge(&self.tables, word, scratch, out)
    }
}

fn merge(
    tables: &TokenizerTables<'_>,
    word: &[u8],
    scratch: &mut [u32],
    out: &mut Output<'_>,
) -> Result<(), EncodeError> {
    if word.is_empty() {
        return Ok(());
    }
    let mut word = Word::new(tables, word, scratch)?;
    word.merge_all();
    word.ids().try_for_each(|id| out.push(id))
}

/// Room for ids, and how much of it is used.
struct Output<'b> {
    ids: &'b mut [u32],
    encoded: Encoded,
}

impl Output<'_> {
    fn push(&mut self, id: u32) -> Result<(), EncodeError> {
        let found = self.ids.len();
        let place = self.ids.get_mut(self.encoded.len);
        *place.ok_or(EncodeError::Ids { found })? = id;
        self.encoded.len += 1;
        Ok(())
    }
}

/// Words that hold a copy of this many bytes and one byte before them.
const fn text_words(bytes: usize) -> usize {
    bytes.saturating_add(1).div_ceil(4)
}

/// Cuts `n` words from the front of the scratch memory, of which `more` words must be left.
fn lend(
    scratch: &mut [u32],
    n: usize,
    more: usize,
) -> Result<(&mut [u32], &mut [u32]), EncodeError> {
    let (needed, found) = (n.saturating_add(more), scratch.len());
    if found < needed {
        return Err(EncodeError::Scratch { needed, found });
    }
    Ok(scratch.split_at_mut(n))
}
