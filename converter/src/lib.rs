//! Turns ternary checkpoints (safetensors and config.json, or GGUF) into `.btn` files, and back.
//!
//! Reading a checkpoint takes four steps, one module each:
//!
//! 1. [`checkpoint`] finds the files and reads their headers; weights stay on disk ([`shard`]).
//! 2. [`family`] decides whose checkpoint it is, from what it says and from what it holds.
//! 3. [`config_json`] translates `config.json`, and [`names`] the tensor names, into the words of
//!    [`bitnet_formats`]. Both also translate back, for whoever writes checkpoints.
//!    A plain checkpoint's own weights tell whether they are ternary: [`dense`].
//! 4. [`source`] checks that every tensor is there once, and streams its rows.
//!
//! Writing takes four more:
//!
//! 5. [`write`](mod@write) packs the tensors and collects a [`report`].
//! 6. [`output`] keeps the unfinished file beside the final one, and removes it on any failure.
//! 7. [`selftest`] runs the new file on fixed prompts and stores the hashes of their logits in it.
//! 8. [`convert`](mod@convert) puts the steps in order; [`dummy`] feeds them random weights.
//!
//! [`gguf`] is a source of its own, and [`btn`] makes one of a finished file: for [`export`], for
//! GGUF files, and to pack it otherwise. [`verify`](mod@verify) compares a new file with its source.
//!
//! Weights are read sixteen rows at a time with plain reads, so memory does not grow with the
//! checkpoint.
#![deny(unsafe_code)]

pub mod btn;
pub mod chat;
pub mod checkpoint;
pub mod config_json;
pub mod convert;
pub mod dense;
pub mod dummy;
pub mod error;
pub mod export;
pub mod family;
pub mod gguf;
pub mod groups;
pub mod inspect;
pub mod names;
mod new_file;
pub mod output;
pub mod packed;
pub mod pages;
pub mod prune;
pub mod report;
pub mod rows;
mod sections;
pub mod selftest;
pub mod shard;
pub mod sidecar;
pub mod source;
pub mod tokenizer;
pub mod verify;
pub mod write;

pub use btn::BtnSource;
pub use checkpoint::Checkpoint;
pub use config_json::CheckpointConfig;
pub use convert::{Conversion, ReadOptions, convert, convert_dummy};
pub use dense::DenseWeights;
pub use dummy::DummySource;
pub use error::{ConfigJsonError, ConvertError, HeaderError};
pub use export::Export;
pub use family::{Family, WeightForm};
pub use report::Report;
pub use source::{CheckpointSource, Source};
pub use write::{EmbeddingType, PackOptions, TernaryType, TokenizerStore};
