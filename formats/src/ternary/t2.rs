//! T2: four trits in a byte, two bits each, `t + 1`, lowest bits first. Bits 3 are no code.

use super::{GROUP_ROWS, LINE_BYTES, LineCodes};

/// True where no field of the stored byte is 3.
pub(super) const fn is_code(byte: u8) -> bool {
    byte & (byte >> 1) & 0x55 == 0
}

/// Stored byte of four trits.
pub(super) fn encode(trits: [i8; 4]) -> u8 {
    trits
        .iter()
        .rev()
        .fold(0, |byte, t| (byte << 2) | (*t + 1) as u8)
}

/// Decodes a line plane by plane; the loops over rows vectorise.
#[inline(always)]
pub(super) fn unpack_line(line: &[u8; LINE_BYTES], codes: &mut LineCodes) {
    for (p, plane) in codes.as_chunks_mut::<4>().0.iter_mut().take(4).enumerate() {
        for (i, column) in plane.iter_mut().enumerate() {
            for row in 0..GROUP_ROWS {
                column[row] = ((line[4 * row + i] >> (2 * p)) & 3) as i8 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_81_codes_are_codes_and_no_other_byte_is() {
        let mut seen = [false; 256];
        for u in 0..81 {
            let trits = [1, 3, 9, 27].map(|power| ((u / power) % 3) as i8 - 1);
            seen[usize::from(encode(trits))] = true;
        }
        for byte in 0..=255u8 {
            assert_eq!(is_code(byte), seen[usize::from(byte)], "{byte}");
        }
        assert_eq!(encode([0; 4]), 0x55);
        assert_eq!(encode([1, 0, -1, -1]), 0b00_00_01_10);
    }
}
