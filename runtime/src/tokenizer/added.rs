//! Cutting added tokens out of a text.

use bitnet_formats::TokenizerTables;
use bitnet_formats::tokenizer::{MatchStage, is_space};

use super::utf8;

/// A part of a text: an added token, or what stands between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The added token; `None` for text.
    pub(super) token: Option<u32>,
}

/// The parts of a text, from left to right.
///
/// At each place the longest name counts, and the search goes on behind it. White space that a token
/// takes along on its right is not searched again by text, but by names it is: that is what the
/// reference does.
pub(super) struct Splits {
    stage: MatchStage,
    /// Everything before this is given out.
    done: usize,
    /// Names are searched from here on.
    search: usize,
    /// A token found after text that was given out first.
    found: Option<Split>,
}

impl Splits {
    pub(super) const fn new(stage: MatchStage) -> Self {
        Self {
            stage,
            done: 0,
            search: 0,
            found: None,
        }
    }

    /// The next part; never empty.
    pub(super) fn next(&mut self, tables: &TokenizerTables<'_>, text: &[u8]) -> Option<Split> {
        if let Some(split) = self.found.take() {
            return Some(self.give(split));
        }
        if let Some(split) = self.find(tables, text) {
            if self.done < split.start {
                self.found = Some(split);
                return Some(self.text_until(split.start));
            }
            return Some(self.give(split));
        }
        (self.done < text.len()).then(|| self.text_until(text.len()))
    }

    fn give(&mut self, split: Split) -> Split {
        self.done = split.end;
        split
    }

    fn text_until(&mut self, end: usize) -> Split {
        self.give(Split {
            start: self.done,
            end,
            token: None,
        })
    }

    fn find(&mut self, tables: &TokenizerTables<'_>, text: &[u8]) -> Option<Split> {
        let (start, token) = (self.search..text.len())
            .filter(|at| tables.added_may_begin(self.stage, text[*at]))
            .find_map(|at| Some((at, tables.added_at(self.stage, &text[at..])?)))
            .or_else(|| {
                self.search = text.len();
                None
            })?;
        let end = start + token.name.len();
        self.search = end;
        let after = &text[end..];
        Some(Split {
            start: match token.lstrip {
                true => space_before(text, self.done.min(start), start),
                false => start,
            },
            end: match token.rstrip {
                true => end + space_after(after),
                false => end,
            },
            token: Some(token.id),
        })
    }
}

/// Where the white space that ends at `end` begins, not before `start`.
fn space_before(text: &[u8], start: usize, end: usize) -> usize {
    let mut begin = end;
    while begin > start {
        let mut at = begin - 1;
        while at > start && text[at] & 0xc0 == 0x80 {
            at -= 1;
        }
        match utf8::first_char(&text[at..begin]) {
            Some((c, len)) if len == begin - at && is_space(c) => begin = at,
            _ => break,
        }
    }
    begin
}

/// Bytes of white space with which a text begins.
fn space_after(text: &[u8]) -> usize {
    let other = utf8::chars(text).find(|(_, c)| !is_space(*c));
    other.map_or(text.len(), |(at, _)| at)
}
