//! What can go wrong at run time, by who can mend it.

use bitnet_formats::quant::NonFinite;

/// A call that cannot be served. The session is as it was before the call, except after
/// [`NonFinite`](Self::NonFinite) and [`Rounding`](Self::Rounding), where the positions of the failed chunk
/// are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunError {
    /// A lent buffer is too small.
    Buffer {
        /// Which buffer.
        buffer: Buffer,
        /// Bytes the plan asks for.
        needed: usize,
        /// Bytes that were lent.
        found: usize,
    },
    /// A lent buffer does not begin on a multiple of 64 bytes.
    Alignment {
        /// Which buffer.
        buffer: Buffer,
    },
    /// The machine cannot address that many bytes.
    TooLarge,
    /// `max_seq_len` of the session is zero or above the model's.
    SeqLen {
        /// Asked for.
        asked: usize,
        /// The model's.
        max: usize,
    },
    /// `prefill_batch` is zero.
    PrefillBatch,
    /// `threads` is zero.
    NoThread,
    /// An f16 cache was asked for, but a latent cache is always the lossless int8 one.
    LatentCache,
    /// The weights were to be used in place, and the file is packed.
    PackedInPlace,
    /// A packed tensor cannot be decoded.
    Packed {
        /// Its place in the tensor table.
        tensor: usize,
    },
    /// A coarse head was asked for, and the model's head is not of int8 rows of a multiple of 64 columns.
    CoarseHead,
    /// More positions than the session has left.
    ContextFull {
        /// Positions in use.
        used: usize,
        /// Positions asked for.
        asked: usize,
        /// Positions the session was planned for.
        max: usize,
    },
    /// A token id outside the vocabulary.
    Token {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// No token was given.
    Empty,
    /// A chunk is longer than `prefill_batch`.
    Chunk {
        /// Tokens given.
        asked: usize,
        /// `prefill_batch`.
        max: usize,
    },
    /// The call must wait until the chunk in progress is done.
    Busy,
    /// `truncate` to a position that has not been reached.
    Position {
        /// Asked for.
        asked: usize,
        /// Positions in use.
        used: usize,
    },
    /// A thread does not round to nearest, or drops subnormal numbers: results would not be those of
    /// other machines.
    Rounding,
    /// An infinite value or NaN arose in a block (or, with the number of blocks, at the head).
    NonFinite {
        /// Index of the block.
        layer: usize,
    },
}

/// A buffer the caller lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// For weights that are not used in place.
    Weights,
    /// Keys and values.
    Cache,
    /// Everything else a step needs.
    Scratch,
}

impl core::fmt::Display for Buffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Weights => "weight",
            Self::Cache => "cache",
            Self::Scratch => "scratch",
        })
    }
}

impl core::fmt::Display for RunError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Buffer { buffer, needed, found } => {
                write!(f, "the {buffer} buffer has {found} bytes and needs {needed}")
            }
            Self::Alignment { buffer } => {
                write!(f, "the {buffer} buffer must begin on a multiple of 64 bytes")
            }
            Self::TooLarge => f.write_str("the plan exceeds what this machine can address"),
            Self::SeqLen { asked, max } => {
                write!(f, "a context of {asked} positions; the model has 1 to {max}")
            }
            Self::PrefillBatch => f.write_str("prefill_batch must be at least 1"),
            Self::NoThread => f.write_str("threads must be at least 1"),
            Self::LatentCache => f.write_str(
                "a latent cache is stored without loss as int8 and cannot be f16; use native or f32",
            ),
            Self::PackedInPlace => f.write_str(
                "the file is packed and cannot run in place; copy the weights as t5 or t2, or convert the file with --pack t5",
            ),
            Self::Packed { tensor } => write!(
                f,
                "tensor {tensor} cannot be unpacked: the file is damaged; copy or download it again"
            ),
            Self::CoarseHead => f.write_str(
                "a coarse head needs a head of int8 rows whose columns are a multiple of 64",
            ),
            Self::ContextFull { used, asked, max } => write!(
                f,
                "the context is full: {used} of {max} positions are in use and {asked} more are needed"
            ),
            Self::Token { id, vocab_size } => {
                write!(f, "token id {id} is outside the vocabulary of {vocab_size}")
            }
            Self::Empty => f.write_str("at least one token is needed"),
            Self::Chunk { asked, max } => {
                write!(f, "a chunk of {asked} tokens; the session takes at most {max} at a time")
            }
            Self::Busy => f.write_str("a chunk is in progress; step until it is done"),
            Self::Position { asked, used } => {
                write!(f, "cannot rewind to position {asked}: only {used} are in use")
            }
            Self::Rounding => f.write_str(
                "the processor is set to flush to zero, or not to round to nearest, which changes results; set its float control register back",
            ),
            Self::NonFinite { layer } => {
                write!(f, "an infinite value or NaN arose in block {layer}; the weights are damaged")
            }
        }
    }
}

impl core::error::Error for RunError {}

/// Places a quantiser's complaint.
pub(crate) fn at_layer(layer: usize) -> impl Fn(NonFinite) -> RunError {
    move |NonFinite| RunError::NonFinite { layer }
}
