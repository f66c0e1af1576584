//! The bytes of a token, looked up in the `tokenizer.json` that the model file carries.
//!
//! Byte-level vocabularies (GPT-2) only. Nothing is built: each look-up reads the vocabulary from
//! flash, some instructions per byte of it, far fewer than the model takes for a token.

use bitnet_formats::Archive;
use bitnet_formats::section::SectionKind;

/// The vocabulary of a model.
#[derive(Clone, Copy)]
pub struct Vocabulary<'w> {
    /// `"text": id, "text": id, ...`
    entries: &'w str,
}

impl<'w> Vocabulary<'w> {
    /// Finds it; `None` where the file has no byte-level vocabulary.
    #[must_use]
    pub fn find(archive: &Archive<'w>) -> Option<Self> {
        let json = archive.text(SectionKind::TokenizerJson)?;
        let byte_level = json.contains("\"type\": \"ByteLevel\"");
        let (_, vocab) = json.split_once("\"vocab\": {")?;
        byte_level.then_some(Self { entries: vocab })
    }

    /// Gives the bytes of a token to `put`, one by one; returns whether there is such a token.
    pub fn bytes(&self, id: u32, mut put: impl FnMut(u8)) -> bool {
        let mut rest = self.entries;
        while let Some((text, after)) = entry(rest) {
            let number = after.trim_start_matches([':', ' ']);
            let end = number.find(|c: char| !c.is_ascii_digit());
            let (number, after) = number.split_at(end.unwrap_or(number.len()));
            if number.parse() == Ok(id) {
                unescaped(text).for_each(|c| put(byte_of(c)));
                return true;
            }
            rest = match after.trim_start().strip_prefix(',') {
                Some(rest) => rest,
                None => return false,
            };
        }
        false
    }
}

/// The text between the first two quotes, still escaped, and what follows.
fn entry(json: &str) -> Option<(&str, &str)> {
    let start = json.trim_start().strip_prefix('"')?;
    let mut escaped = false;
    let end = start.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    Some((&start[..end], &start[end + 1..]))
}

/// The characters of a JSON string. Visible characters are escaped by a backslash alone.
fn unescaped(text: &str) -> impl Iterator<Item = char> {
    let mut escaped = false;
    text.chars().filter(move |c| {
        escaped = *c == '\\' && !escaped;
        !escaped
    })
}

/// The byte that a character of the vocabulary stands for: visible ones of Latin-1 for themselves,
/// those from U+0100 on for the others in order.
fn byte_of(c: char) -> u8 {
    let code = c as u32;
    match code {
        0x100..=0x120 => (code - 0x100) as u8,
        0x121..=0x142 => (code - 0x121) as u8 + 127,
        0x143 => 173,
        _ => code as u8,
    }
}
