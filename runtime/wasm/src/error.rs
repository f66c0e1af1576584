//! What can go wrong, and its message for the page.

use core::fmt::{self, Write};

use bitnet_formats::FormatError;
use bitnet_runtime::RunError;
use bitnet_runtime::tokenizer::EncodeError;

/// A call that failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Error {
    /// The file is not a valid model.
    Format(FormatError),
    /// The runtime refuses.
    Run(RunError),
    /// The prompt cannot be encoded.
    Encode(EncodeError),
    /// The file has no tokenizer, or none but the JSON of other programs.
    NoTokenizer,
    /// The prompt is not UTF-8, or longer than the room for it.
    Utf8,
    /// The host did not deliver bytes of the file.
    Read {
        /// Offset of the bytes.
        offset: u32,
        /// Their number.
        bytes: u32,
    },
    /// File and buffers together exceed the 4 GiB that a module can address.
    TooLarge,
    /// The engine refused to enlarge the memory.
    Memory {
        /// Bytes that the memory would have had.
        bytes: u64,
    },
    /// The instance has a model already.
    Loaded,
    /// There is no model yet.
    NotLoaded,
    /// There is nothing to continue.
    Idle,
    /// The file has no self-test of this number, or it is for another kind of cache.
    SelfTest,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Format(error) => error.fmt(f),
            Self::Run(error) => error.fmt(f),
            Self::Encode(EncodeError::Ids { found }) => write!(
                f,
                "the prompt has more than {found} tokens, all that the context holds; shorten it"
            ),
            Self::Encode(error) => error.fmt(f),
            Self::NoTokenizer => f.write_str(
                "the file has no tokenizer that can be used here; give token ids, or convert the \
                 checkpoint with --tokenizer tables",
            ),
            Self::Utf8 => f.write_str("the prompt is not UTF-8, or longer than the room for it"),
            Self::Read { offset, bytes } => {
                write!(f, "the host did not deliver {bytes} bytes at {offset}")
            }
            Self::TooLarge => {
                f.write_str("file and buffers exceed the 4 GiB that a module can address")
            }
            Self::Memory { bytes } => {
                write!(f, "the engine does not allow a memory of {bytes} bytes")
            }
            Self::Loaded => f.write_str("this instance has a model; make another instance"),
            Self::NotLoaded => f.write_str("no model is loaded"),
            Self::Idle => f.write_str("there is nothing to continue; give a prompt"),
            Self::SelfTest => f.write_str("the file has no such self-test for this cache"),
        }
    }
}

impl core::error::Error for Error {}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

/// The last message, UTF-8, cut at a character if it is very long.
pub struct Message {
    bytes: [u8; 256],
    len: usize,
}

impl Message {
    /// No message.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; 256],
            len: 0,
        }
    }

    /// Replaces the message.
    pub fn set(&mut self, error: &Error) {
        self.len = 0;
        // Fails only where the message is cut.
        let _ = write!(self, "{error}");
    }

    /// The message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Default for Message {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Message {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = (self.bytes.len() - self.len).min(s.len());
        let cut = (0..=room).rev().find(|at| s.is_char_boundary(*at));
        let s = &s[..cut.unwrap_or(0)];
        self.bytes[self.len..][..s.len()].copy_from_slice(s.as_bytes());
        self.len += s.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let mut message = Message::new();
        message.write_str(&"a€".repeat(100)).unwrap();
        let text = core::str::from_utf8(message.as_bytes()).unwrap();
        assert!(text.starts_with("a€a€") && text.len() > 252, "{text}");
        message.set(&Error::Idle);
        assert!(message.as_bytes().starts_with(b"there is nothing"));
    }
}
