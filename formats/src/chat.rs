//! The chat section: a conversation's template as a short list of operations.
//!
//! A template of a public checkpoint is a program in a language of its own. It is compiled when a
//! model is converted; what is left to do is to write texts, roles and contents in order, to loop
//! over the messages and to test a few conditions. Jumps go forward, except at the end of the loop,
//! and a loop is not nested: rendering takes a number of steps that the section and the number of
//! messages bound.

use crate::error::FormatError;
use crate::section::SectionKind;

/// Newest version of the section this crate reads, and the one it writes.
pub const CHAT_VERSION: u16 = 1;
/// Bytes before the operations.
const HEADER_BYTES: usize = 16;
/// Bytes of an operation.
const OP_BYTES: usize = 8;

/// What white space is taken off a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trim {
    /// None.
    None,
    /// At both ends.
    Both,
    /// At the beginning.
    Start,
    /// At the end.
    End,
}

/// A condition. Texts are named by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatTest {
    /// The assistant's turn is to be opened at the end.
    Generate,
    /// The message is the first of the loop.
    First,
    /// The message is the last one.
    Last,
    /// The message is the first, third, fifth of the loop.
    Even,
    /// The role of the message is this text.
    RoleIs(u16),
    /// The role of the very first message is this text.
    FirstRoleIs(u16),
}

/// An operation. Places are numbers of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatOp {
    /// Write a text.
    Text(u16),
    /// Write the role of the message.
    Role,
    /// Write it with a capital first letter and small others.
    RoleCapitalized,
    /// Write the content of the message.
    Content(Trim),
    /// Write the content of the very first message.
    FirstContent(Trim),
    /// Go on elsewhere unless a test gives the expected answer.
    Unless {
        /// The test.
        test: ChatTest,
        /// The answer that lets things go on here.
        expected: bool,
        /// Where to go on else; further on.
        to: u16,
    },
    /// Go on elsewhere.
    Jump(u16),
    /// Take each message in turn but for the first few.
    Loop {
        /// Messages left out.
        skip: u16,
        /// Where to go on if none is left; further on.
        to: u16,
    },
    /// The next message: back to behind the `Loop`.
    EndLoop,
    /// This conversation cannot be written; the text says why.
    Refuse(u16),
}

/// A chat section, opened.
#[derive(Clone, Copy, Debug)]
pub struct ChatTables<'w> {
    ops: &'w [[u8; OP_BYTES]],
    text_ends: &'w [[u8; 4]],
    n_stop_strings: usize,
    stop_ids: &'w [[u8; 4]],
    text: &'w str,
}

impl<'w> ChatTables<'w> {
    /// Opens a section and checks every operation.
    ///
    /// # Errors
    ///
    /// A newer version, or anything that is not as described above.
    pub fn open(bytes: &'w [u8]) -> Result<Self, FormatError> {
        let content = FormatError::SectionContent(SectionKind::Chat);
        let version = bytes.first_chunk().ok_or(content)?;
        let found = u16::from_le_bytes(*version);
        if found != CHAT_VERSION {
            let supported = CHAT_VERSION;
            return Err(FormatError::ChatVersion { found, supported });
        }
        let chat = Self::cut(bytes).ok_or(content)?;
        if chat.texts_are_sound() && chat.ops_are_sound() {
            Ok(chat)
        } else {
            Err(content)
        }
    }

    fn cut(bytes: &'w [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let count = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (ops, rest) = rest.split_at_checked(count(2) * OP_BYTES)?;
        let (text_ends, rest) = rest.split_at_checked(count(4) * 4)?;
        let (stop_ids, text) = rest.split_at_checked(count(8) * 4)?;
        let chat = Self {
            ops: ops.as_chunks().0,
            text_ends: text_ends.as_chunks().0,
            n_stop_strings: count(6),
            stop_ids: stop_ids.as_chunks().0,
            text: core::str::from_utf8(text).ok()?,
        };
        let reserved = header[10..] == [0; 6];
        (reserved && chat.n_stop_strings <= chat.text_ends.len()).then_some(chat)
    }

    /// The operation at a place; `None` at the end.
    #[must_use]
    pub fn op(&self, at: usize) -> Option<ChatOp> {
        decode(self.ops.get(at)?)
    }

    /// Number of operations.
    #[must_use]
    pub const fn n_ops(&self) -> usize {
        self.ops.len()
    }

