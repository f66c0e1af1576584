//! What can go wrong, sorted by where it is wrong: the disk, a header, config.json, a tensor.

use std::io;
use std::path::{Path, PathBuf};

use bitnet_formats::FormatError;
use bitnet_runtime::RunError;
use safetensors::Dtype;

use crate::gguf::GgufError;
use crate::tokenizer::TokenizerError;

/// Why a checkpoint cannot be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "read", ...
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The input is no safetensors file, index or directory with one of them.
    #[error("{}: {reason}", path.display())]
    NotACheckpoint {
        /// What was given.
        path: PathBuf,
        /// What was looked for and not found.
        reason: String,
    },
    /// A safetensors header is broken.
    #[error("{}: {source}", path.display())]
    Header {
        /// The safetensors file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// A JSON file is not JSON.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A file beside the weights is larger than any real one.
    #[error("{} has more than {max} bytes, the most that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The cap.
        max: u64,
    },
    /// A file beside the weights holds something other than what its name promises.
    #[error("{}: {reason}", path.display())]
    Sidecar {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// config.json is not one of a model this crate converts.
    #[error("{}: {source}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// Which key, and why.
        source: ConfigJsonError,
    },
    /// The tokenizer cannot be kept as tables.
    #[error(
        "{}: {source}; --tokenizer none leaves it out, and the model then takes token ids",
        path.display()
    )]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is not supported, or wrong.
        source: TokenizerError,
    },
    /// The index and a shard disagree about where a tensor is.
    #[error("tensor {tensor}: the index places it in {shard}, which does not hold it")]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The shard the index names.
        shard: String,
    },
    /// A shard holds a tensor the index does not place there.
    #[error("tensor {tensor}: {shard} holds it, but the index does not place it there")]
    NotInIndex {
        /// The tensor.
        tensor: String,
        /// The shard that holds it.
        shard: String,
    },
    /// A tensor the model needs is not in the checkpoint.
    #[error("tensor {tensor} is missing; the configuration asks for shape {expected:?}")]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// Its shape, had it been there.
        expected: Vec<usize>,
    },
    /// The checkpoint holds tensors that no part of the model would read.
    #[error(
        "tensor {tensor} belongs to no part of the model ({count} such in all) and would be dropped"
    )]
    ExtraTensor {
        /// The first of them by name.
        tensor: String,
        /// How many there are.
        count: usize,
    },
    /// A tensor has the wrong shape.
    #[error("tensor {tensor} has shape {found:?}; the configuration asks for {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What the configuration implies.
        expected: Vec<usize>,
        /// What the header says.
        found: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("tensor {tensor} has dtype {found}; expected {expected}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// What would do.
        expected: &'static str,
        /// What the header says.
        found: Dtype,
    },
    /// Packed tensors hold four rows in one, so the rows must divide by four.
    #[error("tensor {tensor} packs {rows} rows; packed checkpoints need a multiple of 4")]
    PackedRows {
        /// The tensor.
        tensor: String,
        /// Rows of the unpacked matrix.
        rows: usize,
    },
    /// A weight is infinite or not a number.
    #[error("tensor {tensor} holds {value} at index {index}; the checkpoint is damaged")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Row-major index of the element.
        index: u64,
        /// The element.
        value: f32,
    },
    /// Dequantised codes have one size but zero; this matrix has two.
    #[error(
        "tensor {tensor} holds {value} at index {index} after {size}: its weights are not -a, 0 and a \
         of one a, as the first rows of the checkpoint are; is it damaged or half converted?"
    )]
    NotTernary {
        /// The tensor.
        tensor: String,
        /// Row-major index of the element.
        index: u64,
        /// The element.
        value: f32,
        /// The size of those before it.
        size: f32,
    },
    /// The weights were never ternary.
    #[error(
        "the weights are not ternary: tensor {tensor} holds {found}. A model must be trained with \
         ternary weights; one that was not becomes noise. If these are the masters of a ternary \
         model exported by onebitllms (Falcon-E, revision prequantized), say --masters onebitllms; \
         to make them ternary all the same, say --force-ternarise"
    )]
    Dense {
        /// The tensor that was looked at.
        tensor: String,
        /// Some of its values.
        found: String,
    },
    /// Every group of inputs has a scale of its own.
    #[error(
        "tensor {tensor} has a scale for every {group} inputs of a row, as Ternary Bonsai has; a .btn \
         file has one scale for a matrix, so this model cannot be stored without loss"
    )]
    GroupScales {
        /// The tensor that was looked at.
        tensor: String,
        /// Inputs that share a scale.
        group: usize,
    },
    /// Options that say how dense weights become ternary, for weights that already are.
    #[error("{option} does not apply: the checkpoint holds {weights}")]
    OptionUnused {
        /// The option.
        option: &'static str,
        /// What it holds.
        weights: &'static str,
    },
    /// A `.btn` file that is to be packed again is damaged.
    #[error("{}: {source}", path.display())]
    Btn {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// A GGUF file cannot be read, or asks for what is not built.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// The model has no place in a GGUF file.
    #[error("this model cannot be written as GGUF: {reason}")]
    NoGguf {
        /// Why not.
        reason: &'static str,
    },
    /// The model has no place in a checkpoint.
    #[error("this model cannot be written as a checkpoint: {reason}")]
    NoCheckpoint {
        /// Why not.
        reason: &'static str,
    },
    /// config.json has no words for the model.
    #[error("this model cannot be written as a checkpoint: {source}")]
    Export {
        /// Which.
        source: ConfigJsonError,
    },
    /// Dead neurons cannot be taken out of this model.
    #[error("dead neurons cannot be pruned: {reason}")]
    CannotPrune {
        /// Why not.
        reason: &'static str,
    },
    /// The pruned file gives other logits than the whole one.
    #[error("the pruned model gives other logits than the whole one; nothing was written")]
    PruneDiffers,
    /// A file in another format, read back, describes another model.
    #[error("the new file, read back, describes another model; this is a fault of the program")]
    ConfigDiffers,
    /// `--verify` found the file to differ from its source.
    #[error(
        "tensor {tensor}, row {row}: the new file does not hold what the source does; is the disk sound?"
    )]
    Differs {
        /// The tensor.
        tensor: String,
        /// The row.
        row: usize,
    },
    /// Two bits of a packed tensor hold 3, which is no ternary code.
    #[error("tensor {tensor} holds the code 3 at row {row}, column {col}; codes are 0, 1 and 2")]
    NotACode {
        /// The tensor.
        tensor: String,
        /// Row of the unpacked matrix.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// A weight is too large for the type it should be stored in.
    #[error(
        "tensor {tensor} holds {value} at index {index}, which does not fit {dtype}; \
         store it as f32 (--embedding f32)"
    )]
    DoesNotFit {
        /// The tensor.
        tensor: String,
        /// Row-major index of the element.
        index: u64,
        /// The element.
        value: f32,
        /// The type asked for.
        dtype: &'static str,
    },
    /// A stored weight scale is zero, negative, infinite or not a number.
    #[error("tensor {tensor} holds the scale {value}; a scale is a finite number above zero")]
    BadScale {
        /// The tensor.
        tensor: String,
        /// The scale.
        value: f32,
    },
    /// The output cannot be a file.
    #[error("{} {reason}", path.display())]
    Output {
        /// The output.
        path: PathBuf,
        /// What stands in the way.
        reason: &'static str,
    },
    /// The new file, read back, is not what was written.
    #[error("the new file does not read back: {0}; is the disk sound?")]
    ReadBack(#[from] FormatError),
    /// The new file cannot be run.
    #[error("the self-test cannot run: {0}")]
    SelfTest(#[from] RunError),
    /// The caller asked to stop.
    #[error("stopped; nothing was written")]
    Stopped,
}

impl ConvertError {
    /// Wraps an I/O error with what was tried on which file; for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Why a safetensors header cannot be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file ends within the eight bytes that hold the header's length.
    #[error("{bytes} bytes are too few for a safetensors file")]
    TooShort {
        /// Size of the file.
        bytes: u64,
    },
    /// The header is longer than any real one.
    #[error("the header claims {bytes} bytes; at most {max} are read")]
    TooLarge {
        /// Claimed length.
        bytes: u64,
        /// The cap.
        max: u64,
    },
    /// The header reaches beyond the file.
    #[error("the header claims {bytes} bytes, but only {available} follow; is the file truncated?")]
    Truncated {
        /// Claimed length.
        bytes: u64,
        /// Bytes after the length field.
        available: u64,
    },
    /// The header is no JSON object of tensors.
    #[error("the header does not parse: {0}")]
    Json(#[from] serde_json::Error),
    /// Two entries have one name.
    #[error("tensor {tensor} is listed twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// A tensor does not start where the one before it ends.
    #[error("tensor {tensor} starts at byte {found}; the one before it ends at {expected}")]
    Offset {
        /// The tensor.
        tensor: String,
        /// End of the tensor before it.
        expected: u64,
        /// Its start.
        found: u64,
    },
    /// The bytes of a tensor do not fit its shape and dtype.
    #[error("tensor {tensor} spans {found} bytes; its shape and dtype need {expected}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Bytes of its shape and dtype.
        expected: u64,
        /// Bytes between its offsets.
        found: u64,
    },
    /// The size of a tensor overflows, or is no whole number of bytes, or its range is reversed.
    #[error("tensor {tensor} has an impossible shape or range")]
    Impossible {
        /// The tensor.
        tensor: String,
    },
    /// The data section and the file end at different places.
    #[error("tensors take {expected} bytes, the file holds {found}; is it truncated?")]
    DataLength {
        /// End of the last tensor.
        expected: u64,
        /// Bytes of the data section.
        found: u64,
    },
}

/// Why a config.json cannot be read, or a configuration cannot be written as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigJsonError {
    /// A key without a default is absent.
    #[error("key {key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key holds another type of value.
    #[error("key {key} holds {found}; expected {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// A key asks for something that would change the numbers and is not built.
    #[error("key {key} is {found}: {reason}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What it holds.
        found: String,
        /// Why that is refused.
        reason: &'static str,
    },
    /// The checkpoint belongs to a family that is not converted.
    #[error("this is a {family} checkpoint, which is not supported: {reason}")]
    Family {
        /// The family, by its architecture or tensors.
        family: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The sizes contradict each other or exceed a cap.
    #[error("{0}")]
    Invalid(#[from] bitnet_formats::ConfigError),
    /// The public keys have no word for this setting.
    #[error("config.json cannot express {setting}")]
    Inexpressible {
        /// The setting.
        setting: &'static str,
    },
}
