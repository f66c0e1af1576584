//! One safetensors file: its header, checked, and plain reads of its data.
//!
//! ```text
//! 0            8               8 + n
//! | u64 n (LE) | n bytes JSON | data: tensors end to end, no holes, to the end of the file |
//! ```
//!
//! The header is checked as the `safetensors` crate checks it, and once more for names that come
//! twice. The data is never loaded as a whole, which is why that crate's reader is not used.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::error::{ConvertError, HeaderError};

/// Longest header that is read, in bytes. Real ones take about a hundred bytes per tensor.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Bytes of the length field.
const LENGTH_BYTES: u64 = 8;

/// A tensor, as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its data begins in the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// An open safetensors file.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    tensors: Vec<TensorInfo>,
}

impl Shard {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the header is broken.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let mut file = File::open(path).map_err(ConvertError::io("open", path))?;
        let file_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(ConvertError::io("read", path))?;
        file.rewind().map_err(ConvertError::io("read", path))?;
        let header = read_header(&mut file, path, file_bytes)?;
        let data = LENGTH_BYTES + header.len() as u64;
        let tensors = parse_header(&header, file_bytes - data).map_err(in_header(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            tensors: tensors.into_iter().map(|t| t.at(data)).collect(),
        })
    }

    /// The tensors, in the order of their data.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads bytes of a tensor, from `start` within its data.
    ///
    /// # Errors
    ///
    /// The system refuses, or the file has shrunk since it was opened.
    pub fn read(
        &self,
        tensor: &TensorInfo,
        start: u64,
        out: &mut [u8],
    ) -> Result<(), ConvertError> {
        debug_assert!(start + out.len() as u64 <= tensor.bytes);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(tensor.offset + start))
            .and_then(|_| file.read_exact(out))
            .map_err(ConvertError::io("read", &self.path))
    }
}

fn in_header(path: &Path) -> impl FnOnce(HeaderError) -> ConvertError {
    move |source| ConvertError::Header {
        path: path.to_owned(),
        source,
    }
}

/// Reads the JSON part, after checking its length against the file and the cap.
fn read_header(file: &mut File, path: &Path, file_bytes: u64) -> Result<Vec<u8>, ConvertError> {
    if file_bytes < LENGTH_BYTES {
        return Err(in_header(path)(HeaderError::TooShort { bytes: file_bytes }));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length)
        .map_err(ConvertError::io("read", path))?;
    let bytes = u64::from_le_bytes(length);
    check_header_length(bytes, file_bytes - LENGTH_BYTES).map_err(in_header(path))?;
    let mut header = vec![0; bytes as usize];
    file.read_exact(&mut header)
        .map_err(ConvertError::io("read", path))?;
    Ok(header)
}

fn check_header_length(bytes: u64, available: u64) -> Result<(), HeaderError> {
    if bytes > available {
        return Err(HeaderError::Truncated { bytes, available });
    }
    if bytes > MAX_HEADER_BYTES {
        let max = MAX_HEADER_BYTES;
        return Err(HeaderError::TooLarge { bytes, max });
    }
    Ok(())
}

/// A header entry, offsets relative to the data.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// A tensor whose range is checked, still relative to the data.
struct Placed {
    name: String,
    entry: RawEntry,
}

impl Placed {
    fn at(self, data: u64) -> TensorInfo {
        let (start, end) = self.entry.data_offsets;
        TensorInfo {
            name: self.name,
            dtype: self.entry.dtype,
            shape: self.entry.shape,
            offset: data + start,
            bytes: end - start,
        }
    }
}

/// Parses a header and checks that its tensors fill the data exactly.
fn parse_header(json: &[u8], data_bytes: u64) -> Result<Vec<Placed>, HeaderError> {
    let Entries(mut entries) = serde_json::from_slice(json)?;
    refuse_duplicates(&entries)?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (name, entry) in &entries {
        end = check_range(name, entry, end)?;
    }
    if end != data_bytes {
        return Err(HeaderError::DataLength {
            expected: end,
            found: data_bytes,
        });
    }
    let placed = |(name, entry)| Placed { name, entry };
    Ok(entries.into_iter().map(placed).collect())
}

fn refuse_duplicates(entries: &[(String, RawEntry)]) -> Result<(), HeaderError> {
    let mut seen = BTreeSet::new();
    match entries.iter().find(|(name, _)| !seen.insert(name)) {
        Some((name, _)) => Err(HeaderError::Duplicate {
            tensor: name.clone(),
        }),
        None => Ok(()),
    }
}

/// Checks that a tensor starts at `expected` and is as long as it should be; returns its end.
fn check_range(name: &str, entry: &RawEntry, expected: u64) -> Result<u64, HeaderError> {
    let tensor = || name.to_owned();
    let (start, end) = entry.data_offsets;
    let impossible = || HeaderError::Impossible { tensor: tensor() };
    let found = end.checked_sub(start).ok_or_else(impossible)?;
    let bytes = tensor_bytes(entry).ok_or_else(impossible)?;
    if start != expected {
        return Err(HeaderError::Offset {
            tensor: tensor(),
            expected,
            found: start,
        });
    }
    if found != bytes {
        return Err(HeaderError::Size {
            tensor: tensor(),
            expected: bytes,
            found,
        });
    }
    Ok(end)
}

