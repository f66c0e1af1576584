//! Between text and token ids: the room for both, and the tokenizer of the file.

use bitnet_runtime::tokenizer::Decoder;
use bitnet_runtime::{RunError, Tokenizer};

use crate::error::Error;

/// Room for prompt text, for each position of the context. Few tokens are longer on average.
pub const BYTES_PER_POSITION: usize = 8;

/// Words of scratch memory with which a prompt of this many bytes can be encoded whatever the tokenizer,
/// because the memory is planned before the tokenizer is read. Normalisation makes a text up to three
/// times as long; four words are needed for each of its bytes, and both the text and what has a token of
/// it may be copied.
#[must_use]
pub const fn scratch_words(text_bytes: usize) -> usize {
    14 * text_bytes + 16
}

/// Most bytes that a token completes: a decoder takes at most 258 together, three may have been kept
/// back, and each may become a replacement character of three bytes.
const PIECE_BYTES: usize = 3 * (258 + 3);

/// Text that a step completed.
struct Piece {
    bytes: [u8; PIECE_BYTES],
    len: usize,
}

/// Text in, text out.
pub struct Text<'w, 'b> {
    tokenizer: Option<Tokenizer<'w>>,
    decoder: Option<Decoder<'w>>,
    room: &'b mut [u8],
    scratch: &'b mut [u32],
    piece: Piece,
    dropped: usize,
}

impl<'w, 'b> Text<'w, 'b> {
    /// `room` is lent for the text of a prompt, `scratch` has [`scratch_words`] for it.
    #[must_use]
    pub const fn new(
        tokenizer: Option<Tokenizer<'w>>,
        room: &'b mut [u8],
        scratch: &'b mut [u32],
    ) -> Self {
        Self {
            tokenizer,
            decoder: None,
            room,
            scratch,
            piece: Piece {
                bytes: [0; PIECE_BYTES],
                len: 0,
            },
            dropped: 0,
        }
    }

    /// Room for the text of a prompt.
    pub fn room_mut(&mut self) -> &mut [u8] {
        self.room
    }

    /// Writes the ids of the first `bytes` bytes of the room and returns their number. `first` where
    /// nothing was read before: then the ids that stand around every text are added.
    ///
    /// # Errors
    ///
    /// The file has no tokenizer, the text is not UTF-8, or it has no ids or more than `ids` takes.
    pub fn encode(&mut self, bytes: usize, first: bool, ids: &mut [u32]) -> Result<usize, Error> {
        let tokenizer = self.tokenizer.ok_or(Error::NoTokenizer)?;
        let text = self.room.get(..bytes).ok_or(Error::Utf8)?;
        let text = core::str::from_utf8(text).map_err(|_| Error::Utf8)?;
        let encoded = tokenizer.encode(text, first, self.scratch, ids)?;
        self.dropped = encoded.dropped;
        match encoded.len {
            0 => Err(RunError::Empty.into()),
            len => Ok(len),
        }
    }

    /// Characters of the last prompt that have no token and were left out.
    #[must_use]
    pub const fn dropped(&self) -> usize {
        self.dropped
    }

    /// Text goes on after these ids.
    pub fn follow(&mut self, ids: &[u32]) {
        let tokenizer = self.tokenizer.as_ref();
        self.decoder = tokenizer.map(|tokenizer| tokenizer.decoder_after(ids, true));
        self.piece.len = 0;
    }

    /// A token was written: [`piece`](Self::piece) is the text that it completes.
    pub fn push(&mut self, id: u32) {
        self.piece.len = 0;
        if let Some(decoder) = &mut self.decoder {
            decoder.push(id, &mut |text| self.piece.push(text));
        }
    }

    /// No more tokens come: the piece is what was kept back.
    pub fn finish(&mut self) {
        self.piece.len = 0;
        if let Some(decoder) = &mut self.decoder {
            decoder.finish(&mut |text| self.piece.push(text));
        }
    }

    /// The text of the last call, UTF-8.
    #[must_use]
    pub fn piece(&self) -> &[u8] {
        &self.piece.bytes[..self.piece.len]
    }
}

