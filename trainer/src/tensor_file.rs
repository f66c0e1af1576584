//! safetensors files: written one tensor at a time, read with every check.
//!
//! The `safetensors` crate reads. It writes either from one copy of everything in memory or by a
//! temporary file of its own, so the writer is here: eight bytes of header length, a JSON header,
//! the tensors.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bitnet_formats::float::{bf16_to_f32, f16_to_f32};
use safetensors::{Dtype, SafeTensors};
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

/// A safetensors file in memory.
pub struct TensorFile<'a> {
    path: PathBuf,
    tensors: SafeTensors<'a>,
    metadata: Option<std::collections::HashMap<String, String>>,
}

impl<'a> TensorFile<'a> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if the file is cut short or no safetensors file.
    pub fn open(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        let problem =
            |e| Error::checkpoint(path, format!("damaged or not a safetensors file ({e})"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(problem)?;
        Ok(Self {
            path: path.to_path_buf(),
            tensors: SafeTensors::deserialize(bytes).map_err(problem)?,
            metadata: header.metadata().clone(),
        })
    }

    /// A problem of this file.
    pub fn problem(&self, problem: impl Into<String>) -> Error {
        Error::checkpoint(&self.path, problem)
    }

    /// An entry of the metadata.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(key).map(String::as_str)
    }

    /// Checks that the file holds these tensors and no other.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] naming a tensor that is missing or should not be there.
    pub fn check_names(&self, expected: impl Iterator<Item = String>) -> Result<()> {
        let expected: BTreeSet<String> = expected.collect();
        let found: BTreeSet<String> = self.tensors.names().into_iter().map(Into::into).collect();
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
    /// [`Error::Checkpoint`] naming the tensor.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self
            .tensors
            .tensor(name)
            .map_err(|_| self.problem(format!("tensor {name} is missing")))?;
        if tensor.shape() != shape {
            let found = tensor.shape();
            let problem = format!("tensor {name} has shape {found:?}, expected {shape:?}");
            return Err(self.problem(problem));
        }
        let values = decode(tensor.dtype(), tensor.data()).ok_or_else(|| {
            let dtype = tensor.dtype();
            self.problem(format!(
                "tensor {name} is {dtype:?}; F32, F16 or BF16 can be read"
            ))
        })?;
        match values.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(self.problem(format!("tensor {name} holds {} at {at}", values[at]))),
            None => Ok(values),
        }
    }

    /// [`TensorFile::read`] into a parameter.
    ///
    /// # Errors
    ///
    /// As [`TensorFile::read`].
    pub fn read_into(&self, name: &str, param: &mut Param<f32>) -> Result<()> {
        let values = self.read(name, &param.shape())?;
        flat_mut(&mut param.value).copy_from_slice(&values);
        Ok(())
    }
}

fn decode(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let halves = || {
        data.as_chunks::<2>()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
    };
    match dtype {
        Dtype::F32 => {
            let words = data.as_chunks::<4>().0.iter();
            Some(words.map(|b| f32::from_le_bytes(*b)).collect())
        }
        Dtype::F16 => Some(halves().map(f16_to_f32).collect()),
        Dtype::BF16 => Some(halves().map(bf16_to_f32).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(values: &[f32]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
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
        write(&path, &tensors, ("key", "a \"value\"")).unwrap();
        std::fs::read(path).unwrap()
    }

    fn error(bytes: &[u8], name: &str, shape: &[usize]) -> String {
        let file = TensorFile::open(Path::new("x"), bytes).unwrap();
        file.read(name, shape).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_reads_back() {
        let values: Vec<f32> = (0..3000).map(|i| i as f32 * 0.1).collect();
        let bytes = written(&values);
        let file = TensorFile::open(Path::new("x"), &bytes).unwrap();
        assert_eq!(file.read("b", &[2, 1500]).unwrap(), values);
        assert_eq!(file.read("a", &[1]).unwrap(), [5.0]);
        assert_eq!(file.metadata("key"), Some("a \"value\""));
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    }

    #[test]
    fn each_defect_is_named() {
        let bytes = written(&[1.0, 2.0]);
        let file = TensorFile::open(Path::new("x"), &bytes).unwrap();
        let names = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
            file.check_names(names.into_iter())
        };
        assert!(names(&["a", "b"]).is_ok());
        assert!(
            names(&["a", "b", "c"])
                .unwrap_err()
                .to_string()
                .contains("c is missing")
        );
        assert!(
            names(&["a"])
                .unwrap_err()
                .to_string()
                .contains("b is no part")
        );
        assert!(error(&bytes, "c", &[1]).contains("c is missing"));
        assert!(error(&bytes, "b", &[1, 2]).contains("has shape [2, 1], expected [1, 2]"));
        assert!(error(&written(&[1.0, f32::NAN]), "b", &[2, 1]).contains("holds NaN at 1"));
        let cut = TensorFile::open(Path::new("x"), &bytes[..bytes.len() - 1]);
        assert!(cut.is_err_and(|e| e.to_string().contains("damaged")));
    }

    #[test]
    fn sixteen_bit_floats_widen() {
        assert_eq!(decode(Dtype::F16, &[0x00, 0x3c]), Some(vec![1.0]));
        assert_eq!(decode(Dtype::BF16, &[0x80, 0x3f]), Some(vec![1.0]));
        assert_eq!(decode(Dtype::U8, &[1]), None);
    }
}
