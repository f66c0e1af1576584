//! From T5-R16 lines to a payload.
//!
//! Which rows make a class is the encoder's choice. This one sorts rows by their share of zeros, cuts
//! them into classes of equal size, and then moves rows to the class that codes them in the fewest
//! bits, a few times. It counts bits in integers: equal input gives equal bytes on every machine.

use std::vec::Vec;

use super::shape::{Shape, TRITS};
use super::tables::{SCALE_BITS, TritWeights, starts};
use super::{SYMBOLS, T5_BYTE, flat, rans};
use crate::ternary::{GROUP_ROWS, LINE_BYTES, LineCodes, TernaryLayout, TernaryView, t5_digits};

/// Numbers of classes that are tried; at most [`MAX_CLASSES`](super::MAX_CLASSES).
const CLASS_COUNTS: [usize; 4] = [1, 2, 4, 8];
/// How often rows change their class.
const ROUNDS: usize = 4;
/// Fraction bits of a number of bits.
const FRACTION: u32 = 16;

/// Symbol of each stored T5 byte; of a byte that is no code, some symbol.
pub(super) const SYMBOL: [u8; 256] = {
    let mut symbols = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let [a, b, c, d, e] = t5_digits(byte as u8);
        let symbol =
            81 * a as usize + 27 * b as usize + 9 * c as usize + 3 * d as usize + e as usize;
        symbols[byte] = if symbol < SYMBOLS { symbol as u8 } else { 0 };
        byte += 1;
    }
    symbols
};

/// A symbol with what coding it needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coded {
    pub(super) byte: u8,
    pub(super) class: u8,
    pub(super) state: u8,
}

/// How many -1, 0 and 1 there are.
type Counts = [u32; 3];

/// The packed payload of a matrix, the smallest this encoder finds.
///
/// # Panics
///
/// If the matrix is not in T5-R16, or has no weights.
#[must_use]
pub fn encode(matrix: &TernaryView<'_>) -> Vec<u8> {
    assert_eq!(matrix.layout, TernaryLayout::T5R16, "packed from T5-R16");
    let shape = Shape {
        rows: matrix.rows,
        cols: matrix.cols,
    };
    let counts = row_counts(matrix);
    let choice = CLASS_COUNTS.map(|n| Classes::choose(&counts, n));
    let choice = choice.iter().min_by_key(|classes| classes.bytes(&counts));
    let classes = payload(matrix, shape, choice.expect("some were tried"));
    // Flat chunks take 1.585 bits a weight, whatever the content: no need to try where classes take less.
    let weights = matrix.rows as u64 * matrix.cols as u64;
    if (classes.len() as u64) < weights * 1_584 / 8_000 {
        return classes;
    }
    let flat = payload(matrix, shape, &Classes::default());
    if flat.len() <= classes.len() {
        flat
    } else {
        classes
    }
}

/// Head and chunks.
fn payload(matrix: &TernaryView<'_>, shape: Shape, classes: &Classes) -> Vec<u8> {
    let chunks: Vec<Vec<u8>> = (0..shape.n_chunks())
        .map(|index| classes.chunk(&symbols(matrix, shape, index, classes)))
        .collect();
    let mut payload = std::vec![classes.weights.len() as u8];
    payload.extend(classes.weights.as_flattened());
    if classes.weights.len() > 1 {
        let pairs = classes.of_row.chunks(2);
        payload.extend(pairs.map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4));
    }
    let (_, all_but_last) = chunks.split_last().expect("there is a chunk");
    for chunk in all_but_last {
        let length = u32::try_from(chunk.len()).expect("a chunk is some groups of 65535 columns");
        payload.extend(length.to_le_bytes());
    }
    payload.extend(chunks.into_iter().flatten());
    payload
}

/// The symbols of a chunk, in their order.
fn symbols(matrix: &TernaryView<'_>, shape: Shape, index: usize, classes: &Classes) -> Vec<Coded> {
    let groups = shape.chunk(index);
    let mut symbols = Vec::new();
    let mut tail = Vec::new();
    for group in groups.clone() {
        let rows = shape.group_rows(group);
        let (full, last) = matrix.group(group).split_at(shape.full_lines());
        for line in full {
            let bytes = line.iter().enumerate().take(rows * LINE_BYTES / GROUP_ROWS);
            symbols.extend(bytes.map(|(j, byte)| Coded {
                byte: *byte,
                class: classes.class(group * GROUP_ROWS + j / 4),
                state: (j % rans::STATES) as u8,
            }));
        }
        for line in last {
            let mut codes = LineCodes::default();
            matrix.layout.unpack_line(line, &mut codes);
            for row in 0..rows {
                tail.extend(codes[..shape.tail_cols()].iter().map(|column| column[row]));
            }
        }
    }
    let first_row = groups.start * GROUP_ROWS;
    symbols.extend(tail.chunks(TRITS).enumerate().map(|(k, trits)| Coded {
        byte: stored(trits),
        class: classes.class(first_row + k * TRITS / shape.tail_cols()),
        state: (k % rans::STATES) as u8,
    }));
    symbols
}

/// Stored byte of up to five trits, filled with zeros.
fn stored(trits: &[i8]) -> u8 {
    let digit = |p| trits.get(p).map_or(1, |trit: &i8| (trit + 1) as usize);
    T5_BYTE[(0..TRITS).fold(0, |symbol, p| 3 * symbol + digit(p))]
}

