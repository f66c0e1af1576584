//! One harness over every kernel set this machine can run: equality with plain integer sums.

use bitnet_formats::ternary::{GROUP_ROWS, TernaryLayout, TernaryView};
use bitnet_formats::{Dtype, MatrixView};

use super::*;

/// xorshift64*: the tests' own source of numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn fill<T>(&mut self, n: usize, f: impl Fn(u64) -> T) -> Vec<T> {
        (0..n).map(|_| f(self.next())).collect()
    }
}

fn pack(layout: TernaryLayout, codes: &[i8], cols: usize) -> Vec<u8> {
    let mut packed = vec![0; layout.packed_bytes(codes.len() / cols, cols) as usize];
    let groups = packed.chunks_mut(layout.group_bytes(cols));
    codes
        .chunks(GROUP_ROWS * cols)
        .zip(groups)
        .for_each(|(c, g)| layout.pack_group(c, cols, g));
    packed
}

fn pad(tokens: &[i8], cols: usize, stride: usize) -> Vec<i8> {
    let mut padded = vec![0; tokens.len() / cols * stride];
    let rows = tokens.chunks(cols).zip(padded.chunks_mut(stride));
    rows.for_each(|(from, to)| to[..cols].copy_from_slice(from));
    padded
}

/// Every kernel set, both layouts, one product: all outputs equal the i64 loop.
fn check_gemm(codes: &[i8], tokens: &[i8], cols: usize, store: Store) {
    let (rows, n_tokens) = (codes.len() / cols, tokens.len() / cols);
    let factors: Vec<f32> = (0..n_tokens).map(|t| 0.125 + t as f32 * 0.3).collect();
    let stride = cols.next_multiple_of(CODE_PADDING);
    let padded = pad(tokens, cols, stride);
    let before: Vec<f32> = (0..n_tokens * rows).map(|i| i as f32 * 0.7).collect();
    let mut expected = before.clone();
    for t in 0..n_tokens {
        for r in 0..rows {
            let pairs = codes[r * cols..][..cols]
                .iter()
                .zip(&tokens[t * cols..][..cols]);
            let acc: i64 = pairs.map(|(w, x)| i64::from(*w) * i64::from(*x)).sum();
            let y = acc as f32 * factors[t];
            let out = &mut expected[t * rows + r];
            *out = if store == Store::Set { y } else { *out + y };
        }
    }
    for layout in TernaryLayout::ALL {
        let packed = pack(layout, codes, cols);
        let weights = TernaryView::new(layout, (rows, cols), 1.0, &packed).unwrap();
        let n_groups = weights.n_groups();
        for kernels in Kernels::available() {
            // In one call, and cut in two: rows do not depend on who else is computed.
            for cut in [0, n_groups / 2] {
                let mut out = before.clone();
                for groups in [0..cut, cut..n_groups] {
                    let activations = Activations::new(&padded, stride);
                    let job = TernaryGemm {
                        weights,
                        groups,
                        activations,
                        factors: &factors,
                        store,
                    };
                    kernels.ternary_gemm(&job, &mut out);
                }
                let name = kernels.isa().name();
                assert_eq!(
                    out, expected,
                    "{name} {layout:?} [{rows}, {cols}] x {n_tokens}"
                );
            }
        }
    }
}

