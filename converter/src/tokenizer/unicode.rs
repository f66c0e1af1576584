//! Tables of Unicode, from the crates that the `tokenizers` library itself asks.
//!
//! Letters and numbers are those of `regex-syntax`; punctuation is what `unicode_categories` calls
//! so, of an older version of Unicode; form C is that of `unicode-normalization-alignments`.

use std::ops::RangeInclusive;

use bitnet_formats::tokenizer::{CharClasses, Normalization};
use regex_syntax::hir::{Class, HirKind};
use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;
use unicode_normalization_alignments::char::{
    canonical_combining_class, compose, decompose_canonical,
};

/// Version of Unicode that letters and numbers are of.
pub const UNICODE_VERSION: (u8, u8) = (16, 0);

/// Hangul syllables, whose composition is arithmetic.
const SYLLABLES: RangeInclusive<char> = '\u{ac00}'..='\u{d7a3}';

/// Classes of characters.
#[must_use]
pub fn classes() -> CharClasses {
    CharClasses {
        version: UNICODE_VERSION,
        letters: ranges_of(r"\p{L}"),
        numbers: ranges_of(r"\p{N}"),
        punctuation: ranges_where(UnicodeCategories::is_punctuation),
    }
}

/// Tables of normalisation form C.
#[must_use]
pub fn normalization() -> Normalization {
    let chars = || ('\0'..=char::MAX).filter(|c| !SYLLABLES.contains(c));
    let decompositions: Vec<_> = chars().filter_map(|c| Some((c, decomposed(c)?))).collect();
    let mut compositions: Vec<_> = decompositions
        .iter()
        .filter_map(|(c, parts)| composition(*c, parts))
        .collect();
    compositions.sort_unstable();
    let codes = |(c, parts): &(char, Vec<char>)| {
        (u32::from(*c), parts.iter().map(|c| u32::from(*c)).collect())
    };
    Normalization {
        decompositions: decompositions.iter().map(codes).collect(),
        compositions,
        combining: combining(),
    }
}

/// A text in normalisation form C.
pub(super) fn nfc(text: &str) -> String {
    text.nfc().map(|(c, _)| c).collect()
}

fn ranges_of(class: &str) -> Vec<RangeInclusive<u32>> {
    let parsed = regex_syntax::parse(class).expect("a class of characters");
    let HirKind::Class(Class::Unicode(class)) = parsed.kind() else {
        unreachable!("a class of characters is parsed as one")
    };
    let range = |range: &regex_syntax::hir::ClassUnicodeRange| {
        u32::from(range.start())..=u32::from(range.end())
    };
    class.iter().map(range).collect()
}

fn ranges_where(test: impl Fn(char) -> bool) -> Vec<RangeInclusive<u32>> {
    let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
    for c in ('\0'..=char::MAX).filter(|c| test(*c)).map(u32::from) {
        match ranges.last_mut() {
            Some(range) if range.end() + 1 == c => *range = *range.start()..=c,
            _ => ranges.push(c..=c),
        }
    }
    ranges
}

/// What a character decomposes to, if it does.
fn decomposed(c: char) -> Option<Vec<char>> {
    let mut parts = Vec::new();
    decompose_canonical(c, |part| parts.push(part));
    (parts != [c]).then_some(parts)
}

/// The two characters that compose to this one, if any do.
fn composition(c: char, parts: &[char]) -> Option<[u32; 3]> {
    let (second, front) = parts.split_last()?;
    let (first, rest) = front.split_first()?;
    let first = rest.iter().try_fold(*first, |a, b| compose(a, *b))?;
    (compose(first, *second) == Some(c)).then(|| [first, *second, c].map(u32::from))
}

fn combining() -> Vec<(RangeInclusive<u32>, u8)> {
    let mut ranges: Vec<(RangeInclusive<u32>, u8)> = Vec::new();
    for c in '\0'..=char::MAX {
        let (code, class) = (u32::from(c), canonical_combining_class(c));
        match ranges.last_mut() {
            _ if class == 0 => (),
            Some((range, last)) if *last == class && range.end() + 1 == code => {
                *range = *range.start()..=code;
            }
            _ => ranges.push((code..=code, class)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(ranges: &[RangeInclusive<u32>], c: char) -> bool {
        ranges.iter().any(|range| range.contains(&c.into()))
    }

    #[test]
    fn the_version_is_the_one_stated() {
        let letters = classes().letters;
        // Garay came with Unicode 16, Sidetic with 17.
        assert!(contains(&letters, '\u{10d4a}'));
        assert!(!contains(&letters, '\u{10940}'));
    }

    #[test]
    fn no_character_is_punctuation_and_something_else() {
        let classes = classes();
        for c in '\0'..=char::MAX {
            let other = contains(&classes.letters, c) || contains(&classes.numbers, c);
            assert!(!(other && c.is_punctuation()), "{c:?}");
        }
    }

    #[test]
    fn every_pair_that_composes_is_listed() {
        let tables = normalization();
        let listed = |a: char, b: char| {
            let pair = [a, b].map(u32::from);
            let at = tables
                .compositions
                .binary_search_by_key(&pair, |[a, b, _]| [*a, *b]);
            at.ok()
                .and_then(|at| char::from_u32(tables.compositions[at][2]))
        };
        let mut seconds: Vec<u32> = tables.compositions.iter().map(|entry| entry[1]).collect();
        seconds.sort_unstable();
        seconds.dedup();
        assert!(seconds.len() > 50 && tables.compositions.len() > 900);
        // Conjoining jamo are arithmetic.
        let jamo = |c: char| ('\u{1100}'..='\u{11ff}').contains(&c) || SYLLABLES.contains(&c);
        for first in ('\0'..='\u{1ffff}').filter(|c| !jamo(*c)) {
            for second in seconds.iter().filter_map(|code| char::from_u32(*code)) {
                assert_eq!(
                    listed(first, second),
                    compose(first, second),
                    "{first:?} {second:?}"
                );
            }
        }
    }
}
