//! The block types of GGUF that are read: their sizes, and the numbers in them.

use bitnet_formats::float::{bf16_to_f32, f16_to_f32};

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    BF16,
    /// Blocks of 32: an f16 scale, then int8.
    Q8_0,
    /// Blocks of 256: 6 bits a value, sixteen int8 scales, an f16 scale over them.
    Q6K,
    /// Blocks of 256 ternary values at 1.6875 bits, an f16 scale behind them.
    TQ1_0,
    /// Blocks of 256 ternary values at 2.0625 bits, an f16 scale behind them.
    TQ2_0,
    /// A whole tensor of ternary values at 2 bits, then its one f32 scale and padding.
    I2S,
}

/// Bytes behind the codes of an I2_S tensor: the scale, then padding.
const I2S_TAIL: u64 = 32;
/// More values than any tensor has.
pub(crate) const MOST_VALUES: usize = 1 << 48;
/// Values of a block of the k-quants and the ternary quants.
const SUPER: usize = 256;

impl Kind {
    /// The type of this number; for one that is not read, its name and the reason.
    ///
    /// # Errors
    ///
    /// Name and reason.
    pub fn from_code(code: u32) -> Result<Self, (String, &'static str)> {
        const NO_TERNARY: &str =
            "it is not ternary, and embeddings are read as F32, F16, BF16, Q8_0 or Q6_K";
        let name = match code {
            0 => return Ok(Self::F32),
            1 => return Ok(Self::F16),
            8 => return Ok(Self::Q8_0),
            14 => return Ok(Self::Q6K),
            30 => return Ok(Self::BF16),
            34 => return Ok(Self::TQ1_0),
            35 => return Ok(Self::TQ2_0),
            36 => return Ok(Self::I2S),
            38 | 39 => {
                let name = if code == 38 { "TL1" } else { "TL2" };
                let reason = "its tiles depend on the build that wrote it; convert the original";
                return Err((name.to_owned(), reason));
            }
            134 | 135 => {
                let name = if code == 134 { "IQ1_BN" } else { "IQ2_BN" };
                return Err((
                    name.to_owned(),
                    "convert the original, or its I2_S or TQ form",
                ));
            }
            2 => "Q4_0",
            3 => "Q4_1",
            6 => "Q5_0",
            7 => "Q5_1",
            10 => "Q2_K",
            11 => "Q3_K",
            12 => "Q4_K",
            13 => "Q5_K",
            _ => return Err((format!("type {code}"), "this type is not known")),
        };
        Err((name.to_owned(), NO_TERNARY))
    }

    /// Its number in a file.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Q6K => 14,
            Self::BF16 => 30,
            Self::TQ1_0 => 34,
            Self::TQ2_0 => 35,
            Self::I2S => 36,
        }
    }

    /// The name people use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q6K => "Q6_K",
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
            Self::I2S => "I2_S",
        }
    }

    /// Values of a block. Those of I2_S run over the whole tensor, others over a row.
    #[must_use]
    pub const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 => 32,
            Self::Q6K | Self::TQ1_0 | Self::TQ2_0 => SUPER,
            Self::I2S => 128,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q6K => 210,
            Self::TQ1_0 => 54,
            Self::TQ2_0 => 66,
            Self::I2S => 32,
        }
    }

    /// Bytes of a tensor; `None` where it is not whole blocks, or far beyond any file.
    #[must_use]
    pub fn bytes(self, rows: usize, cols: usize) -> Option<u64> {
        let n = rows.checked_mul(cols).filter(|n| *n < MOST_VALUES)?;
        let along = if self == Self::I2S { n } else { cols };
        let blocks = n / self.block();
        let tail = if self == Self::I2S { I2S_TAIL } else { 0 };
        let whole = along.is_multiple_of(self.block());
        whole.then(|| blocks as u64 * self.block_bytes() as u64 + tail)
    }

    /// Widens the blocks of whole rows to f32.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit, or the type is ternary: those have codes and a scale.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() * self.block(), out.len() * self.block_bytes());
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        match self {
            Self::F32 => {
                let words = bytes.as_chunks().0.iter();
                out.iter_mut()
                    .zip(words)
                    .for_each(|(o, w)| *o = f32::from_le_bytes(*w));
            }
            Self::F16 => (0..out.len()).for_each(|i| out[i] = f16_to_f32(half(2 * i))),
            Self::BF16 => (0..out.len()).for_each(|i| out[i] = bf16_to_f32(half(2 * i))),
            Self::Q8_0 => {
                let blocks = bytes.as_chunks().0.iter();
                blocks
                    .zip(out.as_chunks_mut().0)
                    .for_each(|(b, out)| q8_0(b, out));
            }
            Self::Q6K => {
                let blocks = bytes.as_chunks().0.iter();
                blocks
                    .zip(out.as_chunks_mut().0)
                    .for_each(|(b, out)| q6_k(b, out));
            }
            Self::TQ1_0 | Self::TQ2_0 | Self::I2S => panic!("{} has codes", self.name()),
        }
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    for (out, code) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(*code as i8) * scale;
    }
}