/// A set that the machine has and that did not run would be a set without tests. The features are
/// asked for here by name, apart from the tables; run with `--nocapture` to see the list. Where the
/// machine is known beforehand, `KERNEL_SETS` names what it must have.
#[test]
fn every_set_of_this_machine_runs() {
    #[cfg(target_arch = "aarch64")]
    use std::arch::is_aarch64_feature_detected as detected;
    #[cfg(target_arch = "x86_64")]
    use std::arch::is_x86_feature_detected as detected;
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    macro_rules! has {
        ($($feature:tt)+) => {
            if cfg!(feature = "std") {
                $(detected!($feature))&&+
            } else {
                $(cfg!(target_feature = $feature))&&+
            }
        };
    }
    let mut expected = vec!["scalar", "portable"];
    // For small cores; on x86-64 for the tests alone.
    if cfg!(any(small_core, target_arch = "x86_64")) {
        expected.push("swar");
    }
    if cfg!(arm_dsp) {
        expected.push("dsp");
    }
    #[cfg(target_arch = "x86_64")]
    for (name, found) in [
        ("avx2", has!("avx2" "f16c")),
        ("avxvnni", has!("avx2" "f16c" "avxvnni")),
        (
            "avx512vnni",
            has!("avx512f" "avx512bw" "avx512vl" "avx512vnni"),
        ),
        (
            "avx512vbmi",
            has!("avx512bw" "avx512vl" "avx512vnni" "avx512vbmi"),
        ),
    ] {
        expected.extend(found.then_some(name));
    }
    #[cfg(target_arch = "x86_64")]
    expected.extend(linux_offers_amx().then_some("amx"));
    #[cfg(target_arch = "aarch64")]
    for (name, found) in [
        ("neon", has!("neon")),
        ("dotprod", has!("neon" "dotprod")),
        ("i8mm", has!("neon" "dotprod" "i8mm")),
    ] {
        expected.extend(found.then_some(name));
    }
    expected.extend(cfg!(target_feature = "simd128").then_some("simd128"));
    let ran: Vec<_> = Kernels::available().map(|k| k.isa().name()).collect();
    println!("kernel sets: {}", ran.join(" "));
    assert_eq!(ran, expected);
    if let Ok(known) = std::env::var("KERNEL_SETS") {
        assert_eq!(ran.join(" "), known);
    }
    assert_eq!(Kernels::detect().isa().name(), *expected.last().unwrap());
}

/// What Linux says of the processor and, from 5.16 on, lets any process use that asks. Without `std`
/// nobody asks.
#[cfg(target_arch = "x86_64")]
fn linux_offers_amx() -> bool {
    let found = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| found.split_whitespace().any(|word| word == flag);
    let vbmi = ["avx512bw", "avx512_vnni", "avx512vbmi"];
    cfg!(feature = "std") && vbmi.into_iter().chain(["amx_tile", "amx_int8"]).all(has)
}

const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (15, 19),
    (16, 20),
    (17, 21),
    (16, 16),
    (31, 15),
    (32, 17),
    (33, 39),
    (48, 41),
    (5, 100),
    (16, 2_048),
    (20, 4_097),
];

#[test]
fn gemm_equals_the_integer_loop_on_random_codes() {
    let mut random = Random(7);
    for (rows, cols) in SHAPES {
        for n_tokens in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17] {
            let codes = random.fill(rows * cols, |r| (r % 3) as i8 - 1);
            let tokens = random.fill(n_tokens * cols, |r| r as i8);
            check_gemm(&codes, &tokens, cols, Store::Set);
            check_gemm(&codes, &tokens, cols, Store::Add);
        }
    }
}

#[test]
fn gemm_equals_the_integer_loop_at_the_limits() {
    for (rows, cols) in SHAPES {
        for code in [-1, 0, 1] {
            for x in [-128, -127, 0, 127] {
                for n_tokens in [2, 19] {
                    let codes = vec![code; rows * cols];
                    check_gemm(&codes, &vec![x; n_tokens * cols], cols, Store::Set);
                }
            }
        }
    }
}

/// Every number of tokens up to a few tiles, and more than share a decoding, and one and two more;
/// matrices of a tile's width and more, of odd and even numbers of groups, of one panel and two.
#[test]
fn gemm_equals_the_integer_loop_for_many_tokens() {
    let mut random = Random(19);
    for n_tokens in (1..=70).chain([127, 128, 129, 257]) {
        for (rows, cols) in [(16, 20), (17, 64), (48, 67), (50, 345), (33, 709)] {
            if n_tokens % 8 > 1 && cols > 70 {
                continue; // the long rows for fewer of the numbers, to save time
            }
            let codes = random.fill(rows * cols, |r| (r % 3) as i8 - 1);
            let tokens = random.fill(n_tokens * cols, |r| r as i8);
            check_gemm(&codes, &tokens, cols, Store::Add);
        }
    }
}

