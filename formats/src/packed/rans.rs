//! Chunks of classes: eight interleaved rANS states of 32 bits over one stream of 16-bit words.

use super::Damaged;
use super::tables::{SCALE, SCALE_BITS, Table, Tables};
#[cfg(feature = "std")]
use super::{
    SYMBOLS,
    encode::{Coded, SYMBOL},
};

/// Interleaved states.
pub(super) const STATES: usize = 8;
/// A state between two symbols is at least this; this is also what each ends at.
const LOW: u32 = 1 << 16;

/// Reads symbols as stored T5 bytes.
pub(super) struct RansReader<'w> {
    states: [u32; STATES],
    words: &'w [[u8; 2]],
    /// Words read; beyond the end where the chunk is damaged.
    at: usize,
}

impl<'w> RansReader<'w> {
    pub(super) fn new(chunk: &'w [u8]) -> Result<Self, Damaged> {
        let (states, words) = chunk.split_at_checked(4 * STATES).ok_or(Damaged)?;
        let (states, (words, [])) = (states.as_chunks().0, words.as_chunks()) else {
            return Err(Damaged);
        };
        let state = |i: usize| states.get(i).copied().map_or(0, u32::from_le_bytes);
        Ok(Self {
            states: core::array::from_fn(state),
            words,
            at: 0,
        })
    }

    /// The next words; zeros beyond the last.
    #[inline(always)]
    fn window(&self) -> [u32; STATES] {
        let word = |bytes: [u8; 2]| u32::from(u16::from_le_bytes(bytes));
        let rest = self.words.get(self.at..).unwrap_or(&[]);
        match rest.first_chunk::<STATES>() {
            Some(words) => words.map(word),
            None => core::array::from_fn(|i| rest.get(i).copied().map_or(0, word)),
        }
    }

    /// Symbols of the states from 0 on, the j-th by table `j / 4`.
    #[inline(always)]
    pub(super) fn read(&mut self, tables: [&Table; 2], out: &mut [u8]) {
        let window = self.window();
        let mut taken = 0;
        for (j, (out, state)) in out.iter_mut().zip(&mut self.states).enumerate() {
            *out = step(state, tables[j / 4], &window, &mut taken);
        }
        self.at += taken;
    }

    /// One symbol of one state.
    pub(super) fn read_one(&mut self, state: usize, tables: &Tables, class: u8) -> u8 {
        let window = self.window();
        let mut taken = 0;
        let byte = step(
            &mut self.states[state % STATES],
            tables.of(class),
            &window,
            &mut taken,
        );
        self.at += taken;
        byte
    }

    /// Still within the chunk.
    pub(super) fn check(&self) -> Result<(), Damaged> {
        if self.at <= self.words.len() {
            Ok(())
        } else {
            Err(Damaged)
        }
    }

    /// After the last symbol all words are read and the states are where the encoder began.
    pub(super) fn finish(&self) -> Result<(), Damaged> {
        let done = self.at == self.words.len() && self.states == [LOW; STATES];
        if done { Ok(()) } else { Err(Damaged) }
    }
}

/// Takes a symbol from a state, and a word into it where it has become small.
#[inline(always)]
fn step(state: &mut u32, table: &Table, window: &[u32; STATES], taken: &mut usize) -> u8 {
    let slot = *state % SCALE as u32;
    let byte = table.bytes[slot as usize];
    let entry = table.entries[usize::from(byte)];
    // At most 2^13 (2^19 - 1) + 2^13 - 1: no state can overflow, whatever the chunk holds.
    let rest = (entry & 0xffff) * (*state >> SCALE_BITS) + slot - (entry >> 16);
    let small = rest < LOW;
    let filled = rest << 16 | window[*taken % STATES];
    *state = if small { filled } else { rest };
    *taken += usize::from(small);
    byte
}

/// Codes symbols, each with its state and class; `starts` are those of the classes.
#[cfg(feature = "std")]
pub(super) fn encode(symbols: &[Coded], starts: &[[u16; SYMBOLS + 1]]) -> std::vec::Vec<u8> {
    let mut states = [LOW; STATES];
    let mut words = std::vec::Vec::new();
    for coded in symbols.iter().rev() {
        let starts = &starts[usize::from(coded.class)];
        let symbol = usize::from(SYMBOL[usize::from(coded.byte)]);
        let start = u32::from(starts[symbol]);
        let frequency = u32::from(starts[symbol + 1]) - start;
        let state = &mut states[usize::from(coded.state)];
        if u64::from(*state) >= u64::from(frequency) << (32 - SCALE_BITS) {
            words.push((*state as u16).to_le_bytes());
            *state >>= 16;
        }
        *state = (*state / frequency) << SCALE_BITS | (*state % frequency + start);
    }
    let mut bytes: std::vec::Vec<u8> = states
        .iter()
        .flat_map(|state| state.to_le_bytes())
        .collect();
    words.reverse();
    bytes.extend_from_slice(words.as_flattened());
    bytes
}
