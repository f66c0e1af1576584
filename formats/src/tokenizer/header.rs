//! The fixed part of a tokenizer section.

use super::size;
use crate::error::FormatError;
use crate::section::SectionKind;

/// Newest version of the section this crate reads, and the one it writes.
pub const TOKENIZER_VERSION: u16 = 1;
/// Most steps that cut text into words.
pub const MAX_STEPS: usize = 6;
/// Bytes before the first table.
pub(super) const HEADER_BYTES: usize = 144;
/// Most tokens; a vocabulary has at most as many.
const MAX_TOKENS: u32 = 1 << 22;
/// Most bits of a bucket number.
const MAX_BUCKET_BITS: u32 = 24;

pub(super) const WHOLE_WORDS: u8 = 1;
pub(super) const BYTE_FALLBACK: u8 = 2;
pub(super) const FUSE_UNKNOWN: u8 = 4;
pub(super) const NFC: u8 = 8;
pub(super) const MARKED_SPACES: u8 = 16;
const KNOWN_FLAGS: u8 = 31;

/// What the symbols are that merging begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// Bytes of UTF-8, as GPT-2 introduced it.
    Bytes,
    /// Characters, as SentencePiece has them.
    Characters,
}

/// Where a space is put before text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Nowhere.
    Never,
    /// Before every stretch between added tokens, whatever it begins with; added tokens that match
    /// normalised text see it.
    Normalized,
    /// Before every stretch between added tokens that does not begin with one.
    Always,
    /// The same, but only at the beginning of the text.
    First,
}

/// What decoding takes off the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strip {
    /// Nothing.
    None,
    /// One space.
    Space,
    /// Every space of the first token.
    FirstToken,
}

/// A step that cuts text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SplitStep {
    /// The pattern of GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
    Gpt2 = 1,
    /// The pattern of Qwen 2: contractions in any case, letters with one other character before
    /// them, single digits, punctuation with newlines after it, newlines, spaces.
    WordsDigits1 = 2,
    /// The pattern of LLaMA 3: the same with up to three digits together.
    WordsDigits3 = 3,
    /// Every punctuation character for itself.
    Punctuation = 4,
    /// Runs of punctuation.
    PunctuationRuns = 5,
    /// Every number character for itself.
    Digits = 6,
    /// Runs of number characters.
    DigitRuns = 7,
    /// Every byte for itself that stands for a number character in the byte alphabet of GPT-2:
    /// 0 to 9, b2, b3, b9, bc, bd, be.
    ByteDigits = 8,
    /// Runs of such bytes.
    ByteDigitRuns = 9,
    /// ASCII digits in threes from the left.
    DigitTriples = 10,
    /// Before every space.
    Spaces = 11,
    /// Before every run of spaces.
    SpaceRuns = 12,
}

impl SplitStep {
    /// Every step.
    pub const ALL: [Self; 12] = [
        Self::Gpt2,
        Self::WordsDigits1,
        Self::WordsDigits3,
        Self::Punctuation,
        Self::PunctuationRuns,
        Self::Digits,
        Self::DigitRuns,
        Self::ByteDigits,
        Self::ByteDigitRuns,
        Self::DigitTriples,
        Self::Spaces,
        Self::SpaceRuns,
    ];

    /// True where the step asks for classes of characters.
    #[must_use]
    pub const fn needs_classes(self) -> bool {
        matches!(
            self,
            Self::Gpt2
                | Self::WordsDigits1
                | Self::WordsDigits3
                | Self::Punctuation
                | Self::PunctuationRuns
                | Self::Digits
                | Self::DigitRuns
        )
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == code)
    }
}

/// Which pairs merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MergeRule {
    /// Any two tokens that together are a token.
    Any,
    /// Each token from one pair at most: a table of where it is split.
    Split,
    /// A sorted list.
    Listed,
}

