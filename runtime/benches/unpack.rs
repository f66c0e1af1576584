//! Decoding of packed matrices by one thread, in trits, beside what else is done with weights when a
//! model is loaded. What is decoded is checked before it is timed.

use std::hint::black_box;

use bitnet_formats::PackedView;
use bitnet_formats::packed::encode;
use bitnet_formats::ternary::{GROUP_ROWS, TernaryLayout, TernaryView};
use bitnet_runtime::repack;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

const T5: TernaryLayout = TernaryLayout::T5R16;
const T2: TernaryLayout = TernaryLayout::T2R16;
/// Eight chunks, of lines that are all full.
const SHAPE: (usize, usize) = (4_096, 4_100);

/// Zeros of 1000 trits in a row.
type Zeros = fn(usize) -> u64;

/// By what the matrix is packed as.
const CONTENTS: [(&str, Zeros); 3] = [
    ("flat", |_| 333),
    ("one_class", |_| 422),
    ("eight_classes", |row| 100 * (row as u64 % 10)),
];

fn t5(zeros: Zeros) -> Vec<u8> {
    let (rows, cols) = SHAPE;
    let mut packed = vec![0; T5.packed_bytes(rows, cols) as usize];
    let mut state = 1u64;
    for (group, bytes) in packed.chunks_exact_mut(T5.group_bytes(cols)).enumerate() {
        let rows = group * GROUP_ROWS..(group + 1) * GROUP_ROWS;
        let zeros = rows.flat_map(|row| std::iter::repeat_n(zeros(row), cols));
        let codes: Vec<i8> = zeros.map(|zeros| trit(&mut state, zeros)).collect();
        T5.pack_group(&codes, cols, bytes);
    }
    packed
}

/// Zero in so many of 1000 cases, else -1 or 1.
fn trit(state: &mut u64, zeros: u64) -> i8 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    match (*state >> 40) % 1_000 {
        n if n < zeros => 0,
        _ => 2 * (*state >> 63) as i8 - 1,
    }
}

fn unpack(c: &mut Criterion) {
    let mut group = c.benchmark_group("unpack");
    group.throughput(Throughput::Elements((SHAPE.0 * SHAPE.1) as u64));
    for (name, zeros) in CONTENTS {
        decode(&mut group, name, &t5(zeros));
    }
    others(&mut group, &t5(|_| 422));
    group.finish();
}

fn decode(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, t5: &[u8]) {
    let payload = encode(&TernaryView::new(T5, SHAPE, 1.0, t5).expect("packed to fit"));
    let view = PackedView::new(SHAPE, 1.0, &payload).expect("encoded");
    let mut out = vec![0; t5.len()];
    view.decode(&mut out).expect("encoded");
    assert!(out == t5, "{name}");
    group.bench_function(format!("decode/{name}"), |b| {
        b.iter(|| view.decode(black_box(&mut out)));
    });
}

/// What T5 in a file takes instead: a copy, a look at each byte, or another layout.
fn others(group: &mut BenchmarkGroup<'_, WallTime>, t5: &[u8]) {
    let from = TernaryView::new(T5, SHAPE, 1.0, t5).expect("packed to fit");
    let mut out = vec![0; T2.packed_bytes(SHAPE.0, SHAPE.1) as usize];
    group.bench_function("copy/t5", |b| {
        b.iter(|| black_box(&mut out)[..t5.len()].copy_from_slice(black_box(t5)));
    });
    let legal: [bool; 256] = std::array::from_fn(|byte| T5.is_code(byte as u8));
    group.bench_function("check/t5", |b| {
        b.iter(|| assert!(black_box(t5).iter().all(|byte| legal[usize::from(*byte)])));
    });
    group.bench_function("repack/t2", |b| {
        b.iter(|| repack(&from, T2, black_box(&mut out)));
    });
}

criterion_group!(benches, unpack);
criterion_main!(benches);
