//! Ternary products by kernel set, layout and shape. Each result is checked before it is timed.

use std::hint::black_box;

use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{TernaryLayout, TernaryView};
use bitnet_runtime::Kernels;
use bitnet_runtime::kernels::{Activations, CODE_PADDING, Store, TernaryGemm};
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
    let mut expected = vec![0.0; n_tokens * rows];
    run(&Kernels::scalar(), &mut expected);
    let name = format!("gemm_{}_i8", layout.name());
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(packed.len() as u64));
    for kernels in Kernels::available() {
        let mut out = vec![0.0; n_tokens * rows];
        run(&kernels, &mut out);
        assert_eq!(out, expected, "{} is not exact", kernels.isa().name());
        let id = BenchmarkId::new(kernels.isa().name(), format!("{rows}x{cols}x{n_tokens}"));
        group.bench_function(id, |b| b.iter(|| run(&kernels, black_box(&mut out))));
    }
    group.finish();
}

criterion_group!(benches, ternary_gemm);
criterion_main!(benches);
