//! The typed parts of a file.

/// What a section holds. The number is its code in the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum SectionKind {
    /// A u16 version and the postcard bytes of [`crate::ModelConfig`].
    Config = 1,
    /// The payloads of all tensors.
    Weights = 2,
    /// A Hugging Face `tokenizer.json`, UTF-8.
    TokenizerJson = 16,
    /// A chat template in the source's own language, UTF-8.
    ChatTemplate = 17,
    /// Begin-of-text and stop ids ([`crate::metadata::SpecialTokens`]).
    SpecialTokens = 18,
    /// Where the weights come from: UTF-8 lines of `key: value`.
    Provenance = 19,
    /// Prompts and the logits hashes they must give ([`crate::metadata::SelfTests`]).
    SelfTest = 20,
    /// Licence text, UTF-8.
    Licence = 21,
    /// Tables between text and token ids ([`crate::tokenizer::TokenizerTables`]).
    Tokenizer = 22,
    /// A chat template as operations ([`crate::chat::ChatTables`]).
    Chat = 23,
}

impl SectionKind {
    /// Every kind this version knows.
    pub const ALL: [Self; 10] = [
        Self::Config,
        Self::Weights,
        Self::TokenizerJson,
        Self::ChatTemplate,
        Self::SpecialTokens,
        Self::Provenance,
        Self::SelfTest,
        Self::Licence,
        Self::Tokenizer,
        Self::Chat,
    ];

    /// The kind with this code, if there is one.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == code)
    }

    /// True for what no reader can do without.
    #[must_use]
    pub const fn is_required(self) -> bool {
        matches!(self, Self::Config | Self::Weights)
    }

    /// True for sections that are UTF-8 text.
    #[must_use]
    pub const fn is_text(self) -> bool {
        matches!(
            self,
            Self::TokenizerJson | Self::ChatTemplate | Self::Provenance | Self::Licence
        )
    }

    /// The name listings print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Weights => "weights",
            Self::TokenizerJson => "tokenizer.json",
            Self::ChatTemplate => "chat template",
            Self::SpecialTokens => "special tokens",
            Self::Provenance => "provenance",
            Self::SelfTest => "self-test",
            Self::Licence => "licence",
            Self::Tokenizer => "tokenizer",
            Self::Chat => "chat",
        }
    }
}

impl core::fmt::Display for SectionKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
