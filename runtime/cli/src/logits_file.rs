//! `--logits`: a safetensors file with one tensor, written row by row.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::{Builder, NamedTempFile};

/// `logits`, f32, `[rows, vocab_size]`; appears under its name only when complete.
pub(crate) struct LogitsFile {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
}

impl LogitsFile {
    pub(crate) fn create(path: &Path, rows: usize, vocab_size: usize) -> Result<Self> {
        if path.is_dir() {
            bail!("{} is a folder; name a file in it", path.display());
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            let (path, folder) = (path.display(), folder.display());
            bail!("cannot write {path}: there is no folder {folder}");
        }
        let file = as_others_may_read()
            .tempfile_in(folder)
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

/// Temporary files are their owner's alone; what becomes a result is as readable as any new file.
fn as_others_may_read() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
}