/// Every width that ends inside a tile of columns, or at its end.
#[test]
fn gemm_equals_the_integer_loop_for_every_tail() {
    let mut random = Random(37);
    for cols in (60..=132).chain(636..=646) {
        for n_tokens in [9, 20] {
            let codes = random.fill(20 * cols, |r| (r % 3) as i8 - 1);
            let tokens = random.fill(n_tokens * cols, |r| r as i8);
            check_gemm(&codes, &tokens, cols, Store::Set);
        }
    }
}

/// The widest matrix a file may hold, all ones times -128: the largest sum there is.
#[test]
fn gemm_is_exact_at_the_widest_matrix() {
    let cols = bitnet_formats::config::MAX_COLS;
    for code in [-1, 0, 1] {
        for n_tokens in [1, 2, 8] {
            let codes = vec![code; 16 * cols];
            check_gemm(&codes, &vec![-128; n_tokens * cols], cols, Store::Set);
        }
    }
}

/// Activations beyond the columns meet zero trits only: a caller's padding cannot leak in.
#[test]
fn padding_does_not_count() {
    for layout in TernaryLayout::ALL {
        // Alternating signs add up to the last, a one.
        for (cols, n_tokens) in [(7, 1), (7, 2), (7, 9), (67, 9), (69, 17)] {
            let codes: Vec<i8> = (0..cols).map(|k| if k % 2 == 0 { 1 } else { -1 }).collect();
            let packed = pack(layout, &codes, cols);
            let weights = TernaryView::new(layout, (1, cols), 1.0, &packed).unwrap();
            for kernels in Kernels::available() {
                let codes = vec![100; n_tokens * CODE_PADDING];
                let job = TernaryGemm {
                    weights,
                    groups: 0..1,
                    activations: Activations::new(&codes, CODE_PADDING),
                    factors: &vec![1.0; n_tokens],
                    store: Store::Set,
                };
                let mut out = vec![0.0; n_tokens];
                kernels.ternary_gemm(&job, &mut out);
                let name = kernels.isa().name();
                assert_eq!(out, vec![100.0; n_tokens], "{name} {layout:?} {cols}");
            }
        }
    }
}

#[test]
fn ternary_f32_adds_in_ascending_order() {
    let mut random = Random(11);
    for (rows, cols) in [
        (16, 1),
        (32, 20),
        (48, 33),
        (16, 256),
        (64, 319),
        (80, 321),
        (160, 66),
    ] {
        let codes = random.fill(rows * cols, |r| (r % 3) as i8 - 1);
        let x = random.fill(cols, |r| (r % 2_001) as f32 * 0.37 - 370.0);
        let expected: Vec<f32> = codes
            .chunks(cols)
            .map(|row| {
                row.iter()
                    .zip(&x)
                    .fold(0.0, |acc: f32, (w, x)| acc + f32::from(*w) * x)
            })
            .collect();
        for layout in TernaryLayout::ALL {
            let packed = pack(layout, &codes, cols);
            let weights = TernaryView::new(layout, (rows, cols), 1.0, &packed).unwrap();
            for kernels in Kernels::available() {
                let mut out = vec![9.0; rows];
                kernels.ternary_f32(&weights, 0..rows / 16, &x, &mut out);
                assert_eq!(out, expected, "{:?} {layout:?}", kernels.isa());
                kernels.ternary_f32(&weights, rows / 16 - 1..rows / 16, &x, &mut out[..16]);
                assert_eq!(out[..16], expected[rows - 16..]);
            }
        }
    }
}

