//! The gated activation of the feed-forward layer.

use bitnet_formats::Activation;

use crate::math::{silu, squared_relu};

/// `gate = activation(gate) * up`.
pub(crate) fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    let pairs = gate.iter_mut().zip(up);
    match activation {
        Activation::SquaredRelu => pairs.for_each(|(g, u)| *g = squared_relu(*g) * u),
        Activation::Silu => pairs.for_each(|(g, u)| *g = silu(*g) * u),
    }
}
