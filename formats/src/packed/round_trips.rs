//! Contents, shapes and damage, from T5 through a payload and back.

use std::vec::Vec;

use super::{PackedError, PackedView, encode};
use crate::ternary::{GROUP_ROWS, TernaryLayout, TernaryView};

const T5: TernaryLayout = TernaryLayout::T5R16;

/// A reproducible stream of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(n)) >> 32) as u32
    }

    /// Zero in so many of 1000 cases, else -1 or 1.
    fn trit(&mut self, zeros: u32) -> i8 {
        match self.below(1_000) {
            n if n < zeros => 0,
            _ => 2 * self.below(2) as i8 - 1,
        }
    }
}

fn t5((rows, cols): (usize, usize), mut trit: impl FnMut(usize, usize) -> i8) -> Vec<u8> {
    let mut bytes = vec![0; T5.packed_bytes(rows, cols) as usize];
    for (group, bytes) in bytes.chunks_exact_mut(T5.group_bytes(cols)).enumerate() {
        let rows = group * GROUP_ROWS..rows.min((group + 1) * GROUP_ROWS);
        let codes: Vec<i8> = rows
            .flat_map(|row| (0..cols).map(move |col| (row, col)))
            .map(|(r, c)| trit(r, c))
            .collect();
        T5.pack_group(&codes, cols, bytes);
    }
    bytes
}

fn pack(shape: (usize, usize), bytes: &[u8]) -> Vec<u8> {
    encode(&TernaryView::new(T5, shape, 1.0, bytes).unwrap())
}

/// Packs, unpacks, compares; gives the payload.
fn there_and_back(shape: (usize, usize), bytes: &[u8], what: &str) -> Vec<u8> {
    let payload = pack(shape, bytes);
    let view = PackedView::new(shape, 1.0, &payload).unwrap();
    view.verify().unwrap();
    let mut back = vec![0xaa; bytes.len()];
    view.decode(&mut back).unwrap();
    assert!(back == bytes, "{what} {shape:?}");
    payload
}

fn entropy(bytes: &[u8], shape: (usize, usize)) -> f64 {
    let mut counts = [0u64; 3];
    let mut codes = vec![0; GROUP_ROWS * shape.1];
    let view = TernaryView::new(T5, shape, 1.0, bytes).unwrap();
    for group in 0..view.n_groups() {
        let codes = &mut codes[..view.group_rows(group) * shape.1];
        T5.unpack_group(view.group(group).as_flattened(), shape.1, codes);
        codes
            .iter()
            .for_each(|code| counts[(code + 1) as usize] += 1);
    }
    let all = counts.iter().sum::<u64>() as f64;
    let bits = |n: u64| {
        if n == 0 {
            0.0
        } else {
            -(n as f64 / all) * (n as f64 / all).log2()
        }
    };
    counts.into_iter().map(bits).sum()
}

/// A trit for a row and a column, of so many.
type Fill = fn(&mut Random, [usize; 2], [usize; 2]) -> i8;

/// What a matrix is filled with.
struct Content {
    name: &'static str,
    trit: Fill,
    /// Most bits per weight, in entropies of the matrix.
    most: f64,
}

const CONTENTS: [Content; 14] = [
    evenly("uniform", |r, _, _| r.below(3) as i8 - 1),
    evenly("31 % zeros", |r, _, _| r.trit(310)),
    evenly("42 % zeros", |r, _, _| r.trit(422)),
    evenly("60 % zeros", |r, _, _| r.trit(600)),
    evenly("80 % zeros", |r, _, _| r.trit(800)),
    evenly("90 % zeros", |r, _, _| r.trit(900)),
    evenly("99 % zeros", |r, _, _| r.trit(990)),
    evenly("no zeros", |r, _, _| r.trit(0)),
    evenly("all zero", |_, _, _| 0),
    evenly("all one", |_, _, _| 1),
    evenly("a pattern", |_, [_, col], _| [-1, 0, 1][col % 3]),
    // Columns have no classes.
    evenly("columns flip half-way", |r, [_, col], [_, cols]| {
        zeros_then_ones(r, col < cols / 2)
    }),
    // Rows do.
    Content {
        name: "rows flip half-way",
        trit: |r, [row, _], [rows, _]| zeros_then_ones(r, row < rows / 2),
        most: 0.7,
    },
    Content {
        name: "rows of many densities",
        trit: |r, [row, _], _| r.trit(100 * (row as u32 % 10)),
        most: 0.95,
    },
];

/// A content that is alike in all rows.
const fn evenly(name: &'static str, trit: Fill) -> Content {
    Content {
        name,
        trit,
        most: 1.01,
    }
}

/// Nine of ten are zeros, or ones.
fn zeros_then_ones(random: &mut Random, zeros: bool) -> i8 {
    match (random.below(10), zeros) {
        (9, _) => random.below(3) as i8 - 1,
        (_, true) => 0,
        (_, false) => 1,
    }
}

