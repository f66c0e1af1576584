//! The gated activation of the feed-forward layer: `product = f(gate) * up`.

use bitnet_formats::Activation;

use crate::real::Real;

/// `1 / (1 + e^-x)` without overflow on either side.
#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    let e = (-x.abs()).exp_negative();
    let positive = T::one() / (T::one() + e);
    if x < T::zero() {
        e * positive
    } else {
        positive
    }
}

#[inline(always)]
fn relu<T: Real>(x: T) -> T {
    if x > T::zero() { x } else { T::zero() }
}

/// `product = f(gate) * up`, element by element.
#[inline(always)]
pub fn forward<T: Real>(f: Activation, gate: &[T], up: &[T], product: &mut [T]) {
    let inputs = gate.iter().zip(up);
    match f {
        Activation::SquaredRelu => {
            for (y, (gate, up)) in product.iter_mut().zip(inputs) {
                let positive = relu(*gate);
                *y = positive * positive * *up;
            }
        }
        Activation::Silu => {
            for (y, (gate, up)) in product.iter_mut().zip(inputs) {
                *y = *gate * sigmoid(*gate) * *up;
            }
        }
    }
}

/// Writes `d_gate` and `d_up` for a given `d_product`.
///
/// Squared ReLU: `f' = 2 max(x, 0)`. SiLU: `f' = s (1 + x (1 - s))` with `s = sigmoid(x)`.
#[inline(always)]
pub fn backward<T: Real>(
    f: Activation,
    (gate, up): (&[T], &[T]),
    d_product: &[T],
    (d_gate, d_up): (&mut [T], &mut [T]),
) {
    let outputs = d_gate.iter_mut().zip(d_up);
    let inputs = gate.iter().zip(up).zip(d_product);
    match f {
        Activation::SquaredRelu => {
            for ((d_gate, d_up), ((gate, up), d)) in outputs.zip(inputs) {
                let positive = relu(*gate);
                *d_up = *d * positive * positive;
                *d_gate = *d * *up * (positive + positive);
            }
        }
        Activation::Silu => {
            for ((d_gate, d_up), ((gate, up), d)) in outputs.zip(inputs) {
                let s = sigmoid(*gate);
                *d_up = *d * *gate * s;
                *d_gate = *d * *up * s * (T::one() + *gate * (T::one() - s));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_gradient, dot, normals};

    #[test]
    fn gradients_match_finite_differences() {
        let n = 24;
        let (gate, up, weights) = (normals(1, n), normals(2, n), normals(3, n));
        for f in [Activation::SquaredRelu, Activation::Silu] {
            let loss = |gate: &[f64], up: &[f64]| {
                let mut product = vec![0.0; n];
                forward(f, gate, up, &mut product);
                dot(&weights, &product)
            };
            let (mut d_gate, mut d_up) = (vec![0.0; n], vec![0.0; n]);
            backward(f, (&gate, &up), &weights, (&mut d_gate, &mut d_up));
            assert_gradient("gate", &gate, &d_gate, |gate| loss(gate, &up));
            assert_gradient("up", &up, &d_up, |up| loss(&gate, up));
        }
    }

    #[test]
    fn extreme_gates_stay_finite() {
        let gate = [-1e4f32, -200.0, 0.0, 200.0, 1e4];
        let mut product = [0.0; 5];
        forward(Activation::Silu, &gate, &[1.0; 5], &mut product);
        assert!(product[0].abs() < 1e-30 && product[1].abs() < 1e-30);
        assert_eq!(product[2..], [0.0, 200.0, 1e4]);
    }
}
