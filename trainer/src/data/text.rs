//! Texts as ids.

use crate::corpus::{Document, Passage};
use crate::data::{Input, Joiner, marks_of};
use crate::error::{Error, Result};
use crate::loss_mask::LossMask;
use crate::ops::target::IGNORED;
use crate::shards::Shards;
use crate::tokenizer::{Needs, Tokenizer};

/// Token ids, in memory or on disk.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// All of them.
    Memory(Vec<u32>),
    /// Files they are read from.
    Shards(Shards),
}

impl Tokens {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Memory(ids) => ids.len(),
            Self::Shards(shards) => shards.len(),
        }
    }

    /// True without a token.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids `start..start + count`.
    ///
    /// # Errors
    ///
    /// As [`Shards::read`].
    ///
    /// # Panics
    ///
    /// If the range goes beyond [`Tokens::len`].
    pub fn read(&self, start: usize, count: usize) -> Result<Vec<u32>> {
        match self {
            Self::Memory(ids) => Ok(ids[start..start + count].to_vec()),
            Self::Shards(shards) => shards.read(start, count),
        }
    }
}

/// Texts as ids, with their length in bytes.
#[derive(Clone, Debug)]
pub struct EncodedText {
    /// Token ids; between texts the end of text, where the tokenizer has one.
    pub tokens: Tokens,
    /// Which of them are learned from.
    pub mask: LossMask,
    /// UTF-8 bytes of what is learned: the texts and the answers.
    pub bytes: usize,
    /// The id between texts that do not see each other.
    pub end_of_text: Option<u32>,
}

impl EncodedText {
    /// One text from ids at hand.
    #[must_use]
    pub const fn from_ids(ids: Vec<u32>, bytes: usize) -> Self {
        Self {
            tokens: Tokens::Memory(ids),
            mask: LossMask::All,
            bytes,
            end_of_text: None,
        }
    }

    /// Encodes a text whole.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let text = std::iter::once(Passage::Text(text));
        Self::join(Joiner::new(tokenizer, Needs::default())?, text)
    }

    /// Encodes all texts of an input, held out or not. A folder of tokens gives those held out.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`]; [`Error::Usage`] if the folder's tokens are another tokenizer's.
    pub fn of_input(tokenizer: &Tokenizer, input: &Input) -> Result<Self> {
        match input {
            Input::Documents(documents) => {
                let all = documents.all.iter().map(Document::passage);
                Self::join(Joiner::new(tokenizer, documents.needs)?, all)
            }
            Input::Prepared(prepared) => {
                prepared.check_tokenizer(tokenizer)?;
                prepared.validation(true)
            }
        }
    }

    pub(super) fn join<'d>(
        mut joiner: Joiner<'_>,
        documents: impl Iterator<Item = Passage<'d>>,
    ) -> Result<Self> {
        let has_marks = joiner.has_marks();
        let (mut ids, mut marks) = (Vec::new(), Vec::new());
        for document in documents {
            joiner.add(document, &mut |more, counted| {
                ids.extend_from_slice(more);
                if has_marks {
                    marks.extend(marks_of(more, counted));
                }
                Ok(())
            })?;
        }
        let mut joined = Self::from_ids(ids, joiner.bytes as usize);
        joined.end_of_text = joiner.divides();
        if has_marks {
            joined.mask = LossMask::Memory(marks);
        }
        Ok(joined)
    }

    /// Targets of a window that reads `ids` from token `start` on: all but its first, or
    /// [`IGNORED`] where nothing is learned.
    ///
    /// # Errors
    ///
    /// As [`LossMask::read`].
    pub fn targets(&self, ids: &[u32], start: usize) -> Result<Vec<u32>> {
        let marks = self.mask.read(start + 1, ids.len() - 1)?;
        let counted = marks_of(&ids[1..], marks.as_deref());
        let targets = ids[1..].iter().zip(counted);
        Ok(targets
            .map(|(id, counted)| if counted { *id } else { IGNORED })
            .collect())
    }

    pub(super) fn has_answers(&self, part: &str) -> Result<()> {
        match self.mask.counted(self.tokens.len()) {
            0 => Err(Error::Data(format!(
                "the {part} part has no answer of an assistant; give more conversations, or change \
                 train.val_fraction"
            ))),
            _ => Ok(()),
        }
    }
}
