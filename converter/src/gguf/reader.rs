//! The header of a GGUF file, and plain reads of its data.
//!
//! Nothing in the file is believed: every count and length is checked against what is left of the
//! file and against a cap before anything is allocated, so that a header takes at most some three
//! times [`MAX_HEADER_BYTES`] of memory, and time linear in its size.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::ConvertError;
use crate::gguf::error::GgufError;
use crate::gguf::kinds::{Kind, MOST_VALUES};

/// Most bytes of metadata and tensor list that are read. A vocabulary of 128,256 with its merges takes
/// eight million.
pub const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Most tensors, and most keys.
const MAX_ENTRIES: u64 = 1 << 16;
/// Most elements of a list: [`bitnet_formats::config::MAX_VOCAB`].
const MAX_LIST: u64 = 1 << 22;
/// Longest string: a chat template.
const MAX_STRING: u64 = 1 << 20;
/// Most dimensions of a tensor.
const MAX_DIMS: u64 = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer, or a non-negative signed one.
    Uint(u64),
    /// A negative integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// Text, which need not be UTF-8.
    Text(Vec<u8>),
    /// A list of numbers.
    Numbers(Vec<f64>),
    /// A list of strings.
    Strings(Strings),
}

/// A list of strings, end to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Strings {
    /// Number of strings.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// True for no strings.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String `i`.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)? as usize;
        let start = i
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        self.bytes.get(start..end)
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

/// A tensor, as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How it is stored.
    pub kind: Kind,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns: the fastest dimension, which comes first in the file.
    pub cols: usize,
    /// True where the header gives two or more dimensions.
    pub is_matrix: bool,
    /// Where its data begins in the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or something in the header is wrong.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let mut file = File::open(path).map_err(ConvertError::io("open", path))?;
        let file_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(ConvertError::io("read", path))?;
        file.rewind().map_err(ConvertError::io("read", path))?;
        let header = read_header(&mut BufReader::new(&file), file_bytes);
        let header = header.map_err(|e| e.at(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata: header.metadata,
            tensors: header.tensors,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
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

/// What stands before the data.
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

/// A header that cannot be read, or bytes that cannot.
#[derive(Debug)]
pub(crate) enum ReadError {
    Gguf(GgufError),
    Io(std::io::Error),
}

impl ReadError {
    fn at(self, path: &Path) -> ConvertError {
        match self {
            Self::Gguf(source) => ConvertError::Gguf {
                path: path.to_owned(),
                source,
            },
            Self::Io(source) => ConvertError::io("read", path)(source),
        }
    }
}

impl From<GgufError> for ReadError {
    fn from(error: GgufError) -> Self {
        Self::Gguf(error)
    }
}

/// Reads and checks the header of a file of `file_bytes` bytes.
pub(crate) fn read_header(input: &mut impl Read, file_bytes: u64) -> Result<Header, ReadError> {
    let mut fields = Fields::new(input, file_bytes);
    if fields.magic()? != *b"GGUF" {
        return Err(GgufError::NotGguf.into());
    }
    match fields.u32()? {
        2 | 3 => (),
        version => return Err(GgufError::Version(version).into()),
    }
    let n_tensors = fields.count("tensors", MAX_ENTRIES)?;
    let n_keys = fields.count("keys", MAX_ENTRIES)?;
    let metadata = fields.metadata(n_keys)?;
    let drafts: Field<Vec<_>> = (0..n_tensors).map(|_| fields.tensor()).collect();
    let alignment = alignment(&metadata)?;
    let data = fields.position.checked_next_multiple_of(alignment);
    let data = data.ok_or(GgufError::Alignment(alignment))?;
    let tensors = place(drafts?, data, alignment, file_bytes)?;
    Ok(Header { metadata, tensors })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    const DEFAULT: u64 = 32;
    match metadata.get(KEY) {
        None => Ok(DEFAULT),
        Some(Value::Uint(n)) if n.is_power_of_two() => Ok(*n),
        Some(Value::Uint(n)) => Err(GgufError::Alignment(*n)),
        Some(_) => Err(GgufError::WrongType {
            key: KEY.to_owned(),
            expected: "a whole number",
        }),
    }
}

/// Gives every tensor its place in the file, and checks that they keep to it and apart.
fn place(
    drafts: Vec<TensorInfo>,
    data: u64,
    alignment: u64,
    file: u64,
) -> Result<BTreeMap<String, TensorInfo>, GgufError> {
    let mut placed = Vec::with_capacity(drafts.len());
    for mut tensor in drafts {
        let relative = tensor.offset;
        let start = data.saturating_add(relative);
        let end = start.saturating_add(tensor.bytes);
        if end > file || !relative.is_multiple_of(alignment) {
            let tensor = tensor.name;
            return Err(GgufError::Place {
                tensor,
                start,
                end,
                file,
            });
        }
        tensor.offset = start;
        placed.push(tensor);
    }
    refuse_overlaps(&mut placed)?;
    let mut names = BTreeSet::new();
    if let Some(twice) = placed.iter().find(|t| !names.insert(&t.name)) {
        return Err(GgufError::Duplicate(twice.name.clone()));
    }
    Ok(placed.into_iter().map(|t| (t.name.clone(), t)).collect())
}

fn refuse_overlaps(tensors: &mut [TensorInfo]) -> Result<(), GgufError> {
    tensors.sort_by_key(|tensor| tensor.offset);
    let overlap = tensors
        .windows(2)
        .find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset);
    match overlap {
        Some(pair) => Err(GgufError::Overlap(
            pair[0].name.clone(),
            pair[1].name.clone(),
        )),
        None => Ok(()),
    }
}

/// The fields of a header, one after another.
struct Fields<'r, R> {
    input: &'r mut R,
    position: u64,
    /// Where fields must end: the end of the file, or the cap.
    end: u64,
}

