//! Writing what a section says about characters.

use core::ops::RangeInclusive;
use std::collections::HashMap;
use std::vec::Vec;

use super::push_words;
use crate::tokenizer::unicode::{BLOCK_BYTES, BLOCK_CHARS};

/// Code points of each class, of one version of Unicode.
#[derive(Clone, Debug, Default)]
pub struct CharClasses {
    /// Major and minor version.
    pub version: (u8, u8),
    /// General category L.
    pub letters: Vec<RangeInclusive<u32>>,
    /// General category N.
    pub numbers: Vec<RangeInclusive<u32>>,
    /// What counts as punctuation. Of characters in several lists the last one holds.
    pub punctuation: Vec<RangeInclusive<u32>>,
}

/// Tables of normalisation form C. Every list is sorted; Hangul is in none.
#[derive(Clone, Debug, Default)]
pub struct Normalization {
    /// Characters and what they canonically decompose to, to the end.
    pub decompositions: Vec<(u32, Vec<u32>)>,
    /// Two characters and the one they compose to.
    pub compositions: Vec<[u32; 3]>,
    /// Ranges of characters of one combining class other than 0.
    pub combining: Vec<(RangeInclusive<u32>, u8)>,
}

/// The two levels of the class table.
#[derive(Default)]
pub(super) struct ClassTable {
    pub(super) version: (u8, u8),
    pub(super) index: Vec<u8>,
    pub(super) blocks: Vec<[u8; BLOCK_BYTES]>,
}

impl CharClasses {
    /// The table; `None` where it has more than 256 different blocks.
    pub(super) fn table(&self, with_punctuation: bool) -> Option<ClassTable> {
        let lists = [&self.letters, &self.numbers, &self.punctuation];
        let used = &lists[..if with_punctuation { 3 } else { 2 }];
        let mut classes = std::vec![0_u8; 0x11_0000];
        for (class, list) in (1..).zip(used) {
            for range in *list {
                let range = *range.start() as usize..=*range.end() as usize;
                classes.get_mut(range)?.fill(class);
            }
        }
        let end = classes
            .iter()
            .rposition(|class| *class != 0)
            .map_or(0, |at| at + 1);
        let blocks = classes[..end.next_multiple_of(BLOCK_CHARS)].chunks(BLOCK_CHARS);
        let mut table = ClassTable {
            version: self.version,
            ..ClassTable::default()
        };
        let mut known = HashMap::new();
        for block in blocks.map(pack_block) {
            let next = table.blocks.len();
            let at = *known.entry(block).or_insert(next);
            if at == next {
                table.blocks.push(block);
            }
            table.index.push(u8::try_from(at).ok()?);
        }
        Some(table)
    }
}

/// Four classes a byte, the first in the lowest bits.
fn pack_block(classes: &[u8]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    for (byte, four) in block.iter_mut().zip(classes.chunks(4)) {
        *byte = four.iter().rev().fold(0, |byte, class| byte << 2 | class);
    }
    block
}

impl Normalization {
    pub(super) fn decomposed(&self) -> usize {
        self.decompositions
            .iter()
            .map(|(_, chars)| chars.len())
            .sum()
    }

    pub(super) fn push(&self, out: &mut Vec<u8>) {
        let mut end = 0;
        for (c, chars) in &self.decompositions {
            end += chars.len() as u32;
            push_words(out, [*c, end]);
        }
        let chars = self.decompositions.iter().flat_map(|(_, chars)| chars);
        push_words(out, chars.copied());
        push_words(out, self.compositions.iter().flatten().copied());
        for (range, class) in &self.combining {
            let last = range.end() | u32::from(*class) << 24;
            push_words(out, [*range.start(), last]);
        }
    }
}