    /// A text by its number.
    #[must_use]
    pub fn text(&self, at: u16) -> &'w str {
        self.text_at(usize::from(at)).unwrap_or("")
    }

    /// Texts that end an answer.
    pub fn stop_strings(&self) -> impl Iterator<Item = &'w str> + '_ {
        let n = self.text_ends.len();
        (n - self.n_stop_strings..n).filter_map(|at| self.text_at(at))
    }

    /// Ids that end an answer, besides those that end every text.
    pub fn stop_ids(&self) -> impl ExactSizeIterator<Item = u32> + 'w {
        self.stop_ids.iter().map(|id| u32::from_le_bytes(*id))
    }

    fn text_at(&self, at: usize) -> Option<&'w str> {
        let end = |at: usize| usize::try_from(u32::from_le_bytes(*self.text_ends.get(at)?)).ok();
        let start = at.checked_sub(1).map_or(Some(0), end)?;
        self.text.get(start..end(at)?)
    }

    /// Texts follow each other to the end, each whole characters.
    fn texts_are_sound(&self) -> bool {
        let n = self.text_ends.len();
        let last = self
            .text_ends
            .last()
            .map_or(0, |end| u32::from_le_bytes(*end));
        (0..n).all(|at| self.text_at(at).is_some()) && usize::try_from(last) == Ok(self.text.len())
    }

    fn ops_are_sound(&self) -> bool {
        let mut in_loop = false;
        (0..self.ops.len()).all(|at| {
            let Some(op) = self.op(at) else {
                return false;
            };
            let turns = match op {
                ChatOp::Loop { .. } => !in_loop,
                ChatOp::EndLoop => in_loop,
                _ => true,
            };
            in_loop = match op {
                ChatOp::Loop { .. } => true,
                ChatOp::EndLoop => false,
                _ => in_loop,
            };
            turns && self.texts_exist(op) && self.goes_forward(at, op)
        })
    }

    fn texts_exist(&self, op: ChatOp) -> bool {
        match op {
            ChatOp::Text(text)
            | ChatOp::Refuse(text)
            | ChatOp::Unless {
                test: ChatTest::RoleIs(text) | ChatTest::FirstRoleIs(text),
                ..
            } => usize::from(text) < self.text_ends.len(),
            _ => true,
        }
    }

    fn goes_forward(&self, at: usize, op: ChatOp) -> bool {
        match op {
            ChatOp::Unless { to, .. } | ChatOp::Jump(to) | ChatOp::Loop { to, .. } => {
                usize::from(to) > at && usize::from(to) <= self.ops.len()
            }
            _ => true,
        }
    }
}

/// u8 operation, u8 test, u8 expected answer or trim, u8 zero, u16 text or number, u16 place.
fn decode(raw: &[u8; OP_BYTES]) -> Option<ChatOp> {
    let [code, test, detail, 0, a, b, c, d] = *raw else {
        return None;
    };
    let (number, to) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    let trim = match detail {
        0 => Trim::None,
        1 => Trim::Both,
        2 => Trim::Start,
        3 => Trim::End,
        _ => return None,
    };
    Some(match code {
        0 => ChatOp::Text(number),
        1 => ChatOp::Role,
        2 => ChatOp::RoleCapitalized,
        3 => ChatOp::Content(trim),
        4 => ChatOp::FirstContent(trim),
        5 => ChatOp::Unless {
            test: decode_test(test, number)?,
            expected: detail == 1,
            to,
        },
        6 => ChatOp::Jump(to),
        7 => ChatOp::Loop { skip: number, to },
        8 => ChatOp::EndLoop,
        9 => ChatOp::Refuse(number),
        _ => return None,
    })
}

fn decode_test(code: u8, text: u16) -> Option<ChatTest> {
    Some(match code {
        0 => ChatTest::Generate,
        1 => ChatTest::First,
        2 => ChatTest::Last,
        3 => ChatTest::Even,
        4 => ChatTest::RoleIs(text),
        5 => ChatTest::FirstRoleIs(text),
        _ => return None,
    })
}

