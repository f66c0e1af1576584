//! What the crates of this project agree on: the `.btn` file, the ternary layouts, the quantisers,
//! and [`ModelConfig`].
//!
//! Reading needs neither `std` nor an allocator and works on borrowed bytes: a file map, flash, or
//! `include_bytes!`. Writing needs the `std` feature. `SPEC.md` describes the bytes and
//! `NUMERICS.md` the arithmetic; both are enough to write a second implementation.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![deny(unsafe_code)]

pub mod archive;
pub mod chat;
pub mod config;
mod config_wire;
pub mod dtype;
pub mod error;
pub mod fixed;
pub mod float;

pub mod header;
pub mod metadata;
#[cfg(feature = "packed")]
pub mod packed;
pub mod presets;
pub mod quant;
pub mod schema;
pub mod section;
pub mod ternary;
pub mod tokenizer;
mod verify;
#[cfg(feature = "std")]
pub mod writer;

#[cfg(all(test, feature = "std"))]
mod damage;

pub use archive::Archive;

pub use config::{
    Activation, Attention, ConfigError, ModelConfig, NormKind, Norms, Output, Rope, RopePairing,
    WeightScale,
};
pub use dtype::{Dtype, MatrixView, Row, VectorView};
pub use error::{FormatError, PackedError};
pub use metadata::KvType;
#[cfg(feature = "packed")]
pub use packed::PackedView;
pub use presets::Preset;
pub use schema::{FfnAxis, TensorClass, TensorRole, TensorSpec};
pub use section::SectionKind;
pub use ternary::{TernaryLayout, TernaryView};
pub use tokenizer::TokenizerTables;
#[cfg(feature = "std")]
pub use writer::{ArchiveWriter, FinishedArchive};
