//! Runs ternary language models (BitNet b1.58) in memory that is fixed before the first token.
//!
//! Plan, lend, run: the bytes a model needs are a function of its header and the options, the
//! caller lends buffers of exactly that size, and nothing allocates after that. The core needs
//! neither `std` nor an allocator. For a given file the logits are the same bits on every machine;
//! `formats/NUMERICS.md` states the arithmetic.
//!
//! ```
//! use bitnet_runtime::{AlignedBuffer, Archive, KvType, LoadOptions, Model, Session, SessionConfig};
//!
//! # fn run(bytes: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//! let archive = Archive::open(bytes)?;
//! let model = Model::load(&archive, &mut [], &LoadOptions::default())?;
//! let config = SessionConfig { max_seq_len: 128, prefill_batch: 16, kv: KvType::Native, threads: 1 };
//! let plan = model.plan(&config)?;
//! let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
//! let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
//! let mut session = Session::new(&model, &mut kv, &mut scratch, &config)?;
//! let logits = session.prefill(&[1, 2, 3])?;
//! let next = bitnet_runtime::argmax(logits);
//! let logits = session.decode(next)?;
//! # Ok(())
//! # }
//! ```
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![deny(unsafe_code)]

#[cfg(any(feature = "std", test))]
mod aligned;
mod buffers;
pub mod chat;
mod coarse_head;
mod departures;
mod error;
mod forward;
mod hash;
#[allow(unsafe_code, reason = "instruction sets")]
pub mod kernels;
mod layers;
mod load;
pub mod math;
mod model;
#[cfg(feature = "std")]
#[allow(unsafe_code, reason = "threads that outlive a borrow")]
mod parallel;
mod parts;
mod plan;
mod repack;
pub mod sampler;
mod session;
pub mod tokenizer;
mod weight_pass;

#[cfg(any(feature = "std", test))]
pub use aligned::AlignedBuffer;
pub use bitnet_formats::{
    Archive, FormatError, KvType, MatrixView, ModelConfig, TensorClass, TensorRole, TernaryLayout,
    TernaryView,
};
pub use error::{Buffer, RunError};
pub use hash::LogitsHash;
pub use kernels::{Isa, Kernels};
pub use model::{LoadOptions, Model, WeightHold, copy_plan, weight_plan};
#[cfg(feature = "std")]
pub use parallel::{MAX_THREADS, Threads};
pub use plan::{ALIGNMENT, MemoryPlan, SessionConfig};
pub use repack::repack;
pub use sampler::{Sampler, SamplerConfig, argmax};
pub use session::{Session, Step, Want};
pub use tokenizer::Tokenizer;
