//! The fixed-width front of a file: preamble, section table, tensor table. All little-endian.
//!
//! ```text
//! 0                64               64 + 32 s          64 + 32 s + 64 t
//! | preamble (64)  | s sections (32) | t tensors (64)  | padding | sections ...
//! ```

use crate::error::{Covered, FormatError};

/// First bytes of a file. Like PNG's: a transfer that strips bit 7 or rewrites line ends breaks it.
pub const MAGIC: [u8; 8] = *b"\x89BTN\r\n\x1a\n";
/// Newest format version this crate reads, and the one it writes.
pub const VERSION: u32 = 1;
/// Feature bits this crate knows. A reader must refuse a file with any other bit set.
pub const KNOWN_FEATURES: u64 = 0;
/// Most sections of a file.
pub const MAX_SECTIONS: u32 = 64;

/// Bytes of the preamble.
pub const PREAMBLE_BYTES: usize = 64;
/// Bytes of an entry of the section table.
pub const SECTION_ENTRY_BYTES: usize = 32;
/// Bytes of an entry of the tensor table.
pub const TENSOR_ENTRY_BYTES: usize = 64;

/// Layer code of a tensor that belongs to no block.
pub const NO_LAYER: u16 = 0xffff;

/// The first 64 bytes, apart from magic, version and its own checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// Length of the file.
    pub file_bytes: u64,
    /// Features a reader must know.
    pub features: u64,
    /// Entries of the section table.
    pub n_sections: u32,
    /// Entries of the tensor table.
    pub n_tensors: u32,
    /// CRC-32 of both tables.
    pub tables_crc: u32,
    /// CRC-32 of everything after the preamble.
    pub body_crc: u32,
}

impl Preamble {
    /// Encodes the preamble with its checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut out = [0; PREAMBLE_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.file_bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.features.to_le_bytes());
        out[32..36].copy_from_slice(&self.n_sections.to_le_bytes());
        out[36..40].copy_from_slice(&self.n_tensors.to_le_bytes());
        out[40..44].copy_from_slice(&self.tables_crc.to_le_bytes());
        out[44..48].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes and checks a preamble.
    ///
    /// # Errors
    ///
    /// Signature, version, checksum, features, section count or a reserved field is wrong. The
    /// version is looked at before the checksum, so that a file from the future is named as such.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, FormatError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(FormatError::NotBtn);
        }
        let found = u32_at(bytes, 8);
        if found != VERSION {
            return Err(FormatError::Version {
                found,
                supported: VERSION,
            });
        }
        let (crc, stated) = (crc32fast::hash(&bytes[..60]), u32_at(bytes, 60));
        check_crc(Covered::Preamble, stated, crc)?;
        let preamble = Self {
            file_bytes: u64_at(bytes, 16),
            features: u64_at(bytes, 24),
            n_sections: u32_at(bytes, 32),
            n_tensors: u32_at(bytes, 36),
            tables_crc: u32_at(bytes, 40),
            body_crc: u32_at(bytes, 44),
        };
        preamble.check(bytes)?;
        Ok(preamble)
    }

    fn check(&self, bytes: &[u8; PREAMBLE_BYTES]) -> Result<(), FormatError> {
        let unknown = self.features & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(FormatError::Features { unknown });
        }
        if self.n_sections > MAX_SECTIONS {
            return Err(FormatError::TooManySections {
                found: self.n_sections,
                max: MAX_SECTIONS,
            });
        }
        for offset in [12, 48, 52, 56] {
            check_reserved(bytes, 0, offset, 4)?;
        }
        Ok(())
    }

    /// Bytes of preamble and tables together.
    #[must_use]
    pub const fn header_bytes(&self) -> u64 {
        header_bytes(self.n_sections as u64, self.n_tensors as u64)
    }
}

/// Bytes of preamble and tables together.
#[must_use]
pub const fn header_bytes(n_sections: u64, n_tensors: u64) -> u64 {
    PREAMBLE_BYTES as u64
        + n_sections * SECTION_ENTRY_BYTES as u64
        + n_tensors * TENSOR_ENTRY_BYTES as u64
}

