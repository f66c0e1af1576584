//! Why a text cannot be encoded.

/// A lent buffer does not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The scratch memory is too small for a word of the text.
    Scratch {
        /// Words of four bytes that this part of the text needs.
        needed: usize,
        /// Words that were lent, or that were left for it.
        found: usize,
    },
    /// There is no room for another id.
    Ids {
        /// Ids there was room for.
        found: usize,
    },
}

impl core::fmt::Display for EncodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Scratch { needed, found } => write!(
                f,
                "a word of the text needs {needed} words of scratch memory and {found} are there; \
                 lend what scratch_words says"
            ),
            Self::Ids { found } => {
                write!(
                    f,
                    "the text has more than {found} ids; lend room for what most_ids says"
                )
            }
        }
    }
}

impl core::error::Error for EncodeError {}