/// A million weights or more: never above 1.585 bits a weight, and at most a hundredth above the entropy,
/// or 0.0095 bits where that is more. That is what a slot for each of 243 symbols costs matrices that are
/// nearly all the same.
#[test]
fn bits_per_weight() {
    for shape in [(1_024, 1_024), (1_000, 1_000), (1_009, 999), (300, 8_000)] {
        for Content { name, trit, most } in CONTENTS {
            let mut random = Random(7);
            let bytes = t5(shape, |row, col| {
                trit(&mut random, [row, col], [shape.0, shape.1])
            });
            let payload = there_and_back(shape, &bytes, name);
            let bits = 8.0 * payload.len() as f64 / (shape.0 * shape.1) as f64;
            let entropy = entropy(&bytes, shape);
            let found = std::format!("{name} {shape:?}: {bits:.6} bits, entropy {entropy:.6}");
            std::println!("{found}");
            assert!(bits <= 1.585, "{found}");
            assert!(
                bits <= most * entropy || (most > 1.0 && bits <= entropy + 0.0095),
                "{found}"
            );
        }
    }
}

/// Several chunks, whole and with a remainder.
#[test]
fn many_chunks() {
    for shape in [(4_200, 1_023), (100, 65_535), (4_096, 2_048)] {
        for zeros in [333, 500] {
            let mut random = Random(3);
            let bytes = t5(shape, |_, _| random.trit(zeros));
            let payload = there_and_back(shape, &bytes, "chunks");
            assert!(PackedView::new(shape, 1.0, &payload).unwrap().n_chunks() > 1);
            let bits = 8.0 * payload.len() as f64 / (shape.0 * shape.1) as f64;
            assert!(bits <= 1.585, "{shape:?}: {bits}");
        }
    }
}

/// Every remainder of rows and columns.
#[test]
fn odd_shapes() {
    let mut random = Random(1);
    let small = (1..=34).flat_map(|rows| (1..=45).map(move |cols| (rows, cols)));
    for shape in small.chain([(3, 4_001), (4_001, 3), (16, 20), (7, 65_535)]) {
        for zeros in [333, 950, 1_000] {
            let bytes = t5(shape, |_, _| random.trit(zeros));
            there_and_back(shape, &bytes, "shape");
        }
    }
}

/// Bytes that no encoder wrote give an error or some matrix, and never anything else.
#[test]
fn damage_never_panics() {
    let mut random = Random(5);
    let mut found = 0;
    for (shape, zeros) in [
        ((33, 50), 333),
        ((33, 50), 800),
        ((40, 41), 0),
        ((64, 400), 600),
    ] {
        let bytes = t5(shape, |row, _| random.trit(zeros * (row as u32 % 2)));
        let payload = pack(shape, &bytes);
        let mut out = vec![0; bytes.len()];
        for _ in 0..2_000 {
            let mut damaged = payload.clone();
            for _ in 0..=random.below(2) {
                let at = random.below(damaged.len() as u32) as usize;
                damaged[at] = random.below(256) as u8;
            }
            if random.below(4) == 0 {
                damaged.truncate(random.below(damaged.len() as u32 + 1) as usize);
            }
            let Ok(view) = PackedView::new(shape, 1.0, &damaged) else {
                continue;
            };
            let result = view.decode(&mut out);
            assert_eq!(view.verify(), result);
            assert!(
                out.iter().all(|byte| T5.is_code(*byte)),
                "only codes come out"
            );
            found += u32::from(result.is_err());
        }
    }
    assert!(found > 2_000, "{found}");
}

#[test]
fn heads_that_cannot_be() {
    let shape = (40, 60);
    let bytes = t5(shape, |row, _| (row / 20) as i8);
    let payload = pack(shape, &bytes);
    assert_eq!(payload[0], 2, "two classes");
    let open = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut payload = payload.clone();
        change(&mut payload);
        PackedView::new(shape, 1.0, &payload)
            .and_then(|view| view.verify())
            .err()
    };
    assert_eq!(open(&|_| ()), None);
    let head = Some(PackedError::Head);
    assert_eq!(open(&|p| p.clear()), head);
    assert_eq!(open(&|p| p[0] = 9), head, "nine classes");
    assert_eq!(open(&|p| p[1..4].fill(0)), head, "trits of no weight");
    assert_eq!(
        open(&|p| p[7] = 0x32),
        head,
        "a row of a class that is not there"
    );
    assert_eq!(
        open(&|p| p.truncate(20)),
        head,
        "less than the classes of the rows"
    );
    let chunk = Some(PackedError::Chunk { index: 0 });
    assert_eq!(open(&|p| p.truncate(30)), chunk, "no room for the states");
    assert_eq!(open(&|p| p.push(0)), chunk, "half a word more");
    assert_eq!(open(&|p| p.extend([0, 0])), chunk, "a word more");
    assert_eq!(open(&|p| p.truncate(p.len() - 2)), chunk, "a word less");
    // 1024 weights a byte are more than any code reaches.
    assert_eq!(PackedView::new((65_535, 65_535), 1.0, &payload).err(), head);
    assert_eq!(PackedView::new((0, 60), 1.0, &payload).err(), head);
}