/// An entry of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionEntry {
    /// Code of [`crate::section::SectionKind`]; unknown codes are kept.
    pub kind: u32,
    /// True where a reader that does not know the kind must refuse the file.
    pub required: bool,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length, without padding after it.
    pub bytes: u64,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

impl SectionEntry {
    /// Encodes the entry.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTION_ENTRY_BYTES] {
        let mut out = [0; SECTION_ENTRY_BYTES];
        out[..4].copy_from_slice(&self.kind.to_le_bytes());
        out[4..8].copy_from_slice(&u32::from(self.required).to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        out[24..28].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    /// Decodes entry `index` of the table.
    ///
    /// # Errors
    ///
    /// A reserved bit or field is not zero.
    pub fn decode(bytes: &[u8; SECTION_ENTRY_BYTES], index: usize) -> Result<Self, FormatError> {
        let base = header_bytes(index as u64, 0);
        let flags = u32_at(bytes, 4);
        if flags > 1 {
            return Err(FormatError::Reserved { offset: base + 4 });
        }
        check_reserved(bytes, base, 28, 4)?;
        Ok(Self {
            kind: u32_at(bytes, 0),
            required: flags == 1,
            offset: u64_at(bytes, 8),
            bytes: u64_at(bytes, 16),
            crc: u32_at(bytes, 24),
        })
    }
}

/// An entry of the tensor table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorEntry {
    /// Code of [`crate::TensorRole`].
    pub role: u16,
    /// Block, or [`NO_LAYER`].
    pub layer: u16,
    /// Code of [`crate::Dtype`].
    pub dtype: u8,
    /// What one scale covers: 0 the whole tensor; 1 a row and 2 a group along the columns are
    /// reserved and not written by this version.
    pub granularity: u8,
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// Where the payload begins in the file.
    pub offset: u64,
    /// Length of the payload, without padding after it.
    pub bytes: u64,
    /// Scale of a ternary tensor; zero for others.
    pub scale: f32,
}

impl TensorEntry {
    /// Encodes the entry.
    #[must_use]
    pub fn encode(&self) -> [u8; TENSOR_ENTRY_BYTES] {
        let mut out = [0; TENSOR_ENTRY_BYTES];
        out[..2].copy_from_slice(&self.role.to_le_bytes());
        out[2..4].copy_from_slice(&self.layer.to_le_bytes());
        out[4] = self.dtype;
        out[5] = self.granularity;
        out[8..12].copy_from_slice(&self.rows.to_le_bytes());
        out[12..16].copy_from_slice(&self.cols.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        out[32..36].copy_from_slice(&self.scale.to_le_bytes());
        out
    }

    /// Decodes an entry that stands at `base` in the file.
    ///
    /// # Errors
    ///
    /// A reserved field is not zero.
    pub fn decode(bytes: &[u8; TENSOR_ENTRY_BYTES], base: u64) -> Result<Self, FormatError> {
        check_reserved(bytes, base, 6, 2)?;
        check_reserved(bytes, base, 36, 28)?;
        Ok(Self::read(bytes))
    }

    /// Reads the fields without looking at the reserved ones.
    pub(crate) fn read(bytes: &[u8; TENSOR_ENTRY_BYTES]) -> Self {
        Self {
            role: u16_at(bytes, 0),
            layer: u16_at(bytes, 2),
            dtype: bytes[4],
            granularity: bytes[5],
            rows: u32_at(bytes, 8),
            cols: u32_at(bytes, 12),
            offset: u64_at(bytes, 16),
            bytes: u64_at(bytes, 24),
            scale: f32::from_bits(u32_at(bytes, 32)),
        }
    }
}

pub(crate) fn check_crc(what: Covered, stated: u32, found: u32) -> Result<(), FormatError> {
    if stated != found {
        return Err(FormatError::Checksum {
            what,
            stated,
            found,
        });
    }
    Ok(())
}

fn check_reserved<const N: usize>(
    bytes: &[u8; N],
    base: u64,
    at: usize,
    len: usize,
) -> Result<(), FormatError> {
    if bytes[at..at + len].iter().any(|b| *b != 0) {
        return Err(FormatError::Reserved {
            offset: base + at as u64,
        });
    }
    Ok(())
}

// Field offsets are constants below N: these cannot fail.

fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
