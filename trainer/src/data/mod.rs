//! The tokens of a run: documents divided, encoded and joined; batches cut from them.

mod fingerprint;
mod input;
mod joiner;
mod starts;
mod text;

use crate::data::starts::starts;
use crate::error::{Error, Result};
use crate::held_out::HeldOut;
use crate::loss_mask::LossMask;
use crate::model::gradient::Example;
use crate::settings::TrainSettings;
use crate::tokenizer::Tokenizer;

pub use crate::data::fingerprint::Fingerprint;
pub use crate::data::input::{Documents, Input, settled_split};
pub use crate::data::joiner::{Joiner, Sink, check_tokenizer, marks_of};
pub use crate::data::text::{EncodedText, Tokens};

/// The tokens of a run.
#[derive(Clone, Debug)]
pub struct TokenDataset {
    /// What batches are cut from.
    pub train: EncodedText,
    /// What evaluations measure.
    pub validation: EncodedText,
}

impl TokenDataset {
    /// Divides and encodes texts, or opens shards, and checks that they are long enough.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] saying how many tokens there are and how many are needed; as
    /// [`Tokenizer::encode`].
    pub fn new(tokenizer: &Tokenizer, input: &Input, settings: &TrainSettings) -> Result<Self> {
        let data = match input {
            Input::Documents(documents) => Self::encode(tokenizer, documents, settings)?,
            Input::Prepared(prepared) => {
                prepared.check_tokenizer(tokenizer)?;
                let is_divided = settings.mask_documents;
                Self {
                    train: prepared.train(is_divided)?,
                    validation: prepared.validation(is_divided)?,
                }
            }
        };
        data.check(settings)?;
        let is_divided = data.train.end_of_text.is_some();
        if settings.mask_documents && tokenizer.end_of_text().is_some() && !is_divided {
            let message = "the chat template ends answers with the token that ends texts, so attention \
                           cannot end where a document begins; --set train.mask_documents=false lets \
                           documents see what stands before them";
            return Err(Error::Usage(message.into()));
        }
        Ok(data)
    }

    fn encode(
        tokenizer: &Tokenizer,
        documents: &Documents,
        settings: &TrainSettings,
    ) -> Result<Self> {
        let held_out = HeldOut::new(settings);
        let parts: Vec<_> = (0..)
            .zip(&documents.all)
            .map(|(i, document)| held_out.divide(i, document.passage()))
            .collect();
        let joiner = Joiner::new(tokenizer, documents.needs)?;
        let mut data = Self {
            train: EncodedText::join(joiner.clone(), parts.iter().map(|part| part.0))?,
            validation: EncodedText::join(joiner, parts.iter().map(|part| part.1))?,
        };
        if !settings.mask_documents {
            data.train.end_of_text = None;
            data.validation.end_of_text = None;
        }
        Ok(data)
    }

    fn check(&self, settings: &TrainSettings) -> Result<()> {
        let needed = settings.context * settings.batch + 1;
        let (train, validation) = (self.train.tokens.len(), self.validation.tokens.len());
        let batch = "one batch (train.batch x train.context + 1)";
        enough("training", train, needed, batch)?;
        enough("validation", validation, 2, "one prediction")?;
        self.train.has_answers("training")?;
        self.validation.has_answers("validation")
    }

    /// Micro-batch number `index` of a run.
    ///
    /// # Errors
    ///
    /// As [`Tokens::read`].
    pub fn batch(&self, settings: &TrainSettings, index: u64) -> Result<Vec<Example>> {
        let context = settings.context;
        let example = |start| {
            let ids = self.train.tokens.read(start, context + 1)?;
            Ok(Example {
                targets: self.train.targets(&ids, start)?,
                inputs: ids[..context].to_vec(),
            })
        };
        let starts = starts(settings, self.train.tokens.len(), index);
        starts.into_iter().map(example).collect()
    }

