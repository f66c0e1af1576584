//! Packed: the trits of a matrix without their padding, entropy-coded.
//!
//! A payload is a head and some chunks of whole row groups, each of which decodes on its own, into
//! T5-R16 lines. Only trits of the matrix are coded. Chunks are written in one of two ways, whichever
//! is smaller:
//!
//! - **Flat**: the symbols are the digits of one long number, log2(3) bits a trit, whatever the
//!   content. This is what bounds every payload by 1.585 bits per weight.
//! - **Classes**: each row belongs to one of up to eight classes, each with its own probabilities of
//!   the three trits; symbols of five trits are coded by rANS (Duda, "Asymmetric numeral systems",
//!   arXiv 1311.2540), eight states interleaved (Giesen, arXiv 1402.3392).
//!
//! Rows differ in how many zeros they have and hardly in anything else, so three numbers a class say
//! as much as the frequencies of all 243 symbols would, in 3 bytes instead of hundreds.

mod decode;
#[cfg(feature = "std")]
mod encode;
mod flat;
mod rans;
mod shape;
mod tables;

pub use decode::PackedView;
#[cfg(feature = "std")]
pub use encode::encode;
pub use tables::{MAX_CLASSES, Tables};

pub use crate::error::PackedError;

/// Numbers of five trits: `sum (t_p + 1) 3^(4-p)`.
pub(crate) const SYMBOLS: usize = 243;

/// A chunk that is no code of any trits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

/// Stored T5 byte of each symbol.
pub(crate) const T5_BYTE: [u8; SYMBOLS] = {
    let mut bytes = [0; SYMBOLS];
    let mut symbol = 0;
    while symbol < SYMBOLS {
        bytes[symbol] = (symbol * 256).div_ceil(SYMBOLS) as u8 ^ 0x80;
        symbol += 1;
    }
    bytes
};

#[cfg(all(test, feature = "std"))]
mod round_trips;
