//! Which tokens of a stream are learned from.

use crate::error::Result;
use crate::shards::Shards;

/// A mark per token: is it predicted, or only read?
#[derive(Clone, Debug, Default)]
pub enum LossMask {
    /// Every token is predicted.
    #[default]
    All,
    /// Those marked are.
    Memory(Vec<bool>),
    /// Those marked are; 0 or 1 per token, on disk.
    Shards {
        /// The marks.
        marks: Shards,
        /// How many are 1.
        counted: usize,
    },
}

impl LossMask {
    /// Marks of tokens `start..start + count`; `None` if all are predicted.
    ///
    /// # Errors
    ///
    /// As [`Shards::read`].
    ///
    /// # Panics
    ///
    /// If the range goes beyond the stream.
    pub fn read(&self, start: usize, count: usize) -> Result<Option<Vec<bool>>> {
        Ok(match self {
            Self::All => None,
            Self::Memory(marks) => Some(marks[start..start + count].to_vec()),
            Self::Shards { marks, .. } => {
                let marks = marks.read(start, count)?;
                Some(marks.into_iter().map(|mark| mark == 1).collect())
            }
        })
    }

    /// How many of the tokens of a stream of `len` are predicted.
    #[must_use]
    pub fn counted(&self, len: usize) -> usize {
        match self {
            Self::All => len,
            Self::Memory(marks) => marks.iter().filter(|mark| **mark).count(),
            Self::Shards { counted, .. } => *counted,
        }
    }
}
