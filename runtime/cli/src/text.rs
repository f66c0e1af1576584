//! Between text and token ids.

use anyhow::{Context, Result, anyhow};
use bitnet_formats::SectionKind;
use bitnet_runtime::Archive;
use tokenizers::Tokenizer;

use crate::model_file::ModelFile;

/// The tokenizer in a file.
pub(crate) fn tokenizer(file: &ModelFile, archive: &Archive<'_>) -> Result<Option<Tokenizer>> {
    let json = archive.section(SectionKind::TokenizerJson);
    let parse = |json| Tokenizer::from_bytes(json).map_err(|e| anyhow!("{e}"));
    json.map(parse)
        .transpose()
        .with_context(|| format!("the tokenizer in {} cannot be used", file.name()))
}

/// Ids of a text, with the tokenizer's own begin-of-text rule or without any special token.
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>> {
    let encoding = tokenizer
        .encode_fast(text, special)
        .map_err(|e| anyhow!("{e}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// Turns ids into text as they come, never half a character.
///
/// What follows a token can change how it is written, so each piece is the difference of two
/// decodings: of the ids since the last complete piece, with and without the new ones.
pub(crate) struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// First id of the last complete piece.
    prefix: usize,
    /// First id after it.
    read: usize,
}

/// Bytes of the characters with which both texts begin. Not always all of `before`: where the last
/// id before a piece ends within a character, the piece completes it.
fn common_prefix(before: &str, after: &str) -> usize {
    let pairs = before.chars().zip(after.chars());
    let common = pairs.take_while(|(a, b)| a == b);
    common.map(|(c, _)| c.len_utf8()).sum()
}

/// A character has at most four bytes, so a fifth token cannot complete one: the bytes are not
/// UTF-8, and are shown as replacement characters.
const MOST_PENDING: usize = 4;

impl<'t> TextStream<'t> {
    /// A stream that goes on after `prompt`.
    pub(crate) fn new(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Self {
        let tail = &prompt[prompt.len().saturating_sub(MOST_PENDING)..];
        Self {
            tokenizer,
            ids: tail.to_vec(),
            prefix: 0,
            read: tail.len(),
        }
    }

    /// The text that this id completes; empty while a character is incomplete.
    pub(crate) fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let pending = self.ids.len() - self.read;
        self.piece(pending > MOST_PENDING)
    }

    /// What is left at the end, incomplete or not.
    pub(crate) fn finish(&mut self) -> Result<String> {
        self.piece(true)
    }

    fn piece(&mut self, force: bool) -> Result<String> {
        let before = self.decode(&self.ids[self.prefix..self.read])?;
        let after = self.decode(&self.ids[self.prefix..])?;
        if after.ends_with('\u{fffd}') && !force {
            return Ok(String::new());
        }
        self.prefix = self.read;
        self.read = self.ids.len();
        Ok(after[common_prefix(&before, &after)..].to_owned())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(|e| anyhow!("{e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::models::bpe::{BPE, Vocab};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    /// A token per byte: id = byte.
    fn bytes() -> Tokenizer {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        // The byte-level alphabet keeps printable ASCII and Latin-1 and moves the rest to U+0100..
        alphabet.sort_unstable();
        let printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let moved = (0..=255u32).filter(|b| !printable(b));
        let mut table: Vec<char> = (0..=255u32).filter_map(char::from_u32).collect();
        for (i, byte) in moved.enumerate() {
            table[byte as usize] = char::from_u32(0x100 + i as u32).unwrap();
        }
        let vocab: Vocab = table
            .iter()
            .enumerate()
            .map(|(id, c)| (c.to_string(), id as u32))
            .collect();
        let mut tokenizer = Tokenizer::new(BPE::new(vocab, Vec::new()));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer
    }

    fn stream(bytes_in: &[u8]) -> (Vec<String>, String) {
        let tokenizer = bytes();
        let mut stream = TextStream::new(&tokenizer, &[]);
        let pieces: Vec<_> = bytes_in
            .iter()
            .map(|b| stream.push(u32::from(*b)).unwrap())
            .collect();
        let rest = stream.finish().unwrap();
        (pieces, rest)
    }

    #[test]
    fn characters_come_whole() {
        let (pieces, rest) = stream("aé€🦀b".as_bytes());
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "🦀", "b"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn a_character_that_the_prompt_began_is_completed() {
        let tokenizer = bytes();
        let mut stream = TextStream::new(&tokenizer, &[0x61, 0xe2, 0x82]);
        let pieces = [0xac, 0x20, 0x62].map(|id| stream.push(id).unwrap());
        assert_eq!(pieces, ["€", " ", "b"]);
    }

    #[test]
    fn bytes_that_are_no_text_do_not_stall_the_stream() {
        let (pieces, rest) = stream(b"a\xff\xff\xff\xff\xff\xffb\xf0\x9f");
        let text = pieces.concat() + &rest;
        assert!(text.starts_with('a') && text.contains('b'), "{text:?}");
        assert_eq!(
            text.chars().filter(|c| *c == '\u{fffd}').count(),
            7,
            "{text:?}"
        );
    }
}
