//! Ids to text, as they come.

use bitnet_formats::TokenizerTables;
use bitnet_formats::tokenizer::Strip;

use super::Tokenizer;

/// Longest text of a token, and the bytes of a character that were kept back.
const MOST_BYTES: usize = 255 + 3;

/// Turns ids into text one by one, never half a character.
///
/// What is put together from all pieces is the text of all ids. Bytes that are no UTF-8 become
/// U+FFFD.
#[derive(Clone, Debug)]
pub struct Decoder<'w> {
    tables: TokenizerTables<'w>,
    skip_special: bool,
    /// True until the first token.
    first_token: bool,
    /// True until the first character.
    first_char: bool,
    /// Bytes of a character that is not complete.
    pending: [u8; 4],
    n_pending: usize,
    /// True once bytes were replaced.
    broken: bool,
}

impl<'w> Tokenizer<'w> {
    /// A decoder at the beginning of a text. `skip_special` leaves special tokens out.
    #[must_use]
    pub fn decoder(&self, skip_special: bool) -> Decoder<'w> {
        Decoder {
            tables: *self.tables(),
            skip_special,
            first_token: true,
            first_char: true,
            pending: [0; 4],
            n_pending: 0,
            broken: false,
        }
    }

    /// A decoder that goes on after `ids`: what it gives first may be a character that they began.
    #[must_use]
    pub fn decoder_after(&self, ids: &[u32], skip_special: bool) -> Decoder<'w> {
        let mut decoder = self.decoder(skip_special);
        decoder.first_token = false;
        decoder.first_char = false;
        // A character has at most four bytes, and a token at least one.
        for id in &ids[ids.len().saturating_sub(4)..] {
            decoder.push(*id, &mut |_| ());
        }
        decoder
    }

    /// The text of all ids, in pieces.
    ///
    /// Where a character is spelled in byte tokens and they are no UTF-8, each of them becomes
    /// U+FFFD, and so do all others in the same row, as the reference has it; a [`Decoder`], which
    /// cannot look ahead, keeps the characters before the first such byte.
    pub fn decode(&self, ids: &[u32], skip_special: bool, piece: &mut dyn FnMut(&str)) {
        let mut decoder = self.decoder(skip_special);
        let mut rest = ids;
        while let Some((id, tail)) = rest.split_first() {
            let (len, valid) = decoder.byte_row(rest);
            if len == 0 {
                decoder.push(*id, piece);
                rest = tail;
                continue;
            }
            let (row, tail) = rest.split_at(len);
            for id in row {
                if valid || !decoder.is_byte(*id) {
                    decoder.push(*id, piece);
                } else {
                    decoder.emit("\u{fffd}", piece);
                    decoder.first_token = false;
                }
            }
            rest = tail;
        }
        decoder.finish(piece);
    }
}

impl<'w> Decoder<'w> {
    /// Calls `piece` with the text that this id completes, if it completes any.
    pub fn push(&mut self, id: u32, piece: &mut dyn FnMut(&str)) {
        let Some(text) = self.text(id) else {
            return;
        };
        if let Some(byte) = self.byte(text) {
            self.push_bytes(&[byte], piece);
        } else {
            if self.tables.byte_fallback() {
                self.flush(piece);
            }
            self.push_text(text, piece);
        }
        self.first_token = false;
    }

    /// Gives what is left at the end: a character that never became complete.
    pub fn finish(&mut self, piece: &mut dyn FnMut(&str)) {
        self.flush(piece);
    }

    /// What a token is written as; `None` for one that is left out or does not exist.
    fn text(&self, id: u32) -> Option<&'w [u8]> {
        match self.tables.added(id) {
            Some(token) if token.special && self.skip_special => None,
            Some(token) => Some(token.text),
            None => self.tables.token(id),
        }
    }

    /// The byte a token stands for, where the tokenizer has tokens for bytes.
    fn byte(&self, text: &[u8]) -> Option<u8> {
        let [b'<', b'0', b'x', high, low, b'>'] = *text else {
            return None;
        };
        let digit = |c: u8| char::from(c).to_digit(16);
        let byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok();
        byte.filter(|_| self.tables.byte_fallback())
    }

    fn is_byte(&self, id: u32) -> bool {
        self.text(id).and_then(|text| self.byte(text)).is_some()
    }

    /// How many tokens in front are a row of bytes, and whether those are UTF-8. Tokens that are
    /// left out do not end a row.
    fn byte_row(&self, ids: &[u32]) -> (usize, bool) {
        let mut len = 0;
        if !ids.first().is_some_and(|id| self.is_byte(*id)) {
            return (len, true);
        }
        let mut probe = self.clone();
        probe.n_pending = 0;
        probe.broken = false;
        for (at, id) in ids.iter().enumerate() {
            let Some(text) = self.text(*id) else {
                continue;
            };
            let Some(byte) = self.byte(text) else {
                break;
            };
            probe.push_bytes(&[byte], &mut |_| ());
            len = at + 1;
        }
        (len, !probe.broken && probe.n_pending == 0)
    }

    fn push_text(&mut self, text: &[u8], piece: &mut dyn FnMut(&str)) {
        if self.first_token && self.tables.strip() == Strip::FirstToken {
            text.split(|byte| *byte == b' ')
                .for_each(|part| self.push_bytes(part, piece));
        } else {
            self.push_bytes(text, piece);
        }
    }

    /// Emits what is complete of the bytes kept back and these.
    fn push_bytes(&mut self, bytes: &[u8], piece: &mut dyn FnMut(&str)) {
        let mut joined = [0; MOST_BYTES];
        let kept = self.n_pending;
        let len = (kept + bytes.len()).min(MOST_BYTES);
        joined[..kept].copy_from_slice(&self.pending[..kept]);
        joined[kept..len].copy_from_slice(&bytes[..len - kept]);
        self.n_pending = 0;
        let mut rest = &joined[..len];
        while !rest.is_empty() {
            rest = self.emit_valid(rest, piece);
        }
    }

    /// Emits the valid beginning of `bytes`; what follows it is replaced, or kept back if it may yet
    /// become a character. Returns the rest.
    fn emit_valid<'b>(&mut self, bytes: &'b [u8], piece: &mut dyn FnMut(&str)) -> &'b [u8] {
        let error = match core::str::from_utf8(bytes) {
            Ok(text) => {
                self.emit(text, piece);
                return &[];
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        self.emit(core::str::from_utf8(valid).unwrap_or(""), piece);
        match error.error_len() {
            Some(len) => {
                self.replace(len, piece);
                &rest[len..]
            }
            None => {
                self.pending[..rest.len()].copy_from_slice(rest);
                self.n_pending = rest.len();
                &[]
            }
        }
    }

    fn flush(&mut self, piece: &mut dyn FnMut(&str)) {
        if self.n_pending > 0 {
            self.replace(self.n_pending, piece);
            self.n_pending = 0;
        }
    }

    /// One replacement character for broken bytes, or one for each where bytes are tokens.
    fn replace(&mut self, n_bytes: usize, piece: &mut dyn FnMut(&str)) {
        self.broken = true;
        let n = if self.tables.byte_fallback() {
            n_bytes
        } else {
            1
        };
        (0..n).for_each(|_| self.emit("\u{fffd}", piece));
    }

    fn emit(&mut self, text: &str, piece: &mut dyn FnMut(&str)) {
        if text.is_empty() {
            return;
        }
        let strip = self.first_char && self.tables.strip() == Strip::Space;
        let text = text.strip_prefix(' ').filter(|_| strip).unwrap_or(text);
        if !text.is_empty() {
            piece(text);
        }
        self.first_char = false;
    }
}
