//! The model file: mapped, opened, verified while the rest loads.

use std::fs::File;
use std::path::{Display, Path, PathBuf};

use anyhow::{Context, Result, bail};
use bitnet_runtime::{AlignedBuffer, Archive, MemoryPlan, Model, Session, SessionConfig, Threads};
use memmap2::Mmap;

use crate::weights::Decision;

/// A mapped file.
pub(crate) struct ModelFile {
    path: PathBuf,
    map: Mmap,
}

/// Bytes a run occupies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Mapped from the file; the system may drop and reload them.
    pub(crate) file_bytes: usize,
    /// Copied weights.
    pub(crate) weight_bytes: usize,
    /// Keys and values.
    pub(crate) kv_bytes: usize,
    /// Working memory.
    pub(crate) scratch_bytes: usize,
}

impl ModelFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let cannot_open = || format!("cannot open {}", path.display());
        let file = File::open(path).with_context(cannot_open)?;
        if !file.metadata().with_context(cannot_open)?.is_file() {
            bail!("{} is not a file; name a .btn file", path.display());
        }
        let map = map(&file).with_context(|| format!("cannot map {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            map,
        })
    }

    /// Its path, for messages.
    pub(crate) fn name(&self) -> Display<'_> {
        self.path.display()
    }

    /// An output must not take the model's name: the mapped file would be lost.
    pub(crate) fn refuse_overwriting(&self, output: &Path) -> Result<()> {
        // An output that has no canonical path does not exist yet.
        let same = match (output.canonicalize(), self.path.canonicalize()) {
            (Ok(output), Ok(model)) => output == model,
            _ => false,
        };
        if same {
            bail!("{} is the model; name another file", output.display());
        }
        Ok(())
    }

    /// Checks header and tables.
    pub(crate) fn archive(&self) -> Result<Archive<'_>> {
        Archive::open(&self.map).with_context(|| self.name().to_string())
    }

    /// Verifies every byte on another thread while `work` runs, unless told to trust the file. Packed
    /// weights are decoded when they are loaded, which shows whether they can be.
    pub(crate) fn verified<T>(
        &self,
        archive: &Archive<'_>,
        trust: bool,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        std::thread::scope(|scope| {
            let check = (!trust).then(|| scope.spawn(|| archive.verify_undecoded()));
            let done = work();
            let checked = check.map(|thread| thread.join().expect("verify does not panic"));
            if let Some(result) = checked {
                result.with_context(|| self.name().to_string())?;
            }
            done
        })
    }

    /// What a session of this plan occupies.
    pub(crate) fn memory(&self, weights: &Decision, plan: &MemoryPlan) -> Result<Memory> {
        Ok(Memory {
            file_bytes: self.map.len(),
            weight_bytes: weights.bytes(&self.archive()?)?,
            kv_bytes: plan.kv_bytes,
            scratch_bytes: plan.scratch_bytes,
        })
    }
}

/// Gives `body` a session.
pub(crate) fn with_session<T>(
    model: &Model<'_>,
    session: &SessionConfig,
    body: impl FnOnce(&mut Session<'_, '_, '_>) -> Result<T>,
) -> Result<T> {
    let plan = model.plan(session)?;
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    let threads = Threads::new(session.threads);
    let mut session = Session::new(model, &mut kv, &mut scratch, session)?;
    session.lend(&threads);
    body(&mut session)
}

#[allow(
    unsafe_code,
    reason = "mapping a file is unsafe by nature; this is the only place"
)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read, through types for which every byte pattern is valid. A file
    // that another process changes meanwhile can change the text, and one that is cut short ends
    // this process by a signal; neither breaks memory safety here.
    unsafe { Mmap::map(file) }
}
