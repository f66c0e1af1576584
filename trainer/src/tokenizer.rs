//! Text to token ids and back, always through a `tokenizer.json`.
//!
//! Whatever kind is asked for, what results is a `tokenizers` file that any reader of that format
//! decodes byte for byte. The ones made here add no begin or end tokens.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainerBuilder;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::error::{Error, Result};

/// Which tokenizer to use, as `--tokenizer` spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Byte-level BPE of at most this many ids, trained on the training text.
    Bpe(usize),
    /// One id per byte.
    Byte,
    /// One id per distinct character of the text, in code point order.
    Char,
    /// A given `tokenizer.json`.
    File(PathBuf),
}

impl FromStr for TokenizerKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            Some(("bpe", size)) => match size.parse() {
                Ok(size) if size >= 256 => Ok(Self::Bpe(size)),
                _ => Err(format!(
                    "bpe:N needs N of at least 256, the bytes; got {size:?}"
                )),
            },
            _ if text == "byte" => Ok(Self::Byte),
            _ if text == "char" => Ok(Self::Char),
            _ if text == "bpe" => {
                Err("write bpe:N with the size of the vocabulary, as bpe:2048".into())
            }
            _ => Ok(Self::File(text.into())),
        }
    }
}

/// A tokenizer and the file it comes from or goes to.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// True if decoding gives back every byte of any text it can encode.
    lossless: bool,
}

