//! One tokenizer in two implementations.

use std::cell::RefCell;

use bitnet_converter::tokenizer;
use bitnet_formats::TokenizerTables;
use bitnet_runtime::Tokenizer;

/// The library's tokenizer and ours, from the same JSON.
pub(crate) struct Pair {
    pub(crate) name: String,
    /// Names of added tokens, for texts to hold.
    pub(crate) names: Vec<String>,
    pub(crate) section_bytes: usize,
    reference: tokenizers::Tokenizer,
    section: Vec<u8>,
}

thread_local! {
    /// Scratch memory and room for ids, which a device would lend once too.
    static BUFFERS: RefCell<(Vec<u32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Pair {
    pub(crate) fn new(name: &str, json: &str) -> Self {
        let section = tokenizer::section(json).unwrap_or_else(|e| panic!("{name}: {e}"));
        let reference: tokenizers::Tokenizer = json.parse().unwrap();
        let added = reference.get_added_tokens_decoder();
        let mut names: Vec<_> = added.values().map(|token| token.content.clone()).collect();
        names.sort();
        Self {
            name: name.to_owned(),
            names,
            section_bytes: section.len(),
            reference,
            section,
        }
    }

    /// The bytes of our tables.
    pub(crate) fn section(&self) -> &[u8] {
        &self.section
    }

    fn ours(&self) -> Tokenizer<'_> {
        Tokenizer::new(TokenizerTables::open(&self.section).unwrap())
    }

    /// Our ids of a text, in buffers that are exactly as large as they must be.
    pub(crate) fn ids(&self, text: &str, special: bool) -> Vec<u32> {
        let tokenizer = self.ours();
        BUFFERS.with_borrow_mut(|(scratch, ids)| {
            scratch.resize(tokenizer.scratch_words(text.len()).max(scratch.len()), 0);
            ids.resize(tokenizer.most_ids(text.len()).max(ids.len()), 0);
            let scratch = &mut scratch[..tokenizer.scratch_words(text.len())];
            let ids = &mut ids[..tokenizer.most_ids(text.len())];
            let encoded = tokenizer.encode(text, special, scratch, ids).unwrap();
            ids[..encoded.len].to_vec()
        })
    }

    fn text(&self, ids: &[u32], skip: bool) -> String {
        let mut text = String::new();
        self.ours()
            .decode(ids, skip, &mut |piece| text.push_str(piece));
        text
    }

    /// The same by a stream, one id after the other.
    fn streamed(&self, ids: &[u32], skip: bool) -> String {
        let mut text = String::new();
        let mut decoder = self.ours().decoder(skip);
        for id in ids {
            decoder.push(*id, &mut |piece| text.push_str(piece));
        }
        decoder.finish(&mut |piece| text.push_str(piece));
        text
    }

    /// Says what differs.
    pub(crate) fn compare(&self, text: &str) -> Result<(), String> {
        let mut all = Vec::new();
        for special in [false, true] {
            let expected = self.reference.encode_fast(text, special).unwrap();
            let found = self.ids(text, special);
            if expected.get_ids() != found {
                return Err(format!("  ids {:?}\n not {found:?}", expected.get_ids()));
            }
            all = found;
        }
        for skip in [false, true] {
            let expected = self.reference.decode(&all, skip).unwrap();
            for found in [self.text(&all, skip), self.streamed(&all, skip)] {
                if found != expected {
                    return Err(format!("  text {expected:?}\n   not {found:?}"));
                }
            }
        }
        // Any ids decode, also such as no text has.
        all.reverse();
        let (expected, found) = (
            self.reference.decode(&all, false).unwrap(),
            self.text(&all, false),
        );
        match found == expected {
            true => Ok(()),
            false => Err(format!(
                "  text of {all:?}\n  {expected:?}\n   not {found:?}"
            )),
        }
    }
}