type Field<T> = Result<T, ReadError>;

impl<'r, R: Read> Fields<'r, R> {
    fn new(input: &'r mut R, file_bytes: u64) -> Self {
        Self {
            input,
            position: 0,
            end: file_bytes.min(MAX_HEADER_BYTES),
        }
    }

    /// Fails unless so many bytes are left.
    fn expect(&self, needed: u64) -> Result<(), GgufError> {
        let end = self.end;
        if needed > end - self.position {
            return Err(GgufError::Truncated { needed, end });
        }
        Ok(())
    }

    fn fill(&mut self, out: &mut [u8]) -> Field<()> {
        self.expect(out.len() as u64)?;
        self.input.read_exact(out).map_err(ReadError::Io)?;
        self.position += out.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Field<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn magic(&mut self) -> Field<[u8; 4]> {
        if self.end < 4 {
            return Err(GgufError::NotGguf.into());
        }
        self.array()
    }

    fn u32(&mut self) -> Field<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Field<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self, what: &'static str, max: u64) -> Field<u64> {
        let found = self.u64()?;
        if found > max {
            return Err(GgufError::TooMany { what, found, max }.into());
        }
        Ok(found)
    }

    /// Appends a string to `out`; returns its length.
    fn string(&mut self, out: &mut Vec<u8>) -> Field<usize> {
        let found = self.u64()?;
        let max = MAX_STRING;
        if found > max {
            return Err(GgufError::LongString { found, max }.into());
        }
        self.expect(found)?;
        let (start, length) = (out.len(), found as usize);
        out.resize(start + length, 0);
        self.fill(&mut out[start..])?;
        Ok(length)
    }

    fn name(&mut self) -> Field<String> {
        let mut bytes = Vec::new();
        self.string(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| GgufError::NotUtf8.into())
    }

