//! Which part of a corpus validates.

use serde::{Deserialize, Serialize};

use crate::corpus::Passage;
use crate::rng::{Rng, Stream};
use crate::settings::TrainSettings;

/// How a corpus is divided into training and validation text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitKind {
    /// `Document` where there are documents to spare, else `Tail`; decided when a run begins.
    Auto,
    /// The end of every document validates.
    #[default]
    Tail,
    /// Whole documents validate: one of every so many, drawn by seed.
    Document,
}

/// Divides documents one after the other.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut {
    kind: SplitKind,
    fraction: f64,
    seed: u64,
}

impl HeldOut {
    /// By these settings.
    #[must_use]
    pub const fn new(train: &TrainSettings) -> Self {
        Self {
            kind: train.split,
            fraction: train.val_fraction,
            seed: train.seed,
        }
    }

    /// Training and validation part of document number `index`; either may be empty. Conversations
    /// are held out whole, whatever the kind.
    #[must_use]
    pub fn divide<'t>(&self, index: u64, document: Passage<'t>) -> (Passage<'t>, Passage<'t>) {
        match (self.kind, document) {
            (SplitKind::Auto | SplitKind::Tail, Passage::Text(text)) => {
                let (train, validation) = split(text, self.fraction);
                (Passage::Text(train), Passage::Text(validation))
            }
            _ if self.holds_out(index) => (Passage::NONE, document),
            _ => (document, Passage::NONE),
        }
    }

    /// Of every `1 / fraction` documents in a row, one is drawn.
    fn holds_out(&self, index: u64) -> bool {
        let group = (1.0 / self.fraction).round().max(1.0) as u64;
        let mut rng = Rng::new(self.seed, Stream::HeldOut, index / group);
        rng.below(group as usize) as u64 == index % group
    }
}

/// Splits off the last `val_fraction` of the bytes, at a character boundary: `(train, validation)`.
#[must_use]
pub fn split(text: &str, val_fraction: f64) -> (&str, &str) {
    let mut at = (text.len() as f64 * (1.0 - val_fraction)) as usize;
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    text.split_at(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use bitnet_formats::Preset;

    #[test]
    fn the_split_keeps_characters_whole() {
        let text = "aé".repeat(10);
        for percent in 1..100 {
            let (train, validation) = split(&text, f64::from(percent) / 100.0);
            assert_eq!([train, validation].concat(), text);
            assert!(train.len() <= text.len() * (100 - percent as usize) / 100 + 1);
        }
        assert_eq!(split("éé", 0.3), ("é", "é"));
    }

    #[test]
    fn one_document_of_every_group_is_held_out_whole() {
        let mut train = Settings::preset(Preset::Nano).train;
        (train.split, train.val_fraction) = (SplitKind::Document, 0.2);
        let places = |train: &TrainSettings| -> Vec<u64> {
            let held_out = HeldOut::new(train);
            let document = Passage::Text("abc");
            (0..100)
                .filter(|i| held_out.divide(*i, document) == (Passage::NONE, document))
                .collect()
        };
        let first = places(&train);
        assert!(first.iter().map(|i| i / 5).eq(0..20));
        assert!(first.iter().any(|i| i % 5 != first[0] % 5));
        train.seed = 2;
        assert_ne!(places(&train), first);
    }
}
