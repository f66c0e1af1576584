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

use bitnet_formats::quant;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Dimension, s};
use rayon::prelude::*;

use crate::ops::codes::{Activations, Codes};
use crate::ops::gemm::{ExactProduct, Operand, Precision, Product, gemm};
use crate::ops::ramp;
use crate::ops::simd::vectorized;
use crate::param::{Param, ParamKind};
use crate::real::Real;
use crate::tensor::{flat, flat_mut};

/// Output rows of a weight gradient that one job computes. A constant, so that the sums do not
/// depend on the number of threads.
const JOB_ROWS: usize = 128;

/// A linear map without bias whose weights are ternary in use and f32 at rest.
#[derive(Clone, Debug)]
pub struct BitLinear<T> {
    /// Master weights `[outputs, inputs]` and their gradient.
    pub weight: Param<T>,
    /// How the products of the backward pass are read.
    pub precision: Precision,
    /// What products use: ternary codes, or the weights themselves. Follows `weight` by
    /// [`BitLinear::refresh`].
    codes: Codes<T>,
    scale: f32,
    /// Codes that the last refresh changed.
    flips: usize,
}

impl<T: Real> BitLinear<T> {
    /// A map of zeros.
    pub fn new(name: String, outputs: usize, inputs: usize) -> Self {
        Self {
            weight: Param::new(name, ParamKind::Linear, outputs, inputs),
            precision: Precision::F32,
            codes: Codes::int8(outputs, inputs),
            scale: 1.0,
            flips: 0,
        }
    }

    /// Makes the codes follow the weights. Call after every change of the weights.
    pub fn refresh(&mut self, quantize: bool) {
        self.codes.set_kind(quantize);
        (self.flips, self.scale) = (0, 1.0);
        match &mut self.codes {
            Codes::Int8(codes) => {
                self.scale = quant::weight_scale(absmean(flat(&self.weight.value)));
                self.flips = ternary(flat(&self.weight.value), self.scale, flat_mut(codes));
            }
            Codes::Values(values) => values.assign(&self.weight.value),
        }
    }

    /// Makes the weights in use follow, on their way to ternary: see [`ramp`].
    pub fn refresh_blended(&mut self, lambda: f32) {
        self.refresh(false);
        if let Codes::Values(values) = &mut self.codes {
            let weights = flat(&self.weight.value);
            let scale = quant::weight_scale(absmean(weights));
            ramp::blend(weights, scale, lambda, flat_mut(values));
        }
    }

    /// `y[t] = (x.codes[t] . codes^T) * factor[t]`.
    pub fn forward(&self, x: &Activations<T>, y: &mut Array2<T>) {
        match (x.codes.operand(), self.codes.operand()) {
            (Operand::Codes(x_codes), Operand::Codes(w)) => {
                let product = ExactProduct {
                    x: x_codes,
                    x_scales: &x.scales,
                    w,
                    w_scale: self.scale,
                };
                T::exact_product(&product, y.view_mut());
            }
            (Operand::Values(x), Operand::Values(w)) => {
                gemm(T::one(), x, w.reversed_axes(), T::zero(), y.view_mut());
            }
            _ => unreachable!("weights and activations are quantised together"),
        }
    }

    /// `d_x = (1/s) d_y . codes + keep * d_x`; `keep` is 0 or 1.
    pub fn backward_input(&self, d_y: &Array2<T>, keep: T, d_x: &mut Array2<T>) {
        let product = Product {
            alpha: T::from_f32(1.0 / self.scale),
            a: d_y.view(),
            scales: &[],
            b: self.codes.operand(),
            beta: keep,
            precision: self.precision,
        };
        T::product(&product, d_x.view_mut());
    }

    /// Queues the gradient of the weights; `terms` holds `(d_y, x)` of each sequence, in batch order.
    pub fn gradient<'a>(
        &'a mut self,
        terms: impl Iterator<Item = (&'a Array2<T>, &'a Activations<T>)>,
        jobs: &mut Vec<GradientJob<'a, T>>,
    ) {
        let term = |(d_y, x): (&'a Array2<T>, &'a Activations<T>)| Term {
            d_y: d_y.view(),
            scales: &x.scales,
            x: x.codes.operand(),
        };
        let terms: Vec<_> = terms.map(term).collect();
        gradient_jobs(&mut self.weight.grad, &terms, self.precision, jobs);
    }

    /// Codes that the last [`BitLinear::refresh`] changed; 0 without quantisers.
    pub const fn flips(&self) -> usize {
        self.flips
    }

    /// Weights it has.
    pub fn size(&self) -> usize {
        self.weight.value.len()
    }

    /// Mean magnitude of the weights; 1 without quantisers.
    pub fn mean_magnitude(&self) -> f64 {
        1.0 / f64::from(self.scale)
    }

    /// Share of weights whose code is zero.
    pub fn zero_share(&self) -> f64 {
        let zeros = match &self.codes {
            Codes::Int8(codes) => codes.iter().filter(|c| **c == 0).count(),
            Codes::Values(values) => values.iter().filter(|w| w.is_zero()).count(),
        };
        zeros as f64 / self.size() as f64
    }
}

/// Sets `codes` to those of `weights`; returns how many changed.
fn ternary<T: Real>(weights: &[T], scale: f32, codes: &mut [i8]) -> usize {
    vectorized!({
        let mut flips = 0;
        for (codes, weights) in codes.chunks_mut(256).zip(weights.chunks(256)) {
            let mut changed = 0u16;
            for (code, w) in codes.iter_mut().zip(weights) {
                let new = quant::ternary_code(w.narrow(), scale);
                changed += u16::from(new != *code);
                *code = new;
            }
            flips += usize::from(changed);
        }
        flips
    })
}

