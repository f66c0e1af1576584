//! Text to token ids and back, always through a `tokenizer.json`.
//!
//! Whatever kind is asked for, what results is a `tokenizers` file that any reader of that format
//! decodes byte for byte. The ones made here add no begin or end tokens.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::sync_channel;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainerBuilder;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::chat::{ChatFormat, TURN_TOKENS};
use crate::corpus::Passage;
use crate::error::{Error, Result};
use crate::files::write_bytes;

/// What the tokenizers made here write between texts, where there are several.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// What ends a text, by the names of public tokenizers; the first that is known is used.
pub const END_OF_TEXT_NAMES: [&str; 4] = ["<|end_of_text|>", END_OF_TEXT, "</s>", "<eos>"];
/// Texts are encoded in pieces of about so many bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Longest run without white space that a vocabulary is learned from as one, in bytes.
const WORD_BYTES: usize = 4096;
/// Texts in memory while a vocabulary is learned.
const TEXTS_AHEAD: usize = 4;

/// Hears of the training and the validation part of every document.
pub type Parts<'p> = dyn FnMut(Passage<'_>, Passage<'_>) -> Result<()> + 'p;

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
    /// How conversations are written, where that is known.
    chat: Option<ChatFormat>,
}

/// What a tokenizer that is made here has to tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// One text from the next.
    pub end_of_text: bool,
    /// One message from the next.
    pub turns: bool,
}

impl Needs {
    fn tokens(self) -> Vec<AddedToken> {
        let end = self.end_of_text.then_some(END_OF_TEXT);
        let turns = self.turns.then_some(TURN_TOKENS);
        let names = end.into_iter().chain(turns.into_iter().flatten());
        names.map(|name| AddedToken::from(name, true)).collect()
    }
}

impl Tokenizer {
    /// The tokenizer of this kind.
    ///
    /// `read` calls its argument with the training and the validation part of every document: BPE
    /// learns from the first, characters come from both. A tokenizer made here has ids for what it
    /// `needs`: [`END_OF_TEXT`], and [`TURN_TOKENS`] with the template that uses them.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] or [`Error::Io`] if it cannot be made or read, and what `read` returns.
    pub fn new(
        kind: &TokenizerKind,
        needs: Needs,
        read: impl FnOnce(&mut Parts<'_>) -> Result<()> + Send,
    ) -> Result<Self> {
        let mut made = match kind {
            TokenizerKind::Bpe(size) => learn_bpe(*size, needs, read)?,
            TokenizerKind::Byte => Self::from_json(&byte_json(), needs)?,
            TokenizerKind::Char => Self::from_json(&char_json(distinct(read)?), needs)?,
            TokenizerKind::File(path) => return Self::from_file(path),
        };
        made.chat = needs.turns.then(ChatFormat::own);
        Ok(made)
    }

    /// Reads a `tokenizer.json`, and the chat template beside it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Checkpoint`] or [`Error::Sidecar`], naming the file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let read = Self::from_bytes(&bytes);
        let mut read = read.map_err(|e| Error::checkpoint(path, e.to_string()))?;
        read.chat = ChatFormat::in_folder(path.parent().unwrap_or(Path::new("")))?;
        Ok(read)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let problem = |e| Error::Tokenizer(format!("not a tokenizer.json: {e}"));
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(problem)?;
        Ok(Self::wrap(inner))
    }

    fn from_json(json: &Value, needs: Needs) -> Result<Self> {
        let mut made = Self::from_bytes(json.to_string().as_bytes())?;
        let added = made.inner.add_special_tokens(needs.tokens());
        added.map_err(other)?;
        Ok(made)
    }

    fn wrap(mut inner: tokenizers::Tokenizer) -> Self {
        // A text that speaks of an end of text does not end there.
        inner.set_encode_special_tokens(true);
        use tokenizers::DecoderWrapper::{ByteLevel, Fuse};
        let exact = matches!(inner.get_decoder(), Some(ByteLevel(_) | Fuse(_)));
        let lossless = exact && inner.get_normalizer().is_none();
        Self {
            inner,
            lossless,
            chat: None,
        }
    }

    /// How conversations are written, where that is known.
    #[must_use]
    pub const fn chat(&self) -> Option<&ChatFormat> {
        self.chat.as_ref()
    }

