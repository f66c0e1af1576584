//! Text as the rules of merging want it: composed, spaces unmarked, a space before it.

use bitnet_formats::TokenizerTables;
use bitnet_formats::tokenizer::Prefix;
use zerocopy::IntoBytes;

use super::added::Split;
use super::error::EncodeError;
use super::{lend, nfc, text_words, utf8};

/// U+2581, which stands for a space in the vocabularies of SentencePiece.
const MARK: &[u8] = "\u{2581}".as_bytes();

/// A normalised copy of a stretch of text, in scratch memory, with room for one byte before it.
pub(super) struct Stretch<'s> {
    bytes: &'s mut [u8],
    len: usize,
}

impl<'s> Stretch<'s> {
    /// Copies `text`; what is left of the scratch memory comes second.
    pub(super) fn new(
        tables: &TokenizerTables<'_>,
        text: &[u8],
        scratch: &'s mut [u32],
    ) -> Result<(Self, &'s mut [u32]), EncodeError> {
        let space = usize::from(tables.prefix() == Prefix::Normalized && !text.is_empty());
        // Nothing below U+0300 combines, and all of it is composed.
        let compose = tables.nfc() && text.iter().any(|byte| *byte >= 0xcc);
        let len = if compose {
            compose_into(tables, text, scratch, 1 + space)?
        } else {
            let (copy, _) = lend(scratch, text_words(space + text.len()), 0)?;
            copy.as_mut_bytes()[1 + space..][..text.len()].copy_from_slice(text);
            text.len()
        };
        let (copy, rest) = lend(scratch, text_words(space + len), 0)?;
        let bytes = copy.as_mut_bytes();
        bytes[1..1 + space].fill(b' ');
        let mut stretch = Self {
            bytes,
            len: space + len,
        };
        if tables.marks_spaces() {
            stretch.unmark();
        }
        Ok((stretch, rest))
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.bytes[1..1 + self.len]
    }

    /// A part of the text, with a space before it if the rule asks for one. The byte before it
    /// belongs to nothing any more: to an added token that is done, or to the room before the text.
    pub(super) fn prefixed(&mut self, rule: Prefix, first: bool, part: &Split) -> &[u8] {
        let wanted = match rule {
            Prefix::Never | Prefix::Normalized => false,
            Prefix::Always => true,
            Prefix::First => first,
        };
        let (start, end) = (1 + part.start, 1 + part.end);
        if !wanted || self.bytes[start] == b' ' {
            return &self.bytes[start..end];
        }
        self.bytes[start - 1] = b' ';
        &self.bytes[start - 1..end]
    }

    /// Turns marks into spaces, in place.
    fn unmark(&mut self) {
        let text = &mut self.bytes[1..1 + self.len];
        let (mut from, mut to) = (0, 0);
        while from < text.len() {
            if text[from..].starts_with(MARK) {
                text[to] = b' ';
                from += MARK.len();
            } else {
                text[to] = text[from];
                from += 1;
            }
            to += 1;
        }
        self.len = to;
    }
}

/// Writes the composed text at a byte of the scratch memory; returns its length. Characters are put
/// in order at the far end of the memory.
fn compose_into(
    tables: &TokenizerTables<'_>,
    text: &[u8],
    scratch: &mut [u32],
    at: usize,
) -> Result<usize, EncodeError> {
    let n_chars = nfc::decomposed_len(tables, text);
    let (needed, found) = (n_chars, scratch.len());
    let front = found
        .checked_sub(n_chars)
        .ok_or(EncodeError::Scratch { needed, found })?;
    let (front, chars) = scratch.split_at_mut(front);
    let composed = nfc::compose(tables, text, chars);
    let len = composed.iter().map(|c| nfc::character(*c).len_utf8()).sum();
    let needed = text_words(at + len);
    if front.len() < needed {
        let needed = needed + n_chars;
        return Err(EncodeError::Scratch { needed, found });
    }
    let mut rest = &mut front.as_mut_bytes()[at..];
    for c in composed {
        let written = nfc::character(*c).encode_utf8(rest).len();
        rest = &mut rest[written..];
    }
    Ok(len)
}

/// Characters of a text.
pub(super) fn characters(text: &[u8]) -> impl Iterator<Item = char> + '_ {
    utf8::chars(text).map(|(_, c)| c)
}
