//! Every tile this machine can run, against the reference, at every edge.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::*;
use crate::rng::{Rng, Stream};
use bitnet_formats::float::{bf16_to_f32, f32_to_bf16};

type RunProduct = fn(&Product<'_, f32>, ArrayViewMut2<'_, f32>);
type RunExact = fn(&ExactProduct<'_>, ArrayViewMut2<'_, f32>);

/// f32 products by name. What a release runs is among them.
fn products() -> Vec<(&'static str, RunProduct)> {
    let mut all: Vec<(&str, RunProduct)> = vec![("detected", product_f32)];
    all.push(("reference", reference::product));
    #[cfg(target_arch = "x86_64")]
    if avx2::F32::new().is_some() {
        all.push(("avx2", |p, c| {
            tiled::product(avx2::F32::new().unwrap(), p, c)
        }));
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::F32::new().is_some() {
        all.push(("avx512", |p, c| {
            tiled::product(avx512::F32::new().unwrap(), p, c)
        }));
    }
    all
}

fn exact_products() -> Vec<(&'static str, RunExact)> {
    let mut all: Vec<(&str, RunExact)> = vec![("detected", exact_product_f32)];
    all.push(("reference", reference::exact_product));
    #[cfg(target_arch = "x86_64")]
    if avx2::Int8::new().is_some() {
        all.push(("avx2", |p, y| {
            tiled::exact_product(avx2::Int8::new().unwrap(), p, y)
        }));
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::Int8::new().is_some() {
        all.push(("avx512", |p, y| {
            tiled::exact_product(avx512::Int8::new().unwrap(), p, y)
        }));
    }
    all
}

/// Lengths at and around tiles of 4 x 16 and 8 x 32, and blocks of 256 and 512.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (3, 15, 4),
    (4, 16, 8),
    (5, 17, 12),
    (7, 31, 64),
    (8, 32, 68),
    (9, 33, 255),
    (17, 65, 256),
    (16, 48, 257),
    (33, 100, 700),
    (130, 520, 40),
    (260, 30, 30),
];

/// Integers small enough for every sum to be exact in f32, whatever its order.
fn integers(rng: &mut Rng, rows: usize, cols: usize, limit: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |_| {
        rng.below(2 * limit + 1) as f32 - limit as f32
    })
}

fn ternary(rng: &mut Rng, rows: usize, cols: usize) -> Array2<i8> {
    Array2::from_shape_fn((rows, cols), |_| rng.below(3) as i8 - 1)
}

fn assert_equal(what: &str, found: ArrayView2<'_, f32>, expected: ArrayView2<'_, f32>) {
    for ((at, found), expected) in found.indexed_iter().zip(expected) {
        assert_eq!(found, expected, "{what} at {at:?}");
    }
}

/// Int8 tokens at their limits times ternary rows: every way gives the same bits.
#[test]
fn exact_products_agree_to_the_bit() {
    let mut rng = Rng::new(1, Stream::Init, 0);
    for (m, n, k) in SHAPES.into_iter().chain([(2, 3, 4096)]) {
        let mut x = Array2::from_shape_fn((m, k), |_| (rng.below(256) as i32 - 128) as i8);
        let mut w = ternary(&mut rng, n, k);
        x.row_mut(0).fill(-128);
        w.row_mut(0).fill(1);
        let x_scales: Vec<f32> = (0..m).map(|t| 0.3 + t as f32).collect();
        let product = ExactProduct {
            x: x.view(),
            x_scales: &x_scales,
            w: w.view(),
            w_scale: 7.7,
        };
        for (name, run) in exact_products() {
            let mut y = Array2::from_elem((m, n), f32::NAN);
            run(&product, y.view_mut());
            for ((t, o), y) in y.indexed_iter() {
                let z: i32 = (0..k)
                    .map(|i| i32::from(x[[t, i]]) * i32::from(w[[o, i]]))
                    .sum();
                let factor = quant::linear_factor(WeightScale::Divide, 7.7, x_scales[t]);
                assert_eq!(*y, z as f32 * factor, "{name} {m}x{n}x{k} at {t},{o}");
            }
        }
    }
}