    /// The same tokenizer, but for the names of special tokens, which it reads as these tokens.
    #[must_use]
    pub fn naming_special_tokens(&self) -> Self {
        let mut naming = self.clone();
        naming.inner.set_encode_special_tokens(false);
        naming
    }

    /// True if the id is a special token's.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        let name = added.simple_id_to_token(id);
        name.is_some_and(|name| added.is_special_token(&name))
    }

    /// The name of an id.
    #[must_use]
    pub fn name_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The `tokenizer.json`, the same bytes for the same tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(other)
    }

    /// Writes `tokenizer.json`, and `tokenizer_config.json` where there is a chat template.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::to_json`]; [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_bytes(&folder.join("tokenizer.json"), self.to_json()?.as_bytes())?;
        match &self.chat {
            Some(chat) => {
                let path = folder.join("tokenizer_config.json");
                write_bytes(&path, chat.to_json().as_bytes())
            }
            None => Ok(()),
        }
    }

    /// Number of ids, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// True if every token has the same id in both.
    #[must_use]
    pub fn has_ids_of(&self, other: &Self) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// The id that ends a text, if there is one: the first of [`END_OF_TEXT_NAMES`] that it knows.
    #[must_use]
    pub fn end_of_text(&self) -> Option<u32> {
        let mut names = END_OF_TEXT_NAMES.iter();
        names.find_map(|name| self.inner.token_to_id(name))
    }

    /// Calls `sink` with the ids of `text`, which all together are those of [`Tokenizer::encode`].
    ///
    /// A long text goes through in pieces of about a megabyte, since encoding takes a hundred times
    /// the memory of the text.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`], and what `sink` returns.
    pub fn encode_to(&self, text: &str, sink: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
        if !self.lossless {
            return sink(&self.encode(text)?);
        }
        pieces(text, PIECE_BYTES).try_for_each(|piece| sink(&self.encode(piece)?))
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

    /// As [`Tokenizer::encode`], each id with the bytes of the text it comes from.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self.inner.encode(text, false).map_err(other)?;
        if self.lossless {
            self.check_round_trip(text, encoding.get_ids())?;
        }
        let ranges = encoding
            .get_offsets()
            .iter()
            .map(|(start, end)| *start..*end);
        Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
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

/// The characters of a corpus.
fn distinct(read: impl FnOnce(&mut Parts<'_>) -> Result<()>) -> Result<BTreeSet<char>> {
    let mut distinct = BTreeSet::new();
    read(&mut |train, validation| {
        for part in [train, validation] {
            distinct.extend(part.plain_text().chars());
        }
        Ok(())
    })?;
    Ok(distinct)
}

/// Texts go through a channel: they may be too many for memory, and the trainer takes an iterator.
fn learn_bpe(
    size: usize,
    needs: Needs,
    read: impl FnOnce(&mut Parts<'_>) -> Result<()> + Send,
) -> Result<Tokenizer> {
    let (send, receive) = sync_channel::<String>(TEXTS_AHEAD);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            // A receiver that is gone has met an error, which is the one to report.
            read(&mut |train, _| {
                let text = train.plain_text();
                break_long_words(&text).for_each(|part| drop(send.send(part.to_owned())));
                Ok(())
            })
        });
        let learned = train_bpe(size, needs, receive.into_iter());
        reader.join().expect("reading does not panic")?;
        learned
    })
}

fn train_bpe(
    size: usize,
    needs: Needs,
    texts: impl Iterator<Item = String> + Send,
) -> Result<Tokenizer> {
    let mut inner = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
    inner
        .with_pre_tokenizer(Some(byte_level(true)))
        .with_decoder(Some(byte_level(true)));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(size)
        .show_progress(false)
        .special_tokens(needs.tokens())
        .initial_alphabet((0..=255).map(byte_char).collect())
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    inner.train(&mut trainer, texts).map_err(other)?;
    Ok(Tokenizer::wrap(inner))
}

/// Cuts inside runs of more than [`WORD_BYTES`] without white space. Learning merges takes time
/// quadratic in the length of a word, and there is nothing to learn from a megabyte without one.
fn break_long_words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut word = 0;
        let is_cut = |(at, c): &(usize, char)| {
            word = if c.is_whitespace() { *at + 1 } else { word };
            *at >= word + WORD_BYTES
        };
        let cut = rest.char_indices().find(is_cut);
        let (part, later) = rest.split_at(cut.map_or(rest.len(), |(at, _)| at));
        rest = later;
        (!part.is_empty()).then_some(part)
    })
}

