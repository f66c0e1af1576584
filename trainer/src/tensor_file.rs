//! safetensors files: written one tensor at a time, read with every check.
//!
//! The `safetensors` crate checks the header. It reads and writes from one copy of everything in
//! memory, so reader and writer are here: eight bytes of header length, a JSON header, the tensors.
//! Neither holds more of a tensor than a block.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_formats::float::{bf16_to_f32, f16_to_f32};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::param::Param;
use crate::tensor::flat_mut;

/// A named f32 tensor to write.
#[derive(Clone, Debug)]
pub struct Named<'a> {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: &'a [f32],
}

/// Writes tensors in the order given, with one entry of metadata.
///
/// # Errors
///
/// [`Error::Io`]; a file that was there before then still is.
pub fn write(path: &Path, tensors: &[Named<'_>], (key, value): (&str, &str)) -> Result<()> {
    let header = header(tensors, key, value);
    write_atomically(path, |file| {
        let mut out = io::BufWriter::with_capacity(1 << 20, file);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for tensor in tensors {
            write_values(&mut out, tensor.values)?;
        }
        out.flush()
    })
}

/// The JSON header, padded with spaces so that the tensors start at a multiple of 8.
fn header(tensors: &[Named<'_>], key: &str, value: &str) -> String {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ key: value }));
    let mut start = 0;
    for tensor in tensors {
        let end = start + 4 * tensor.values.len();
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]});
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut text = Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(
        ' ',
        text.len().next_multiple_of(8) - text.len(),
    ));
    text
}

fn write_values(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut block = [0; 4096];
    for values in values.chunks(block.len() / 4) {
        let (bytes, _) = block.as_chunks_mut::<4>();
        for (bytes, value) in bytes.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        out.write_all(&block[..4 * values.len()])?;
    }
    Ok(())
}

/// Bytes of the longest header: that of the `safetensors` crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of a tensor that are in memory at a time; whole values of any width.
const BLOCK_BYTES: usize = 1 << 20;

/// An open safetensors file.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    data_start: u64,
}

