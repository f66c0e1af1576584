//! GGUF files of ternary models, read and written.
//!
//! ```text
//! | "GGUF", version, counts | metadata: key, type, value | tensors: name, shape, type, offset | padding | data |
//! ```
//!
//! 1. [`reader`] reads and checks everything before the data; the data stays on disk.
//! 2. [`kinds`] knows the block types: how many bytes, and which numbers they hold.
//! 3. [`model`] translates metadata and tensor names into the words of [`bitnet_formats`].
//! 4. [`vocab`] makes a tokenizer.json of the vocabulary.
//! 5. [`source`] gives the tensors, streamed.
//! 6. [`write`](mod@write) goes the other way, with [`vocab_out`] for the vocabulary.
//!
//! Facts of the format are from ggml's `gguf.cpp` and the quantisers of llama.cpp and microsoft/BitNet.

pub mod error;
pub mod kinds;
pub mod model;
pub mod reader;
pub mod source;
pub mod vocab;
pub mod vocab_out;
pub mod write;

pub use error::GgufError;
pub use kinds::{I2sLayout, Kind};
pub use model::GgufModel;
pub use reader::{Gguf, TensorInfo, Value};
pub use source::GgufSource;
