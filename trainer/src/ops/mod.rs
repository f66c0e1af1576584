//! The operations of the network, each with its derivative and a finite-difference check.
//!
//! All are free functions on slices and matrices; whoever calls them owns the buffers. Rows are
//! tokens. Gradients flow as `d_x`, the derivative of the loss with respect to `x`.

pub mod activation;
pub mod attention;
pub mod bit_linear;
pub mod codes;
pub mod cross_entropy;
pub mod dropout;
pub mod gemm;
pub mod ramp;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub(crate) mod simd;
pub mod target;

#[cfg(test)]
pub(crate) mod check;