    /// Tokens that step number `step`, from 0, learns from, over all its micro-batches: the loss of a
    /// step is the mean over these.
    ///
    /// # Errors
    ///
    /// As [`LossMask::read`].
    pub fn counted_targets(&self, settings: &TrainSettings, step: u64) -> Result<usize> {
        if matches!(self.train.mask, LossMask::All) {
            return Ok(settings.tokens_per_step());
        }
        let accumulation = settings.accumulation as u64;
        let mut counted = 0;
        for micro in step * accumulation..(step + 1) * accumulation {
            for start in starts(settings, self.train.tokens.len(), micro) {
                let marks = self.train.mask.read(start + 1, settings.context)?;
                counted += marks.iter().flatten().filter(|mark| **mark).count();
            }
        }
        Ok(counted)
    }
}

fn enough(part: &str, tokens: usize, needed: usize, what: &str) -> Result<()> {
    if tokens >= needed {
        return Ok(());
    }
    Err(Error::Data(format!(
        "the {part} text has {tokens} tokens; {what} needs {needed}. Give more text, lower \
         train.context or train.batch, or change train.split or train.val_fraction"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{Document, Tally};
    use crate::settings::{OrderKind, Settings};
    use crate::tokenizer::{Needs, TokenizerKind};
    use bitnet_formats::Preset;

    fn documents(texts: &[&str]) -> Input {
        let mut fingerprint = Fingerprint::default();
        texts.iter().for_each(|text| fingerprint.add(text));
        Input::Documents(Documents {
            all: texts
                .iter()
                .map(|text| Document::Text((*text).into()))
                .collect(),
            needs: needs(texts.len() > 1),
            has_some_to_spare: false,
            fingerprint,
            tally: Tally::default(),
        })
    }

    fn needs(end_of_text: bool) -> Needs {
        Needs {
            end_of_text,
            turns: false,
        }
    }

    fn byte(has_many: bool) -> Tokenizer {
        Tokenizer::new(&TokenizerKind::Byte, needs(has_many), |_| Ok(())).unwrap()
    }

    fn small() -> TrainSettings {
        let mut settings = Settings::preset(Preset::Nano).train;
        (settings.context, settings.batch) = (8, 4);
        settings
    }

    #[test]
    fn texts_are_joined_by_their_end() {
        let tokenizer = byte(true);
        let text = "abcdefgh".repeat(20);
        let input = documents(&[&text, "zz", &text]);
        let data = TokenDataset::new(&tokenizer, &input, &small()).unwrap();
        let ids = data.train.tokens.read(0, data.train.tokens.len()).unwrap();
        let ends: Vec<_> = (0..ids.len()).filter(|i| ids[*i] == 256).collect();
        assert_eq!(ends, [144, 146]);
        assert_eq!(data.train.bytes, 144 + 1 + 144);
        assert_eq!(data.validation.bytes, 16 + 1 + 16);
        assert_eq!(data.train.end_of_text, Some(256));
        let alone = EncodedText::new(&tokenizer, "abc").unwrap();
        assert_eq!(alone.tokens.len(), 3);
        assert!(check_tokenizer(&byte(false), needs(true)).is_err());
    }

    #[test]
    fn batches_are_windows_that_depend_on_seed_and_index() {
        let text: String = (0..500)
            .map(|i| char::from(b'a' + (i * i % 23) as u8))
            .collect();
        for order in [OrderKind::Random, OrderKind::Shuffled, OrderKind::Repeat] {
            let settings = TrainSettings { order, ..small() };
            let data = TokenDataset::new(&byte(false), &documents(&[&text]), &settings).unwrap();
            let batch = data.batch(&settings, 3).unwrap();
            assert_eq!(batch, data.batch(&settings, 3).unwrap());
            let next = data.batch(&settings, 4).unwrap();
            assert_eq!(batch == next, order == OrderKind::Repeat);
            let ids = data.train.tokens.read(0, 450).unwrap();
            for example in &batch {
                assert_eq!(example.inputs[1..], example.targets[..7]);
                assert!(ids.windows(8).any(|w| w == example.inputs));
            }
        }
    }

    #[test]
    fn a_short_text_says_what_is_needed() {
        let settings = Settings::preset(Preset::Nano).train;
        let input = documents(&["shorttext"]);
        let error = TokenDataset::new(&byte(false), &input, &settings).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("has 8 tokens"), "{message}");
        assert!(message.contains("needs 2049"), "{message}");
    }
}
