//! What stands before every BitLinear: RmsNorm (where the model has one), then the quantiser.

use bitnet_formats::quant::NonFinite;
use ndarray::Array2;

use crate::ops::codes::Activations;
use crate::ops::rms_norm;
use crate::ops::simd::vectorized;
use crate::param::{Param, ParamKind};
use crate::real::Real;
use crate::tensor::{add, flat, flat_mut, row, row_mut, zeros};

/// An optional RmsNorm, followed by quantisation of its output.
#[derive(Clone, Debug)]
pub struct InputNorm<T> {
    gain: Option<Param<T>>,
    width: usize,
    eps: T,
}

/// What an [`InputNorm`] leaves behind for one part of a sequence.
#[derive(Clone, Debug)]
pub struct NormTape<T> {
    /// The input of the BitLinears that follow.
    pub activations: Activations<T>,
    /// Reciprocal root mean square of each token.
    r: Vec<T>,
    /// This part's share of the gain's gradient, `[1, width]`.
    d_gain: Array2<T>,
}

impl<T: Real> NormTape<T> {
    /// Room for `len` tokens that are quantised.
    pub fn new(len: usize, width: usize) -> Self {
        Self::of(Activations::new(len, width), width)
    }

    /// Room for `len` tokens that are not.
    pub fn of_values(len: usize, width: usize) -> Self {
        Self::of(Activations::of_values(len, width), width)
    }

    fn of(activations: Activations<T>, width: usize) -> Self {
        Self {
            r: vec![T::one(); activations.scales.len()],
            d_gain: zeros(1, width),
            activations,
        }
    }
}

impl<T: Real> InputNorm<T> {
    /// A norm of gain one under this name.
    pub fn new(name: String, width: usize, eps: f32) -> Self {
        Self {
            gain: Some(Param::new(name, ParamKind::Gain, 1, width)),
            width,
            eps: T::from_f32(eps),
        }
    }

    /// Quantisation only, for models without this norm.
    pub fn absent(width: usize) -> Self {
        Self {
            gain: None,
            width,
            eps: T::zero(),
        }
    }

    /// True for a place without a norm.
    pub const fn is_absent(&self) -> bool {
        self.gain.is_none()
    }

    /// The gain, where there is one.
    pub fn params(&self) -> impl Iterator<Item = &Param<T>> {
        self.gain.iter()
    }

    /// As [`InputNorm::params`], to write.
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<T>> {
        self.gain.iter_mut()
    }

    /// Norms and quantises the first `width` columns of `x`, `[len, width or more]`.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from the quantiser.
    pub fn forward(
        &self,
        x: &Array2<T>,
        quantize: bool,
        tape: &mut NormTape<T>,
    ) -> Result<(), NonFinite> {
        tape.activations.codes.set_kind(quantize);
        vectorized!((0..x.nrows()).try_for_each(|t| self.forward_token(x, t, tape)))
    }

    #[inline(always)]
    fn forward_token(
        &self,
        x: &Array2<T>,
        t: usize,
        tape: &mut NormTape<T>,
    ) -> Result<(), NonFinite> {
        let x = &row(x, t)[..self.width];
        match &self.gain {
            Some(gain) => {
                let (gain, r) = (flat(&gain.value), rms_norm::reciprocal(x, self.eps));
                tape.r[t] = r;
                let values = x.iter().zip(gain).map(|(x, gain)| (*x * r) * *gain);
                tape.activations.set(t, values)
            }
            None => tape.activations.set(t, x.iter().copied()),
        }
    }

    /// Adds to the first `width` columns of `d_x` what `d_y` asks for. The quantiser passes
    /// gradients as they are.
    pub fn backward(
        &self,
        x: &Array2<T>,
        d_y: &Array2<T>,
        tape: &mut NormTape<T>,
        d_x: &mut Array2<T>,
    ) {
        tape.d_gain.fill(T::zero());
        vectorized!({
            for t in 0..x.nrows() {
                let x = &row(x, t)[..self.width];
                let d_x = &mut row_mut(d_x, t)[..self.width];
                self.backward_token(x, row(d_y, t), tape.r[t], d_x, flat_mut(&mut tape.d_gain));
            }
        });
    }

    #[inline(always)]
    fn backward_token(&self, x: &[T], d_y: &[T], r: T, d_x: &mut [T], d_gain: &mut [T]) {
        match &self.gain {
            Some(gain) => rms_norm::backward(x, flat(&gain.value), r, d_y, d_x, d_gain),
            None => d_x.iter_mut().zip(d_y).for_each(|(d_x, d_y)| *d_x += *d_y),
        }
    }

    /// Adds to the gain's gradient the sum of the shares of parts, in order.
    pub fn collect_gradient<'t>(&mut self, parts: impl Iterator<Item = &'t NormTape<T>>) {
        if let Some(gain) = &mut self.gain {
            let mut sum = zeros(1, self.width);
            parts.for_each(|tape| add(&mut sum, &tape.d_gain));
            add(&mut gain.grad, &sum);
        }
    }
}
