//! Cutting text into words.
//!
//! A step takes pieces from the front of a text; each further step cuts within those. The patterns
//! are regular expressions in the sources they come from; here each is a function that says how
//! long the first piece is. White space is `\s`, letters `\p{L}`, numbers `\p{N}` of the Unicode
//! version in the file.

use bitnet_formats::TokenizerTables;
use bitnet_formats::tokenizer::{CharClass, SplitStep, is_space};

use super::error::EncodeError;
use super::utf8::{chars, first_char};

/// Calls `word` with every word of `text`, from left to right.
pub(super) fn split(
    tables: &TokenizerTables<'_>,
    steps: &[SplitStep],
    text: &[u8],
    word: &mut dyn FnMut(&[u8]) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let Some((step, inner)) = steps.split_first() else {
        return word(text);
    };
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(first_piece(tables, *step, rest));
        split(tables, inner, piece, word)?;
        rest = tail;
    }
    Ok(())
}

/// Bytes of the first piece of a text that is not empty; at least one.
fn first_piece(tables: &TokenizerTables<'_>, step: SplitStep, text: &[u8]) -> usize {
    let scan = Scan { tables, text };
    match step {
        SplitStep::Gpt2 => scan.gpt2(),
        SplitStep::WordsDigits1 => scan.words(1),
        SplitStep::WordsDigits3 => scan.words(3),
        SplitStep::Punctuation => scan.single(|c| scan.is_punctuation(c)),
        SplitStep::PunctuationRuns => scan.run(|c| scan.is_punctuation(c)),
        SplitStep::Digits => scan.single(|c| scan.class(c) == Kind::Number),
        SplitStep::DigitRuns => scan.run(|c| scan.class(c) == Kind::Number),
        SplitStep::ByteDigits => single_byte(text, is_byte_digit),
        SplitStep::ByteDigitRuns => byte_run(text, is_byte_digit),
        SplitStep::DigitTriples => digit_triple(text),
        SplitStep::Spaces => before(&text[1..], |_, byte| byte == b' ') + 1,
        SplitStep::SpaceRuns => before(&text[1..], |at, byte| byte == b' ' && text[at] != b' ') + 1,
    }
}

/// What the patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Letter,
    Number,
    Space,
    Other,
}

/// A text at whose front a piece is to be found.
#[derive(Clone, Copy)]
struct Scan<'a, 'w> {
    tables: &'a TokenizerTables<'w>,
    text: &'a [u8],
}

impl Scan<'_, '_> {
    fn class(&self, c: char) -> Kind {
        match c {
            'a'..='z' | 'A'..='Z' => Kind::Letter,
            '0'..='9' => Kind::Number,
            _ if is_space(c) => Kind::Space,
            _ if c.is_ascii() => Kind::Other,
            _ => match self.tables.class(c) {
                CharClass::Letter => Kind::Letter,
                CharClass::Number => Kind::Number,
                CharClass::Other | CharClass::Punctuation => Kind::Other,
            },
        }
    }

    fn is_punctuation(&self, c: char) -> bool {
        match c.is_ascii() {
            true => c.is_ascii_punctuation(),
            false => self.tables.class(c) == CharClass::Punctuation,
        }
    }

    /// The kind and length of the character at a place.
    fn kind(&self, at: usize) -> Option<(Kind, usize)> {
        let (c, len) = first_char(self.text.get(at..)?)?;
        Some((self.class(c), len))
    }

