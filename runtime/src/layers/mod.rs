//! The operations of a block, each on plain slices. NUMERICS.md fixes every order of operations.

pub(crate) mod bit_linear;
pub(crate) mod grouped_attention;
pub(crate) mod latent_attention;
pub(crate) mod norm;
pub(crate) mod rope;