/// Trits of each row.
fn row_counts(matrix: &TernaryView<'_>) -> Vec<Counts> {
    let mut codes = std::vec![0; GROUP_ROWS * matrix.cols];
    let groups = 0..matrix.n_groups();
    let count =
        |row: &[i8]| [-1, 0, 1].map(|trit| row.iter().filter(|t| **t == trit).count() as u32);
    let rows = groups.flat_map(|group| {
        let codes = &mut codes[..matrix.group_rows(group) * matrix.cols];
        matrix
            .layout
            .unpack_group(matrix.group(group).as_flattened(), matrix.cols, codes);
        codes
            .chunks_exact(matrix.cols)
            .map(count)
            .collect::<Vec<_>>()
    });
    rows.collect()
}

/// Classes of rows; none for flat chunks.
#[derive(Clone, Debug, Default)]
struct Classes {
    weights: Vec<TritWeights>,
    of_row: Vec<u8>,
}

impl Classes {
    /// Up to `n` classes for these rows.
    fn choose(rows: &[Counts], n: usize) -> Self {
        let mut by_zeros: Vec<usize> = (0..rows.len()).collect();
        by_zeros.sort_by_key(|row| rows[*row][1]);
        let mut of_row = std::vec![0; rows.len()];
        for (rank, row) in by_zeros.into_iter().enumerate() {
            of_row[row] = (rank * n / rows.len()) as u8;
        }
        let mut classes = Self {
            weights: Vec::new(),
            of_row,
        };
        classes.weigh(rows, n);
        for _ in 0..if n > 1 { ROUNDS } else { 0 } {
            classes.assign(rows);
            classes.weigh(rows, n);
        }
        classes
    }

    /// Trit weights of the classes as their rows are.
    fn weigh(&mut self, rows: &[Counts], n: usize) {
        let mut sums = std::vec![[0u64; 3]; n];
        for (class, counts) in self.of_row.iter().zip(rows) {
            let sum = &mut sums[usize::from(*class)];
            sum.iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += u64::from(*count));
        }
        self.weights = sums.into_iter().map(weights).collect();
    }

    /// Each row to the class that takes the fewest bits, the first of equals.
    fn assign(&mut self, rows: &[Counts]) {
        let costs: Vec<_> = self
            .weights
            .iter()
            .map(|weights| trit_bits(*weights))
            .collect();
        for (class, counts) in self.of_row.iter_mut().zip(rows) {
            let best = (0..costs.len()).min_by_key(|class| row_bits(counts, &costs[*class]));
            *class = best.unwrap_or(0) as u8;
        }
    }

    /// About how many bytes a payload takes.
    fn bytes(&self, rows: &[Counts]) -> u64 {
        let costs: Vec<_> = self
            .weights
            .iter()
            .map(|weights| trit_bits(*weights))
            .collect();
        let pairs = self.of_row.iter().zip(rows);
        let bits = pairs.map(|(class, counts)| row_bits(counts, &costs[usize::from(*class)]));
        let map = if self.weights.len() > 1 {
            rows.len() as u64 / 2
        } else {
            0
        };
        (bits.sum::<u64>() >> FRACTION) / 8 + 3 * self.weights.len() as u64 + map
    }

    fn class(&self, row: usize) -> u8 {
        self.of_row.get(row).copied().unwrap_or(0)
    }

    fn chunk(&self, symbols: &[Coded]) -> Vec<u8> {
        if self.weights.is_empty() {
            let symbols: Vec<u8> = symbols
                .iter()
                .map(|coded| SYMBOL[usize::from(coded.byte)])
                .collect();
            return flat::encode(&symbols);
        }
        let starts: Vec<_> = self
            .weights
            .iter()
            .map(|weights| starts(*weights))
            .collect();
        rans::encode(symbols, &starts)
    }
}

/// Counts as weights of at most 255, zero for what does not occur.
fn weights(counts: [u64; 3]) -> TritWeights {
    let most = counts.into_iter().max().unwrap_or(0);
    counts.map(|count| match (count, most) {
        // A class without rows: any weights will do.
        (_, 0) => 1,
        (0, _) => 0,
        _ => ((count * 255 + most / 2) / most).max(1) as u8,
    })
}

/// Bits of each trit in a class. One of no weight makes its symbol one of a single slot.
fn trit_bits(weights: TritWeights) -> [u64; 3] {
    let all = weights.iter().map(|weight| u32::from(*weight)).sum();
    weights.map(|weight| match weight {
        0 => u64::from(SCALE_BITS << FRACTION),
        _ => u64::from(log2(all) - log2(u32::from(weight))),
    })
}

fn row_bits(counts: &Counts, bits: &[u64; 3]) -> u64 {
    counts
        .iter()
        .zip(bits)
        .map(|(n, bits)| u64::from(*n) * bits)
        .sum()
}

/// Logarithm to base 2 of a number above zero, in units of 2^-16, rounded down.
fn log2(n: u32) -> u32 {
    let whole = n.ilog2();
    // The fraction, bit by bit: squaring doubles the logarithm.
    let mut x = u64::from(n) << (31 - whole);
    let mut log = whole;
    for _ in 0..FRACTION {
        x = (x * x) >> 31;
        log <<= 1;
        if x >= 1 << 32 {
            x >>= 1;
            log |= 1;
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_and_stored_bytes_invert() {
        for symbol in 0..SYMBOLS {
            assert_eq!(usize::from(SYMBOL[usize::from(T5_BYTE[symbol])]), symbol);
        }
        assert_eq!(T5_BYTE[121], 0);
    }

    #[test]
    fn logarithms() {
        for (n, expected) in [
            (1, 0.0f64),
            (2, 1.0),
            (3, 1.584_962_5),
            (8_192, 13.0),
            (243, 7.924_812_5),
        ] {
            let found = f64::from(log2(n)) / f64::from(1 << FRACTION);
            assert!(
                (expected - found).abs() < 4e-5 && found <= expected,
                "{n}: {found}"
            );
        }
    }
}