/// 128 low halves, 64 pairs of high bits, 16 scales, the scale over them. Each half block of 128 values
/// has its bytes to itself: value `32 q + l` takes nibble `q / 2` of low byte `32 (q % 2) + l`, and bits
/// `2 q` of high byte `l`.
fn q6_k(block: &[u8; 210], out: &mut [f32; SUPER]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let scale = f16_to_f32(u16::from_le_bytes([scale[0], scale[1]]));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, q, l) = (i / 128, i % 128 / 32, i % 32);
        let nibble = (low[64 * half + 32 * (q % 2) + l] >> (4 * (q / 2))) & 15;
        let bits = (high[32 * half + l] >> (2 * q)) & 3;
        let code = i32::from(nibble | (bits << 4)) - 32;
        let sub_scale = i32::from(scales[8 * half + 2 * q + l / 16] as i8);
        // The order of the products is ggml's.
        *out = scale * sub_scale as f32 * code as f32;
    }
}

/// A place at which a ternary field holds 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotACode(pub usize);

/// The scale of a TQ block.
#[must_use]
pub fn tq_scale(block: &[u8]) -> f32 {
    match block {
        [.., low, high] => f16_to_f32(u16::from_le_bytes([*low, *high])),
        _ => 0.0,
    }
}

/// Five trits a byte, the most significant first: byte m of the first 32 holds values m + 32 n, byte m
/// of the next 16 holds 160 + m + 16 n, and the last four hold 240 + m + 4 n, four each.
pub fn tq1_0_codes(block: &[u8; 54], codes: &mut [i8; SUPER]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let trit = |byte: u8, n: usize| {
        let shifted = byte.wrapping_mul(POWERS[n]);
        ((u16::from(shifted) * 3) >> 8) as i8 - 1
    };
    for n in 0..5 {
        for m in 0..32 {
            codes[m + 32 * n] = trit(block[m], n);
        }
        for m in 0..16 {
            codes[160 + m + 16 * n] = trit(block[32 + m], n);
        }
    }
    for n in 0..4 {
        for m in 0..4 {
            codes[240 + m + 4 * n] = trit(block[48 + m], n);
        }
    }
}

/// Packs a block of TQ1_0: the inverse of [`tq1_0_codes`].
pub fn tq1_0_block(codes: &[i8; SUPER], scale: u16) -> [u8; 54] {
    let mut block = [0; 54];
    // As T5 does: the number in base 3 as a fraction of 256, rounded up.
    let byte = |trits: [i8; 5]| {
        let number = trits.iter().fold(0, |n: u16, t| 3 * n + (t + 1) as u16);
        (number * 256).div_ceil(243) as u8
    };
    for m in 0..32 {
        block[m] = byte(std::array::from_fn(|n| codes[m + 32 * n]));
    }
    for m in 0..16 {
        block[32 + m] = byte(std::array::from_fn(|n| codes[160 + m + 16 * n]));
    }
    for m in 0..4 {
        let four = |n: usize| if n < 4 { codes[240 + m + 4 * n] } else { -1 };
        block[48 + m] = byte(std::array::from_fn(four));
    }
    block[52..].copy_from_slice(&scale.to_le_bytes());
    block
}

/// Two bits a value, the lowest first: byte m of each half of 32 bytes holds values m + 32 n of its
/// half of 128.
///
/// # Errors
///
/// The first place that holds 3.
pub fn tq2_0_codes(block: &[u8; 66], codes: &mut [i8; SUPER]) -> Result<(), NotACode> {
    for (i, code) in codes.iter_mut().enumerate() {
        let (half, n, m) = (i / 128, i % 128 / 32, i % 32);
        *code = two_bits(block[32 * half + m], 2 * n).ok_or(NotACode(i))?;
    }
    Ok(())
}

/// Packs a block of TQ2_0: the inverse of [`tq2_0_codes`].
pub fn tq2_0_block(codes: &[i8; SUPER], scale: u16) -> [u8; 66] {
    let mut block = [0; 66];
    for (i, code) in codes.iter().enumerate() {
        let (half, n, m) = (i / 128, i % 128 / 32, i % 32);
        block[32 * half + m] |= ((code + 1) as u8) << (2 * n);
    }
    block[64..].copy_from_slice(&scale.to_le_bytes());
    block
}

/// Which values share a byte of an I2_S tensor. The file does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum I2sLayout {
    /// 32 bytes hold 128 values, byte j the values j, j + 32, j + 64, j + 96, the first in the highest
    /// bits. Public files have this.
    #[default]
    X86,
    /// 16 bytes hold 64 values, byte j the values j, j + 16, j + 32, j + 48.
    Arm,
}

