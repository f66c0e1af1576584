//! Sums and maxima over a row, in sixteen lanes by index mod 16, folded 8, 4, 2, 1.
//!
//! A fixed order that vector units can follow; the runtime sums its norms the same way.

use crate::real::Real;

const LANES: usize = 16;

/// Sum of products.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += *a * *b;
    }
    fold(lanes, |a, b| a + b)
}

/// Sum of products of three.
#[inline(always)]
pub fn dot3<T: Real>(a: &[T], b: &[T], c: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    let (c_blocks, c_tail) = c.as_chunks::<LANES>();
    for ((a, b), c) in a_blocks.iter().zip(b_blocks).zip(c_blocks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i] * c[i];
        }
    }
    let tails = a_tail.iter().zip(b_tail).zip(c_tail);
    for (lane, ((a, b), c)) in lanes.iter_mut().zip(tails) {
        *lane += *a * *b * *c;
    }
    fold(lanes, |a, b| a + b)
}

/// Sum.
#[inline(always)]
pub fn sum<T: Real>(a: &[T]) -> T {
    reduce(a, T::zero(), |a, b| a + b)
}

/// The largest; minus infinity for nothing. A NaN may be missed: what comes after must not rely on
/// this to find one.
#[inline(always)]
pub fn maximum<T: Real>(a: &[T]) -> T {
    reduce(a, T::neg_infinity(), |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn reduce<T: Real>(a: &[T], start: T, op: impl Fn(T, T) -> T + Copy) -> T {
    let mut lanes = [start; LANES];
    let (blocks, tail) = a.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = op(lanes[i], block[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = op(*lane, *x);
    }
    fold(lanes, op)
}

#[inline(always)]
fn fold<T: Real>(mut lanes: [T; LANES], op: impl Fn(T, T) -> T) -> T {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = op(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::normals;

    /// Every length around the lanes, against the plain loops.
    #[test]
    fn equal_the_plain_loops() {
        for n in 0..70 {
            let (a, b, c) = (normals(1, n), normals(2, n), normals(3, n));
            let near = |x: f64, y: f64| (x - y).abs() < 1e-12;
            let plain = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>();
            assert!(near(sum(&a), plain(&|i| a[i])), "{n}");
            assert!(near(dot(&a, &b), plain(&|i| a[i] * b[i])), "{n}");
            assert!(
                near(dot3(&a, &b, &c), plain(&|i| a[i] * b[i] * c[i])),
                "{n}"
            );
            let largest = a.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(maximum(&a), largest, "{n}");
        }
    }
}
