//! Finite differences, for the tests of the operations.

use crate::rng::{Rng, Stream};

/// `n` normal draws that depend on `seed` only.
pub(crate) fn normals(seed: u64, n: usize) -> Vec<f64> {
    let mut rng = Rng::new(seed, Stream::Init, 0);
    (0..n).map(|_| rng.normal()).collect()
}

/// `sum(weights * values)`: turns an operation with many outputs into one with one.
pub(crate) fn dot(weights: &[f64], values: &[f64]) -> f64 {
    weights.iter().zip(values).map(|(w, v)| w * v).sum()
}

/// Asserts that `gradient` is the derivative of `loss` at `x`, by central differences.
pub(crate) fn assert_gradient(
    what: &str,
    x: &[f64],
    gradient: &[f64],
    loss: impl Fn(&[f64]) -> f64,
) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    assert!(gradient.iter().any(|g| *g != 0.0), "{what}: all zero");
    let h = 1e-5;
    let mut at = x.to_vec();
    for (i, expected) in gradient.iter().enumerate() {
        at[i] = x[i] + h;
        let above = loss(&at);
        at[i] = x[i] - h;
        let slope = (above - loss(&at)) / (2.0 * h);
        at[i] = x[i];
        let error = (slope - expected).abs() / (1e-3 + slope.abs().max(expected.abs()));
        assert!(
            error < 1e-6,
            "{what}[{i}]: slope {slope}, gradient {expected}"
        );
    }
}
