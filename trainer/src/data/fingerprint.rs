//! Recognises texts by a hash.

use crate::corpus::Passage;

/// 64-bit FNV-1a of all texts, with a byte between them that is no part of UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    hash: u64,
    texts: u64,
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            texts: 0,
        }
    }
}

impl Fingerprint {
    /// Of one text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut fingerprint = Self::default();
        fingerprint.add(text);
        fingerprint
    }

    /// Adds a text.
    pub fn add(&mut self, text: &str) {
        let between = (self.texts > 0).then_some(0xff);
        self.texts += 1;
        let bytes = between.into_iter().chain(text.bytes());
        self.hash = bytes.fold(self.hash, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    }

    /// Adds a document: a text, or all roles and contents.
    pub fn add_passage(&mut self, passage: Passage<'_>) {
        match passage {
            Passage::Text(text) => self.add(text),
            Passage::Chat(conversation) => {
                for message in conversation.messages() {
                    self.add(&message.role);
                    self.add(&message.content);
                }
            }
        }
    }

    /// The hash of what was added.
    #[must_use]
    pub const fn value(&self) -> u64 {
        self.hash
    }

    /// Sixteen digits.
    #[must_use]
    pub fn hex(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_is_fnv_1a_and_knows_where_texts_end() {
        let of = |texts: &[&str]| {
            let mut fingerprint = Fingerprint::default();
            texts.iter().for_each(|text| fingerprint.add(text));
            fingerprint.hex()
        };
        assert_eq!(of(&[]), "cbf29ce484222325");
        assert_eq!(of(&["a"]), "af63dc4c8601ec8c");
        assert_eq!(Fingerprint::of("a").value(), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    }
}