fn absmean<T: Real>(weights: &[T]) -> f32 {
    let mut mean = quant::AbsMean::default();
    let mut block = [0.0; 1024];
    vectorized!({
        for values in weights.chunks(block.len()) {
            for (x, w) in block.iter_mut().zip(values) {
                *x = w.narrow();
            }
            mean.update(&block[..values.len()]);
        }
    });
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

/// What one part adds to a weight gradient: `(d_y / scales)^T . x`.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a, T> {
    /// `[len, outputs]`.
    pub d_y: ArrayView2<'a, T>,
    /// Scales of the activations; none for 1.
    pub scales: &'a [f32],
    /// `[len, inputs]`.
    pub x: Operand<'a, T>,
}

/// A block of rows of a weight gradient: the sum over parts of `(d_y / scales)[:, rows]^T . x`.
///
/// Parts add in order, whoever runs the job.
pub struct GradientJob<'a, T> {
    grad: ArrayViewMut2<'a, T>,
    terms: RowTerms<'a, T>,
}

impl<T: Real> GradientJob<'_, T> {
    /// `spare` is memory to use again from job to job.
    fn run(mut self, sum: Sum, spare: &mut Vec<T>) {
        match sum {
            Sum::Fresh => self.terms.add_to(self.grad, T::zero()),
            Sum::Further => self.terms.add_to(self.grad, T::one()),
            Sum::Onto => {
                let shape = self.grad.raw_dim();
                spare.resize(shape.size(), T::zero());
                let own = ArrayViewMut2::from_shape(shape, spare);
                let mut own = own.expect("as many elements as the shape has");
                self.terms.add_to(own.view_mut(), T::zero());
                self.grad += &own;
            }
        }
    }
}

/// What all parts add to some rows of a weight gradient.
struct RowTerms<'a, T> {
    first_row: usize,
    terms: Vec<Term<'a, T>>,
    precision: Precision,
}

impl<T: Real> RowTerms<'_, T> {
    /// `grad = keep * grad` and the terms, in order; `keep` is 0 or 1.
    fn add_to(&self, mut grad: ArrayViewMut2<'_, T>, mut keep: T) {
        let rows = self.first_row..self.first_row + grad.nrows();
        for term in self.terms.iter().copied() {
            let product = Product {
                alpha: T::one(),
                a: term.d_y.slice_move(s![.., rows.clone()]).reversed_axes(),
                scales: term.scales,
                b: term.x,
                beta: keep,
                precision: self.precision,
            };
            T::product(&product, grad.view_mut());
            keep = T::one();
        }
    }
}

/// Splits one gradient into jobs. `terms` are of the parts, in batch order; there is at least one.
pub fn gradient_jobs<'a, T: Real>(
    grad: &'a mut Array2<T>,
    terms: &[Term<'a, T>],
    precision: Precision,
    jobs: &mut Vec<GradientJob<'a, T>>,
) {
    let blocks = grad.axis_chunks_iter_mut(Axis(0), JOB_ROWS);
    jobs.extend(blocks.enumerate().map(|(i, grad)| GradientJob {
        grad,
        terms: RowTerms {
            first_row: i * JOB_ROWS,
            terms: terms.to_vec(),
            precision,
        },
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
    use crate::tensor::zeros;
    use bitnet_formats::WeightScale;

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
        a.codes.set_kind(quantize);
        (0..LEN).for_each(|t| a.set(t, x[t * INPUTS..][..INPUTS].iter().copied()).unwrap());
        a
    }

    fn code(codes: &Codes<f64>, i: usize, j: usize) -> f64 {
        let Codes::Int8(codes) = codes else {
            panic!("not quantised");
        };
        f64::from(codes[[i, j]])
    }

    /// `(d_x, d_w)` of a layer for the output gradient `d_y`.
    fn gradients(quantize: bool, x: &[f64], w: &[f64], d_y: &[f64]) -> (Array2<f64>, Array2<f64>) {
        let mut layer = layer(quantize, w);
        let a = activations(quantize, x);
        let d_y = Array2::from_shape_vec((LEN, OUTPUTS), d_y.to_vec()).unwrap();
        let mut d_x = zeros(LEN, INPUTS);
        layer.backward_input(&d_y, 0.0, &mut d_x);
        let mut jobs = Vec::new();
        layer.gradient([(&d_y, &a)].into_iter(), &mut jobs);
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
                    .map(|o| weights[t * OUTPUTS + o] * code(&frozen.codes, o, i) / scale)
                    .sum();
                assert!((d_x[[t, i]] - closed).abs() < 1e-6, "d_x {t} {i}");
            }
        }
        for o in 0..OUTPUTS {
            for i in 0..INPUTS {
                let closed: f64 = (0..LEN)
                    .map(|t| {
                        weights[t * OUTPUTS + o] * code(&a.codes, t, i) / f64::from(a.scales[t])
                    })
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
            let z: f64 = (0..INPUTS)
                .map(|i| code(&a.codes, t, i) * code(&layer.codes, o, i))
                .sum();
            let factor = quant::linear_factor(WeightScale::Divide, layer.scale, a.scales[t]);
            assert_eq!(*y, z * f64::from(factor));
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
        let at = (0..OUTPUTS).flat_map(|o| (0..INPUTS).map(move |i| (o, i)));
        let changed = at.filter(|(o, i)| code(&before, *o, *i) != code(&layer.codes, *o, *i));
        let changed = changed.count();
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
