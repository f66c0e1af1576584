//! The kernel sets of this core against plain sums, and what a product takes.
//!
//! A reduced copy of the harness in `runtime/src/kernels/tests.rs`: every set the core has, both
//! layouts, lengths around tiles and chunks, all codes alike, activations at their limits, and
//! random ones. Then the instructions per weight of a 256 x 256 product of one token.
#![no_std]
#![no_main]

use bitnet_firmware::Aligned;
use bitnet_firmware::board::NAME;
use bitnet_firmware::console::{exit, print};
use bitnet_firmware::counter::Counter;
use bitnet_formats::{Dtype, MatrixView, TernaryLayout, TernaryView};
use bitnet_runtime::Kernels;
use bitnet_runtime::kernels::{Activations, CODE_PADDING, HeadInput, Store, TernaryGemm};
use cortex_m_rt::entry;

/// Rows and columns of the measured product.
const SIDE: usize = 256;
/// Products measured at a time.
const ROUNDS: u64 = 16;
/// Widest matrix here: more than one chunk of prepared words.
const MAX_COLS: usize = 817;
/// A row group of the widest, or the whole measured one, in the larger layout.
const PACKED_BYTES: usize = 32 << 10;

const SHAPES: [(usize, usize); 9] = [
    (1, 1),
    (15, 19),
    (16, 20),
    (17, 21),
    (31, 15),
    (16, 119),
    (16, 121),
    (16, 401),
    (16, MAX_COLS),
];

/// Buffers of one case.
struct Case {
    packed: Aligned<[u8; PACKED_BYTES]>,
    codes: [i8; 16 * MAX_COLS],
    token: [i8; 880],
    out: [f32; SIDE],
}

#[entry]
fn main() -> ! {
    static mut CASE: Case = Case {
        packed: Aligned([0; PACKED_BYTES]),
        codes: [0; 16 * MAX_COLS],
        token: [0; 880],
        out: [0.0; SIDE],
    };
    let peripherals = cortex_m::Peripherals::take().expect("main runs once");
    let counter = Counter::start(peripherals.SYST);
    let failures = check(CASE);
    measure(CASE, &counter);
    exit(failures == 0)
}

/// xorshift32.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 >> 8
    }
}

fn check(case: &mut Case) -> usize {
    let mut random = Random(7);
    let (mut cases, mut failures) = (0, 0);
    for (rows, cols) in SHAPES {
        for fill in 0..13 {
            let limits = [-128, -127, 127];
            for code in &mut case.codes {
                *code = if fill < 9 {
                    fill / 3 - 1
                } else {
                    (random.next() % 3) as i8 - 1
                };
            }
            case.token.fill(0);
            for x in &mut case.token[..cols] {
                *x = if fill < 9 {
                    limits[fill as usize % 3]
                } else {
                    random.next() as i8
                };
            }
            for layout in TernaryLayout::ALL {
                for kernels in Kernels::available() {
                    cases += 2;
                    failures += usize::from(!gemm_is_exact(case, &kernels, layout, rows, cols));
                    failures += usize::from(!float_is_exact(case, &kernels, layout, cols));
                }
            }
        }
    }
    for cols in [1, 3, 4, 5, 255, 256, 257, 700] {
        for kernels in Kernels::available() {
            cases += 1;
            failures += usize::from(!head_is_exact(case, &kernels, &mut random, cols));
        }
    }
    print(format_args!(
        "# board {NAME}: {cases} cases of kernels, {failures} failed\n"
    ));
    failures
}

fn failed(kernels: &Kernels, what: &str, cols: usize) -> bool {
    let name = kernels.isa().name();
    print(format_args!(
        "# {name}: {what} of {cols} columns is wrong\n"
    ));
    false
}

/// Packs rows of codes, 16 at a time, and returns the bytes they take.
fn pack(case: &mut Case, layout: TernaryLayout, rows: usize, cols: usize) -> usize {
    let bytes = layout.group_bytes(cols);
    for group in 0..rows.div_ceil(16) {
        let rows = 16.min(rows - 16 * group);
        layout.pack_group(
            &case.codes[..rows * cols],
            cols,
            &mut case.packed.0[group * bytes..][..bytes],
        );
    }
    rows.div_ceil(16) * bytes
}

fn gemm_is_exact(
    case: &mut Case,
    kernels: &Kernels,
    layout: TernaryLayout,
    rows: usize,
    cols: usize,
) -> bool {
    let bytes = pack(case, layout, rows.min(16), cols);
    let rows = rows.min(16);
    let weights = TernaryView::new(layout, (rows, cols), 1.0, &case.packed.0[..bytes]);
    let stride = cols.next_multiple_of(CODE_PADDING);
    case.out.fill(0.5);
    let job = TernaryGemm {
        weights: weights.expect("packed for this shape"),
        groups: 0..1,
        activations: Activations::new(&case.token[..stride], stride),
        factors: &[0.25],
        store: Store::Add,
    };
    kernels.ternary_gemm(&job, &mut case.out[..rows]);
    let exact = case
        .codes
        .chunks_exact(cols)
        .zip(&case.out[..rows])
        .all(|(codes, out)| {
            let pairs = codes.iter().zip(&case.token);
            let sum: i32 = pairs.map(|(w, x)| i32::from(*w) * i32::from(*x)).sum();
            *out == 0.5 + sum as f32 * 0.25
        });
    exact || failed(kernels, layout.name(), cols)
}

