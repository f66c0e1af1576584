//! The operations of a block, each on plain slices. NUMERICS.md fixes every order of operations.

pub(crate) mod bit_linear;
pub(crate) mod feed_forward;
pub(crate) mod grouped_attention;
pub(crate) mod latent_attention;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod softmax;
