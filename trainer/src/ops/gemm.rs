//! Matrix products. Every product of the trainer goes through [`gemm`], so a faster kernel has one
//! place to go.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::real::Real;

/// `c = alpha * a . b + beta * c` on one thread; any strides. With `beta == 0`, `c` is not read.
///
/// On integer-valued f32 the product is exact while partial sums stay below 2^24: int8 times
/// ternary does for up to 131,072 columns.
pub fn gemm<T: Real>(
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    beta: T,
    mut c: ArrayViewMut2<'_, T>,
) {
    general_mat_mul(alpha, &a, &b, beta, &mut c);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};
    use ndarray::Array2;

    /// Codes at their limits, every length around the tiles: equal to the integer sum.
    #[test]
    fn integer_products_are_exact() {
        let mut rng = Rng::new(1, Stream::Init, 0);
        for (m, n, k) in [
            (1, 1, 1),
            (3, 5, 7),
            (17, 33, 129),
            (64, 48, 704),
            (2, 2, 4096),
        ] {
            let x = Array2::from_shape_fn((m, k), |_| rng.below(256) as f32 - 128.0);
            let w = Array2::from_shape_fn((n, k), |_| rng.below(3) as f32 - 1.0);
            let mut z = Array2::from_elem((m, n), f32::NAN);
            gemm(1.0, x.view(), w.t(), 0.0, z.view_mut());
            for ((i, j), z) in z.indexed_iter() {
                let exact: i64 = (0..k).map(|c| x[[i, c]] as i64 * w[[j, c]] as i64).sum();
                assert_eq!(*z as i64, exact, "{m}x{n}x{k} at {i},{j}");
            }
        }
    }

    #[test]
    fn beta_accumulates() {
        let one = Array2::from_elem((2, 2), 1.0f64);
        let mut c = Array2::from_elem((2, 2), 10.0);
        gemm(3.0, one.view(), one.view(), 1.0, c.view_mut());
        assert!(c.iter().all(|x| *x == 16.0));
    }
}
