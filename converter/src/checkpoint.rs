//! The files of a checkpoint, and which of them holds which tensor.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::ConvertError;
use crate::shard::{Shard, TensorInfo};
use crate::sidecar::{MAX_JSON_BYTES, read_capped};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened checkpoint: one safetensors file, or several under an index.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Shard, and place in it, by name.
    index: BTreeMap<String, (usize, usize)>,
}

/// A tensor and the file that holds it.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'c> {
    /// What the header says of it.
    pub info: &'c TensorInfo,
    shard: &'c Shard,
}

impl TensorRef<'_> {
    /// Reads bytes of the tensor, from `start` within its data.
    ///
    /// # Errors
    ///
    /// See [`Shard::read`].
    pub fn read(&self, start: u64, out: &mut [u8]) -> Result<(), ConvertError> {
        self.shard.read(self.info, start, out)
    }
}

impl Checkpoint {
    /// Opens a safetensors file, an index of shards, or a directory with one of the two.
    ///
    /// # Errors
    ///
    /// There is no checkpoint, a header is broken, or index and shards disagree.
    pub fn open(input: &Path) -> Result<Self, ConvertError> {
        let file = locate(input)?;
        let dir = match file.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        if file.extension().is_some_and(|e| e == "json") {
            return Self::open_index(&file, dir);
        }
        let mut checkpoint = Self::empty(dir);
        checkpoint.add_shard(Shard::open(&file)?, |_| Ok(()))?;
        Ok(checkpoint)
    }

    /// The folder in which config.json and the tokenizer are looked for.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files of the weights.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(Shard::path)
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        let &(shard, place) = self.index.get(name)?;
        let shard = &self.shards[shard];
        let info = &shard.tensors()[place];
        Some(TensorRef { info, shard })
    }

    /// Every tensor name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    fn empty(dir: PathBuf) -> Self {
        Self {
            dir,
            shards: Vec::new(),
            index: BTreeMap::new(),
        }
    }

    fn open_index(path: &Path, dir: PathBuf) -> Result<Self, ConvertError> {
        let weight_map = read_index(path)?.weight_map;
        let mut checkpoint = Self::empty(dir);
        let mut files: Vec<&String> = weight_map.values().collect();
        files.sort_unstable();
        files.dedup();
        for file in files {
            let shard = Shard::open(&checkpoint.dir.join(shard_name(path, file)?))?;
            checkpoint.add_shard(shard, |tensor| in_index(&weight_map, tensor, file))?;
        }
        match weight_map
            .iter()
            .find(|(t, _)| !checkpoint.index.contains_key(*t))
        {
            Some((tensor, shard)) => Err(ConvertError::NotInShard {
                tensor: tensor.clone(),
                shard: shard.clone(),
            }),
            None => Ok(checkpoint),
        }
    }

    fn add_shard(
        &mut self,
        shard: Shard,
        check: impl Fn(&str) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        for (place, tensor) in shard.tensors().iter().enumerate() {
            check(&tensor.name)?;
            self.index
                .insert(tensor.name.clone(), (self.shards.len(), place));
        }
        self.shards.push(shard);
        Ok(())
    }
}

/// The one checkpoint file that an input stands for.
fn locate(input: &Path) -> Result<PathBuf, ConvertError> {
    if !input.is_dir() {
        return Ok(input.to_owned());
    }
    let (single, index) = (input.join(SINGLE), input.join(INDEX));
    let reason = match (single.exists(), index.exists()) {
        (true, false) => return Ok(single),
        (false, true) => return Ok(index),
        (true, true) => format!("holds both {SINGLE} and {INDEX}; name the one to convert"),
        (false, false) => format!("holds neither {SINGLE} nor {INDEX}"),
    };
    Err(ConvertError::NotACheckpoint {
        path: input.to_owned(),
        reason,
    })
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_index(path: &Path) -> Result<Index, ConvertError> {
    let bytes = read_capped(path, MAX_JSON_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|source| ConvertError::Json {
        path: path.to_owned(),
        source,
    })
}

/// A shard's file name, refused where it would lead out of the folder.
fn shard_name<'n>(index: &Path, file: &'n str) -> Result<&'n Path, ConvertError> {
    let name = Path::new(file);
    let mut parts = name.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(name),
        _ => Err(ConvertError::NotACheckpoint {
            path: index.to_owned(),
            reason: format!("names the shard {file:?}, which is no plain file name"),
        }),
    }
}

fn in_index(
    weight_map: &BTreeMap<String, String>,
    tensor: &str,
    shard: &str,
) -> Result<(), ConvertError> {
    if weight_map.get(tensor).is_some_and(|file| file == shard) {
        return Ok(());
    }
    Err(ConvertError::NotInIndex {
        tensor: tensor.to_owned(),
        shard: shard.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A safetensors file of one-byte tensors.
    fn shard(names: &[&str]) -> Vec<u8> {
        let entries: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let end = i + 1;
                format!(
                    r#""{name}": {{"dtype": "U8", "shape": [1], "data_offsets": [{i}, {end}]}}"#
                )
            })
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend((0..names.len()).map(|i| i as u8));
        bytes
    }

    /// A folder with two shards of tensors a, b and c, under an index that says `weight_map`.
    fn sharded(weight_map: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        write("one.safetensors", &shard(&["a", "b"]));
        write("two.safetensors", &shard(&["c"]));
        write(
            INDEX,
            format!(r#"{{"weight_map": {weight_map}}}"#).as_bytes(),
        );
        dir
    }

    fn message(dir: &tempfile::TempDir) -> String {
        let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
        message.replace(dir.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let dir =
            sharded(r#"{"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}"#);
        for input in [dir.path().to_owned(), dir.path().join(INDEX)] {
            let checkpoint = Checkpoint::open(&input).unwrap();
            assert!(checkpoint.names().eq(["a", "b", "c"]));
            let mut byte = [9];
            checkpoint.tensor("b").unwrap().read(0, &mut byte).unwrap();
            assert_eq!(byte, [1]);
            assert!(checkpoint.tensor("d").is_none());
        }
    }

    #[test]
    fn index_and_shards_must_agree() {
        let cases = [
            (
                r#"{"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}"#,
                "tensor b: one.safetensors holds it, but the index does not place it there",
            ),
            (
                r#"{"a": "one.safetensors", "b": "one.safetensors", "d": "two.safetensors"}"#,
                "tensor c: two.safetensors holds it, but the index does not place it there",
            ),
            (
                r#"{"a": "one.safetensors", "b": "one.safetensors", "d": "one.safetensors"}"#,
                "tensor d: the index places it in one.safetensors, which does not hold it",
            ),
            (
                r#"{"a": "../one.safetensors"}"#,
                "DIR/model.safetensors.index.json: names the shard \"../one.safetensors\", \
                 which is no plain file name",
            ),
        ];
        for (weight_map, expected) in cases {
            assert_eq!(message(&sharded(weight_map)), expected);
        }
        let missing = message(&sharded(r#"{"a": "three.safetensors"}"#));
        assert!(
            missing.starts_with("cannot open DIR/three.safetensors: "),
            "{missing}"
        );
    }

    #[test]
    fn a_folder_must_hold_exactly_one_checkpoint() {
        let dir = sharded("{}");
        fs::write(dir.path().join(SINGLE), shard(&["a"])).unwrap();
        assert_eq!(
            message(&dir),
            "DIR: holds both model.safetensors and model.safetensors.index.json; \
             name the one to convert"
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(
            message(&empty),
            "DIR: holds neither model.safetensors nor model.safetensors.index.json"
        );
    }
}
