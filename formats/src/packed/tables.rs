//! Frequencies of symbols, from three trit weights a class.

use super::{SYMBOLS, T5_BYTE};

/// Most classes of a matrix.
pub const MAX_CLASSES: usize = 8;
/// Frequencies of a class sum to `1 << SCALE_BITS`.
pub(super) const SCALE_BITS: u32 = 13;
pub(super) const SCALE: usize = 1 << SCALE_BITS;

/// How often -1, 0 and 1 occur in a class, relative to each other; not all are zero.
pub(super) type TritWeights = [u8; 3];

/// Where the slots of each symbol begin; the last element is [`SCALE`].
///
/// Each symbol gets one slot, and a share of the others by the product of its trits' weights.
pub(super) fn starts(weights: TritWeights) -> [u16; SYMBOLS + 1] {
    let w = weights.map(u64::from);
    let all = (w[0] + w[1] + w[2]).pow(5);
    let spare = (SCALE - SYMBOLS) as u64;
    let mut starts = [0; SYMBOLS + 1];
    let mut sum = 0;
    for (symbol, start) in starts[1..].iter_mut().enumerate() {
        let digits = [81, 27, 9, 3, 1].map(|power| symbol / power % 3);
        sum += digits.iter().map(|digit| w[*digit]).product::<u64>();
        *start = (symbol as u64 + 1 + sum * spare / all) as u16;
    }
    starts
}

/// The symbols of one class, by slot.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Stored T5 byte of each slot.
    pub(super) bytes: [u8; SCALE],
    /// Frequency of each stored byte in the low half, its first slot in the high half.
    pub(super) entries: [u32; 256],
}

impl Table {
    const EMPTY: Self = Self {
        bytes: [0; SCALE],
        entries: [0; 256],
    };

    fn fill(&mut self, weights: TritWeights) {
        let starts = starts(weights);
        for (byte, bounds) in T5_BYTE.iter().zip(starts.windows(2)) {
            let (start, end) = (bounds[0], bounds[1]);
            self.bytes[usize::from(start)..usize::from(end)].fill(*byte);
            self.entries[usize::from(*byte)] = u32::from(end - start) | u32::from(start) << 16;
        }
    }
}

/// What decoding the chunks of a matrix looks up: some 70 kB, no part of which outlives the decoding.
#[derive(Clone, Debug)]
pub struct Tables([Table; MAX_CLASSES]);

impl Tables {
    pub(super) fn new(classes: &[TritWeights]) -> Self {
        let mut tables = Self([Table::EMPTY; MAX_CLASSES]);
        for (table, weights) in tables.0.iter_mut().zip(classes) {
            table.fill(*weights);
        }
        tables
    }

    /// The table of a class.
    #[inline(always)]
    pub(super) const fn of(&self, class: u8) -> &Table {
        &self.0[class as usize % MAX_CLASSES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_has_slots_and_all_slots_a_symbol() {
        for weights in [
            [1, 1, 1],
            [255, 255, 255],
            [1, 255, 1],
            [255, 1, 7],
            [0, 255, 0],
            [1, 0, 0],
            [80, 95, 80],
        ] {
            let starts = starts(weights);
            assert_eq!((starts[0], usize::from(starts[SYMBOLS])), (0, SCALE));
            assert!(
                starts.windows(2).all(|pair| pair[0] < pair[1]),
                "{weights:?}"
            );
        }
    }

    /// The example of SPEC.md.
    #[test]
    fn the_documented_frequencies() {
        let starts = starts([80, 95, 80]);
        let slots = [0, 121, 242].map(|symbol| (starts[symbol], starts[symbol + 1]));
        assert_eq!(slots, [(0, 25), (4_066, 4_125), (8_166, 8_192)]);
    }
}