impl Tokenizer {
    /// The tokenizer of this kind. BPE learns from `train_text`; characters come from `whole_text`.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] or [`Error::Io`] if it cannot be made or read.
    pub fn new(kind: &TokenizerKind, train_text: &str, whole_text: &str) -> Result<Self> {
        match kind {
            TokenizerKind::Bpe(size) => train_bpe(*size, train_text),
            TokenizerKind::Byte => Self::from_json(&byte_json()),
            TokenizerKind::Char => Self::from_json(&char_json(whole_text)),
            TokenizerKind::File(path) => Self::from_file(path),
        }
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Checkpoint`], naming the file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        Self::from_bytes(&bytes).map_err(|e| Error::checkpoint(path, e.to_string()))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let problem = |e| Error::Tokenizer(format!("not a tokenizer.json: {e}"));
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(problem)?;
        Ok(Self::wrap(inner))
    }

    fn from_json(json: &Value) -> Result<Self> {
        Self::from_bytes(json.to_string().as_bytes())
    }

    fn wrap(inner: tokenizers::Tokenizer) -> Self {
        use tokenizers::DecoderWrapper::{ByteLevel, Fuse};
        let exact = matches!(inner.get_decoder(), Some(ByteLevel(_) | Fuse(_)));
        let lossless = exact && inner.get_normalizer().is_none();
        Self { inner, lossless }
    }

    /// The `tokenizer.json`, the same bytes for the same tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(other)
    }

    /// Number of ids, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// The ids of `text`, without special tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the text has characters the tokenizer lacks.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(other)?;
        let ids = encoding.get_ids().to_vec();
        if self.lossless {
            self.check_round_trip(text, &ids)?;
        }
        Ok(ids)
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] from the decoder.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(other)
    }

    /// A character without an id would vanish without a word: refuse it by name.
    fn check_round_trip(&self, text: &str, ids: &[u32]) -> Result<()> {
        let back = self.decode(ids)?;
        if back == text {
            return Ok(());
        }
        let pairs = text
            .char_indices()
            .zip(back.chars().map(Some).chain(std::iter::repeat(None)));
        let lost = pairs.into_iter().find(|((_, a), b)| Some(*a) != *b);
        let (offset, lost) = lost.map_or((text.len(), ' '), |(at, _)| at);
        Err(Error::Tokenizer(format!(
            "the tokenizer has no id for {lost:?} (byte {offset} of the text); use a text of its \
             characters, or train with --tokenizer byte or bpe:N, which encode any text"
        )))
    }
}

fn other(e: tokenizers::Error) -> Error {
    Error::Tokenizer(format!("tokenizer: {e}"))
}

fn byte_level(use_regex: bool) -> ByteLevel {
    ByteLevel::new(false, false, use_regex)
}

fn train_bpe(size: usize, text: &str) -> Result<Tokenizer> {
    let mut inner = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
    inner
        .with_pre_tokenizer(Some(byte_level(true)))
        .with_decoder(Some(byte_level(true)));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(size)
        .show_progress(false)
        .initial_alphabet((0..=255).map(byte_char).collect())
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    inner
        .train(&mut trainer, std::iter::once(text))
        .map_err(other)?;
    Ok(Tokenizer::wrap(inner))
}

/// The character that byte-level vocabularies write for a byte: itself where it prints, else one
/// from U+0100 on.
fn byte_char(byte: u8) -> char {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !prints(*b)).count();
    char::from_u32(0x100 + rank as u32).expect("below the surrogates")
}

fn vocabulary(tokens: impl Iterator<Item = char>) -> Map<String, Value> {
    let entry = |(id, token): (usize, char)| (token.to_string(), json!(id));
    tokens.enumerate().map(entry).collect()
}

fn byte_json() -> Value {
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary((0..=255).map(byte_char)), "merges": []},
    })
}

fn char_json(text: &str) -> Value {
    let distinct: BTreeSet<char> = text.chars().collect();
    json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocabulary(distinct.into_iter()), "merges": []},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "It is a truth, universally\n\n acknowledged: naïve — 東京 \u{1f600}\r\n\tx  y ";

    fn make(kind: &str, text: &str) -> Tokenizer {
        Tokenizer::new(&kind.parse().unwrap(), text, text).unwrap()
    }

    #[test]
    fn every_kind_round_trips_and_survives_its_file() {
        let corpus = TEXT.repeat(20);
        for kind in ["bpe:300", "byte", "char"] {
            let tokenizer = make(kind, &corpus);
            let read = Tokenizer::from_bytes(tokenizer.to_json().unwrap().as_bytes()).unwrap();
            let ids = tokenizer.encode(TEXT).unwrap();
            assert_eq!(read.encode(TEXT).unwrap(), ids, "{kind}");
            assert_eq!(read.decode(&ids).unwrap(), TEXT, "{kind}");
            assert!(ids.iter().all(|id| (*id as usize) < read.vocab_size()));
        }
    }

    #[test]
    fn byte_ids_are_the_bytes() {
        let tokenizer = make("byte", "");
        let ids: Vec<u32> = TEXT.bytes().map(u32::from).collect();
        assert_eq!(tokenizer.encode(TEXT).unwrap(), ids);
        assert_eq!(tokenizer.vocab_size(), 256);
    }

    #[test]
    fn char_ids_are_ranks() {
        let tokenizer = make("char", "banana");
        assert_eq!(tokenizer.vocab_size(), 3);
        assert_eq!(tokenizer.encode("nab").unwrap(), [2, 0, 1]);
    }

    #[test]
    fn characters_without_an_id_are_named() {
        let error = make("char", "banana").encode("bandana").unwrap_err();
        assert!(
            error.to_string().contains("no id for 'd' (byte 3"),
            "{error}"
        );
    }

    #[test]
    fn bpe_merges_and_is_deterministic() {
        let corpus = "the cat sat on the mat. ".repeat(50);
        let (a, b) = (make("bpe:280", &corpus), make("bpe:280", &corpus));
        assert_eq!(a.to_json().unwrap(), b.to_json().unwrap());
        assert!(a.vocab_size() > 256 && a.vocab_size() <= 280);
        assert!(a.encode(&corpus).unwrap().len() < corpus.len() / 2);
        assert_eq!(a.decode(&a.encode("東").unwrap()).unwrap(), "東");
    }

    #[test]
    fn kinds_parse() {
        assert_eq!("bpe:512".parse(), Ok(TokenizerKind::Bpe(512)));
        assert_eq!("x.json".parse(), Ok(TokenizerKind::File("x.json".into())));
        for bad in ["bpe", "bpe:", "bpe:12", "bpe:many"] {
            assert!(bad.parse::<TokenizerKind>().is_err(), "{bad}");
        }
    }
}