#[cfg(feature = "std")]
fn encode_op(op: ChatOp) -> [u8; OP_BYTES] {
    let raw = |code: u8, test: u8, detail: u8, number: u16, to: u16| {
        let ([a, b], [c, d]) = (number.to_le_bytes(), to.to_le_bytes());
        [code, test, detail, 0, a, b, c, d]
    };
    match op {
        ChatOp::Text(text) => raw(0, 0, 0, text, 0),
        ChatOp::Role => raw(1, 0, 0, 0, 0),
        ChatOp::RoleCapitalized => raw(2, 0, 0, 0, 0),
        ChatOp::Content(trim) => raw(3, 0, trim as u8, 0, 0),
        ChatOp::FirstContent(trim) => raw(4, 0, trim as u8, 0, 0),
        ChatOp::Unless { test, expected, to } => {
            let (code, text) = match test {
                ChatTest::Generate => (0, 0),
                ChatTest::First => (1, 0),
                ChatTest::Last => (2, 0),
                ChatTest::Even => (3, 0),
                ChatTest::RoleIs(text) => (4, text),
                ChatTest::FirstRoleIs(text) => (5, text),
            };
            raw(5, code, expected.into(), text, to)
        }
        ChatOp::Jump(to) => raw(6, 0, 0, 0, to),
        ChatOp::Loop { skip, to } => raw(7, 0, 0, skip, to),
        ChatOp::EndLoop => raw(8, 0, 0, 0, 0),
        ChatOp::Refuse(text) => raw(9, 0, 0, text, 0),
    }
}

/// The bytes of a chat section; `None` where there are more operations, texts or ids than it can
/// number. Texts are those the operations name, then the stop strings.
#[cfg(feature = "std")]
#[must_use]
pub fn encode_chat(
    ops: &[ChatOp],
    texts: &[std::string::String],
    stop_strings: &[std::string::String],
    stop_ids: &[u32],
) -> Option<std::vec::Vec<u8>> {
    let all = || texts.iter().chain(stop_strings);
    let counts = [ops.len(), all().count(), stop_strings.len(), stop_ids.len()];
    let mut out = CHAT_VERSION.to_le_bytes().to_vec();
    for count in counts {
        out.extend(u16::try_from(count).ok()?.to_le_bytes());
    }
    out.resize(HEADER_BYTES, 0);
    out.extend(ops.iter().flat_map(|op| encode_op(*op)));
    let mut end = 0;
    for text in all() {
        end += u32::try_from(text.len()).ok()?;
        out.extend(end.to_le_bytes());
    }
    out.extend(stop_ids.iter().flat_map(|id| id.to_le_bytes()));
    out.extend(all().flat_map(|text| text.bytes()));
    ChatTables::open(&out).is_ok().then_some(out)
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let ops = [
            ChatOp::Loop { skip: 1, to: 8 },
            ChatOp::Unless {
                test: ChatTest::RoleIs(1),
                expected: true,
                to: 4,
            },
            ChatOp::Text(0),
            ChatOp::Jump(5),
            ChatOp::RoleCapitalized,
            ChatOp::Content(Trim::Both),
            ChatOp::FirstContent(Trim::End),
            ChatOp::EndLoop,
            ChatOp::Refuse(0),
        ];
        let texts = ["ä".to_owned(), "user".to_owned()];
        encode_chat(&ops, &texts, &["stop".to_owned()], &[7, 9]).unwrap()
    }

    #[test]
    fn sections_read_back() {
        let bytes = sample();
        let chat = ChatTables::open(&bytes).unwrap();
        assert_eq!(chat.n_ops(), 9);
        assert_eq!(chat.op(6), Some(ChatOp::FirstContent(Trim::End)));
        assert_eq!((chat.text(0), chat.text(1)), ("ä", "user"));
        assert_eq!(chat.stop_strings().collect::<Vec<_>>(), ["stop"]);
        assert!(chat.stop_ids().eq([7, 9]));
    }

    #[test]
    fn a_changed_byte_or_length_is_an_error_or_another_section() {
        let bytes = sample();
        for at in 0..bytes.len() {
            assert!(ChatTables::open(&bytes[..at]).is_err(), "{at}");
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                if let Ok(chat) = ChatTables::open(&bytes) {
                    (0..chat.n_ops()).for_each(|at| assert!(chat.op(at).is_some()));
                    chat.stop_strings().for_each(drop);
                }
            }
        }
    }

    #[test]
    fn operations_that_could_loop_are_refused() {
        let texts = ["a".to_owned()];
        let cases: [&[ChatOp]; 7] = [
            &[ChatOp::Jump(0)],
            &[ChatOp::Jump(2)],
            &[ChatOp::EndLoop],
            &[ChatOp::Loop { skip: 0, to: 0 }, ChatOp::EndLoop],
            &[
                ChatOp::Loop { skip: 0, to: 2 },
                ChatOp::Loop { skip: 0, to: 2 },
            ],
            &[ChatOp::Text(1)],
            &[ChatOp::Unless {
                test: ChatTest::FirstRoleIs(1),
                expected: true,
                to: 1,
            }],
        ];
        for ops in cases {
            assert_eq!(encode_chat(ops, &texts, &[], &[]), None, "{ops:?}");
        }
    }
}