    fn metadata(&mut self, n_keys: u64) -> Field<BTreeMap<String, Value>> {
        let mut metadata = BTreeMap::new();
        for _ in 0..n_keys {
            let key = self.name()?;
            let value = self.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Duplicate(key).into());
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str) -> Field<Value> {
        const STRING: u32 = 8;
        const LIST: u32 = 9;
        match self.u32()? {
            STRING => {
                let mut bytes = Vec::new();
                self.string(&mut bytes)?;
                Ok(Value::Text(bytes))
            }
            LIST => match self.u32()? {
                STRING => self.strings(),
                LIST => Err(value_type(key, LIST)),
                kind => self.numbers(key, kind),
            },
            kind => self.scalar(key, kind),
        }
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Field<Value> {
        let signed = |n: i64| u64::try_from(n).map_or(Value::Int(n), Value::Uint);
        Ok(match kind {
            0 => Value::Uint(self.array::<1>()?[0].into()),
            1 => signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Uint(u16::from_le_bytes(self.array()?).into()),
            3 => signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Uint(self.u32()?.into()),
            5 => signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            10 => Value::Uint(self.u64()?),
            11 => signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            kind => return Err(value_type(key, kind)),
        })
    }

    fn strings(&mut self) -> Field<Value> {
        let n = self.count("strings in a list", MAX_LIST)?;
        // Each has a length of eight bytes at least.
        self.expect(8 * n)?;
        let mut strings = Strings::default();
        for _ in 0..n {
            self.string(&mut strings.bytes)?;
            strings.ends.push(strings.bytes.len() as u32);
        }
        Ok(Value::Strings(strings))
    }

    fn numbers(&mut self, key: &str, kind: u32) -> Field<Value> {
        let n = self.count("numbers in a list", MAX_LIST)?;
        self.expect(n)?;
        let mut numbers = Vec::new();
        for _ in 0..n {
            numbers.push(match self.scalar(key, kind)? {
                Value::Uint(n) => n as f64,
                Value::Int(n) => n as f64,
                Value::Float(x) => x,
                flag => f64::from(u8::from(flag == Value::Bool(true))),
            });
        }
        Ok(Value::Numbers(numbers))
    }

    /// A tensor whose offset is still relative to the data.
    fn tensor(&mut self) -> Field<TensorInfo> {
        let name = self.name()?;
        let n_dims = u64::from(self.u32()?);
        let mut dims = Vec::new();
        if n_dims == 0 || n_dims > MAX_DIMS {
            return Err(GgufError::Shape(name).into());
        }
        for _ in 0..n_dims {
            dims.push(self.u64()?);
        }
        let code = self.u32()?;
        let offset = self.u64()?;
        Ok(describe(name, &dims, code, offset)?)
    }
}

fn value_type(key: &str, kind: u32) -> ReadError {
    let key = key.to_owned();
    GgufError::ValueType { key, kind }.into()
}

fn describe(name: String, dims: &[u64], code: u32, offset: u64) -> Result<TensorInfo, GgufError> {
    let shape = || GgufError::Shape(name.clone());
    let size = |n: &u64| usize::try_from(*n).ok().filter(|n| *n > 0);
    let cols = dims.first().and_then(size).ok_or_else(shape)?;
    let rows = dims[1..]
        .iter()
        .try_fold(1usize, |rows, n| rows.checked_mul(size(n)?))
        .ok_or_else(shape)?;
    rows.checked_mul(cols)
        .filter(|n| *n < MOST_VALUES)
        .ok_or_else(shape)?;
    let kind = Kind::from_code(code).map_err(|(kind, reason)| GgufError::Kind {
        tensor: name.clone(),
        kind,
        reason,
    })?;
    let bytes = kind.bytes(rows, cols).ok_or_else(|| GgufError::Blocks {
        tensor: name.clone(),
        cols,
        block: kind.block(),
    })?;
    Ok(TensorInfo {
        name,
        kind,
        rows,
        cols,
        is_matrix: dims.len() > 1,
        offset,
        bytes,
    })
}
