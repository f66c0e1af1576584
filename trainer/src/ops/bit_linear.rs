//! BitLinear: int8 activations times ternary weights, with straight-through gradients.
//!
//! ```text
//! forward   xi = quantise(x), s_t = 127 / absmax(x_t)        per token
//!           wi = quantise(W), s   = 1 / mean|W|              per matrix
//!           y_t = (xi_t . wi^T) * linear_factor(s, s_t)      the product is exact
//! backward  dx = (1/s) * (dy . wi)
//!           dW = (dy / s_t)^T . xi
//! ```
//!
//! The straight-through estimator takes rounding, clamping and both scales as constants. So the
//! gradient is that of the linear map with the codes frozen, and weights beyond the clamp go on
//! learning. With quantisation off, codes are the values themselves and every scale is 1.

use bitnet_formats::WeightScale;
use bitnet_formats::quant::{self, NonFinite};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Dimension, s};
use rayon::prelude::*;

use crate::ops::gemm::gemm;
use crate::ops::ramp;
use crate::param::{Param, ParamKind};
use crate::real::Real;
use crate::tensor::{flat, flat_mut, row_mut, zeros};

/// Output rows of a weight gradient that one job computes. A constant, so that the sums do not
/// depend on the number of threads.
const JOB_ROWS: usize = 128;

/// Activations as a BitLinear reads them: integer codes, and a scale for each token.
#[derive(Clone, Debug)]
pub struct Activations<T> {
    /// `[len, width]`: integers in -128..=127 held as floats, or plain values.
    pub codes: Array2<T>,
    /// `[len]`: a value is about its code divided by this.
    pub scales: Vec<f32>,
}

impl<T: Real> Activations<T> {
    /// Room for `len` tokens.
    pub fn new(len: usize, width: usize) -> Self {
        Self {
            codes: zeros(len, width),
            scales: vec![1.0; len],
        }
    }

    /// Quantises token `t`, whose values are in `codes`; leaves them be with quantisation off.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] from the quantiser.
    pub fn quantize(&mut self, t: usize, on: bool) -> Result<(), NonFinite> {
        if on {
            self.scales[t] = T::quantize_token(row_mut(&mut self.codes, t))?;
        } else {
            self.scales[t] = 1.0;
        }
        Ok(())
    }
}

/// A linear map without bias whose weights are ternary in use and f32 at rest.
#[derive(Clone, Debug)]
pub struct BitLinear<T> {
    /// Master weights `[outputs, inputs]` and their gradient.
    pub weight: Param<T>,
    /// What products use: ternary codes, or the weights themselves. Follows `weight` by
    /// [`BitLinear::refresh`].
    pub codes: Array2<T>,
    scale: f32,
    /// Codes that the last refresh changed.
    flips: usize,
}

impl<T: Real> BitLinear<T> {
    /// A map of zeros.
    pub fn new(name: String, outputs: usize, inputs: usize) -> Self {
        Self {
            weight: Param::new(name, ParamKind::Linear, outputs, inputs),
            codes: zeros(outputs, inputs),
            scale: 1.0,
            flips: 0,
        }
    }

    /// Makes the codes follow the weights. Call after every change of the weights.
    pub fn refresh(&mut self, quantize: bool) {
        self.flips = 0;
        if quantize {
            self.scale = quant::weight_scale(absmean(flat(&self.weight.value)));
            let codes = flat_mut(&mut self.codes).iter_mut();
            for (code, w) in codes.zip(flat(&self.weight.value)) {
                let new = T::from_f32(f32::from(quant::ternary_code(w.narrow(), self.scale)));
                self.flips += usize::from(new != *code);
                *code = new;
            }
        } else {
            self.scale = 1.0;
            flat_mut(&mut self.codes).copy_from_slice(flat(&self.weight.value));
        }
    }

