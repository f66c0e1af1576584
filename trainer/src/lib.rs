//! Trains BitNet b1.58 language models on a CPU.
//!
//! Ternary weights and int8 activations in the forward pass, f32 master weights behind them, and a
//! hand-written backward pass per layer: no autograd. What `fit` writes is a folder of
//! safetensors, config.json and tokenizer.json under the public tensor names.
#![deny(unsafe_code)]

pub mod model;
pub mod ops;
pub mod param;
pub mod real;
pub mod rng;
pub mod tensor;