/// Bytes of the shape and dtype, or `None` on overflow or for a fraction of a byte.
fn tensor_bytes(entry: &RawEntry) -> Option<u64> {
    let bits = entry
        .shape
        .iter()
        .try_fold(entry.dtype.bitsize() as u64, |bits, n| {
            bits.checked_mul(*n as u64)
        })?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header's entries in written order; a map would hide names that come twice.
struct Entries(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str, data_bytes: u64) -> Result<Vec<TensorInfo>, String> {
        parse_header(json.as_bytes(), data_bytes)
            .map(|placed| placed.into_iter().map(|t| t.at(100)).collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data() {
        let json = r#"{
            "__metadata__": {"format": "pt"},
            "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "none": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
        }"#;
        let tensors = parse(json, 20).unwrap();
        let names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "none", "b"]);
        assert_eq!((tensors[2].offset, tensors[2].bytes), (108, 12));
    }

    #[test]
    fn each_broken_header_has_its_message() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(
                r#"{{"w": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#
            )
        };
        let twice = r#"{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                        "w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}"#;
        let max = usize::MAX;
        let cases = [
            (twice.to_owned(), 2, "tensor w is listed twice"),
            (
                one("F32", "[2]", "[4, 12]"),
                12,
                "tensor w starts at byte 4; the one before it ends at 0",
            ),
            (
                one("F32", "[2]", "[0, 4]"),
                4,
                "tensor w spans 4 bytes; its shape and dtype need 8",
            ),
            (
                one("F32", "[2]", "[8, 0]"),
                8,
                "tensor w has an impossible shape or range",
            ),
            (
                one("F32", &format!("[{max}, {max}]"), "[0, 8]"),
                8,
                "tensor w has an impossible shape or range",
            ),
            (
                one("F32", "[2]", "[0, 8]"),
                7,
                "tensors take 8 bytes, the file holds 7; is it truncated?",
            ),
            (
                one("F32", "[2]", "[0, 8]"),
                9,
                "tensors take 8 bytes, the file holds 9; is it truncated?",
            ),
        ];
        for (json, data_bytes, message) in cases {
            assert_eq!(parse(&json, data_bytes).unwrap_err(), message, "{json}");
        }
    }

    #[test]
    fn what_is_no_object_of_tensors_does_not_parse() {
        for json in [
            "",
            "[]",
            "{",
            r#"{"w": 1}"#,
            r#"{"w": {"dtype": "F31", "shape": [], "data_offsets": [0, 0]}}"#,
        ] {
            let error = parse(json, 0).unwrap_err();
            assert!(error.starts_with("the header does not parse: "), "{error}");
        }
    }

    #[test]
    fn lying_lengths_are_refused_before_anything_is_allocated() {
        let case = |claimed: u64, rest: usize| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("m.safetensors");
            let mut bytes = claimed.to_le_bytes().to_vec();
            bytes.resize(8 + rest, b' ');
            std::fs::write(&path, &bytes).unwrap();
            match Shard::open(&path).unwrap_err() {
                ConvertError::Header { source, .. } => source.to_string(),
                other => panic!("{other}"),
            }
        };
        assert_eq!(
            case(u64::MAX, 10),
            "the header claims 18446744073709551615 bytes, but only 10 follow; is the file truncated?"
        );
        assert_eq!(
            case(11, 10),
            "the header claims 11 bytes, but only 10 follow; is the file truncated?"
        );
        assert_eq!(
            case(MAX_HEADER_BYTES + 1, MAX_HEADER_BYTES as usize + 1),
            "the header claims 16777217 bytes; at most 16777216 are read"
        );
    }

    #[test]
    fn a_file_of_seven_bytes_is_too_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        std::fs::write(&path, [0; 7]).unwrap();
        let message = Shard::open(&path).unwrap_err().to_string();
        assert_eq!(
            message,
            format!(
                "{}: 7 bytes are too few for a safetensors file",
                path.display()
            )
        );
    }

    proptest! {
        /// A tiling of the data is accepted; moving any one end of it is not.
        #[test]
        fn only_a_tiling_is_accepted(
            mut cuts in prop::collection::vec(0u64..50, 1..6),
            moved: prop::sample::Index,
            by in prop::sample::select(vec![-2i64, -1, 0, 1, 2]),
        ) {
            cuts.sort_unstable();
            let data_bytes = cuts[cuts.len() - 1];
            let mut ends: Vec<u64> = cuts.iter().flat_map(|cut| [*cut, *cut]).collect();
            ends.pop();
            ends.insert(0, 0);
            let moved = moved.index(ends.len());
            ends[moved] = ends[moved].saturating_add_signed(by);
            let json = format!("{{{}}}", ends.as_chunks().0.iter().enumerate().map(|(i, [start, end])| {
                let n = end.saturating_sub(*start);
                format!(r#""t{i}": {{"dtype": "U8", "shape": [{n}], "data_offsets": [{start}, {end}]}}"#)
            }).collect::<Vec<_>>().join(","));
            let original = ends[moved] == if moved == 0 { 0 } else { cuts[(moved - 1) / 2] };
            let parsed = parse(&json, data_bytes);
            prop_assert_eq!(parsed.is_ok(), original, "{:?} {}", parsed, json);
        }
    }
}