impl TensorFile {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Checkpoint`] if the file is cut short or no safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path, "read"))?;
        let (header, data_start) = read_header(&mut file).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::checkpoint(path, format!("damaged or not a safetensors file ({e})"))
            }
            _ => Error::io(path, "read")(e),
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            header,
            data_start,
        })
    }

    /// A problem of this file.
    pub fn problem(&self, problem: impl Into<String>) -> Error {
        Error::checkpoint(&self.path, problem)
    }

    /// An entry of the metadata.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let metadata: &Option<HashMap<String, String>> = self.header.metadata();
        metadata.as_ref()?.get(key).map(String::as_str)
    }

    /// Checks that the file holds these tensors and no other.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] naming a tensor that is missing or should not be there.
    pub fn check_names(&self, expected: impl Iterator<Item = String>) -> Result<()> {
        let expected: BTreeSet<String> = expected.collect();
        let found: BTreeSet<String> = self.header.tensors().into_keys().collect();
        if let Some(name) = expected.difference(&found).next() {
            return Err(self.problem(format!("tensor {name} is missing")));
        }
        match found.difference(&expected).next() {
            Some(name) => Err(self.problem(format!("tensor {name} is no part of this model"))),
            None => Ok(()),
        }
    }

    /// Values of a tensor of this shape: f32, f16 or bf16, all finite.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] naming the tensor; [`Error::Io`].
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut values = vec![0.0; shape.iter().product()];
        self.read_values(name, shape, &mut values)?;
        Ok(values)
    }

    /// [`TensorFile::read`] into a parameter.
    ///
    /// # Errors
    ///
    /// As [`TensorFile::read`].
    pub fn read_into(&self, name: &str, param: &mut Param<f32>) -> Result<()> {
        let shape = param.shape();
        self.read_values(name, &shape, flat_mut(&mut param.value))
    }

    /// [`TensorFile::read`] into as many values as `shape` has.
    ///
    /// # Errors
    ///
    /// As [`TensorFile::read`].
    pub fn read_values(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()> {
        let info = self
            .header
            .info(name)
            .ok_or_else(|| self.problem(format!("tensor {name} is missing")))?;
        if info.shape != shape {
            let found = &info.shape;
            let problem = format!("tensor {name} has shape {found:?}, expected {shape:?}");
            return Err(self.problem(problem));
        }
        let (dtype, start) = (info.dtype, self.data_start + info.data_offsets.0 as u64);
        let Some(width) = width(dtype) else {
            return Err(self.problem(format!(
                "tensor {name} is {dtype:?}; F32, F16 or BF16 can be read"
            )));
        };
        self.read_blocks(dtype, width, start, values)
            .map_err(Error::io(&self.path, "read"))?;
        match values.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(self.problem(format!("tensor {name} holds {} at {at}", values[at]))),
            None => Ok(()),
        }
    }

    fn read_blocks(
        &self,
        dtype: Dtype,
        width: usize,
        start: u64,
        values: &mut [f32],
    ) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; BLOCK_BYTES.min(width * values.len())];
        for values in values.chunks_mut(BLOCK_BYTES / width) {
            let bytes = &mut block[..width * values.len()];
            file.read_exact(bytes)?;
            decode(dtype, bytes, values);
        }
        Ok(())
    }
}

/// The header, and where the tensors begin. The file is as long as the header says.
fn read_header(file: &mut File) -> io::Result<(Metadata, u64)> {
    let bad = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(bad("the header is too long"));
    }
    let mut json = Vec::new();
    file.take(length).read_to_end(&mut json)?;
    let header: Metadata = serde_json::from_slice(&json)?;
    let data_start = 8 + length;
    match file.metadata()?.len() == data_start + header.data_len() as u64 {
        true => Ok((header, data_start)),
        false => Err(bad("its length is not what its header says")),
    }
}

/// Bytes of a value, where the type can be read.
const fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Little-endian values of a type that has a [`width`].
fn decode(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    if dtype == Dtype::F32 {
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        return;
    }
    let widen = match dtype {
        Dtype::F16 => f16_to_f32,
        _ => bf16_to_f32,
    };
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = widen(u16::from_le_bytes(*bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Written {
        folder: tempfile::TempDir,
    }

    impl Written {
        fn new(values: &[f32]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let tensors = [
                Named {
                    name: "b".into(),
                    shape: vec![2, values.len() / 2],
                    values,
                },
                Named {
                    name: "a".into(),
                    shape: vec![1],
                    values: &[5.0],
                },
            ];
            let path = folder.path().join("x");
            write(&path, &tensors, ("key", "a \"value\"")).unwrap();
            Self { folder }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("x")
        }

        fn open(&self) -> TensorFile {
            TensorFile::open(&self.path()).unwrap()
        }

        fn error(&self, name: &str, shape: &[usize]) -> String {
            self.open().read(name, shape).unwrap_err().to_string()
        }

        /// What opening says of the file with these bytes.
        fn refused(&self, bytes: &[u8]) -> String {
            std::fs::write(self.path(), bytes).unwrap();
            TensorFile::open(&self.path()).unwrap_err().to_string()
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for len in [3000, BLOCK_BYTES / 2 + 6] {
            let values: Vec<f32> = (0..len).map(|i| i as f32 * 0.1).collect();
            let written = Written::new(&values);
            let file = written.open();
            assert_eq!(file.read("b", &[2, len / 2]).unwrap(), values);
            assert_eq!(file.read("a", &[1]).unwrap(), [5.0]);
            assert_eq!(file.metadata("key"), Some("a \"value\""));
            assert_eq!(file.data_start % 8, 0);
        }
    }

    #[test]
    fn each_defect_is_named() {
        let written = Written::new(&[1.0, 2.0]);
        let names = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
            let checked = written.open().check_names(names.into_iter());
            checked.map_err(|e| e.to_string())
        };
        assert!(names(&["a", "b"]).is_ok());
        assert!(names(&["a", "b", "c"]).is_err_and(|e| e.contains("c is missing")));
        assert!(names(&["a"]).is_err_and(|e| e.contains("b is no part")));
        assert!(written.error("c", &[1]).contains("c is missing"));
        let shape = written.error("b", &[1, 2]);
        assert!(shape.contains("has shape [2, 1], expected [1, 2]"));
        let nan = Written::new(&[1.0, f32::NAN]).error("b", &[2, 1]);
        assert!(nan.contains("holds NaN at 1"));
        let bytes = std::fs::read(written.path()).unwrap();
        for len in [0, 7, 9, bytes.len() - 1] {
            let error = written.refused(&bytes[..len]);
            assert!(error.contains("damaged"), "{len}: {error}");
        }
        assert!(written.refused(&[0xff; 64]).contains("too long"));
        let longer = [&bytes[..], &[0]].concat();
        assert!(written.refused(&longer).contains("its length"));
    }

    #[test]
    fn sixteen_bit_floats_widen() {
        let mut value = [0.0];
        decode(Dtype::F16, &[0x00, 0x3c], &mut value);
        assert_eq!(value, [1.0]);
        decode(Dtype::BF16, &[0x00, 0x40], &mut value);
        assert_eq!(value, [2.0]);
        assert_eq!(width(Dtype::U8), None);
    }
}
