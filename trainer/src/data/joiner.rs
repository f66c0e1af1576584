//! Joins documents to one stream of ids.

use std::sync::Arc;

use crate::chat::ChatEncoder;
use crate::corpus::Passage;
use crate::error::{Error, Result};
use crate::tokenizer::{END_OF_TEXT_NAMES, Needs, Tokenizer};

/// A mark for each id; without any given, all are learned from.
pub fn marks_of(ids: &[u32], counted: Option<&[bool]>) -> impl Iterator<Item = bool> {
    (0..ids.len()).map(move |i| counted.is_none_or(|counted| counted[i]))
}

/// Hears of ids, and of which are learned from; without marks, all are.
pub type Sink<'s> = dyn FnMut(&[u32], Option<&[bool]>) -> Result<()> + 's;

/// Makes one stream of ids from several documents. Clones share what encodes conversations.
#[derive(Clone, Debug)]
pub struct Joiner<'t> {
    tokenizer: &'t Tokenizer,
    chat: Option<Arc<ChatEncoder>>,
    end_of_text: Option<u32>,
    /// True if the end of the last document is learned from: that of a conversation is not, its
    /// answers have ends of their own.
    counts_end: bool,
    documents: u64,
    /// Bytes learned from so far.
    pub bytes: u64,
}

impl<'t> Joiner<'t> {
    /// An empty stream.
    ///
    /// # Errors
    ///
    /// As [`ChatEncoder::new`], where there are conversations.
    pub fn new(tokenizer: &'t Tokenizer, needs: Needs) -> Result<Self> {
        Ok(Self {
            tokenizer,
            chat: match needs.turns {
                true => Some(Arc::new(ChatEncoder::new(tokenizer)?)),
                false => None,
            },
            end_of_text: tokenizer.end_of_text(),
            counts_end: true,
            documents: 0,
            bytes: 0,
        })
    }

    /// True where there are conversations: not all of them is learned from.
    pub(super) const fn has_marks(&self) -> bool {
        self.chat.is_some()
    }

    /// The id after which the next document begins. `None` if the same id ends answers: it would
    /// divide conversations.
    #[must_use]
    pub fn divides(&self) -> Option<u32> {
        let ends_answers = |id: &u32| {
            let mut ends = self.chat.iter().flat_map(|chat| chat.end_ids());
            ends.any(|end| end == *id)
        };
        self.end_of_text.filter(|id| !ends_answers(id))
    }

    /// Encodes a document to `sink`, after an end of text unless it is the first. Nothing for an
    /// empty one.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`] and [`ChatEncoder::encode`], and what `sink` returns.
    pub fn add(&mut self, document: Passage<'_>, sink: &mut Sink<'_>) -> Result<()> {
        if document.is_empty() {
            return Ok(());
        }
        if let (Some(id), 1..) = (self.end_of_text, self.documents) {
            sink(&[id], Some(&[self.counts_end]))?;
        }
        self.documents += 1;
        match (document, &self.chat) {
            (Passage::Text(text), _) => {
                self.bytes += text.len() as u64;
                self.counts_end = true;
                self.tokenizer.encode_to(text, &mut |ids| sink(ids, None))
            }
            (Passage::Chat(conversation), Some(chat)) => {
                let encoded = chat.encode(conversation)?;
                self.bytes += encoded.answer_bytes;
                self.counts_end = false;
                sink(&encoded.ids, Some(&encoded.counted))
            }
            (Passage::Chat(_), None) => unreachable!("needs say that there are conversations"),
        }
    }
}

/// A tokenizer that must keep documents or messages apart, and cannot.
///
/// # Errors
///
/// [`Error::Tokenizer`].
pub fn check_tokenizer(tokenizer: &Tokenizer, needs: Needs) -> Result<()> {
    if needs.turns {
        ChatEncoder::new(tokenizer)?;
    }
    if !needs.end_of_text || tokenizer.end_of_text().is_some() {
        return Ok(());
    }
    let names = END_OF_TEXT_NAMES.join(", ");
    Err(Error::Tokenizer(format!(
        "the tokenizer has no id that ends a text (one of {names}), which a corpus of several \
         documents needs; add one to its added_tokens"
    )))
}