/// Int8 rows times `x`: exact integers, then two roundings.
fn check_int8_head(codes: &[i8], x: &[i16]) {
    let (rows, cols) = (codes.len() / x.len(), x.len());
    let mut bytes = vec![0; 64 + codes.len()];
    for r in 0..rows {
        bytes[4 * r..4 * r + 4].copy_from_slice(&(0.5f32 + r as f32).to_le_bytes());
    }
    codes
        .iter()
        .zip(&mut bytes[64..])
        .for_each(|(code, byte)| *byte = *code as u8);
    let matrix = MatrixView::new(Dtype::I8Rows, (rows, cols), &bytes).unwrap();
    let row = |(r, row): (usize, &[i8])| {
        let terms = row
            .iter()
            .zip(x)
            .map(|(w, x)| i64::from(*w) * i64::from(*x));
        terms.sum::<i64>() as f32 * ((0.5 + r as f32) * 0.25)
    };
    let expected: Vec<f32> = codes.chunks(cols).enumerate().map(row).collect();
    for kernels in Kernels::available() {
        let mut out = vec![0.0; rows];
        kernels.head(&matrix, 0..rows, HeadInput::I16(x, 0.25), &mut out);
        assert_eq!(out, expected, "{:?} {cols} columns", kernels.isa());
        kernels.head(&matrix, 1..2, HeadInput::I16(x, 0.25), &mut out[..1]);
        assert_eq!(out[0], expected[1], "{:?} row 1 alone", kernels.isa());
    }
}

const HEAD_COLS: [usize; 16] = [
    1, 15, 16, 31, 63, 64, 65, 127, 511, 512, 513, 2_047, 2_112, 2_560, 4_097, 9_000,
];

#[test]
fn int8_heads_are_exact() {
    let mut random = Random(13);
    for cols in HEAD_COLS {
        let codes = random.fill(5 * cols, |r| r as i8);
        let x = random.fill(cols, |r| r as i16);
        check_int8_head(&codes, &x);
        // The largest that a quantiser writes, and the largest that a type holds.
        for code in [-128, -127, 127] {
            for limit in [i16::MIN, -32_639, 32_639, i16::MAX] {
                check_int8_head(&vec![code; 2 * cols], &vec![limit; cols]);
            }
        }
    }
}

/// Rows of any codes: every set equals what the packed values stand for, at the limits too.
#[test]
fn coarse_rows_are_exact() {
    let mut random = Random(41);
    for blocks in [1, 2, 3, 4, 5, 7, 8, 24, 40, 1_023] {
        let cols = blocks * coarse::BLOCK;
        let codes = random.fill(3 * cols, |r| r as u8);
        check_coarse(&codes, &random.fill(cols, |r| r as i8));
        for code in [0x7f, 0x80, 0] {
            for x in [-128, 127] {
                check_coarse(&vec![code; 2 * cols], &vec![x; cols]);
            }
        }
    }
}

fn check_coarse(codes: &[u8], x: &[i8]) {
    let cols = x.len();
    let n_lines = coarse::row_lines(cols);
    let mut lines = vec![[0; coarse::LINE_BYTES]; codes.len() / cols * n_lines];
    let mut expected = Vec::new();
    for (row, lines) in codes.chunks(cols).zip(lines.chunks_mut(n_lines)) {
        let quarters = row.iter().map(|code| {
            let code = f64::from(*code as i8);
            ((code / 4.0 + 0.5).floor() as i64).min(31)
        });
        let quarters: Vec<i64> = quarters.collect();
        let square = |x: i64| x.pow(2) as u64;
        let left = row.iter().zip(&quarters);
        let left = left.map(|(code, q)| square(i64::from(*code as i8) - 4 * q));
        let near = quarters.iter().map(|q| square(4 * q));
        let squares: [u64; 2] = [left.sum(), near.sum()];
        assert_eq!(coarse::pack_row(row, lines), squares);
        let terms = quarters.iter().zip(x).map(|(q, x)| q * i64::from(*x));
        expected.push(terms.sum::<i64>() as f32);
    }
    let rows = CoarseRows::new(&lines, cols);
    for kernels in Kernels::available() {
        let mut out = vec![0.0; rows.rows()];
        kernels.coarse(&rows, 0..rows.rows(), x, &mut out);
        assert_eq!(out, expected, "{:?} {cols} columns", kernels.isa());
        kernels.coarse(&rows, 1..2, x, &mut out[..1]);
        assert_eq!(out[0], expected[1], "{:?} row 1 alone", kernels.isa());
    }
}