/// The product with floats, at most 64 columns of it: sums in ascending order.
fn float_is_exact(case: &mut Case, kernels: &Kernels, layout: TernaryLayout, cols: usize) -> bool {
    let cols = cols.min(64);
    let bytes = pack(case, layout, 16, cols);
    let weights = TernaryView::new(layout, (16, cols), 1.0, &case.packed.0[..bytes]);
    let mut x = [0.0; 64];
    for (x, code) in x.iter_mut().zip(&case.token) {
        *x = f32::from(*code) * 0.37 - 0.1;
    }
    let (x, out) = (&x[..cols], &mut case.out[..16]);
    kernels.ternary_f32(&weights.expect("packed for this shape"), 0..1, x, out);
    let exact = case.codes.chunks_exact(cols).zip(out).all(|(codes, out)| {
        let pairs = codes.iter().zip(x);
        let sum = pairs.fold(0.0, |sum: f32, (w, x)| sum + f32::from(*w) * x);
        *out == sum
    });
    exact || failed(kernels, "float product", cols)
}

fn head_is_exact(case: &mut Case, kernels: &Kernels, random: &mut Random, cols: usize) -> bool {
    let mut x = [0i16; 700];
    x.iter_mut().for_each(|x| *x = random.next() as i16);
    let matrix = &mut case.packed.0[..64 + cols];
    matrix[..4].copy_from_slice(&2.0f32.to_le_bytes());
    matrix[4..64].fill(0);
    matrix[64..]
        .iter_mut()
        .for_each(|w| *w = random.next() as u8);
    let view = MatrixView::new(Dtype::I8Rows, (1, cols), matrix).expect("of this shape");
    let out = &mut case.out[..1];
    kernels.head(&view, 0..1, HeadInput::I16(&x[..cols], 0.25), out);
    let pairs = matrix[64..].iter().zip(&x);
    let sum: i64 = pairs
        .map(|(w, x)| i64::from(*w as i8) * i64::from(*x))
        .sum();
    out[0] == sum as f32 * 0.5 || failed(kernels, "int8 head", cols)
}

fn measure(case: &mut Case, counter: &Counter) {
    let mut random = Random(11);
    case.codes
        .iter_mut()
        .for_each(|code| *code = (random.next() % 3) as i8 - 1);
    case.token.iter_mut().for_each(|x| *x = random.next() as i8);
    for layout in TernaryLayout::ALL {
        let bytes = pack(case, layout, SIDE, SIDE);
        let weights = TernaryView::new(layout, (SIDE, SIDE), 1.0, &case.packed.0[..bytes]);
        let job = TernaryGemm {
            weights: weights.expect("packed for this shape"),
            groups: 0..SIDE / 16,
            activations: Activations::new(&case.token[..320], 320),
            factors: &[0.25],
            store: Store::Set,
        };
        for kernels in Kernels::available() {
            let start = counter.cycles();
            for _ in 0..ROUNDS {
                kernels.ternary_gemm(&job, &mut case.out);
            }
            report(counter, start, kernels.isa().name(), layout.name());
        }
    }
    let start = counter.cycles();
    for _ in 0..ROUNDS {
        plain_product(&case.packed.0, &case.token, &mut case.out);
    }
    report(counter, start, "plain loop", "2-bit rows");
}

fn report(counter: &Counter, start: u64, set: &str, layout: &str) {
    let instructions = counter.instructions_since(start);
    let hundredths = instructions * 100 / (ROUNDS * (SIDE * SIDE) as u64);
    let (whole, part) = (hundredths / 100, hundredths % 100);
    print(format_args!(
        "# {set} {layout}: {whole}.{part:02} instructions per weight\n"
    ));
}

/// What a first attempt looks like: rows of two-bit codes, one product at a time.
#[inline(never)]
fn plain_product(packed: &[u8], token: &[i8], out: &mut [f32; SIDE]) {
    for (row, out) in packed.chunks_exact(SIDE / 4).zip(out) {
        let mut sum = 0;
        for (byte, x) in row.iter().zip(token.as_chunks::<4>().0) {
            for (i, x) in x.iter().enumerate() {
                sum += (i32::from(byte >> (2 * i) & 3) - 1) * i32::from(*x);
            }
        }
        *out = sum as f32 * 0.25;
    }
}
