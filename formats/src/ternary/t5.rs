//! T5: five trits in a byte, as a fixed-point fraction.
//!
//! For trits `t[0..5]`, most significant first, let `u = sum (t[p] + 1) 3^(4-p)`, a number in
//! 0..=242, and `x = ceil(u * 256 / 243)`: the first eight fraction bits of `u / 243`. Multiplying
//! the fraction by 3 moves the first trit into the integer part, so `t[0] + 1 = floor(3 x / 256)`,
//! and `3 x mod 256` is the code of the remaining trits. The stored byte is `x ^ 0x80`: as an i8 it
//! is the signed fraction, and five zero trits are a zero byte.

use super::{GROUP_ROWS, LINE_BYTES, LineCodes};

/// The thirteen stored bytes that no five trits encode to.
pub const NOT_A_CODE: [u8; 13] = [129, 148, 168, 188, 207, 227, 247, 10, 30, 50, 69, 89, 109];

/// True where the stored byte is the code of five trits.
pub(super) const fn is_code(byte: u8) -> bool {
    let mut i = 0;
    while i < NOT_A_CODE.len() {
        if NOT_A_CODE[i] == byte {
            return false;
        }
        i += 1;
    }
    true
}

/// Stored byte of five trits, most significant first.
pub(super) fn encode(trits: [i8; 5]) -> u8 {
    let u = trits
        .iter()
        .fold(0u32, |u, t| 3 * u + (i32::from(*t) + 1) as u32);
    ((u * 256).div_ceil(243) as u8) ^ 0x80
}

/// Digits `t + 1` of a stored byte, most significant first.
#[must_use]
pub const fn digits(byte: u8) -> [u8; 5] {
    let mut fraction = (byte ^ 0x80) as u16;
    let mut digits = [0; 5];
    let mut p = 0;
    while p < 5 {
        fraction *= 3;
        digits[p] = (fraction >> 8) as u8;
        fraction &= 0xff;
        p += 1;
    }
    digits
}

/// Decodes a line plane by plane; the loops over rows vectorise.
#[inline(always)]
pub(super) fn unpack_line(line: &[u8; LINE_BYTES], codes: &mut LineCodes) {
    let mut fractions = *line;
    fractions.iter_mut().for_each(|x| *x ^= 0x80);
    for plane in codes.as_chunks_mut::<4>().0 {
        let mut trits = [0i8; LINE_BYTES];
        for (trit, x) in trits.iter_mut().zip(&mut fractions) {
            *trit = ((u16::from(*x) * 3) >> 8) as i8 - 1;
            *x = x.wrapping_mul(3);
        }
        for (i, column) in plane.iter_mut().enumerate() {
            for row in 0..GROUP_ROWS {
                column[row] = trits[4 * row + i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trits(u: u32) -> [i8; 5] {
        [81, 27, 9, 3, 1].map(|power| ((u / power) % 3) as i8 - 1)
    }

    #[test]
    fn all_243_codes_decode_and_the_other_13_are_named() {
        let mut seen = [false; 256];
        for u in 0..243 {
            let byte = encode(trits(u));
            assert_eq!(digits(byte).map(|d| d as i8 - 1), trits(u));
            assert!(is_code(byte) && !seen[usize::from(byte)]);
            seen[usize::from(byte)] = true;
        }
        for byte in 0..=255u8 {
            assert_eq!(is_code(byte), seen[usize::from(byte)], "{byte}");
        }
        assert_eq!(encode([0; 5]), 0);
    }

    /// `256 t[p] = 3 X[p] - X[p+1]`, where X[p] is the signed byte after p multiplications by 3.
    #[test]
    fn the_telescoping_identity_holds() {
        for u in 0..243 {
            let mut x = encode(trits(u)) as i8;
            for t in trits(u) {
                let next = x.wrapping_mul(3);
                assert_eq!(256 * i32::from(t), 3 * i32::from(x) - i32::from(next));
                x = next;
            }
        }
    }
}
