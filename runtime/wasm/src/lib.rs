//! The runtime as a WebAssembly module.
//!
//! No binding generator and no allocator: the module exports a few functions of numbers, imports one
//! (`host.read`, through which it asks for bytes of the model file), and has one linear memory. That
//! memory grows once, while a model is loaded, to hold the file and the buffers of the plan; it is of
//! the same size from then on. One instance runs one model: a page that loads another makes a new
//! instance of the same module.
//!
//! `abi` has the exports; `www/bitnet.js` shows how a page calls them. Everything else here is safe
//! code that is tested on the machine it is built on.
#![cfg_attr(target_arch = "wasm32", no_std)]
#![deny(unsafe_code)]

#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code, reason = "exports, the import, and linear memory")]
mod abi;
pub mod error;
pub mod generator;
pub mod header;
pub mod layout;
pub mod text;