#[test]
fn float_heads_use_sixteen_lanes() {
    use bitnet_formats::float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
    let mut random = Random(17);
    for cols in HEAD_COLS {
        // Magnitudes down to where f16 is subnormal, so that every conversion shows.
        let row = random.fill(cols, |r| {
            (r % 1_999) as f32 * 0.5f32.powi((r >> 20) as i32 % 24) - 0.01
        });
        let x = random.fill(cols, |r| (r % 777) as f32 * 0.123 - 40.0);
        let bytes_of = |narrow: fn(f32) -> u16| -> Vec<u8> {
            row.iter().flat_map(|w| narrow(*w).to_le_bytes()).collect()
        };
        let rounded =
            |through: fn(f32) -> f32| -> Vec<f32> { row.iter().map(|w| through(*w)).collect() };
        let whole: Vec<u8> = row.iter().flat_map(|w| w.to_le_bytes()).collect();
        for (dtype, bytes, values) in [
            (Dtype::F32, whole, row.clone()),
            (
                Dtype::F16,
                bytes_of(f32_to_f16),
                rounded(|w| f16_to_f32(f32_to_f16(w))),
            ),
            (
                Dtype::BF16,
                bytes_of(f32_to_bf16),
                rounded(|w| bf16_to_f32(f32_to_bf16(w))),
            ),
        ] {
            let expected = crate::math::dot16(&values, &x);
            let matrix = MatrixView::new(dtype, (1, cols), &bytes).unwrap();
            for kernels in Kernels::available() {
                let mut out = [0.0];
                kernels.head(&matrix, 0..1, HeadInput::F32(&x), &mut out);
                assert_eq!(out, [expected], "{:?} {dtype:?} {cols}", kernels.isa());
            }
        }
    }
}

const FLOAT_LENGTHS: [usize; 14] = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 256, 1_537];

