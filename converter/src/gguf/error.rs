//! Why a GGUF file cannot be read.

/// What is wrong with a GGUF file, or what it asks for that is not built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file does not begin with `GGUF`.
    #[error("it does not begin like a GGUF file")]
    NotGguf,
    /// A version that is not read, or a file of the other byte order.
    #[error("version {0} is not read; versions 2 and 3 in little-endian order are")]
    Version(u32),
    /// The header ends, or reaches its cap, within a field.
    #[error("the header ends within a field, {needed} bytes before byte {end}; is it truncated?")]
    Truncated {
        /// Bytes the field still needed.
        needed: u64,
        /// Where the header had to end: the end of the file, or the cap.
        end: u64,
    },
    /// More entries than are read.
    #[error("the header counts {found} {what}; at most {max} are read")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// The cap.
        max: u64,
    },
    /// A string is longer than is read.
    #[error("a string of {found} bytes; at most {max} are read")]
    LongString {
        /// Its length.
        found: u64,
        /// The cap.
        max: u64,
    },
    /// A name or key is not UTF-8.
    #[error("a name or key is not UTF-8")]
    NotUtf8,
    /// A value has a type that does not exist, or is a list of lists.
    #[error("key {key} has a value of type {kind}, which is not read")]
    ValueType {
        /// The key.
        key: String,
        /// Its type's number.
        kind: u32,
    },
    /// A key or tensor comes twice.
    #[error("{0} is listed twice")]
    Duplicate(String),
    /// `general.alignment` is no power of two.
    #[error("general.alignment is {0}; it must be a power of two")]
    Alignment(u64),
    /// A shape no tensor can have.
    #[error("tensor {0} has an impossible shape")]
    Shape(String),
    /// A block type that is not read.
    #[error("tensor {tensor} is stored as {kind}, which is not read: {reason}")]
    Kind {
        /// The tensor.
        tensor: String,
        /// Its type.
        kind: String,
        /// Why not.
        reason: &'static str,
    },
    /// Rows are not whole blocks.
    #[error("tensor {tensor} has rows of {cols}, which are no whole blocks of {block}")]
    Blocks {
        /// The tensor.
        tensor: String,
        /// Elements of a row.
        cols: usize,
        /// Elements of a block.
        block: usize,
    },
    /// A tensor reaches beyond the file, or begins off the alignment.
    #[error("tensor {tensor} takes bytes {start} to {end} of a file of {file} bytes")]
    Place {
        /// The tensor.
        tensor: String,
        /// Its first byte.
        start: u64,
        /// The byte after its last.
        end: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {0} and {1} overlap")]
    Overlap(String, String),
    /// A key is missing.
    #[error("key {0} is missing")]
    Missing(String),
    /// A key holds another type of value.
    #[error("key {key} does not hold {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A key asks for what is not built.
    #[error("key {key} is {found}: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// Why that is refused.
        reason: &'static str,
    },
    /// An architecture that is not read.
    #[error("this is a {arch} model, which is not supported: {reason}")]
    Arch {
        /// Its name.
        arch: String,
        /// Why not.
        reason: &'static str,
    },
    /// Blocks of a ternary tensor have different scales.
    #[error(
        "tensor {tensor} has block scales {first} and {second}: its weights are not ternary with one \
         scale, so they cannot be stored without loss"
    )]
    BlockScales {
        /// The tensor.
        tensor: String,
        /// One scale.
        first: f32,
        /// Another.
        second: f32,
    },
    /// Sizes that contradict each other or exceed a cap.
    #[error("{0}")]
    Config(#[from] bitnet_formats::ConfigError),
    /// The vocabulary cannot be used.
    #[error("the tokenizer: {0}")]
    Vocab(String),
}
