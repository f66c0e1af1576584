//! Token ids on disk: raw little-endian u16 or u32, the layout that nanoGPT maps into memory.
//!
//! Windows are read where they lie, so a corpus may be larger than memory. Plain positioned reads do
//! it, not a map: a shard that is cut short while a run reads it is then an error and not a fault.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Tokens of a full shard.
pub const SHARD_TOKENS: u64 = 1 << 28;

/// Bytes of a token id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdWidth {
    /// One byte: not for ids but for marks, 0 or 1.
    U8,
    /// Two bytes, for vocabularies up to 65536.
    U16,
    /// Four bytes.
    U32,
}

impl IdWidth {
    /// The smallest that holds every id.
    #[must_use]
    pub const fn of(vocab_size: usize) -> Self {
        match vocab_size {
            0..=0x1_0000 => Self::U16,
            _ => Self::U32,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// One file of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Its name, without folder.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// CRC-32 (IEEE) of its bytes.
    pub crc32: u32,
}

/// Writes one part of a corpus, shard by shard.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    part: &'static str,
    width: IdWidth,
    shard_tokens: u64,
    done: Vec<ShardEntry>,
    open: Option<OpenShard>,
}

#[derive(Debug)]
struct OpenShard {
    path: PathBuf,
    entry: ShardEntry,
    crc: crc32fast::Hasher,
    out: BufWriter<File>,
}

impl ShardWriter {
    /// Files `PART-00000.bin` and so on in `folder`.
    #[must_use]
    pub fn new(folder: &Path, part: &'static str, width: IdWidth, shard_tokens: u64) -> Self {
        Self {
            folder: folder.into(),
            part,
            width,
            shard_tokens,
            done: Vec::new(),
            open: None,
        }
    }

    /// Tokens so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        let open = self.open.as_ref().map(|shard| &shard.entry);
        self.done.iter().chain(open).map(|entry| entry.tokens).sum()
    }

    /// Adds tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn push(&mut self, mut ids: &[u32]) -> Result<()> {
        while !ids.is_empty() {
            let mut shard = match self.open.take() {
                Some(shard) => shard,
                None => self.begin()?,
            };
            let room = self.shard_tokens - shard.entry.tokens;
            let (now, later) = ids.split_at(ids.len().min(room as usize));
            shard.push(now, self.width)?;
            ids = later;
            if shard.entry.tokens == self.shard_tokens {
                self.done.push(shard.finish()?);
            } else {
                self.open = Some(shard);
            }
        }
        Ok(())
    }

    fn begin(&self) -> Result<OpenShard> {
        let file = format!("{}-{:05}.bin", self.part, self.done.len());
        let path = self.folder.join(&file);
        let out = File::create(&path).map_err(Error::io(&path, "create"))?;
        let entry = ShardEntry {
            file,
            tokens: 0,
            crc32: 0,
        };
        Ok(OpenShard {
            path,
            entry,
            crc: crc32fast::Hasher::new(),
            out: BufWriter::with_capacity(1 << 20, out),
        })
    }

    /// Completes the last file and returns them all.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<Vec<ShardEntry>> {
        if let Some(shard) = self.open.take() {
            self.done.push(shard.finish()?);
        }
        Ok(self.done)
    }
}

impl OpenShard {
    fn push(&mut self, ids: &[u32], width: IdWidth) -> Result<()> {
        let mut bytes = Vec::with_capacity(ids.len() * width.bytes());
        for id in ids {
            bytes.extend_from_slice(&id.to_le_bytes()[..width.bytes()]);
        }
        self.crc.update(&bytes);
        self.entry.tokens += ids.len() as u64;
        let written = self.out.write_all(&bytes);
        written.map_err(Error::io(&self.path, "write"))
    }

    fn finish(mut self) -> Result<ShardEntry> {
        let synced = self
            .out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all());
        synced.map_err(Error::io(&self.path, "write"))?;
        self.entry.crc32 = self.crc.finalize();
        Ok(self.entry)
    }
}

/// The shards of one part, open to read.
#[derive(Clone, Debug)]
pub struct Shards {
    files: Arc<[Shard]>,
    width: IdWidth,
    vocab_size: u32,
    tokens: usize,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    tokens: usize,
}