impl I2sLayout {
    /// Codes of 128 values.
    ///
    /// # Errors
    ///
    /// The first place that holds 3.
    pub fn codes(self, block: &[u8; 32], codes: &mut [i8; 128]) -> Result<(), NotACode> {
        let quarter = match self {
            Self::X86 => 32,
            Self::Arm => 16,
        };
        for (i, code) in codes.iter_mut().enumerate() {
            let (part, n, j) = (i / (4 * quarter), i % (4 * quarter) / quarter, i % quarter);
            *code = two_bits(block[part * quarter + j], 6 - 2 * n).ok_or(NotACode(i))?;
        }
        Ok(())
    }
}

fn two_bits(byte: u8, shift: usize) -> Option<i8> {
    match (byte >> shift) & 3 {
        3 => None,
        code => Some(code as i8 - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(seed: usize) -> [i8; SUPER] {
        std::array::from_fn(|i| ((i * 7 + i * i * seed) % 3) as i8 - 1)
    }

    #[test]
    fn ternary_blocks_are_their_own_inverse() {
        for seed in 0..50 {
            let (codes, mut back) = (codes(seed), [9; SUPER]);
            let block = tq1_0_block(&codes, 0x3c00);
            tq1_0_codes(&block, &mut back);
            assert_eq!(back, codes);
            assert_eq!(tq_scale(&block), 1.0);
            let block = tq2_0_block(&codes, 0xbc00);
            tq2_0_codes(&block, &mut back).unwrap();
            assert_eq!(back, codes);
            assert_eq!(tq_scale(&block), -1.0);
        }
    }

    #[test]
    fn the_fourth_code_is_found() {
        let mut block = tq2_0_block(&codes(1), 0);
        block[33] |= 0b1100; // value 128 + 32 + 1
        assert_eq!(tq2_0_codes(&block, &mut [0; SUPER]), Err(NotACode(161)));
        let mut block = [0; 32];
        block[17] = 0b11; // x86: value 96 + 17; Arm: 64 + 48 + 1
        assert_eq!(
            I2sLayout::X86.codes(&block, &mut [0; 128]),
            Err(NotACode(113))
        );
        assert_eq!(
            I2sLayout::Arm.codes(&block, &mut [0; 128]),
            Err(NotACode(113))
        );
        block[17] = 0b1100;
        assert_eq!(
            I2sLayout::X86.codes(&block, &mut [0; 128]),
            Err(NotACode(81))
        );
        assert_eq!(
            I2sLayout::Arm.codes(&block, &mut [0; 128]),
            Err(NotACode(97))
        );
    }

    #[test]
    fn eight_bits_are_code_times_scale() {
        let mut block = [0; 34];
        block[..4].copy_from_slice(&[0x00, 0x38, 0x02, 0xfe]); // 0.5; 2, -2
        let mut out = [9.0; 32];
        Kind::Q8_0.decode(&block, &mut out);
        assert_eq!(out[..3], [1.0, -1.0, 0.0]);
    }

    /// Value by value from the description of the layout: which nibble, which bits, which scale.
    #[test]
    fn six_bits_come_from_two_places() {
        let mut block = [0u8; 210];
        let mut expected = [0.0; SUPER];
        for (i, expected) in expected.iter_mut().enumerate() {
            let code = (i * 37 % 64) as u8;
            let (half, at) = (i / 128, i % 128);
            // ggml: ql[l] & 15, ql[l + 32] & 15, ql[l] >> 4, ql[l + 32] >> 4 with qh[l] >> 0, 2, 4, 6.
            let (byte, shift, high) = match at / 32 {
                0 => (at, 0, 0),
                1 => (at, 0, 2),
                2 => (at - 64, 4, 4),
                _ => (at - 64, 4, 6),
            };
            block[64 * half + byte] |= (code & 15) << shift;
            block[128 + 32 * half + at % 32] |= (code >> 4) << high;
            let scale = (i / 16) as i8 - 7;
            block[192 + i / 16] = scale as u8;
            *expected = 0.25 * f32::from(scale) * (f32::from(code) - 32.0);
        }
        block[208..].copy_from_slice(&0x3400u16.to_le_bytes()); // 0.25
        let mut out = [9.0; SUPER];
        Kind::Q6K.decode(&block, &mut out);
        assert_eq!(out, expected);
    }

    #[test]
    fn sizes_are_whole_blocks() {
        assert_eq!(Kind::TQ1_0.bytes(2, 512), Some(2 * 2 * 54));
        assert_eq!(Kind::TQ2_0.bytes(2, 300), None);
        assert_eq!(Kind::I2S.bytes(2, 64), Some(64));
        assert_eq!(Kind::I2S.bytes(1, 64), None);
        assert_eq!(Kind::F32.bytes(usize::MAX, 2), None);
        assert_eq!(Kind::F16.bytes(1 << 40, 1 << 40), None);
        for code in 0..200 {
            if let Ok(kind) = Kind::from_code(code) {
                assert_eq!(kind.code(), code);
            }
        }
    }
}
