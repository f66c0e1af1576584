//! Trains BitNet b1.58 language models on a CPU.
//!
//! Ternary weights and int8 activations in the forward pass, f32 master weights behind them, and a
//! hand-written backward pass per layer: no autograd. What `fit` writes is a folder of
//! safetensors, config.json and tokenizer.json under the public tensor names.
//!
//! Unsafe code is in the register tiles of `ops::gemm` and in `ops::simd`, nowhere else.
#![deny(unsafe_code)]

pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod config_file;
pub mod config_json;
pub mod corpus;
pub mod data;
pub mod error;
pub mod eval;
pub mod events;
pub mod export;
pub mod files;
pub mod fit;
pub mod held_out;
pub mod history;
pub mod init;
pub mod keys;
pub mod loss_mask;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod optim;
pub mod order;
pub mod param;
pub mod plot;
pub mod prepare;
pub mod progress;
pub mod ranks;
pub mod real;
pub mod recipe;
pub mod rng;
pub mod sample;
pub mod schedule;
pub mod settings;
pub mod shards;
pub mod system;
pub mod tensor;
pub mod tensor_file;
pub mod tokenizer;
pub mod trainer;