    /// Makes the weights in use follow, on their way to ternary: see [`ramp`].
    pub fn refresh_blended(&mut self, lambda: f32) {
        self.refresh(false);
        let weights = flat(&self.weight.value);
        let scale = quant::weight_scale(absmean(weights));
        ramp::blend(weights, scale, lambda, flat_mut(&mut self.codes));
    }

    /// `y[t] = (x.codes[t] . codes^T) * factor[t]`.
    pub fn forward(&self, x: &Activations<T>, y: &mut Array2<T>) {
        gemm(
            T::one(),
            x.codes.view(),
            self.codes.t(),
            T::zero(),
            y.view_mut(),
        );
        let width = y.ncols();
        let rows = flat_mut(y).chunks_exact_mut(width);
        for (row, act_scale) in rows.zip(&x.scales) {
            let factor = quant::linear_factor(WeightScale::Divide, self.scale, *act_scale);
            let factor = T::from_f32(factor);
            row.iter_mut().for_each(|y| *y *= factor);
        }
    }

    /// `d_x = (1/s) d_y . codes + keep * d_x`; `keep` is 0 or 1.
    pub fn backward_input(&self, d_y: &Array2<T>, keep: T, d_x: &mut Array2<T>) {
        let alpha = T::from_f32(1.0 / self.scale);
        gemm(alpha, d_y.view(), self.codes.view(), keep, d_x.view_mut());
    }

    /// Codes that the last [`BitLinear::refresh`] changed; 0 without quantisers.
    pub const fn flips(&self) -> usize {
        self.flips
    }

    /// Mean magnitude of the weights; 1 without quantisers.
    pub fn mean_magnitude(&self) -> f64 {
        1.0 / f64::from(self.scale)
    }

    /// Share of weights whose code is zero.
    pub fn zero_share(&self) -> f64 {
        let zeros = self.codes.iter().filter(|c| c.is_zero()).count();
        zeros as f64 / self.codes.len() as f64
    }
}

/// Divides each token of `d_y` by its activation scale: what a weight gradient multiplies with the
/// codes.
pub fn divide_by_scales<T: Real>(d_y: &mut Array2<T>, scales: &[f32]) {
    let width = d_y.ncols();
    for (row, scale) in flat_mut(d_y).chunks_exact_mut(width).zip(scales) {
        let beta = T::from_f32(1.0 / scale);
        row.iter_mut().for_each(|g| *g *= beta);
    }
}

fn absmean<T: Real>(weights: &[T]) -> f32 {
    let mut mean = quant::AbsMean::default();
    let mut block = [0.0; 1024];
    for values in weights.chunks(block.len()) {
        for (x, w) in block.iter_mut().zip(values) {
            *x = w.narrow();
        }
        mean.update(&block[..values.len()]);
    }
    mean.mean()
}

/// What a sum of terms does to the gradient that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Replaces it.
    Fresh,
    /// Goes on with it, term by term.
    Further,
    /// Is made on its own and then added: the result depends on the two sums alone, wherever each
    /// was made.
    Onto,
}

/// A block of rows of a weight gradient: the sum over parts of `d_y[:, rows]^T . x`.
///
/// Parts add in order, whoever runs the job.
pub struct GradientJob<'a, T> {
    grad: ArrayViewMut2<'a, T>,
    first_row: usize,
    terms: Vec<(ArrayView2<'a, T>, ArrayView2<'a, T>)>,
}

impl<T: Real> GradientJob<'_, T> {
    /// `spare` is memory to use again from job to job.
    fn run(mut self, sum: Sum, spare: &mut Vec<T>) {
        let first = self.first_row;
        match sum {
            Sum::Fresh => add_terms(&self.terms, first, T::zero(), self.grad.view_mut()),
            Sum::Further => add_terms(&self.terms, first, T::one(), self.grad.view_mut()),
            Sum::Onto => {
                let shape = self.grad.raw_dim();
                spare.resize(shape.size(), T::zero());
                let own = ArrayViewMut2::from_shape(shape, spare);
                let mut own = own.expect("as many elements as the shape has");
                add_terms(&self.terms, first, T::zero(), own.view_mut());
                self.grad += &own;
            }
        }
    }
}

