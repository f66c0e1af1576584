//! What the crates of this project agree on: the `.btn` file, the ternary layouts, the quantisers,
//! and [`ModelConfig`].
//!
//! Reading needs neither `std` nor an allocator and works on borrowed bytes: a file map, flash, or
//! `include_bytes!`. Writing needs the `std` feature. `SPEC.md` describes the bytes and
//! `NUMERICS.md` the arithmetic; both are enough to write a second implementation.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![deny(unsafe_code)]

pub mod config;
pub mod float;
pub mod presets;
pub mod quant;
pub mod schema;
pub mod ternary;

pub use config::{
    Activation, Attention, ConfigError, ModelConfig, Norms, Rope, RopePairing, WeightScale,
};
pub use presets::Preset;
pub use schema::{TensorClass, TensorRole, TensorSpec};
pub use ternary::{TernaryLayout, TernaryView};