/// Values, codes, and transposes of `a` and `b`, overwriting and adding.
#[test]
fn float_products_agree_on_integers() {
    let mut rng = Rng::new(2, Stream::Init, 0);
    for (m, n, k) in SHAPES {
        let (a, a_t) = (integers(&mut rng, m, k, 60), integers(&mut rng, k, m, 60));
        let (b, b_t) = (integers(&mut rng, k, n, 60), integers(&mut rng, n, k, 60));
        let (codes, codes_t) = (ternary(&mut rng, k, n), ternary(&mut rng, n, k));
        let operands = [
            Operand::Values(b.view()),
            Operand::Values(b_t.t()),
            Operand::Codes(codes.view()),
            Operand::Codes(codes_t.t()),
        ];
        let scales: Vec<f32> = (0..k).map(|i| [0.5, 2.0][i % 2]).collect();
        for (a, b) in [a.view(), a_t.t()]
            .iter()
            .flat_map(|a| operands.map(|b| (*a, b)))
        {
            for (scales, alpha, beta) in
                [(&[][..], 1.0, 0.0), (&scales, 0.5, 1.0), (&[], 2.0, -3.0)]
            {
                let product = Product {
                    alpha,
                    a,
                    scales,
                    b,
                    beta,
                    precision: Precision::F32,
                };
                agree(&format!("{m}x{n}x{k} {alpha} {beta}"), &product);
            }
        }
    }
}

fn agree(what: &str, product: &Product<'_, f32>) {
    let shape = (product.a.nrows(), product.b.dim().1);
    let start = Array2::from_shape_fn(shape, |(i, j)| (i * 7 + j) as f32);
    let mut expected = start.clone();
    reference::product(product, expected.view_mut());
    for (name, run) in products() {
        let mut found = start.clone();
        run(product, found.view_mut());
        assert_equal(&format!("{name} {what}"), found.view(), expected.view());
    }
}

/// Without `beta` the result is not read; beyond its columns nothing is written.
#[test]
fn only_the_result_is_touched() {
    let mut rng = Rng::new(3, Stream::Init, 0);
    let (a, b) = (integers(&mut rng, 11, 70, 9), integers(&mut rng, 70, 37, 9));
    for (name, run) in products() {
        let mut all = Array2::from_elem((15, 50), f32::NAN);
        let product = Product {
            alpha: 1.0,
            a: a.view(),
            scales: &[],
            b: b.view().into(),
            beta: 0.0,
            precision: Precision::F32,
        };
        run(&product, all.slice_mut(s![2..13, 5..42]));
        let inside = all.slice(s![2..13, 5..42]);
        assert_equal(name, inside, a.dot(&b).view());
        let touched = all.iter().filter(|x| !x.is_nan()).count();
        assert_eq!(touched, 11 * 37, "{name}");
    }
}

/// Views that are columns of wider matrices, on either side.
#[test]
fn columns_of_wider_matrices_are_read() {
    let mut rng = Rng::new(4, Stream::Init, 0);
    let (a, b) = (integers(&mut rng, 40, 90, 9), integers(&mut rng, 80, 60, 9));
    let (a, b) = (a.slice(s![3..30, 10..70]), b.slice(s![9..69, 7..50]));
    let expected = a.to_owned().dot(&b.to_owned());
    for (name, run) in products() {
        let mut c = Array2::zeros((27, 43));
        let product = Product {
            alpha: 1.0,
            a,
            scales: &[],
            b: b.into(),
            beta: 0.0,
            precision: Precision::F32,
        };
        run(&product, c.view_mut());
        assert_equal(name, c.view(), expected.view());
    }
}

/// A row comes out the same whichever rows are multiplied with it.
#[test]
fn rows_do_not_depend_on_each_other() {
    let mut rng = Rng::new(5, Stream::Init, 0);
    let mut draw = |rows, cols| Array2::from_shape_fn((rows, cols), |_| rng.normal() as f32);
    let (a, b) = (draw(40, 300), draw(300, 70));
    for (name, run) in products() {
        let product = |rows: Range<usize>| {
            let mut c = Array2::zeros((rows.len(), 70));
            let product = Product {
                alpha: 0.3,
                a: a.slice(s![rows, ..]),
                scales: &[],
                b: b.view().into(),
                beta: 0.0,
                precision: Precision::F32,
            };
            run(&product, c.view_mut());
            c
        };
        if name != "reference" && cfg!(target_arch = "x86_64") {
            assert_eq!(
                product(0..40).slice(s![13..21, ..]),
                product(13..21),
                "{name}"
            );
        }
    }
}