impl Piece {
    /// Appends; [`PIECE_BYTES`] is why there is room.
    fn push(&mut self, text: &str) {
        self.bytes[self.len..][..text.len()].copy_from_slice(text.as_bytes());
        self.len += text.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::tokenizer::{
        Alphabet, MergeSource, Normalization, Prefix, Strip, TokenPart, TokenizerParts,
        TokenizerTables,
    };
    use bitnet_runtime::tokenizer::EncodeError;

    /// Letters `a` and `b`, a pair of them, and bytes that are only the beginning of a character. Every
    /// rule that takes memory is on.
    fn section() -> Vec<u8> {
        let token = |bytes: &[u8]| TokenPart {
            bytes: bytes.to_vec(),
            matchable: true,
        };
        let tokens = [&b"a"[..], b"b", b"ab", b" ", b"\xe2\x82", b"\xac"].map(token);
        let parts = TokenizerParts {
            alphabet: Alphabet::Characters,
            merges: MergeSource::Scores(vec![0.0; tokens.len()]),
            tokens: tokens.into(),
            whole_words_first: false,
            byte_fallback: false,
            fuse_unknown: false,
            unknown: None,
            marks_spaces: true,
            prefix: Prefix::Always,
            strip: Strip::None,
            steps: Vec::new(),
            added: Vec::new(),
            classes: None,
            normalization: Some(Normalization::default()),
            ids_before: vec![1],
            ids_after: Vec::new(),
        };
        parts.encode().unwrap()
    }

    /// Gives `body` a text with room for 16 bytes, of which the first are `prompt`.
    fn with_text<T>(prompt: &[u8], body: impl FnOnce(&mut Text<'_, '_>) -> T) -> T {
        let section = section();
        let tokenizer = Tokenizer::new(TokenizerTables::open(&section).unwrap());
        let mut room = [0; 16];
        room[..prompt.len()].copy_from_slice(prompt);
        let mut scratch = vec![0; scratch_words(room.len())];
        body(&mut Text::new(Some(tokenizer), &mut room, &mut scratch))
    }

    #[test]
    fn the_scratch_memory_suffices_for_every_tokenizer() {
        let section = section();
        let tokenizer = Tokenizer::new(TokenizerTables::open(&section).unwrap());
        for bytes in (0..100).chain([BYTES_PER_POSITION << 22]) {
            assert!(scratch_words(bytes) >= tokenizer.scratch_words(bytes));
        }
    }

    #[test]
    fn texts_become_ids() {
        with_text(b"abb", |text| {
            let mut ids = [0; 9];
            assert_eq!(text.encode(3, true, &mut ids), Ok(4));
            assert_eq!(ids[..4], [1, 3, 2, 1]);
            assert_eq!(text.encode(1, false, &mut ids), Ok(2));
            assert_eq!((&ids[..2], text.dropped()), (&[3, 0][..], 0));
        });
    }

    #[test]
    fn characters_without_a_token_are_counted() {
        let dropped = |text: &mut Text<'_, '_>| {
            text.encode(4, true, &mut [0; 9]).unwrap();
            text.dropped()
        };
        assert_eq!(with_text("aé?".as_bytes(), dropped), 2);
    }

    #[test]
    fn what_is_no_prompt_is_an_error() {
        with_text(b"ab\xff", |text| {
            let mut ids = [0; 9];
            assert_eq!(text.encode(3, true, &mut ids), Err(Error::Utf8));
            assert_eq!(text.encode(17, true, &mut ids), Err(Error::Utf8));
            assert_eq!(
                text.encode(0, false, &mut ids),
                Err(Error::Run(RunError::Empty))
            );
            assert_eq!(
                text.encode(2, true, &mut ids[..2]),
                Err(Error::Encode(EncodeError::Ids { found: 2 }))
            );
        });
        let mut without = Text::new(None, &mut [], &mut []);
        assert_eq!(
            without.encode(0, true, &mut [0; 9]),
            Err(Error::NoTokenizer)
        );
        without.follow(&[1]);
        without.push(1);
        assert!(without.piece().is_empty());
    }

    #[test]
    fn pieces_are_whole_characters() {
        with_text(b"", |text| {
            // Nothing to follow yet.
            text.push(2);
            assert!(text.piece().is_empty());
            text.follow(&[0]);
            let mut piece = |id| {
                text.push(id);
                String::from_utf8(text.piece().to_vec()).unwrap()
            };
            assert_eq!([2, 4, 5, 4].map(&mut piece), ["ab", "", "€", ""]);
            text.finish();
            assert_eq!(text.piece(), "\u{fffd}".as_bytes());
            text.finish();
            assert!(text.piece().is_empty());
            // The prompt may end within a character.
            text.follow(&[0, 4]);
            text.push(5);
            assert_eq!(text.piece(), "€".as_bytes());
        });
    }
}
