//! Reads a file of a corpus, and notices if it changes meanwhile.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::corpus::problem;
use crate::corpus::source::{Source, is_stdin};
use crate::error::{Error, Result};

/// Bytes that are read at a time.
pub(super) const READ_BYTES: usize = 1 << 20;

/// An input that is being read, and what it was when it was opened.
pub(super) struct Reader {
    pub(super) path: PathBuf,
    input: Box<dyn BufRead>,
    /// A second handle of a regular file, and what the system said of it.
    watched: Option<(File, u64, Option<SystemTime>)>,
    read_bytes: u64,
}

impl Reader {
    pub(super) fn open(source: &Source) -> Result<Self> {
        let path = &source.path;
        if is_stdin(path) {
            let ahead = io::Cursor::new(source.read_ahead.clone());
            let input = Box::new(ahead.chain(io::stdin().lock()));
            return Ok(Self::new(path, input, None));
        }
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let metadata = file.metadata().map_err(Error::io(path, "read"))?;
        let watched = match metadata.is_file() {
            true => Some((
                file.try_clone().map_err(Error::io(path, "read"))?,
                metadata.len(),
                modified(&metadata),
            )),
            false => None,
        };
        let input = Box::new(BufReader::with_capacity(READ_BYTES, file));
        Ok(Self::new(path, input, watched))
    }

    fn new(
        path: &Path,
        input: Box<dyn BufRead>,
        watched: Option<(File, u64, Option<SystemTime>)>,
    ) -> Self {
        Self {
            path: path.into(),
            input,
            watched,
            read_bytes: 0,
        }
    }

    /// Appends the next bytes; 0 at the end.
    pub(super) fn read_some(&mut self, into: &mut Vec<u8>) -> Result<usize> {
        let bytes = self.input.fill_buf();
        let bytes = bytes.map_err(Error::io(&self.path, "read"))?;
        into.extend_from_slice(bytes);
        let count = bytes.len();
        self.input.consume(count);
        self.read_bytes += count as u64;
        Ok(count)
    }

    /// The next line with its end, at most `most` bytes of it.
    pub(super) fn read_line(&mut self, most: usize) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut limited = self.input.by_ref().take(most as u64);
        let read = limited.read_until(b'\n', &mut line);
        self.read_bytes += read.map_err(Error::io(&self.path, "read"))? as u64;
        Ok(line)
    }

    /// Checks that the file is what it was when it was opened.
    pub(super) fn finish(self) -> Result<()> {
        let Some((file, bytes, time)) = self.watched else {
            return Ok(());
        };
        let now = file.metadata().map_err(Error::io(&self.path, "read"))?;
        if now.len() == bytes && self.read_bytes == bytes && modified(&now) == time {
            return Ok(());
        }
        let message = format!(
            "the file changed while it was read ({bytes} bytes at first, {} read, {} now); wait \
             until it is complete, or copy it",
            self.read_bytes,
            now.len()
        );
        Err(problem(&self.path, &message))
    }
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}