/// Every way is near the f64 product on ordinary values.
#[test]
fn float_products_are_near_the_wide_product() {
    let mut rng = Rng::new(6, Stream::Init, 0);
    let mut draw = |rows, cols| Array2::from_shape_fn((rows, cols), |_| rng.normal() as f32);
    let (a, b) = (draw(20, 700), draw(700, 50));
    let wide = a.mapv(f64::from).dot(&b.mapv(f64::from));
    for (name, run) in products() {
        let mut c = Array2::zeros((20, 50));
        let product = Product {
            alpha: 1.0,
            a: a.view(),
            scales: &[],
            b: b.view().into(),
            beta: 0.0,
            precision: Precision::F32,
        };
        run(&product, c.view_mut());
        for (found, wide) in c.iter().zip(&wide) {
            assert!((f64::from(*found) - wide).abs() < 1e-4, "{name}");
        }
    }
}

/// Factors rounded to bf16, sums of f32: codes come through exactly, values to 8 bits.
#[test]
fn bf16_products_are_those_of_rounded_factors() {
    if !Precision::Bf16.is_supported() {
        eprintln!("SKIP: this processor has no bf16 products");
        return;
    }
    let mut rng = Rng::new(7, Stream::Init, 0);
    for (m, n, k) in SHAPES {
        let mut draw = |rows, cols| Array2::from_shape_fn((rows, cols), |_| rng.normal() as f32);
        let (a, a_t, b, b_t) = (draw(m, k), draw(k, m), draw(k, n), draw(n, k));
        let codes = ternary(&mut rng, k, n).mapv(|w| w * 100);
        let scales: Vec<f32> = (0..k).map(|i| 0.5 + i as f32).collect();
        for (a, scales) in [(a.view(), &[][..]), (a_t.t(), &scales), (a_t.t(), &[])] {
            let b = [Operand::Values(b.view()), Operand::Values(b_t.t())];
            for b in b.into_iter().chain([Operand::Codes(codes.view())]) {
                assert_rounded(a, scales, b);
            }
        }
    }
}

fn assert_rounded<'a>(a: ArrayView2<'a, f32>, scales: &'a [f32], b: Operand<'a, f32>) {
    let (m, k, n) = (a.nrows(), a.ncols(), b.dim().1);
    let mut c = Array2::from_elem((m, n), 1.0);
    let product = Product {
        alpha: 2.0,
        a,
        scales,
        b,
        beta: 1.0,
        precision: Precision::Bf16,
    };
    product_f32(&product, c.view_mut());
    let rounded = |x: f32| f64::from(bf16_to_f32(f32_to_bf16(x)));
    for ((i, j), found) in c.indexed_iter() {
        let term = |l: usize| {
            let scale = scales.get(l).map_or(1.0, |s| 1.0 / s);
            rounded(a[[i, l]] * scale)
                * match b {
                    Operand::Values(b) => rounded(b[[l, j]]),
                    Operand::Codes(b) => f64::from(b[[l, j]]),
                }
        };
        let sum: f64 = (0..k).map(term).sum();
        let size: f64 = (0..k).map(|l| term(l).abs()).sum();
        let apart = (f64::from(*found) - (1.0 + 2.0 * sum)).abs();
        let bound = match b {
            Operand::Codes(_) => 1e-6 * (1.0 + size),
            // Where terms are small beside what is added to them, a sum of k rounds k times, each
            // time by half a unit of f32 at most.
            Operand::Values(_) => {
                0.5 * f64::from(f32::EPSILON) * (1.0 + 2.0 * (k + 1) as f64 * size)
            }
        };
        assert!(apart <= bound, "{m}x{n}x{k} at {i},{j}: {apart} {bound}");
    }
}
