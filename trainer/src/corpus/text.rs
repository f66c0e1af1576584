//! Documents of a text file.

use std::path::Path;

use crate::corpus::reader::Reader;
use crate::corpus::{Document, MAX_DOCUMENT_BYTES, Visit, problem};
use crate::error::{Error, Result};

/// Documents of a text: the whole of it, or what stands between separators.
pub(super) fn visit(
    reader: &mut Reader,
    separator: Option<&str>,
    see: &mut Visit<'_>,
) -> Result<()> {
    let mut pending = Pending::default();
    while reader.read_some(&mut pending.raw)? > 0 {
        pending.decode(&reader.path, false)?;
        if let Some(separator) = separator {
            pending.take_divided(separator, see)?;
        }
        if pending.text.len() > MAX_DOCUMENT_BYTES {
            let message = format!(
                "a document is longer than {MAX_DOCUMENT_BYTES} bytes; --separator TEXT divides a \
                 file into documents"
            );
            return Err(problem(&reader.path, &message));
        }
    }
    pending.decode(&reader.path, true)?;
    see(Document::Text(pending.text))
}

/// Text that has been read and not yet been handed on.
#[derive(Default)]
struct Pending {
    text: String,
    /// Bytes that end in the middle of a character.
    raw: Vec<u8>,
    /// Bytes of the file before `raw`.
    decoded: usize,
    /// Bytes of `text` that hold no beginning of a separator.
    searched: usize,
}

impl Pending {
    /// Moves what is whole from `raw` to `text`.
    fn decode(&mut self, path: &Path, at_end: bool) -> Result<()> {
        let (valid, is_bad) = match std::str::from_utf8(&self.raw) {
            Ok(text) => (text.len(), false),
            Err(e) => (e.valid_up_to(), at_end || e.error_len().is_some()),
        };
        if is_bad {
            let offset = self.decoded + valid;
            let path = path.to_path_buf();
            return Err(Error::NotUtf8 { path, offset });
        }
        let mut new = std::str::from_utf8(&self.raw[..valid]).expect("it was just checked");
        refuse_zeros(path, new, self.decoded)?;
        if self.decoded == 0 {
            new = new.strip_prefix('\u{feff}').unwrap_or(new);
        }
        self.text.push_str(new);
        self.raw.drain(..valid);
        self.decoded += valid;
        Ok(())
    }

    /// Hands on what stands before each separator.
    fn take_divided(&mut self, separator: &str, see: &mut Visit<'_>) -> Result<()> {
        let mut start = 0;
        while let Some(at) = self.text[self.searched..].find(separator) {
            let end = self.searched + at;
            see(Document::Text(self.text[start..end].to_owned()))?;
            start = end + separator.len();
            self.searched = start;
        }
        self.text.drain(..start);
        let mut searched = (self.text.len() + 1).saturating_sub(separator.len());
        while !self.text.is_char_boundary(searched) {
            searched -= 1;
        }
        self.searched = searched;
        Ok(())
    }
}

/// No text has a zero byte; a program, a picture or UTF-16 has many.
fn refuse_zeros(path: &Path, text: &str, offset: usize) -> Result<()> {
    match text.find('\0') {
        Some(at) => {
            let message = format!("byte {} is zero: this is no text file", offset + at);
            Err(problem(path, &message))
        }
        None => Ok(()),
    }
}
