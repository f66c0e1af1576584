//! What can be wrong with a file.

use crate::config::ConfigError;
use crate::section::SectionKind;

/// A file that is not a valid `.btn` file. Offsets and sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum FormatError {
    /// The file ends before something it must hold.
    Truncated {
        /// Bytes that must be there.
        needed: u64,
        /// Bytes that are.
        found: u64,
    },
    /// The file is longer than its header says.
    TrailingBytes {
        /// Length in the header.
        stated: u64,
        /// Length of the file.
        found: u64,
    },
    /// The file does not begin like a `.btn` file.
    NotBtn,
    /// A newer format than this reader knows.
    Version {
        /// Version of the file.
        found: u32,
        /// Newest version this reader knows.
        supported: u32,
    },
    /// The file needs features that this reader lacks.
    Features {
        /// The unknown bits.
        unknown: u64,
    },
    /// A checksum does not match: the bytes have changed since they were written.
    Checksum {
        /// What the checksum covers.
        what: Covered,
        /// Checksum in the file.
        stated: u32,
        /// Checksum of the bytes.
        found: u32,
    },
    /// A reserved field is not zero.
    Reserved {
        /// Where.
        offset: u64,
    },
    /// More sections than a file may have.
    TooManySections {
        /// Number in the header.
        found: u32,
        /// Most that are allowed.
        max: u32,
    },
    /// A section does not stand where the one before it ends.
    SectionPlace {
        /// Index in the section table.
        index: usize,
        /// Where it must begin.
        expected: u64,
        /// Where the table says it begins.
        found: u64,
    },
    /// A section of a kind this reader does not know, marked as required.
    UnknownSection {
        /// Code of its kind.
        kind: u32,
    },
    /// A kind of section that appears twice.
    DuplicateSection(SectionKind),
    /// A section that every file must have is missing.
    MissingSection(SectionKind),
    /// The content of a section cannot be decoded.
    SectionContent(SectionKind),
    /// The configuration is of a newer version than this reader knows.
    ConfigVersion {
        /// Version of the configuration.
        found: u16,
        /// Newest version this reader knows.
        supported: u16,
    },
    /// The tokenizer is of a newer version than this reader knows.
    TokenizerVersion {
        /// Version of the tokenizer section.
        found: u16,
        /// Newest version this reader knows.
        supported: u16,
    },
    /// The chat section is of a newer version than this reader knows.
    ChatVersion {
        /// Version of the section.
        found: u16,
        /// Newest version this reader knows.
        supported: u16,
    },
    /// The configuration breaks a rule.
    Config(ConfigError),
    /// The tensor table has not the tensors of the configuration.
    TensorCount {
        /// Tensors a model of this configuration has.
        expected: usize,
        /// Tensors in the table.
        found: usize,
    },
    /// An entry of the tensor table is wrong.
    Tensor {
        /// Index in the tensor table.
        index: usize,
        /// What is wrong with it.
        problem: TensorProblem,
    },
}

/// What a checksum covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// The preamble.
    Preamble,
    /// Section table and tensor table.
    Tables,
    /// The section at this index of the section table.
    Section(usize),
    /// Everything after the preamble.
    Body,
}

/// What is wrong with a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum TensorProblem {
    /// It is not the tensor that belongs at this place of the table.
    Identity,
    /// Its shape is not the one the configuration asks for.
    Shape {
        /// Rows and columns by the configuration.
        expected: (usize, usize),
        /// Rows and columns in the table.
        found: (u32, u32),
    },
    /// No type has this code, or tensors of this role may not be stored so.
    Dtype(u8),
    /// A scale granularity this reader does not know.
    Granularity(u8),
    /// The scale is not finite, not positive, or given for a dense tensor.
    Scale(f32),
    /// It does not begin where the tensor before it ends, or has the wrong length.
    Place {
        /// Offset and length it must have.
        expected: (u64, u64),
        /// Offset and length in the table.
        found: (u64, u64),
    },
    /// A byte of a ternary tensor is no code.
    NotACode {
        /// Offset in the file.
        offset: u64,
        /// The byte.
        byte: u8,
    },
    /// A trit beyond the last row or column is not zero, or a padding byte is not.
    Padding {
        /// Offset in the file of the first byte of the line or padding concerned.
        offset: u64,
    },
    /// It is packed, and this program was built without the feature that reads packed tensors.
    NoPacked,
    /// A packed payload cannot be decoded.
    Packed(PackedError),
    /// A value is infinite or not a number.
    NonFinite {
        /// Row of the tensor.
        row: usize,
    },
}

