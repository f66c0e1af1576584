//! Flat chunks: every content costs the same.
//!
//! Two symbols are a digit below 59049. The digits are those of one long number, the first the lowest.
//! A number of a chunk's length would be slow to divide, so only its top is kept at hand: 32-bit words
//! leave it below (when encoding) and enter it there again, at the same steps. What this costs is
//! rounding of digits to a state of at least 2^15: below 5e-6 bits a trit.

use super::{Damaged, SYMBOLS};

/// Values of a digit.
const DIGITS: u64 = (SYMBOLS * SYMBOLS) as u64;
/// The state of a decoder is at least this, as long as there are words.
const LOW: u64 = DIGITS << 15;

/// Reads digits.
pub(super) struct FlatReader<'w> {
    state: u64,
    words: core::slice::Iter<'w, [u8; 4]>,
}

impl<'w> FlatReader<'w> {
    pub(super) fn new(chunk: &'w [u8]) -> Result<Self, Damaged> {
        let (top, words) = chunk
            .split_at_checked(top_bytes(chunk.len()))
            .ok_or(Damaged)?;
        let mut state = [0; 8];
        state.iter_mut().zip(top).for_each(|(to, byte)| *to = *byte);
        Ok(Self {
            state: u64::from_le_bytes(state),
            words: words.as_chunks().0.iter(),
        })
    }

    #[inline(always)]
    fn digit(&mut self) -> usize {
        let digit = self.state % DIGITS;
        self.state /= DIGITS;
        if self.state < LOW
            && let Some(word) = self.words.next()
        {
            self.state = self.state << 32 | u64::from(u32::from_le_bytes(*word));
        }
        digit as usize
    }

    /// The next two symbols.
    #[inline(always)]
    pub(super) fn pair(&mut self) -> [usize; 2] {
        let digit = self.digit();
        [digit / SYMBOLS, digit % SYMBOLS]
    }

    /// The symbol that is left where their number is odd.
    pub(super) fn last(&mut self) -> Result<usize, Damaged> {
        match self.digit() {
            symbol if symbol < SYMBOLS => Ok(symbol),
            _ => Err(Damaged),
        }
    }

    /// After the last digit nothing is left.
    pub(super) fn finish(&self) -> Result<(), Damaged> {
        let done = self.state == 0 && self.words.as_slice().is_empty();
        if done { Ok(()) } else { Err(Damaged) }
    }
}

/// Bytes of the state in front of the words: 5 to 8, or all where there are no more.
const fn top_bytes(len: usize) -> usize {
    match len {
        0..8 => len,
        _ => 5 + (len + 3) % 4,
    }
}

/// Codes symbols.
#[cfg(feature = "std")]
pub(super) fn encode(symbols: &[u8]) -> std::vec::Vec<u8> {
    const HIGH: u64 = 1 << 47;
    let mut state = 0;
    let mut words = std::vec::Vec::new();
    for digit in symbols.chunks(2).rev() {
        if state >= HIGH {
            words.push((state as u32).to_le_bytes());
            state >>= 32;
        }
        let digit = digit.iter().fold(0, |digit, symbol| {
            SYMBOLS as u64 * digit + u64::from(*symbol)
        });
        state = state * DIGITS + digit;
    }
    let used = 8 - state.leading_zeros() as usize / 8;
    let top = if words.is_empty() { used } else { used.max(5) };
    let mut bytes = state.to_le_bytes()[..top].to_vec();
    words.reverse();
    bytes.extend_from_slice(words.as_flattened());
    bytes
}