/// `grad = keep * grad` and the sum of the terms' rows from `first` on; `keep` is 0 or 1.
fn add_terms<T: Real>(
    terms: &[(ArrayView2<'_, T>, ArrayView2<'_, T>)],
    first: usize,
    mut keep: T,
    mut grad: ArrayViewMut2<'_, T>,
) {
    let rows = first..first + grad.nrows();
    for (d_y, x) in terms {
        let d_y = d_y.slice(s![.., rows.clone()]);
        gemm(T::one(), d_y.t(), *x, keep, grad.view_mut());
        keep = T::one();
    }
}

/// Splits one gradient into jobs. `terms` holds `(d_y, x)` of each part, in batch order; there is at
/// least one.
pub fn gradient_jobs<'a, T: Real>(
    grad: &'a mut Array2<T>,
    terms: &[(ArrayView2<'a, T>, ArrayView2<'a, T>)],
    jobs: &mut Vec<GradientJob<'a, T>>,
) {
    let blocks = grad.axis_chunks_iter_mut(Axis(0), JOB_ROWS);
    jobs.extend(blocks.enumerate().map(|(i, grad)| GradientJob {
        grad,
        first_row: i * JOB_ROWS,
        terms: terms.to_vec(),
    }));
}

/// Runs the jobs on the current thread pool.
pub fn run_jobs<T: Real>(jobs: Vec<GradientJob<'_, T>>, sum: Sum) {
    jobs.into_par_iter()
        .for_each_init(Vec::new, |spare, job| job.run(sum, spare));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_gradient, dot, normals};
    use crate::rng::{Rng, Stream};

    const LEN: usize = 5;
    const OUTPUTS: usize = 6;
    const INPUTS: usize = 9;

    fn layer(quantize: bool, weights: &[f64]) -> BitLinear<f64> {
        let mut layer = BitLinear::new("w".into(), OUTPUTS, INPUTS);
        flat_mut(&mut layer.weight.value).copy_from_slice(weights);
        layer.refresh(quantize);
        layer
    }

    fn activations(quantize: bool, x: &[f64]) -> Activations<f64> {
        let mut a = Activations::new(LEN, INPUTS);
        flat_mut(&mut a.codes).copy_from_slice(x);
        (0..LEN).for_each(|t| a.quantize(t, quantize).unwrap());
        a
    }

    /// `(d_x, d_w)` of a layer for the output gradient `d_y`.
    fn gradients(quantize: bool, x: &[f64], w: &[f64], d_y: &[f64]) -> (Array2<f64>, Array2<f64>) {
        let mut layer = layer(quantize, w);
        let a = activations(quantize, x);
        let mut d_y = Array2::from_shape_vec((LEN, OUTPUTS), d_y.to_vec()).unwrap();
        let mut d_x = zeros(LEN, INPUTS);
        layer.backward_input(&d_y, 0.0, &mut d_x);
        divide_by_scales(&mut d_y, &a.scales);
        let mut jobs = Vec::new();
        let terms = [(d_y.view(), a.codes.view())];
        gradient_jobs(&mut layer.weight.grad, &terms, &mut jobs);
        run_jobs(jobs, Sum::Fresh);
        (d_x, layer.weight.grad)
    }

    #[test]
    fn gradients_match_finite_differences_without_quantisation() {
        let (x, w) = (normals(1, LEN * INPUTS), normals(2, OUTPUTS * INPUTS));
        let weights = normals(3, LEN * OUTPUTS);
        let loss = |x: &[f64], w: &[f64]| {
            let mut y = zeros(LEN, OUTPUTS);
            layer(false, w).forward(&activations(false, x), &mut y);
            dot(&weights, flat(&y))
        };
        let (d_x, d_w) = gradients(false, &x, &w, &weights);
        assert_gradient("x", &x, flat(&d_x), |x| loss(x, &w));
        assert_gradient("w", &w, flat(&d_w), |w| loss(&x, w));
    }

    /// The straight-through estimator as its definition: the derivative of the linear map
    /// `y = x' W'^T` at the dequantised `x' = xi / s_t` and `W' = wi / s`, passed to `x` and `W`.
    #[test]
    fn quantised_gradients_are_those_of_the_frozen_linear_map() {
        let (x, w) = (normals(1, LEN * INPUTS), normals(2, OUTPUTS * INPUTS));
        let weights = normals(3, LEN * OUTPUTS);
        let (a, frozen) = (activations(true, &x), layer(true, &w));
        let scale = f64::from(frozen.scale);
        let (d_x, d_w) = gradients(true, &x, &w, &weights);
        for t in 0..LEN {
            for i in 0..INPUTS {
                let closed: f64 = (0..OUTPUTS)
                    .map(|o| weights[t * OUTPUTS + o] * frozen.codes[[o, i]] / scale)
                    .sum();
                assert!((d_x[[t, i]] - closed).abs() < 1e-6, "d_x {t} {i}");
            }
        }
        for o in 0..OUTPUTS {
            for i in 0..INPUTS {
                let closed: f64 = (0..LEN)
                    .map(|t| weights[t * OUTPUTS + o] * a.codes[[t, i]] / f64::from(a.scales[t]))
                    .sum();
                assert!((d_w[[o, i]] - closed).abs() < 1e-6, "d_w {o} {i}");
            }
        }
    }

    /// A weight far beyond the clamp still gets its gradient.
    #[test]
    fn the_clamp_passes_gradients() {
        let mut w = normals(2, OUTPUTS * INPUTS);
        w[0] = 50.0;
        let (_, d_w) = gradients(true, &[1.0; LEN * INPUTS], &w, &[1.0; LEN * OUTPUTS]);
        assert!((d_w[[0, 0]] - LEN as f64).abs() < 1e-5);
    }

    #[test]
    fn output_is_the_integer_product_times_the_factor() {
        let (x, w) = (normals(1, LEN * INPUTS), normals(2, OUTPUTS * INPUTS));
        let (a, layer) = (activations(true, &x), layer(true, &w));
        let mut y = zeros(LEN, OUTPUTS);
        layer.forward(&a, &mut y);
        for ((t, o), y) in y.indexed_iter() {
            let z: i32 = (0..INPUTS)
                .map(|i| a.codes[[t, i]] as i32 * layer.codes[[o, i]] as i32)
                .sum();
            let factor = quant::linear_factor(WeightScale::Divide, layer.scale, a.scales[t]);
            assert_eq!(*y, f64::from(z) * f64::from(factor));
        }
    }

    #[test]
    fn flips_count_the_codes_that_changed() {
        let mut layer = layer(true, &normals(2, OUTPUTS * INPUTS));
        layer.refresh(true);
        assert_eq!(layer.flips(), 0);
        let before = layer.codes.clone();
        flat_mut(&mut layer.weight.value)[3] *= -20.0;
        layer.refresh(true);
        let changed = flat(&before).iter().zip(flat(&layer.codes));
        let changed = changed.filter(|(a, b)| a != b).count();
        assert!(changed > 0 && layer.flips() == changed);
    }

    /// For normal weights `|w| < mean|w| / 2` has probability 0.310.
    #[test]
    fn a_third_of_fresh_weights_is_zero() {
        let mut layer = BitLinear::<f32>::new("w".into(), 300, 300);
        layer.weight.init(&mut Rng::new(1, Stream::Init, 0), 0.02);
        layer.refresh(true);
        let share = layer.zero_share();
        assert!((share - 0.310).abs() < 0.005, "{share}");
    }
}
