//! The text of a run: read, split, encoded, cut into batches.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::model::gradient::Example;
use crate::rng::{Rng, Stream};
use crate::settings::TrainSettings;
use crate::tokenizer::Tokenizer;

/// Reads UTF-8 files and joins them in order.
///
/// # Errors
///
/// [`Error::Io`], [`Error::NotUtf8`], or [`Error::Data`] if they hold nothing.
pub fn read_text(paths: &[PathBuf]) -> Result<String> {
    let mut text = String::new();
    for path in paths {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        if bytes.is_empty() {
            let message = format!("{}: the file is empty", path.display());
            return Err(Error::Data(message));
        }
        let more = String::from_utf8(bytes).map_err(|e| Error::NotUtf8 {
            path: path.clone(),
            offset: e.utf8_error().valid_up_to(),
        })?;
        text.push_str(&more);
    }
    Ok(text)
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

/// 64-bit FNV-1a of a text, to recognise it on resume.
#[must_use]
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A text as ids, with its length in bytes.
#[derive(Clone, Debug)]
pub struct EncodedText {
    /// Token ids without special tokens.
    pub ids: Vec<u32>,
    /// UTF-8 bytes of the text.
    pub bytes: usize,
}

impl EncodedText {
    /// Encodes a text whole.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        Ok(Self {
            ids: tokenizer.encode(text)?,
            bytes: text.len(),
        })
    }
}

/// The tokens of a run.
#[derive(Clone, Debug)]
pub struct TokenDataset {
    /// What batches are drawn from.
    pub train: EncodedText,
    /// What evaluations measure.
    pub validation: EncodedText,
}

impl TokenDataset {
    /// Encodes both parts and checks that they are long enough.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] saying how many tokens there are and how many are needed.
    pub fn new(
        tokenizer: &Tokenizer,
        (train, validation): (&str, &str),
        settings: &TrainSettings,
    ) -> Result<Self> {
        let data = Self {
            train: EncodedText::new(tokenizer, train)?,
            validation: EncodedText::new(tokenizer, validation)?,
        };
        let needed = settings.context * settings.batch + 1;
        enough(
            "training",
            data.train.ids.len(),
            needed,
            "one batch (train.batch x train.context + 1)",
        )?;
        enough("validation", data.validation.ids.len(), 2, "one prediction")?;
        Ok(data)
    }

    /// Micro-batch number `index` of a run: windows at seeded random places of the training text.
    #[must_use]
    pub fn batch(&self, settings: &TrainSettings, index: u64) -> Vec<Example> {
        let mut rng = Rng::new(settings.seed, Stream::Batch, index);
        let context = settings.context;
        let ids = &self.train.ids;
        (0..settings.batch)
            .map(|_| {
                let start = rng.below(ids.len() - context);
                Example {
                    inputs: ids[start..start + context].to_vec(),
                    targets: ids[start + 1..start + context + 1].to_vec(),
                }
            })
            .collect()
    }
}

fn enough(part: &str, tokens: usize, needed: usize, what: &str) -> Result<()> {
    if tokens >= needed {
        return Ok(());
    }
    Err(Error::Data(format!(
        "the {part} text has {tokens} tokens; {what} needs {needed}. Give more text, or lower \
         train.context or train.batch"
    )))
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
    fn fingerprint_is_fnv_1a() {
        assert_eq!(fingerprint(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint("a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn batches_are_windows_that_depend_on_seed_and_index() {
        let mut settings = Settings::preset(Preset::Nano).train;
        (settings.context, settings.batch) = (8, 4);
        let text: String = (0..500)
            .map(|i| char::from(b'a' + (i * i % 23) as u8))
            .collect();
        let byte = Tokenizer::new(&crate::tokenizer::TokenizerKind::Byte, "", "").unwrap();
        let data = TokenDataset::new(&byte, split(&text, 0.1), &settings).unwrap();
        let batch = data.batch(&settings, 3);
        assert_eq!(batch, data.batch(&settings, 3));
        assert_ne!(batch, data.batch(&settings, 4));
        for example in &batch {
            assert_eq!(example.inputs[1..], example.targets[..7]);
            assert!(data.train.ids.windows(8).any(|w| w == example.inputs));
        }
    }

    #[test]
    fn a_short_text_says_what_is_needed() {
        let settings = Settings::preset(Preset::Nano).train;
        let byte = Tokenizer::new(&crate::tokenizer::TokenizerKind::Byte, "", "").unwrap();
        let error = TokenDataset::new(&byte, ("short", "text"), &settings).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("has 5 tokens"), "{message}");
        assert!(message.contains("needs 2049"), "{message}");
    }
}
