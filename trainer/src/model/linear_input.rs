//! The input of BitLinears: a norm that all who read it share, then one inside each, where the model
//! has them, then the quantiser.

use bitnet_formats::ModelConfig;
use bitnet_formats::quant::NonFinite;
use ndarray::Array2;

use crate::model::input_norm::{InputNorm, NormTape};
use crate::ops::bit_linear::BitLinear;
use crate::ops::codes::{Activations, Codes};
use crate::param::Param;
use crate::real::Real;
use crate::tensor::zeros;

/// The norms before the BitLinears that read one input.
#[derive(Clone, Debug)]
pub struct LinearInput<T> {
    shared: InputNorm<T>,
    /// One for each of the linears, or none: then they share codes as well.
    own: Vec<InputNorm<T>>,
}

/// What a [`LinearInput`] leaves behind for one part of a sequence.
#[derive(Clone, Debug)]
pub struct LinearInputTape<T> {
    shared: NormTape<T>,
    own: Vec<NormTape<T>>,
}

/// Gradients of one part of a sequence.
#[derive(Clone, Debug)]
pub struct LinearInputGrads<T> {
    /// Of the shared norm's output.
    shared: Array2<T>,
    /// Of what one linear reads, where it has a norm of its own; else of width 0.
    own: Array2<T>,
}

/// How many linears of each input of a block have a norm that is theirs alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnNorms {
    /// Queries, keys, values.
    pub(crate) attention: usize,
    pub(crate) o: usize,
    /// Gate and up.
    pub(crate) ffn: usize,
    pub(crate) down: usize,
}

impl OwnNorms {
    /// One norm before one linear is no other than a shared one; see [`LinearInput::new`].
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let norms = &config.norms;
        match norms.in_linear {
            None => Self::default(),
            Some(_) => Self {
                attention: 3,
                o: usize::from(norms.attn_sub_norm),
                ffn: 2,
                down: usize::from(norms.ffn_sub_norm),
            },
        }
    }
}

impl<T: Real> LinearInputTape<T> {
    /// Room for `len` tokens read by linears of which `own` have a norm.
    pub fn new(len: usize, width: usize, own: usize) -> Self {
        Self {
            shared: match own {
                0 => NormTape::new(len, width),
                _ => NormTape::of_values(len, width),
            },
            own: (0..own).map(|_| NormTape::new(len, width)).collect(),
        }
    }

    /// What the linear at this place among the readers is given.
    pub fn of(&self, place: usize) -> &Activations<T> {
        &self.own.get(place).unwrap_or(&self.shared).activations
    }
}

impl<T: Real> LinearInputGrads<T> {
    /// Room for `len` tokens read by linears of which `own` have a norm.
    pub fn new(len: usize, width: usize, own: usize) -> Self {
        Self {
            shared: zeros(len, width),
            own: zeros(len, if own == 0 { 0 } else { width }),
        }
    }
}

impl<T: Real> LinearInput<T> {
    /// A shared norm, which may be absent, and those of the linears that read its output, or none.
    pub fn new(shared: InputNorm<T>, mut own: Vec<InputNorm<T>>) -> Self {
        let shared = match own.len() {
            1 if shared.is_absent() => own.swap_remove(0),
            _ => shared,
        };
        Self { shared, own }
    }

    /// The gains, the shared one first.
    pub fn params(&self) -> impl Iterator<Item = &Param<T>> {
        let own = self.own.iter().flat_map(InputNorm::params);
        self.shared.params().chain(own)
    }

    /// As [`LinearInput::params`], to write.
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<T>> {
        let own = self.own.iter_mut().flat_map(InputNorm::params_mut);
        self.shared.params_mut().chain(own)
    }

    /// Norms and quantises `x`, once or for each linear.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from the quantiser.
    pub fn forward(
        &self,
        x: &Array2<T>,
        quantize: bool,
        tape: &mut LinearInputTape<T>,
    ) -> Result<(), NonFinite> {
        let together = quantize && self.own.is_empty();
        self.shared.forward(x, together, &mut tape.shared)?;
        let mut own = self.own.iter().zip(&mut tape.own);
        own.try_for_each(|(norm, own)| norm.forward(values(&tape.shared), quantize, own))
    }

    /// Carries the output gradient of the linear at `place` back to the output of the shared norm.
    /// Linears must come in order: the first begins the sum.
    pub fn backward_linear(
        &self,
        place: usize,
        linear: &BitLinear<T>,
        d_y: &Array2<T>,
        tape: &mut LinearInputTape<T>,
        grads: &mut LinearInputGrads<T>,
    ) {
        let keep = if place == 0 { T::zero() } else { T::one() };
        let Some(norm) = self.own.get(place) else {
            return linear.backward_input(d_y, keep, &mut grads.shared);
        };
        if place == 0 {
            grads.shared.fill(T::zero());
        }
        linear.backward_input(d_y, T::zero(), &mut grads.own);
        let x = values(&tape.shared);
        norm.backward(x, &grads.own, &mut tape.own[place], &mut grads.shared);
    }

    /// Adds to `d_x` what all linears asked for.
    pub fn backward(
        &self,
        x: &Array2<T>,
        tape: &mut LinearInputTape<T>,
        grads: &LinearInputGrads<T>,
        d_x: &mut Array2<T>,
    ) {
        self.shared
            .backward(x, &grads.shared, &mut tape.shared, d_x);
    }

    /// Adds to the gradients of the gains the sum of the shares of parts, in order.
    pub fn collect_gradient<'t>(
        &mut self,
        parts: impl Iterator<Item = &'t LinearInputTape<T>> + Clone,
    ) {
        self.shared
            .collect_gradient(parts.clone().map(|tape| &tape.shared));
        for (i, norm) in self.own.iter_mut().enumerate() {
            norm.collect_gradient(parts.clone().map(|tape| &tape.own[i]));
        }
    }
}

/// The output of a shared norm that every linear norms again.
fn values<T>(shared: &NormTape<T>) -> &Array2<T> {
    match &shared.activations.codes {
        Codes::Values(values) => values,
        Codes::Int8(_) => unreachable!("it is quantised after the norms of the linears"),
    }
}