/// What is wrong with a packed payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PackedError {
    /// The head is incomplete or says something that cannot be.
    Head,
    /// A chunk does not end where its last trit does, or is no code of any trits.
    Chunk {
        /// Which.
        index: usize,
    },
}

impl core::fmt::Display for FormatError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Truncated { needed, found } => {
                write!(f, "the file is cut short: it needs {needed} bytes and has {found}; copy or download it again")
            }
            Self::TrailingBytes { stated, found } => {
                write!(f, "the file has {found} bytes where its header says {stated}; copy or download it again")
            }
            Self::NotBtn => f.write_str("this is not a .btn file (its first bytes are not the .btn signature); convert a checkpoint with bitnet-convert"),
            Self::Version { found, supported } => {
                write!(f, "the file has format version {found} and this program reads up to {supported}; use a newer program")
            }
            Self::Features { unknown } => {
                write!(f, "the file needs features {unknown:#x} that this program lacks; use a newer program")
            }
            Self::Checksum { what, stated, found } => {
                write!(f, "the checksum of {what} is {found:08x} and should be {stated:08x}: the file is damaged; copy or download it again")
            }
            Self::Reserved { offset } => write!(f, "a reserved field at byte {offset} is not zero"),
            Self::TooManySections { found, max } => {
                write!(f, "the file has {found} sections; at most {max} are allowed")
            }
            Self::SectionPlace { index, expected, found } => {
                write!(f, "section {index} begins at byte {found} and must begin at {expected}")
            }
            Self::UnknownSection { kind } => {
                write!(f, "the file has a required section of unknown kind {kind}; use a newer program")
            }
            Self::DuplicateSection(kind) => write!(f, "the file has two {kind} sections"),
            Self::MissingSection(kind) => write!(f, "the file has no {kind} section"),
            Self::SectionContent(kind) => write!(f, "the {kind} section cannot be decoded"),
            Self::ConfigVersion { found, supported } => {
                write!(f, "the configuration has version {found} and this program reads up to {supported}; use a newer program")
            }
            Self::TokenizerVersion { found, supported } => {
                write!(f, "the tokenizer has version {found} and this program reads up to {supported}; use a newer program")
            }
            Self::ChatVersion { found, supported } => {
                write!(f, "the chat section has version {found} and this program reads up to {supported}; use a newer program")
            }
            Self::Config(error) => write!(f, "the configuration is not valid: {error}"),
            Self::TensorCount { expected, found } => {
                write!(f, "the tensor table has {found} entries; the configuration asks for {expected}")
            }
            Self::Tensor { index, problem } => write!(f, "tensor {index}: {problem}"),
        }
    }
}

impl core::fmt::Display for Covered {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Preamble => f.write_str("the preamble"),
            Self::Tables => f.write_str("the section and tensor tables"),
            Self::Section(index) => write!(f, "section {index}"),
            Self::Body => f.write_str("the file"),
        }
    }
}

impl core::fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Identity => f.write_str("another tensor belongs at this place"),
            Self::Shape {
                expected: (er, ec),
                found: (fr, fc),
            } => {
                write!(
                    f,
                    "shape [{fr}, {fc}] where the configuration asks for [{er}, {ec}]"
                )
            }
            Self::Dtype(code) => write!(f, "type code {code} does not fit its role"),
            Self::Granularity(code) => write!(f, "unknown scale granularity {code}"),
            Self::Scale(scale) => write!(f, "scale {scale} is not valid here"),
            Self::Place {
                expected: (eo, eb),
                found: (fo, fb),
            } => {
                write!(
                    f,
                    "{fb} bytes at {fo} where {eb} bytes at {eo} are expected"
                )
            }
            Self::NotACode { offset, byte } => {
                write!(
                    f,
                    "byte {byte:#04x} at {offset} is not the code of any trits"
                )
            }
            Self::Padding { offset } => write!(f, "the padding at byte {offset} is not zero"),
            Self::NoPacked => f.write_str(
                "it is packed, and this program is built without the feature packed; convert the file with --pack t5",
            ),
            Self::Packed(error) => error.fmt(f),
            Self::NonFinite { row } => write!(f, "row {row} holds an infinite value or NaN"),
        }
    }
}

impl core::fmt::Display for PackedError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Head => f.write_str("the head of the packed payload cannot be read"),
            Self::Chunk { index } => write!(f, "packed chunk {index} cannot be decoded"),
        }
    }
}

impl core::error::Error for PackedError {}

impl core::error::Error for FormatError {}

impl From<ConfigError> for FormatError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}