impl Shards {
    /// Opens the files and compares their lengths with what the index says.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or [`Error::Checkpoint`] naming a file of another length.
    pub fn open(
        folder: &Path,
        entries: &[ShardEntry],
        width: IdWidth,
        vocab_size: usize,
    ) -> Result<Self> {
        let open = |entry: &ShardEntry| Shard::open(folder, entry, width);
        let files = entries.iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            tokens: files.iter().map(|shard| shard.tokens).sum(),
            files: files.into(),
            width,
            vocab_size: vocab_size as u32,
        })
    }

    /// Tokens of all files.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.tokens
    }

    /// True without a token.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Tokens `start..start + count`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file became shorter, [`Error::Checkpoint`] for an id outside the
    /// vocabulary.
    ///
    /// # Panics
    ///
    /// If the range goes beyond [`Shards::len`].
    pub fn read(&self, mut start: usize, count: usize) -> Result<Vec<u32>> {
        assert!(start + count <= self.tokens, "beyond the last token");
        let mut ids = Vec::with_capacity(count);
        for shard in self.files.iter() {
            let now = shard.tokens.saturating_sub(start).min(count - ids.len());
            if now > 0 {
                self.read_from(shard, start, now, &mut ids)?;
            }
            start = (start + now).saturating_sub(shard.tokens);
        }
        Ok(ids)
    }

    fn read_from(
        &self,
        shard: &Shard,
        start: usize,
        count: usize,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let width = self.width.bytes();
        let mut bytes = vec![0; count * width];
        read_at(&shard.file, &mut bytes, (start * width) as u64)
            .map_err(Error::io(&shard.path, "read"))?;
        for bytes in bytes.chunks_exact(width) {
            let mut id = [0; 4];
            id[..width].copy_from_slice(bytes);
            let id = u32::from_le_bytes(id);
            if id >= self.vocab_size {
                let size = self.vocab_size;
                let problem = format!("holds id {id}, but the vocabulary has {size}: damaged");
                return Err(Error::checkpoint(&shard.path, problem));
            }
            ids.push(id);
        }
        Ok(())
    }
}

impl Shard {
    fn open(folder: &Path, entry: &ShardEntry, width: IdWidth) -> Result<Self> {
        let path = folder.join(&entry.file);
        let file = File::open(&path).map_err(Error::io(&path, "read"))?;
        let bytes = file.metadata().map_err(Error::io(&path, "read"))?.len();
        let tokens = entry.tokens;
        if tokens.checked_mul(width.bytes() as u64) != Some(bytes) {
            let problem = format!(
                "has {bytes} bytes, but the index says {tokens} tokens; run bitnet-trainer prepare \
                 again"
            );
            return Err(Error::checkpoint(&path, problem));
        }
        Ok(Self {
            path,
            file,
            tokens: tokens as usize,
        })
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        let read = file.seek_read(bytes, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[read..];
        offset += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, width: IdWidth, ids: &[u32]) -> Vec<ShardEntry> {
        let mut writer = ShardWriter::new(folder, "train", width, 10);
        for ids in ids.chunks(7) {
            writer.push(ids).unwrap();
        }
        assert_eq!(writer.tokens(), ids.len() as u64);
        writer.finish().unwrap()
    }

    #[test]
    fn every_range_reads_back_across_files() {
        for width in [IdWidth::U8, IdWidth::U16, IdWidth::U32] {
            let folder = tempfile::tempdir().unwrap();
            let step = if width == IdWidth::U8 { 7 } else { 1000 };
            let ids: Vec<u32> = (0..35).map(|i| i * step).collect();
            let entries = written(folder.path(), width, &ids);
            let lengths: Vec<_> = entries.iter().map(|entry| entry.tokens).collect();
            assert_eq!(lengths, [10, 10, 10, 5]);
            let bytes = std::fs::read(folder.path().join(&entries[3].file)).unwrap();
            assert_eq!(bytes.len(), 5 * width.bytes());
            assert_eq!(crc32fast::hash(&bytes), entries[3].crc32);
            let shards = Shards::open(folder.path(), &entries, width, 40_000).unwrap();
            assert_eq!(shards.len(), ids.len());
            for start in 0..ids.len() {
                for end in start..=ids.len() {
                    let read = shards.read(start, end - start).unwrap();
                    assert_eq!(read, ids[start..end]);
                }
            }
        }
    }

    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let entries = written(folder.path(), IdWidth::U16, &[1, 2, 3, 900]);
        let open = |vocab| Shards::open(folder.path(), &entries, IdWidth::U16, vocab);
        let outside = open(900).unwrap().read(0, 4).unwrap_err().to_string();
        assert!(outside.contains("holds id 900"), "{outside}");
        let shards = open(1000).unwrap();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(folder.path().join("train-00000.bin"));
        file.unwrap().set_len(5).unwrap();
        let cut = shards.read(0, 4).unwrap_err().to_string();
        assert!(cut.contains("train-00000.bin: cannot read"), "{cut}");
        let length = open(1000).unwrap_err().to_string();
        assert!(length.contains("has 5 bytes"), "{length}");
    }

    #[test]
    fn the_width_follows_the_vocabulary() {
        assert_eq!(IdWidth::of(65_536), IdWidth::U16);
        assert_eq!(IdWidth::of(65_537), IdWidth::U32);
    }
}