/// Runs an operation with every set and compares the bits it leaves in `out` with scalar's.
fn check_bits(n: usize, what: &str, out: &[f32], run: impl Fn(&Kernels, &mut [f32])) {
    let bits = |kernels: &Kernels| {
        let mut out = out.to_vec();
        run(kernels, &mut out);
        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let expected = bits(&Kernels::scalar());
    for kernels in Kernels::available() {
        assert_eq!(
            bits(&kernels),
            expected,
            "{:?} {what} of {n}",
            kernels.isa()
        );
    }
}

/// Both signs, nine binary orders of magnitude, and exact zeros of both signs.
fn floats(random: &mut Random, n: usize) -> Vec<f32> {
    random.fill(n, |r| {
        let sign = if r & 1 == 0 { 1.0 } else { -1.0 };
        let size = 0.5f32.powi((r >> 1) as i32 % 9);
        sign * size * ((r >> 8) % 4_093) as f32 * 0.01 * f32::from(u8::from(r % 11 != 0))
    })
}

#[test]
fn norms_activations_and_softmax_equal_scalar() {
    let mut random = Random(23);
    for n in FLOAT_LENGTHS {
        let (x, y) = (floats(&mut random, n), floats(&mut random, n));
        let gain: Vec<u8> = y.iter().flat_map(|g| g.to_le_bytes()).collect();
        let gain = VectorView::new(&gain);
        check_bits(n, "rms_norm", &x, |k, out| {
            k.rms_norm(&x, &gain, 1e-5, out).unwrap();
        });
        check_bits(n, "softmax", &x, |k, out| k.softmax(out));
        let spread: Vec<f32> = x.iter().map(|x| x * 9.0).collect();
        check_bits(n, "softmax with underflow", &spread, |k, out| {
            k.softmax(out)
        });
        for activation in [Activation::SquaredRelu, Activation::Silu] {
            check_bits(n, "gated", &x, |k, out| k.gated(activation, out, &y));
        }
    }
}

#[test]
fn activations_are_quantised_as_formats_defines() {
    let mut random = Random(29);
    for n in FLOAT_LENGTHS {
        let mut halves = random.fill(n, |r| (r % 255) as f32 * 0.5 - 63.5);
        halves[n / 2] = 127.0; // the scale is one: every other value is a tie
        for x in [floats(&mut random, n), halves, vec![0.0; n], vec![-3e38; n]] {
            let mut expected = vec![0; n];
            let scale = bitnet_formats::quant::quantize_activations(&x, &mut expected);
            for kernels in Kernels::available() {
                let mut codes = vec![9; n];
                assert_eq!(kernels.quantize(&x, &mut codes), scale);
                assert_eq!(codes, expected, "{:?} {n}", kernels.isa());
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_an_error_in_every_set() {
    for kernels in Kernels::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20] {
            for n in [1, 16, 33] {
                let mut x = vec![1.0; n];
                x[n - 1] = bad;
                let gain = vec![0; 4 * n];
                let normed = kernels.rms_norm(&x, &VectorView::new(&gain), 1e-5, &mut vec![0.0; n]);
                assert_eq!(normed, Err(NonFinite), "{:?} {bad}", kernels.isa());
                let quantised = kernels.quantize(&x, &mut vec![0; n]);
                assert_eq!(
                    quantised.is_ok(),
                    bad.is_finite(),
                    "{:?} {bad}",
                    kernels.isa()
                );
            }
        }
    }
}

#[test]
fn every_set_rounds_to_f16_as_formats_does() {
    let mut random = Random(37);
    let limits = [
        0.0, -0.0, 65_519.9, 65_520.0, -1e30, 6.0e-8, 2.98e-8, 6.1e-5, 6.09e-5,
    ];
    for n in FLOAT_LENGTHS {
        let any = random.fill(n, |r| f32::from_bits(r as u32 & 0xff7f_ffff));
        let near = floats(&mut random, n);
        let x: Vec<f32> = limits.into_iter().chain(any).chain(near).collect();
        let expected: Vec<u16> = x
            .iter()
            .map(|x| bitnet_formats::float::f32_to_f16(*x))
            .collect();
        for kernels in Kernels::available() {
            let mut out = vec![1; x.len()];
            kernels.narrow(&x, &mut out);
            assert_eq!(out, expected, "{:?} {n}", kernels.isa());
        }
    }
}

#[test]
fn attention_over_a_cache_equals_scalar() {
    let mut random = Random(31);
    for width in FLOAT_LENGTHS {
        for n in [1, 2, 37] {
            let rows = floats(&mut random, n * width);
            let halves: Vec<u16> = rows
                .iter()
                .map(|v| bitnet_formats::float::f32_to_f16(*v))
                .collect();
            let query = floats(&mut random, width);
            let weights = floats(&mut random, n);
            for rows in [CacheRows::F32(&rows), CacheRows::F16(&halves)] {
                // One query to more than a tile of them, with a gap after each row of scores.
                for m in [1, 2, 3, 4, 7] {
                    let queries = floats(&mut random, m * width);
                    let each: Vec<&[f32]> = queries.chunks(width).collect();
                    let spaced = floats(&mut random, m * (n + 3));
                    check_bits(width, "scores", &spaced, |k, out| {
                        k.scores(&each, rows, 0.3, out, n + 3);
                    });
                    check_bits(width, "add_mixes", &queries, |k, out| {
                        k.add_mixes(rows, &spaced, n + 3, out, width);
                    });
                }
            }
            let latents = Latents {
                codes: &random.fill(n * width, |r| r as i8),
                factors: &floats(&mut random, n),
                rope_keys: &floats(&mut random, n * 6),
            };
            let rope = floats(&mut random, 6);
            check_bits(width, "latent_scores", &weights, |k, out| {
                k.latent_scores([&query, &rope], &latents, 0.3, out);
            });
            check_bits(width, "latent_mix", &query, |k, out| {
                k.latent_mix(&latents, &weights, out);
            });
        }
    }
}

#[test]
fn scalar_norm_and_softmax_on_paper() {
    let kernels = Kernels::scalar();
    let gain: Vec<u8> = [2.0f32, -3.0]
        .iter()
        .flat_map(|g| g.to_le_bytes())
        .collect();
    let mut out = [0.0; 2];
    kernels
        .rms_norm(&[4.0, 4.0], &VectorView::new(&gain), 1e-12, &mut out)
        .unwrap();
    assert_eq!(out, [2.0, -3.0]);
    let mut scores = [5.0; 4];
    kernels.softmax(&mut scores);
    assert_eq!(scores, [0.25; 4]);
    let mut scores = [0.0, 200.0];
    kernels.softmax(&mut scores);
    assert_eq!(scores, [0.0, 1.0]);
}
