//! Unicode normalisation form C, by the tables in the file: decompose, order, compose.
//!
//! Unicode Standard, section 3.11. Hangul syllables are arithmetic (section 3.12).

use bitnet_formats::TokenizerTables;

use super::normalize::characters;

const SYLLABLES: u32 = 0xac00;
const LEADING: u32 = 0x1100;
const VOWELS: u32 = 0x1161;
/// One before the first trailing consonant: a syllable may have none.
const TRAILING: u32 = 0x11a7;
const N_LEADING: u32 = 19;
const N_VOWELS: u32 = 21;
const N_TRAILING: u32 = 28;
const N_SYLLABLES: u32 = N_LEADING * N_VOWELS * N_TRAILING;

/// Runs up to this long are sorted by insertion.
const SHORT_RUN: usize = 16;

/// Characters of the decomposed text.
pub(super) fn decomposed_len(tables: &TokenizerTables<'_>, text: &[u8]) -> usize {
    let mut n = 0;
    characters(text).for_each(|c| decompose(tables, c, |_| n += 1));
    n
}

/// Composes `text` in `room`, which has as many entries as it has decomposed characters. An entry
/// of the result is a code point, and its combining class in the highest byte.
pub(super) fn compose<'r>(
    tables: &TokenizerTables<'_>,
    text: &[u8],
    room: &'r mut [u32],
) -> &'r [u32] {
    let mut n = 0;
    for c in characters(text) {
        decompose(tables, c, |part| {
            let class = tables.combining_class(part);
            room[n] = u32::from(part) | u32::from(class) << 24;
            n += 1;
        });
    }
    order(room);
    let len = compose_ordered(tables, room);
    &room[..len]
}

/// The code point of an entry.
pub(super) fn character(entry: u32) -> char {
    char::from_u32(entry & 0x00ff_ffff).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn class(entry: u32) -> u32 {
    entry >> 24
}

fn decompose(tables: &TokenizerTables<'_>, c: char, mut part: impl FnMut(char)) {
    let code = u32::from(c);
    let syllable = code.wrapping_sub(SYLLABLES);
    let mut put = |code: u32| part(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
    if syllable < N_SYLLABLES {
        let (pair, trailing) = (syllable / N_TRAILING, syllable % N_TRAILING);
        put(LEADING + pair / N_VOWELS);
        put(VOWELS + pair % N_VOWELS);
        if trailing > 0 {
            put(TRAILING + trailing);
        }
        return;
    }
    let chars = tables.decomposition(c);
    if chars.len() == 0 {
        put(code);
    }
    chars.for_each(put);
}

/// Sorts each run of combining characters by class; equals keep their order.
fn order(chars: &mut [u32]) {
    for run in chars.chunk_by_mut(|a, b| (class(*a) == 0) == (class(*b) == 0)) {
        if class(run[0]) != 0 {
            sort(run);
        }
    }
}

/// A stable sort that needs no memory: halves are merged by rotating, n log^2 n.
fn sort(run: &mut [u32]) {
    if run.len() <= SHORT_RUN {
        for end in 1..run.len() {
            let place = run[..end].partition_point(|c| class(*c) <= class(run[end]));
            run[place..=end].rotate_right(1);
        }
        return;
    }
    let middle = run.len() / 2;
    sort(&mut run[..middle]);
    sort(&mut run[middle..]);
    merge(run, middle);
}

/// Merges two sorted parts: what of both belongs to the front half is brought there, and both
/// halves are merged in turn.
fn merge(run: &mut [u32], middle: usize) {
    if middle == 0 || middle == run.len() || class(run[middle - 1]) <= class(run[middle]) {
        return;
    }
    let (left, right) = if middle >= run.len() - middle {
        let left = middle / 2;
        let pivot = class(run[left]);
        let right = run[middle..].partition_point(|c| class(*c) < pivot);
        (left, middle + right)
    } else {
        let right = middle + (run.len() - middle) / 2;
        let pivot = class(run[right]);
        let left = run[..middle].partition_point(|c| class(*c) <= pivot);
        (left, right)
    };
    run[left..right].rotate_left(middle - left);
    let border = left + (right - middle);
    let (front, back) = run.split_at_mut(border);
    merge(front, left);
    merge(back, middle - left);
}

/// Composes in place; returns how many characters are left.
///
/// A character joins the last starter if they compose and nothing between them is of class 0 or of a
/// class as high as its own.
fn compose_ordered(tables: &TokenizerTables<'_>, chars: &mut [u32]) -> usize {
    let mut starter: Option<usize> = None;
    let mut n = 0;
    for at in 0..chars.len() {
        let entry = chars[at];
        let last_class = if n > 0 { class(chars[n - 1]) } else { 0 };
        if let Some(first) = starter {
            let free = n == first + 1 || last_class < class(entry);
            let joined = free.then(|| join(tables, character(chars[first]), character(entry)));
            if let Some(joined) = joined.flatten() {
                chars[first] = joined.into();
                continue;
            }
        }
        if class(entry) == 0 {
            starter = Some(n);
        }
        chars[n] = entry;
        n += 1;
    }
    n
}

fn join(tables: &TokenizerTables<'_>, first: char, second: char) -> Option<char> {
    let (a, b) = (u32::from(first), u32::from(second));
    let (leading, vowel) = (a.wrapping_sub(LEADING), b.wrapping_sub(VOWELS));
    if leading < N_LEADING && vowel < N_VOWELS {
        return char::from_u32(SYLLABLES + (leading * N_VOWELS + vowel) * N_TRAILING);
    }
    let (syllable, trailing) = (a.wrapping_sub(SYLLABLES), b.wrapping_sub(TRAILING));
    let open = syllable < N_SYLLABLES && syllable % N_TRAILING == 0;
    if open && (1..N_TRAILING).contains(&trailing) {
        return char::from_u32(a + trailing);
    }
    tables.composition(first, second)
}
