//! Damaged sections: refused, or used without a panic and without end.

use bitnet_formats::TokenizerTables;
use bitnet_runtime::Tokenizer;

use super::configs;
use super::lines::Lines;
use super::pair::Pair;

/// Bytes of the fixed part, where a change reaches furthest.
const HEADER_BYTES: usize = 144;
/// Damaged sections of each tokenizer.
const SECTIONS: usize = 500;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// Some bytes set to values that counts, offsets and codes take badly. The version and the
    /// counts, whose change is mostly found on opening, are left alone most of the time.
    fn damage(&mut self, section: &mut [u8]) {
        for _ in 0..=self.below(6) {
            let at = match self.below(8) {
                0 => self.below(HEADER_BYTES),
                1 | 2 => 2 + self.below(14),
                3 => 64 + self.below(64),
                _ => HEADER_BYTES + self.below(section.len() - HEADER_BYTES),
            };
            section[at] = match self.below(4) {
                0 => 0xff,
                1 => 0,
                2 => section[at] ^ 1 << self.below(8),
                _ => self.below(256) as u8,
            };
        }
    }
}

/// Encodes and decodes; the results mean nothing.
fn exercise(tables: TokenizerTables<'_>, text: &str, random: &mut Random) {
    let tokenizer = Tokenizer::new(tables);
    let mut scratch = vec![0; tokenizer.scratch_words(text.len())];
    let mut ids = vec![0; tokenizer.most_ids(text.len())];
    let encoded = tokenizer.encode(text, true, &mut scratch, &mut ids);
    ids.truncate(encoded.map_or(0, |encoded| encoded.len));
    ids.extend((0..20).map(|_| random.below(1 << 16) as u32));
    let mut bytes = 0;
    tokenizer.decode(&ids, false, &mut |piece| bytes += piece.len());
    // A byte may be replaced by three.
    assert!(bytes <= ids.len() * 3 * 255, "{bytes}");
}

#[test]
fn damaged_sections_neither_panic_nor_loop() {
    let (mut opened, mut found) = (0, 0);
    for config in configs::all() {
        let pair = Pair::new(config.name, &config.json());
        let mut random = Random(11);
        let mut lines = Lines::new(5, &pair.names);
        for _ in 0..SECTIONS {
            let mut section = pair.section().to_vec();
            random.damage(&mut section);
            if random.below(16) == 0 {
                section.truncate(random.below(section.len()));
            }
            let Ok(tables) = TokenizerTables::open(&section) else {
                continue;
            };
            opened += 1;
            found += usize::from(tables.verify().is_err());
            exercise(tables, &lines.next().unwrap_or_default(), &mut random);
        }
    }
    println!("{opened} damaged sections open; checking every table finds {found} of them");
    assert!(opened > SECTIONS && found > opened / 4);
}
