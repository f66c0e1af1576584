//! What can go wrong, said so that the reader knows what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that stops a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A text is not UTF-8.
    #[error("{}: byte {offset} is not UTF-8; convert the file to UTF-8 first", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// First byte that is not part of a character.
        offset: usize,
    },
    /// A text holds nothing, or less than it must.
    #[error("{0}")]
    Data(String),
    /// A file of a checkpoint is not what it should be.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An option has a value it cannot have. The only kind that is bad usage.
    #[error("{0}")]
    Usage(String),
    /// The tokenizer could not be made, read or used.
    #[error("{0}")]
    Tokenizer(String),
    /// Training met infinite values or NaN.
    #[error(
        "step {step}: {what}; the last good checkpoint is kept in {}. \
         A lower --lr or a longer train.warmup usually helps",
        out.display()
    )]
    NonFinite {
        /// The step that was not taken.
        step: u64,
        /// What was not finite.
        what: String,
        /// Folder of the run.
        out: PathBuf,
    },
    /// A checkpoint to read cannot be read.
    #[error("{}: {problem}", path.display())]
    Source {
        /// What was to be read.
        path: PathBuf,
        /// What the converter, which reads it, found.
        problem: Box<bitnet_converter::ConvertError>,
    },
    /// The finished run could not be packed.
    #[error("--export: {0}; the checkpoint is complete, and bitnet-convert packs it")]
    Export(Box<bitnet_converter::ConvertError>),
    /// A file beside a tokenizer could not be read.
    #[error("{0}")]
    Sidecar(Box<bitnet_converter::ConvertError>),
    /// The run does not fit in memory.
    #[error("{0}")]
    Memory(String),
    /// The thread pool could not be started.
    #[error("cannot start {threads} threads: {problem}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        problem: String,
    },
}

impl Error {
    /// An I/O error of this file.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    /// A checkpoint file with a problem.
    pub fn checkpoint(path: &Path, problem: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    /// A checkpoint that the converter cannot read.
    pub fn source(path: &Path) -> impl Fn(bitnet_converter::ConvertError) -> Self {
        let path = path.to_path_buf();
        move |problem| Self::Source {
            path: path.clone(),
            problem: Box::new(problem),
        }
    }

    /// Exit code: 2 for bad usage, 1 for everything else.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ => 1,
        }
    }
}
