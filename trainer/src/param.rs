//! A learned tensor with its gradient.

use ndarray::Array2;

use crate::real::Real;
use crate::rng::Rng;
use crate::tensor::{flat_mut, zeros};

/// What a parameter is, which decides its initial values, weight decay and stored rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// A BitLinear's master weights, `[outputs, inputs]`.
    Linear,
    /// Embedding or head, `[vocab_size, hidden_size]`; never quantised.
    Embedding,
    /// Gain of a norm, `[1, width]`; stored as a vector.
    Gain,
}

/// A learned tensor with its gradient.
#[derive(Clone, Debug)]
pub struct Param<T> {
    /// Public name, as checkpoints spell it.
    pub name: String,
    /// What it is.
    pub kind: ParamKind,
    /// The f32 master values.
    pub value: Array2<T>,
    /// Sum of gradients since [`Param::zero_grad`]; same shape.
    pub grad: Array2<T>,
}

impl<T: Real> Param<T> {
    /// Gains start at one, everything else at zero until [`Param::init`].
    pub fn new(name: String, kind: ParamKind, rows: usize, cols: usize) -> Self {
        let mut value = zeros(rows, cols);
        if kind == ParamKind::Gain {
            value.fill(T::one());
        }
        let grad = zeros(rows, cols);
        Self {
            name,
            kind,
            value,
            grad,
        }
    }

    /// Draws matrices from a normal distribution; leaves gains at one.
    pub fn init(&mut self, rng: &mut Rng, std_dev: f64) {
        if self.kind != ParamKind::Gain {
            for w in flat_mut(&mut self.value) {
                *w = T::from_f64(rng.normal() * std_dev);
            }
        }
    }

    /// Forgets the gradient.
    pub fn zero_grad(&mut self) {
        self.grad.fill(T::zero());
    }

    /// Shape as stored: vectors have one dimension.
    pub fn shape(&self) -> Vec<usize> {
        match self.kind {
            ParamKind::Gain => vec![self.value.ncols()],
            _ => self.value.shape().to_vec(),
        }
    }
}
