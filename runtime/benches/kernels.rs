//! Kernels by set and shape, as `op/isa/shape`. Each result is checked against scalar's before it is
//! timed.

use std::hint::black_box;

use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{Dtype, MatrixView, TernaryLayout, TernaryView, VectorView};
use bitnet_runtime::Kernels;
use bitnet_runtime::kernels::{
    Activations, CODE_PADDING, CacheRows, HeadInput, Latents, Store, TernaryGemm,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SHAPES: [(usize, usize); 2] = [(2_048, 2_048), (1_536, 4_096)];

/// Codes and activations without a pattern a kernel could profit from.
fn code(i: usize) -> i8 {
    ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as i8 % 3 - 1
}

fn pack(layout: TernaryLayout, (rows, cols): (usize, usize)) -> Vec<u8> {
    let codes: Vec<i8> = (0..rows * cols).map(code).collect();
    let mut packed = vec![0; layout.packed_bytes(rows, cols) as usize];
    let groups = packed.chunks_mut(layout.group_bytes(cols));
    codes
        .chunks(GROUP_ROWS * cols)
        .zip(groups)
        .for_each(|(c, g)| layout.pack_group(c, cols, g));
    packed
}

fn ternary_gemm(c: &mut Criterion) {
    for layout in TernaryLayout::ALL {
        for shape in SHAPES {
            for n_tokens in [1, 16] {
                bench_shape(c, layout, shape, n_tokens);
            }
        }
    }
}

fn bench_shape(c: &mut Criterion, layout: TernaryLayout, shape: (usize, usize), n_tokens: usize) {
    let (rows, cols) = shape;
    let packed = pack(layout, shape);
    let weights = TernaryView::new(layout, shape, 1.0, &packed).expect("packed to fit");
    let stride = cols.next_multiple_of(CODE_PADDING);
    let mut codes: Vec<i8> = (0..n_tokens * stride)
        .map(|i| (i * 37 % 251) as i8)
        .collect();
    codes
        .chunks_mut(stride)
        .for_each(|token| token[cols..].fill(0));
    let factors = vec![0.5; n_tokens];
    let run = |kernels: &Kernels, out: &mut [f32]| {
        let job = TernaryGemm {
            weights,
            groups: 0..weights.n_groups(),
            activations: Activations::new(&codes, stride),
            factors: &factors,
            store: Store::Set,
        };
        kernels.ternary_gemm(&job, out);
    };
    let op = format!("gemm_{}_i8", layout.name());
    let shape = format!("{rows}x{cols}x{n_tokens}");
    bench_sets(c, (&op, &shape), packed.len(), n_tokens * rows, run);
}

/// Checks and times one operation in every set; `bytes` is what it reads.
fn bench_sets(
    c: &mut Criterion,
    (op, shape): (&str, &str),
    bytes: usize,
    n_out: usize,
    run: impl Fn(&Kernels, &mut [f32]),
) {
    let mut expected = vec![0.0; n_out];
    run(&Kernels::scalar(), &mut expected);
    let mut group = c.benchmark_group(op);
    group.throughput(Throughput::Bytes(bytes as u64));
    for kernels in Kernels::available() {
        let mut out = vec![0.0; n_out];
        run(&kernels, &mut out);
        assert_eq!(out, expected, "{} is not exact", kernels.isa().name());
        let id = BenchmarkId::new(kernels.isa().name(), shape);
        group.bench_function(id, |b| b.iter(|| run(&kernels, black_box(&mut out))));
    }
    group.finish();
}

fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 37 % 251) as f32 * 0.01 - 1.0).collect()
}

