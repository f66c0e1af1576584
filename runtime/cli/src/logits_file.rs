//! `--logits`: a safetensors file with one tensor, written row by row.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

/// `logits`, f32, `[rows, vocab_size]`; appears under its name only when complete.
pub(crate) struct LogitsFile {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
}

impl LogitsFile {
    pub(crate) fn create(path: &Path, rows: usize, vocab_size: usize) -> Result<Self> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = NamedTempFile::new_in(folder)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut out = BufWriter::new(file);
        let bytes = 4 * rows * vocab_size;
        let header = serde_json::json!({
            "logits": { "dtype": "F32", "shape": [rows, vocab_size], "data_offsets": [0, bytes] }
        });
        let mut header = header.to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        Ok(Self {
            path: path.to_owned(),
            out,
        })
    }

    pub(crate) fn push(&mut self, logits: &[f32]) -> Result<()> {
        for logit in logits {
            let written = self.out.write_all(&logit.to_le_bytes());
            written.with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<()> {
        let context = || format!("cannot write {}", self.path.display());
        let file = self
            .out
            .into_inner()
            .map_err(|e| e.into_error())
            .with_context(context)?;
        file.as_file().sync_all().with_context(context)?;
        file.persist(&self.path)
            .map_err(|e| e.error)
            .with_context(context)?;
        Ok(())
    }
}
