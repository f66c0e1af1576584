//! Random texts of many kinds.

use std::sync::LazyLock;

const MULTILINGUAL: &str = include_str!("../../fixtures/text/multilingual.txt");
const ENGLISH: &str = include_str!("../../../trainer/corpus/austen.txt");

/// Sequences that rules of cutting, normalising and decoding treat in their own ways.
const CURIOUS: [&str; 44] = [
    "'s",
    "'S",
    "'ſ",
    "'T",
    "'re",
    "'RE",
    "'vE",
    "'m",
    "'ll",
    "'lL",
    "'d",
    "'x",
    "''",
    "’s",
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    " ",
    "  ",
    "   ",
    "\u{a0}",
    "\u{2003}",
    "\u{3000}",
    "\u{85}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}",
    "\u{2581}",
    "\u{2581}\u{2581}",
    "\u{fffd}",
    "\0",
    "<0x41>",
    "<0x0A>",
    "e\u{301}",
    "e\u{301}\u{323}",
    "\u{1100}\u{1161}\u{11a8}",
    "\u{ac00}\u{11a8}",
    "a\u{315}\u{300}\u{5ae}",
    "\u{344}",
    "\u{1d160}",
    "\u{f900}",
    "1234567",
];

static NUMBERS: LazyLock<Vec<bool>> = LazyLock::new(|| {
    let mut is = vec![false; 0x11_0000];
    for range in bitnet_converter::tokenizer::unicode::classes().numbers {
        is[*range.start() as usize..=*range.end() as usize].fill(true);
    }
    is
});

/// True for numbers of the version of Unicode that patterns know.
pub(crate) fn is_number(c: char) -> bool {
    NUMBERS[c as usize]
}

/// An endless source of texts.
pub(crate) struct Lines<'n> {
    state: u64,
    names: &'n [String],
    words: Vec<&'static str>,
}

impl<'n> Lines<'n> {
    pub(crate) fn new(seed: u64, names: &'n [String]) -> Self {
        let words = MULTILINGUAL.split_inclusive(' ');
        Self {
            state: seed,
            names,
            words: words
                .chain(ENGLISH.split_inclusive(' ').take(20_000))
                .collect(),
        }
    }

    /// SplitMix64, below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// Mostly from low planes, where most scripts are.
    fn character(&mut self) -> char {
        loop {
            let end = [0x80, 0x250, 0x800, 0x3000, 0x1_0000, 0x2_0000, 0x11_0000][self.below(7)];
            let c = char::from_u32(self.below(end) as u32);
            // See `every_character_is_cut_as_the_library_cuts_it`.
            if let Some(c) = c.filter(|c| !c.is_numeric() || is_number(*c)) {
                return c;
            }
        }
    }

    fn push(&mut self, text: &mut String) {
        match self.below(16) {
            0..=4 => {
                let at = self.below_words();
                text.push_str(self.words[at]);
            }
            5 => {
                let start = self.below_words();
                let end = (start + 12).min(self.words.len());
                self.words[start..end]
                    .iter()
                    .for_each(|word| text.push_str(word));
            }
            6..=8 => text.push_str(CURIOUS[self.below(CURIOUS.len())]),
            9 => (0..self.below(8)).for_each(|_| text.push(self.character())),
            10 => {
                let c = self.character();
                (0..self.below(40)).for_each(|_| text.push(c));
            }
            11 => {
                (0..self.below(12)).for_each(|_| text.push([' ', '\n', '\t', '\r'][self.below(4)]))
            }
            12 => {
                (0..self.below(12)).for_each(|_| text.push(char::from(b'0' + self.below(10) as u8)))
            }
            13 => {
                (0..self.below(10)).for_each(|_| text.push(char::from(b'!' + self.below(94) as u8)))
            }
            14 if !self.names.is_empty() => self.push_name(text),
            _ => text.push(self.character()),
        }
    }

    fn below_words(&mut self) -> usize {
        self.below(self.words.len())
    }

    /// A name of an added token, whole or cut.
    fn push_name(&mut self, text: &mut String) {
        let name = &self.names[self.below(self.names.len())];
        let whole = self.below(3) > 0;
        let end = if whole {
            usize::MAX
        } else {
            self.below(name.len())
        };
        text.extend(name.chars().take(end));
    }
}

impl Iterator for Lines<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut text = String::new();
        for _ in 0..self.below(10) {
            self.push(&mut text);
        }
        Some(text)
    }
}
