//! Why parts are no tokenizer.

use crate::error::FormatError;
use crate::tokenizer::MAX_TOKEN_BYTES;

/// Why parts are no tokenizer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PartsError {
    /// A token is longer than the format can say.
    TokenTooLong {
        /// The token.
        id: u32,
        /// Its length.
        bytes: usize,
    },
    /// Two tokens have the same text, so none could be told from the other.
    SameText {
        /// The first.
        first: u32,
        /// The second.
        second: u32,
    },
    /// A merge names a token that does not exist or that text cannot hold, or makes no token.
    Merge {
        /// Its place in the list.
        rank: usize,
    },
    /// There are not as many scores as tokens, or one is not a number.
    Scores,
    /// An added token has no name, or one longer than the format can say.
    AddedName {
        /// The token.
        id: u32,
    },
    /// Two added tokens have the same name or id.
    AddedTwice {
        /// The second of them.
        id: u32,
    },
    /// A step asks for classes of characters and there are none.
    NoClasses,
    /// More tokens, merges, steps or template ids than the format can hold.
    TooMany {
        /// Of what.
        what: &'static str,
    },
    /// The section that was written does not read back.
    ReadBack(FormatError),
}

impl core::fmt::Display for PartsError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TokenTooLong { id, bytes } => write!(
                f,
                "token {id} has {bytes} bytes; a token has at most {MAX_TOKEN_BYTES}"
            ),
            Self::SameText { first, second } => {
                write!(f, "tokens {first} and {second} have the same text")
            }
            Self::Merge { rank } => write!(f, "merge {rank} does not join two tokens to a third"),
            Self::Scores => f.write_str("every token needs a score, and a score is a number"),
            Self::AddedName { id } => write!(
                f,
                "added token {id} needs a name of 1 to {MAX_TOKEN_BYTES} bytes"
            ),
            Self::AddedTwice { id } => {
                write!(f, "added token {id} has the name or id of another")
            }
            Self::NoClasses => f.write_str("the steps need classes of characters"),
            Self::TooMany { what } => write!(f, "too many {what}"),
            Self::ReadBack(error) => write!(f, "the section does not read back: {error}"),
        }
    }
}

impl core::error::Error for PartsError {}