    /// Where the run of this kind ends that begins at `at`, after at most `most` characters.
    fn run_end(&self, mut at: usize, kind: Kind, most: usize) -> usize {
        for _ in 0..most {
            match self.kind(at) {
                Some((found, len)) if found == kind => at += len,
                _ => break,
            }
        }
        at
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    fn gpt2(&self) -> usize {
        if let Some(len) = self.contraction(false) {
            return len;
        }
        let start = usize::from(self.text[0] == b' ');
        match self.kind(start) {
            Some((Kind::Space, _)) | None => self.spaces(),
            Some((kind, _)) => self.run_end(start, kind, usize::MAX),
        }
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}|`
    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    fn words(&self, digits: usize) -> usize {
        if let Some(len) = self.contraction(true) {
            return len;
        }
        let Some((kind, len)) = self.kind(0) else {
            return 1;
        };
        let newline = matches!(self.text[0], b'\r' | b'\n');
        let letters = match kind {
            Kind::Letter => 0,
            Kind::Number => return self.run_end(0, Kind::Number, digits),
            Kind::Space | Kind::Other => len,
        };
        if !newline && matches!(self.kind(letters), Some((Kind::Letter, _))) {
            return self.run_end(letters, Kind::Letter, usize::MAX);
        }
        let start = usize::from(self.text[0] == b' ');
        if matches!(self.kind(start), Some((Kind::Other, _))) {
            let end = self.run_end(start, Kind::Other, usize::MAX);
            let newlines = before(&self.text[end..], |_, byte| !matches!(byte, b'\r' | b'\n'));
            return end + newlines;
        }
        self.newlines().unwrap_or_else(|| self.spaces())
    }

    /// An apostrophe and what it stands before; `ſ` is an s where case does not count.
    fn contraction(&self, any_case: bool) -> Option<usize> {
        let tail = self.text.strip_prefix(b"'")?;
        let is = |ending: &[u8]| match tail.get(..ending.len()) {
            Some(found) if any_case => found.eq_ignore_ascii_case(ending),
            Some(found) => found == ending,
            None => false,
        };
        let endings: [&[u8]; 7] = [b"s", b"t", b"re", b"ve", b"m", b"ll", b"d"];
        let ending = endings.into_iter().find(|ending| is(ending));
        let long_s = || (any_case && tail.starts_with("ſ".as_bytes())).then_some("ſ".len());
        Some(1 + ending.map(<[u8]>::len).or_else(long_s)?)
    }

    /// `\s*[\r\n]+`: white space to its last newline.
    fn newlines(&self) -> Option<usize> {
        let end = self.run_end(0, Kind::Space, usize::MAX);
        let newline = |byte: &u8| matches!(byte, b'\r' | b'\n');
        self.text[..end].iter().rposition(newline).map(|at| at + 1)
    }

    /// `\s+(?!\S)|\s+`: white space, its last character left to the word that follows, if one does
    /// and if it is not the only one.
    fn spaces(&self) -> usize {
        let end = self.run_end(0, Kind::Space, usize::MAX);
        if end == self.text.len() {
            return end;
        }
        let space = &self.text[..end];
        let last = space.iter().rposition(|byte| byte & 0xc0 != 0x80);
        last.filter(|last| *last > 0).unwrap_or(end).max(1)
    }

    /// A matching character, or all before the first one.
    fn single(&self, test: impl Fn(char) -> bool) -> usize {
        match first_char(self.text) {
            Some((c, len)) if test(c) => len,
            _ => self.until(test),
        }
    }

    /// A run of characters that all match, or of which none does.
    fn run(&self, test: impl Fn(char) -> bool) -> usize {
        match first_char(self.text) {
            Some((c, _)) if test(c) => self.until(|c| !test(c)),
            _ => self.until(test),
        }
    }

    fn until(&self, test: impl Fn(char) -> bool) -> usize {
        let found = chars(self.text).find(|(_, c)| test(*c));
        found.map_or(self.text.len(), |(at, _)| at)
    }
}

/// Bytes before the first that passes the test.
fn before(text: &[u8], test: impl Fn(usize, u8) -> bool) -> usize {
    let found = text
        .iter()
        .enumerate()
        .position(|(at, byte)| test(at, *byte));
    found.unwrap_or(text.len())
}

/// True for bytes that the byte alphabet of GPT-2 writes as a number character.
fn is_byte_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | 0xb2 | 0xb3 | 0xb9 | 0xbc..=0xbe)
}

fn single_byte(text: &[u8], test: fn(u8) -> bool) -> usize {
    before(text, |_, byte| test(byte)).max(1)
}

fn byte_run(text: &[u8], test: fn(u8) -> bool) -> usize {
    let first = test(text[0]);
    before(text, |_, byte| test(byte) != first)
}

/// Three digits, or all before the first three that stand together.
fn digit_triple(text: &[u8]) -> usize {
    let triple = |three: &[u8]| three.iter().all(u8::is_ascii_digit);
    match text.windows(3).position(triple) {
        Some(0) => 3,
        Some(at) => at,
        None => text.len(),
    }
}