/// What decides between two pairs that make the same token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ties {
    /// The lower id of the left part, then the place in the text.
    LeftId,
    /// The place in the text.
    Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) alphabet: Alphabet,
    pub(super) rule: MergeRule,
    pub(super) has_order: bool,
    pub(super) ties: Ties,
    pub(super) flags: u8,
    pub(super) prefix: Prefix,
    pub(super) strip: Strip,
    pub(super) n_steps: u8,
    pub(super) steps: [SplitStep; MAX_STEPS],
    pub(super) n_tokens: u32,
    pub(super) n_added: u32,
    pub(super) unknown: Option<u32>,
    pub(super) text_bytes: u32,
    pub(super) n_index: u32,
    pub(super) bucket_bits: u32,
    pub(super) n_listed: u32,
    pub(super) added_text_bytes: u32,
    pub(super) n_before: u16,
    pub(super) n_after: u16,
    pub(super) longest_token: u16,
    /// Added tokens that are looked for before normalisation; they come first.
    pub(super) n_raw: u32,
    /// Bit b of byte a: an added token begins with the byte 8 a + b. Raw, then normalised ones.
    pub(super) first_bytes: [[u8; 32]; 2],
    /// Of the class table, major and minor.
    pub(super) unicode_version: (u8, u8),
    pub(super) n_class_index: u16,
    pub(super) n_class_blocks: u16,
    pub(super) n_decompositions: u32,
    pub(super) n_decomposed: u32,
    pub(super) n_compositions: u32,
    pub(super) n_combining: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let content = FormatError::SectionContent(SectionKind::Tokenizer);
        let raw: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(content)?;
        let found = u16::from_le_bytes([raw[0], raw[1]]);
        if found != TOKENIZER_VERSION {
            let supported = TOKENIZER_VERSION;
            return Err(FormatError::TokenizerVersion { found, supported });
        }
        let header = Self::fields(raw).ok_or(content)?;
        if header.is_valid() {
            Ok(header)
        } else {
            Err(content)
        }
    }

    fn fields(raw: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let u32_at =
            |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let unknown = u32_at(24);
        Some(Self {
            alphabet: pick(raw[2], [Alphabet::Bytes, Alphabet::Characters])?,
            rule: pick(
                raw[3],
                [MergeRule::Any, MergeRule::Split, MergeRule::Listed],
            )?,
            has_order: pick(raw[4], [false, true])?,
            ties: pick(raw[5], [Ties::LeftId, Ties::Place])?,
            flags: raw[6],
            prefix: pick(
                raw[7],
                [
                    Prefix::Never,
                    Prefix::Normalized,
                    Prefix::Always,
                    Prefix::First,
                ],
            )?,
            strip: pick(raw[8], [Strip::None, Strip::Space, Strip::FirstToken])?,
            n_steps: raw[9],
            steps: steps(raw[9], raw[10..].first_chunk()?)?,
            n_tokens: u32_at(16),
            n_added: u32_at(20),
            unknown: (unknown != u32::MAX).then_some(unknown),
            text_bytes: u32_at(28),
            n_index: u32_at(32),
            bucket_bits: u32_at(36),
            n_listed: u32_at(40),
            added_text_bytes: u32_at(44),
            n_before: u16_at(48),
            n_after: u16_at(50),
            longest_token: u16_at(52),
            n_raw: u32_at(56),
            first_bytes: [*raw[64..].first_chunk()?, *raw[96..].first_chunk()?],
            unicode_version: (raw[60], raw[61]),
            n_class_index: u16_at(54),
            n_class_blocks: u16_at(62),
            n_decompositions: u32_at(128),
            n_decomposed: u32_at(132),
            n_compositions: u32_at(136),
            n_combining: u32_at(140),
        })
    }

    fn is_valid(&self) -> bool {
        let listed = self.rule == MergeRule::Listed;
        self.flags & !KNOWN_FLAGS == 0
            && self.n_tokens <= MAX_TOKENS
            && self.n_added <= MAX_TOKENS
            && self.n_raw <= self.n_added
            && self.bucket_bits <= MAX_BUCKET_BITS
            && usize::from(self.longest_token) <= super::MAX_TOKEN_BYTES
            && (listed || self.n_listed == 0)
            && !(listed && self.has_order)
    }

    #[cfg(feature = "std")]
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &TOKENIZER_VERSION.to_le_bytes());
        let kinds = [
            self.alphabet as u8,
            self.rule as u8,
            self.has_order.into(),
            self.ties as u8,
            self.flags,
            self.prefix as u8,
            self.strip as u8,
            self.n_steps,
        ];
        put(2, &kinds);
        for (i, step) in self.steps().iter().enumerate() {
            put(10 + i, &[*step as u8]);
        }
        let words = [
            self.n_tokens,
            self.n_added,
            self.unknown.unwrap_or(u32::MAX),
            self.text_bytes,
            self.n_index,
            self.bucket_bits,
            self.n_listed,
            self.added_text_bytes,
        ];
        put(16, words.map(u32::to_le_bytes).as_flattened());
        put(48, &self.n_before.to_le_bytes());
        put(50, &self.n_after.to_le_bytes());
        put(52, &self.longest_token.to_le_bytes());
        put(54, &self.n_class_index.to_le_bytes());
        put(56, &self.n_raw.to_le_bytes());
        put(60, &[self.unicode_version.0, self.unicode_version.1]);
        put(62, &self.n_class_blocks.to_le_bytes());
        put(64, self.first_bytes.as_flattened());
        let words = [
            self.n_decompositions,
            self.n_decomposed,
            self.n_compositions,
            self.n_combining,
        ];
        put(128, words.map(u32::to_le_bytes).as_flattened());
        raw
    }

    pub(super) const fn flag(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn steps(&self) -> &[SplitStep] {
        self.steps.get(..usize::from(self.n_steps)).unwrap_or(&[])
    }

    pub(super) fn n_splits(&self) -> Option<usize> {
        match self.rule {
            MergeRule::Split => size(self.n_tokens),
            MergeRule::Any | MergeRule::Listed => Some(0),
        }
    }

    pub(super) fn template_len(&self) -> usize {
        usize::from(self.n_before) + usize::from(self.n_after)
    }
}

/// The variant with this code.
fn pick<T: Copy, const N: usize>(code: u8, variants: [T; N]) -> Option<T> {
    variants.get(usize::from(code)).copied()
}

/// `n` steps, then zeros.
fn steps(n: u8, codes: &[u8; MAX_STEPS]) -> Option<[SplitStep; MAX_STEPS]> {
    let mut steps = [SplitStep::Gpt2; MAX_STEPS];
    let (used, rest) = codes.split_at_checked(usize::from(n))?;
    for (step, code) in steps.iter_mut().zip(used) {
        *step = SplitStep::from_code(*code)?;
    }
    rest.iter().all(|code| *code == 0).then_some(steps)
}
