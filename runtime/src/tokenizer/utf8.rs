//! Characters of bytes that need not be UTF-8: a rule of cutting may have cut a character in two.

/// The first character and its length; a byte that begins none is U+FFFD of length 1.
pub(super) fn first_char(bytes: &[u8]) -> Option<(char, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((first.into(), 1));
    }
    let (len, high) = match first {
        0xc2..=0xdf => (2, first & 0x1f),
        0xe0..=0xef => (3, first & 0x0f),
        0xf0..=0xf4 => (4, first & 0x07),
        _ => return Some((char::REPLACEMENT_CHARACTER, 1)),
    };
    let tail = bytes.get(1..len).unwrap_or(&[]);
    let valid = tail.len() == len - 1 && tail.iter().all(|byte| byte & 0xc0 == 0x80);
    let add = |code: u32, byte: &u8| code << 6 | u32::from(byte & 0x3f);
    let code = tail.iter().fold(u32::from(high), add);
    let least = [0, 0, 0x80, 0x800, 0x1_0000][len];
    match char::from_u32(code).filter(|_| valid && code >= least) {
        Some(c) => Some((c, len)),
        None => Some((char::REPLACEMENT_CHARACTER, 1)),
    }
}

/// Characters with their places.
pub(super) fn chars(bytes: &[u8]) -> impl Iterator<Item = (usize, char)> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || {
        let (c, len) = first_char(bytes.get(at..)?)?;
        at += len;
        Some((at - len, c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_is_read_and_nothing_else_is() {
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let mut buf = [0; 4];
            let text = c.encode_utf8(&mut buf);
            assert_eq!(first_char(text.as_bytes()), Some((c, text.len())));
        }
        let broken: [&[u8]; 7] = [
            b"\x80",
            b"\xc0\x80",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xe2\x82",
            b"\xff",
        ];
        for bytes in broken {
            assert_eq!(first_char(bytes), Some(('\u{fffd}', 1)), "{bytes:?}");
        }
        assert_eq!(first_char(b""), None);
    }
}