/// Cuts a text where no token can cross: after a line end or before a space, between two characters
/// that are not white space. All pre-tokenizers of byte-level vocabularies part there.
fn pieces(text: &str, bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, later) = rest.split_at(cut_after(rest, bytes));
        rest = later;
        Some(piece)
    })
}

/// The first place to cut that is not before `bytes`.
fn cut_after(text: &str, bytes: usize) -> usize {
    let all = text.as_bytes();
    let is_word = |b: u8| !b.is_ascii_whitespace() && b.is_ascii();
    let line_end = |at: usize| all[at - 1] == b'\n' && is_word(all[at - 2]) && is_word(all[at]);
    let space = |at: usize| all[at] == b' ' && is_word(all[at - 1]) && is_word(all[at + 1]);
    (bytes.max(2)..all.len().saturating_sub(1))
        .find(|at| line_end(*at) || space(*at))
        .unwrap_or(all.len())
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

fn char_json(distinct: BTreeSet<char>) -> Value {
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
        let read = |see: &mut Parts<'_>| see(Passage::Text(text), Passage::NONE);
        Tokenizer::new(&kind.parse().unwrap(), Needs::default(), read).unwrap()
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
    fn pieces_encode_to_the_same_ids() {
        let text = "It was late.\nShe  said: \"no one\ncomes\n\nhere\" naïve — 東京\n x a b c\n";
        let text = text.repeat(10);
        for kind in ["bpe:300", "byte", "char"] {
            let tokenizer = make(kind, &text);
            let whole = tokenizer.encode(&text).unwrap();
            for bytes in 1..60 {
                let parts: Vec<_> = pieces(&text, bytes).collect();
                assert_eq!(parts.concat(), text);
                assert!(parts.len() > 4);
                let ids = parts
                    .iter()
                    .flat_map(|part| tokenizer.encode(part).unwrap());
                assert!(ids.eq(whole.iter().copied()), "{kind}, pieces of {bytes}");
            }
        }
        assert_eq!(pieces(&"x".repeat(100), 5).count(), 1);
    }

    #[test]
    fn only_endless_words_are_broken() {
        let parts = |text: &str| -> Vec<usize> { break_long_words(text).map(str::len).collect() };
        let line = "a word, ".repeat(2000);
        assert_eq!(parts(&line), [line.len()]);
        let endless = format!("{line}{}{line}", "é".repeat(WORD_BYTES / 4 * 3));
        let found = parts(&endless);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found.iter().sum::<usize>(), endless.len());
        assert_eq!(parts(""), [0; 0]);
    }

    /// Only what stands between texts ends one, not a text that holds its name.
    #[test]
    fn ends_of_text_are_added_for_many_texts_and_never_read_from_one() {
        for (kind, size) in [("bpe:300", 300), ("byte", 257), ("char", 15)] {
            let text = "<|endoftext|> and more";
            let kind = kind.parse().unwrap();
            let nine = [Passage::Text(text); 9];
            let read =
                |see: &mut Parts<'_>| nine.iter().try_for_each(|text| see(*text, Passage::NONE));
            let one = Tokenizer::new(&kind, Needs::default(), read).unwrap();
            assert_eq!(one.end_of_text(), None);
            let needs = Needs {
                end_of_text: true,
                turns: false,
            };
            let many = Tokenizer::new(&kind, needs, read).unwrap();
            let json = many.to_json().unwrap();
            let again = Tokenizer::from_bytes(json.as_bytes()).unwrap();
            for tokenizer in [&many, &again] {
                let end = tokenizer.end_of_text().unwrap();
                assert!(tokenizer.vocab_size() <= size, "{}", tokenizer.vocab_size());
                let ids = tokenizer.encode(text).unwrap();
                assert!(!ids.contains(&end));
                assert_eq!(tokenizer.decode(&ids).unwrap(), text);
                assert_eq!(tokenizer.decode(&[end]).unwrap(), END_OF_TEXT);
            }
        }
    }

    #[test]
    fn an_error_while_reading_is_the_error() {
        let read = |see: &mut Parts<'_>| {
            see(Passage::Text("some text"), Passage::NONE)?;
            Err(Error::Data("the disk is gone".into()))
        };
        let error = Tokenizer::new(&TokenizerKind::Bpe(300), Needs::default(), read).unwrap_err();
        assert_eq!(error.to_string(), "the disk is gone");
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
