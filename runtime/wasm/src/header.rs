//! What the plan needs to know, from the first bytes of a file that is not in memory yet.

use bitnet_formats::header::{
    PREAMBLE_BYTES, Preamble, SECTION_ENTRY_BYTES, SectionEntry, TENSOR_ENTRY_BYTES, TensorEntry,
    header_bytes,
};
use bitnet_formats::metadata::{MAX_CONFIG_BYTES, decode_config};
use bitnet_formats::{Dtype, FormatError, ModelConfig, SectionKind};

use crate::error::Error;

/// Room for what is read: the longest configuration.
pub type Buffer = [u8; MAX_CONFIG_BYTES];

/// The front of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// The model's configuration.
    pub config: ModelConfig,
    /// True where a tensor is packed, so that weights are decoded into memory of their own.
    pub packed: bool,
}

/// Reads the front of a file. `read` fills a slice with the bytes at an offset. The file is looked
/// at only as far as the plan needs it; [`bitnet_runtime::Archive::open`] checks everything later.
///
/// # Errors
///
/// What `read` returns, or the file is no model of `file_bytes` bytes.
pub fn read_head(
    file_bytes: u32,
    buffer: &mut Buffer,
    mut read: impl FnMut(u32, &mut [u8]) -> Result<(), Error>,
) -> Result<Head, Error> {
    let mut preamble = [0; PREAMBLE_BYTES];
    within(0, PREAMBLE_BYTES as u64, file_bytes)?;
    read(0, &mut preamble)?;
    let preamble = Preamble::decode(&preamble)?;
    match (preamble.file_bytes, u64::from(file_bytes)) {
        (needed, found) if needed > found => Err(FormatError::Truncated { needed, found })?,
        (stated, found) if stated < found => Err(FormatError::TrailingBytes { stated, found })?,
        _ => (),
    }
    let table = preamble.n_sections as usize * SECTION_ENTRY_BYTES;
    within(PREAMBLE_BYTES as u64, table as u64, file_bytes)?;
    read(PREAMBLE_BYTES as u32, &mut buffer[..table])?;
    let (offset, bytes) = config_place(&buffer[..table])?;
    let offset = within(offset, bytes, file_bytes)?;
    let content = FormatError::SectionContent(SectionKind::Config);
    let config = usize::try_from(bytes)
        .ok()
        .and_then(|bytes| buffer.get_mut(..bytes))
        .ok_or(content)?;
    read(offset, config)?;
    let config = decode_config(config)?;
    let packed = has_packed(&preamble, file_bytes, buffer, read)?;
    Ok(Head { config, packed })
}

/// Looks through the tensor table, a buffer's length at a time.
fn has_packed(
    preamble: &Preamble,
    file_bytes: u32,
    buffer: &mut Buffer,
    mut read: impl FnMut(u32, &mut [u8]) -> Result<(), Error>,
) -> Result<bool, Error> {
    let sections = u64::from(preamble.n_sections);
    let start = header_bytes(sections, 0);
    let end = header_bytes(sections, u64::from(preamble.n_tensors));
    within(start, end - start, file_bytes)?;
    for at in (start..end).step_by(MAX_CONFIG_BYTES) {
        let bytes = MAX_CONFIG_BYTES.min((end - at) as usize);
        let entries = &mut buffer[..bytes];
        read(at as u32, entries)?;
        for (raw, base) in entries
            .as_chunks()
            .0
            .iter()
            .zip((at..).step_by(TENSOR_ENTRY_BYTES))
        {
            if TensorEntry::decode(raw, base)?.dtype == Dtype::Packed.code() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Offset and length of the configuration.
fn config_place(table: &[u8]) -> Result<(u64, u64), FormatError> {
    for (index, raw) in table.as_chunks().0.iter().enumerate() {
        let entry = SectionEntry::decode(raw, index)?;
        if entry.kind == SectionKind::Config as u32 {
            return Ok((entry.offset, entry.bytes));
        }
    }
    Err(FormatError::MissingSection(SectionKind::Config))
}

/// The offset, if the bytes are within the file.
fn within(offset: u64, bytes: u64, file_bytes: u32) -> Result<u32, FormatError> {
    let found = u64::from(file_bytes);
    let needed = offset.saturating_add(bytes);
    if needed > found {
        return Err(FormatError::Truncated { needed, found });
    }
    Ok(offset as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_runtime::Archive;
    use bitnet_tests::packed::packed;

    fn shipped() -> Vec<u8> {
        std::fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/austen-nano.btn"
        ))
        .unwrap()
    }

    fn head_of(file: &[u8]) -> Result<Head, Error> {
        read_head(
            file.len() as u32,
            &mut [0; MAX_CONFIG_BYTES],
            |offset, to| {
                to.copy_from_slice(&file[offset as usize..][..to.len()]);
                Ok(())
            },
        )
    }

    #[test]
    fn the_head_is_that_of_the_archive() {
        let plain = shipped();
        for (file, packed) in [(packed(&plain), true), (plain, false)] {
            let config = *Archive::open(&file).unwrap().config();
            assert_eq!(head_of(&file), Ok(Head { config, packed }));
        }
    }

    /// What is read lies within the file, whatever its header says: `read` here would panic.
    #[test]
    fn files_that_are_cut_or_changed_are_errors() {
        let file = shipped();
        for len in [0, 1, 63, 64, 65, 200, 1_000, file.len() - 1] {
            assert!(
                matches!(head_of(&file[..len]), Err(Error::Format(_))),
                "{len}"
            );
        }
        for bit in 0..8 * 512 {
            let mut file = file.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            let _ = head_of(&file);
        }
        let failing = read_head(100, &mut [0; MAX_CONFIG_BYTES], |offset, to| {
            Err(Error::Read {
                offset,
                bytes: to.len() as u32,
            })
        });
        let (offset, bytes) = (0, 64);
        assert_eq!(failing, Err(Error::Read { offset, bytes }));
    }
}