/// A slice of a head: 1,024 rows of the vocabulary.
fn head(c: &mut Criterion) {
    let (rows, cols) = (1_024, 1_536);
    let x = floats(cols);
    let x_codes: Vec<i16> = x.iter().map(|x| (x * 16_000.0) as i16).collect();
    for dtype in [Dtype::I8Rows, Dtype::F16, Dtype::BF16, Dtype::F32] {
        let n_bytes = dtype.payload_bytes(rows, cols) as usize;
        // Upper bytes from 48 on: no float type reads a subnormal, which would be slow.
        let bytes: Vec<u8> = (0..n_bytes).map(|i| (48 + i * 37 % 13) as u8).collect();
        let matrix = MatrixView::new(dtype, (rows, cols), &bytes).expect("bytes fit");
        let input = match dtype {
            Dtype::I8Rows => HeadInput::I16(&x_codes, 0.25),
            _ => HeadInput::F32(&x),
        };
        let op = format!("head_{}", dtype.name());
        let shape = format!("{rows}x{cols}");
        bench_sets(c, (&op, &shape), n_bytes, rows, |kernels, out| {
            kernels.head(&matrix, 0..rows, input, out);
        });
    }
}

/// The halves of `kv_b_proj` for one head of the 700 M preset.
fn ternary_f32(c: &mut Criterion) {
    for shape in [(256, 64), (64, 256)] {
        let (rows, cols) = shape;
        let packed = pack(TernaryLayout::T5R16, shape);
        let weights = TernaryView::new(TernaryLayout::T5R16, shape, 1.0, &packed);
        let (weights, x) = (weights.expect("packed to fit"), floats(cols));
        let shape = format!("{rows}x{cols}");
        bench_sets(
            c,
            ("ternary_f32", &shape),
            packed.len(),
            rows,
            |kernels, out| {
                kernels.ternary_f32(&weights, 0..rows / GROUP_ROWS, &x, out);
            },
        );
    }
}

/// One head over 512 cached positions.
fn attention(c: &mut Criterion) {
    let n = 512;
    let weights = floats(n);
    let (rank, rope) = (256, 32);
    let codes: Vec<i8> = (0..n * rank).map(|i| (i * 37 % 251) as i8).collect();
    let rope_keys = floats(n * rope);
    let latents = Latents {
        codes: &codes,
        factors: &weights,
        rope_keys: &rope_keys,
    };
    let (q_latent, q_rope) = (floats(rank), floats(rope));
    let shape = format!("{n}x{rank}");
    bench_sets(c, ("latent_scores", &shape), n * rank, n, |k, out| {
        k.latent_scores([&q_latent, &q_rope], &latents, 0.1, out);
    });
    bench_sets(c, ("latent_mix", &shape), n * rank, rank, |k, out| {
        k.latent_mix(&latents, &weights, out);
    });
    let halves: Vec<u16> = (0..n * 128).map(|i| (i * 37 % 15_000) as u16).collect();
    let rows = CacheRows::F16(&halves);
    let shape = format!("{n}x128");
    bench_sets(c, ("scores_f16", &shape), 2 * n * 128, n, |k, out| {
        k.scores(&[&q_latent[..128]], rows, 0.1, out, n);
    });
    bench_sets(c, ("mix_f16", &shape), 2 * n * 128, 128, |k, out| {
        out.fill(0.0);
        k.add_mixes(rows, &weights, n, out, 128);
    });
    bench_sets(c, ("softmax", "512"), 4 * n, n, |k, out| {
        out.copy_from_slice(&weights);
        k.softmax(out);
    });
}

/// What stands between two projections, at the width of the 700 M preset.
fn token(c: &mut Criterion) {
    let n = 1_536;
    let (x, gain) = (floats(n), floats(n));
    let gain: Vec<u8> = gain.iter().flat_map(|g| g.to_le_bytes()).collect();
    let gain = VectorView::new(&gain);
    bench_sets(c, ("rms_norm", "1536"), 4 * n, n, |k, out| {
        k.rms_norm(&x, &gain, 1e-5, out).expect("finite");
    });
    bench_sets(c, ("quantize", "1536"), 4 * n, n, |k, out| {
        let mut codes = [0; 1_536];
        out[0] = k.quantize(&x, &mut codes).expect("finite");
        out[1] = f32::from(black_box(&codes)[n - 1]);
    });
}

criterion_group!(benches, ternary_gemm, head, ternary_f32, attention, token);
criterion_main!(benches);
