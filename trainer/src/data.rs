//! The tokens of a run: documents divided, encoded and joined; batches cut from them.

use std::sync::Arc;

use crate::chat::ChatEncoder;
use crate::corpus::{Corpus, DataOptions, Document, Passage, Tally};
use crate::error::{Error, Result};
use crate::held_out::{HeldOut, SplitKind};
use crate::loss_mask::LossMask;
use crate::model::gradient::Example;
use crate::ops::target::IGNORED;
use crate::order::Permutation;
use crate::prepare::Prepared;
use crate::rng::{Rng, Stream};
use crate::settings::{OrderKind, TrainSettings};
use crate::shards::Shards;
use crate::tokenizer::{END_OF_TEXT_NAMES, Needs, Parts, Tokenizer};

/// What `--data` stands for.
#[derive(Clone, Debug)]
pub enum Input {
    /// Texts, in memory.
    Documents(Documents),
    /// A folder of tokens.
    Prepared(Prepared),
}

/// Documents of a corpus, in order.
#[derive(Clone, Debug)]
pub struct Documents {
    all: Vec<Document>,
    needs: Needs,
    has_some_to_spare: bool,
    fingerprint: Fingerprint,
    tally: Tally,
}

impl Input {
    /// Reads all texts, or the index of a folder that `prepare` wrote.
    ///
    /// # Errors
    ///
    /// As [`Corpus::new`] and [`Corpus::visit`], or [`Prepared::open`].
    pub fn read(options: &DataOptions) -> Result<Self> {
        if let [folder] = &options.inputs[..]
            && Prepared::is_at(folder)
        {
            return Ok(Self::Prepared(Prepared::open(folder)?));
        }
        Ok(Self::Documents(Documents::read(&Corpus::new(options)?)?))
    }

    /// What recognises this input on resume, in hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Documents(documents) => documents.fingerprint.hex(),
            Self::Prepared(prepared) => prepared.fingerprint().hex(),
        }
    }

    /// Documents, and those left out because they are empty.
    #[must_use]
    pub const fn tally(&self) -> Tally {
        match self {
            Self::Documents(documents) => documents.tally,
            Self::Prepared(prepared) => prepared.tally(),
        }
    }

    /// Fills in what depends on the input: how it is divided.
    pub fn settle(&self, train: &mut TrainSettings) {
        match self {
            Self::Documents(documents) => {
                train.split = settled_split(train.split, documents.has_some_to_spare);
            }
            Self::Prepared(prepared) => prepared.settle(train),
        }
    }
}

/// What `Auto` means for a corpus.
#[must_use]
pub const fn settled_split(split: SplitKind, has_some_to_spare: bool) -> SplitKind {
    match split {
        SplitKind::Auto if has_some_to_spare => SplitKind::Document,
        SplitKind::Auto => SplitKind::Tail,
        settled => settled,
    }
}

impl Documents {
    fn read(corpus: &Corpus) -> Result<Self> {
        let mut all = Vec::new();
        let mut fingerprint = Fingerprint::default();
        let tally = corpus.visit(&mut |document| {
            fingerprint.add_passage(document.passage());
            all.push(document);
            Ok(())
        })?;
        Ok(Self {
            all,
            needs: corpus.needs(),
            has_some_to_spare: corpus.has_documents_to_spare(),
            fingerprint,
            tally,
        })
    }

    /// What their tokenizer has to tell apart.
    #[must_use]
    pub const fn needs(&self) -> Needs {
        self.needs
    }

    /// Calls `see` with the parts of every document.
    ///
    /// # Errors
    ///
    /// What `see` returns.
    pub fn divide(&self, train: &TrainSettings, see: &mut Parts<'_>) -> Result<()> {
        let held_out = HeldOut::new(train);
        for (index, document) in (0..).zip(&self.all) {
            let (train, validation) = held_out.divide(index, document.passage());
            see(train, validation)?;
        }
        Ok(())
    }
}

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

/// Token ids, in memory or on disk.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// All of them.
    Memory(Vec<u32>),
    /// Files they are read from.
    Shards(Shards),
}

impl Tokens {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Memory(ids) => ids.len(),
            Self::Shards(shards) => shards.len(),
        }
    }

    /// True without a token.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids `start..start + count`.
    ///
    /// # Errors
    ///
    /// As [`Shards::read`].
    ///
    /// # Panics
    ///
    /// If the range goes beyond [`Tokens::len`].
    pub fn read(&self, start: usize, count: usize) -> Result<Vec<u32>> {
        match self {
            Self::Memory(ids) => Ok(ids[start..start + count].to_vec()),
            Self::Shards(shards) => shards.read(start, count),
        }
    }
}

/// Texts as ids, with their length in bytes.
#[derive(Clone, Debug)]
pub struct EncodedText {
    /// Token ids; between texts the end of text, where the tokenizer has one.
    pub tokens: Tokens,
    /// Which of them are learned from.
    pub mask: LossMask,
    /// UTF-8 bytes of what is learned: the texts and the answers.
    pub bytes: usize,
    /// The id between texts that do not see each other.
    pub end_of_text: Option<u32>,
}

impl EncodedText {
    /// One text from ids at hand.
    #[must_use]
    pub const fn from_ids(ids: Vec<u32>, bytes: usize) -> Self {
        Self {
            tokens: Tokens::Memory(ids),
            mask: LossMask::All,
            bytes,
            end_of_text: None,
        }
    }

    /// Encodes a text whole.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let text = std::iter::once(Passage::Text(text));
        Self::join(Joiner::new(tokenizer, Needs::default())?, text)
    }

    /// Encodes all texts of an input, held out or not. A folder of tokens gives those held out.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`]; [`Error::Usage`] if the folder's tokens are another tokenizer's.
    pub fn of_input(tokenizer: &Tokenizer, input: &Input) -> Result<Self> {
        match input {
            Input::Documents(documents) => {
                let all = documents.all.iter().map(Document::passage);
                Self::join(Joiner::new(tokenizer, documents.needs)?, all)
            }
            Input::Prepared(prepared) => {
                prepared.check_tokenizer(tokenizer)?;
                prepared.validation(true)
            }
        }
    }

    fn join<'d>(
        mut joiner: Joiner<'_>,
        documents: impl Iterator<Item = Passage<'d>>,
    ) -> Result<Self> {
        let has_marks = joiner.chat.is_some();
        let (mut ids, mut marks) = (Vec::new(), Vec::new());
        for document in documents {
            joiner.add(document, &mut |more, counted| {
                ids.extend_from_slice(more);
                if has_marks {
                    marks.extend(marks_of(more, counted));
                }
                Ok(())
            })?;
        }
        let mut joined = Self::from_ids(ids, joiner.bytes as usize);
        joined.end_of_text = joiner.divides();
        if has_marks {
            joined.mask = LossMask::Memory(marks);
        }
        Ok(joined)
    }

    /// Targets of a window that reads `ids` from token `start` on: all but its first, or
    /// [`IGNORED`] where nothing is learned.
    ///
    /// # Errors
    ///
    /// As [`LossMask::read`].
    pub fn targets(&self, ids: &[u32], start: usize) -> Result<Vec<u32>> {
        let marks = self.mask.read(start + 1, ids.len() - 1)?;
        let counted = marks_of(&ids[1..], marks.as_deref());
        let targets = ids[1..].iter().zip(counted);
        Ok(targets
            .map(|(id, counted)| if counted { *id } else { IGNORED })
            .collect())
    }

    fn has_answers(&self, part: &str) -> Result<()> {
        match self.mask.counted(self.tokens.len()) {
            0 => Err(Error::Data(format!(
                "the {part} part has no answer of an assistant; give more conversations, or change \
                 train.val_fraction"
            ))),
            _ => Ok(()),
        }
    }
}

/// A mark for each id; without any given, all are learned from.
pub fn marks_of(ids: &[u32], counted: Option<&[bool]>) -> impl Iterator<Item = bool> {
    (0..ids.len()).map(move |i| counted.is_none_or(|counted| counted[i]))
}

/// Hears of ids, and of which are learned from; without marks, all are.
pub type Sink<'s> = dyn FnMut(&[u32], Option<&[bool]>) -> Result<()> + 's;

/// Makes one stream of ids from several documents. Clones share what encodes conversations.
#[derive(Clone, Debug)]
pub struct Joiner<'t> {
    tokenizer: &'t Tokenizer,
    chat: Option<Arc<ChatEncoder>>,
    end_of_text: Option<u32>,
    /// True if the end of the last document is learned from: that of a conversation is not, its
    /// answers have ends of their own.
    counts_end: bool,
    documents: u64,
    /// Bytes learned from so far.
    pub bytes: u64,
}

impl<'t> Joiner<'t> {
    /// An empty stream.
    ///
    /// # Errors
    ///
    /// As [`ChatEncoder::new`], where there are conversations.
    pub fn new(tokenizer: &'t Tokenizer, needs: Needs) -> Result<Self> {
        Ok(Self {
            tokenizer,
            chat: match needs.turns {
                true => Some(Arc::new(ChatEncoder::new(tokenizer)?)),
                false => None,
            },
            end_of_text: tokenizer.end_of_text(),
            counts_end: true,
            documents: 0,
            bytes: 0,
        })
    }

    /// The id after which the next document begins. `None` if the same id ends answers: it would
    /// divide conversations.
    #[must_use]
    pub fn divides(&self) -> Option<u32> {
        let ends_answers = |id: &u32| {
            let mut ends = self.chat.iter().flat_map(|chat| chat.end_ids());
            ends.any(|end| end == *id)
        };
        self.end_of_text.filter(|id| !ends_answers(id))
    }

    /// Encodes a document to `sink`, after an end of text unless it is the first. Nothing for an
    /// empty one.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`] and [`ChatEncoder::encode`], and what `sink` returns.
    pub fn add(&mut self, document: Passage<'_>, sink: &mut Sink<'_>) -> Result<()> {
        if document.is_empty() {
            return Ok(());
        }
        if let (Some(id), 1..) = (self.end_of_text, self.documents) {
            sink(&[id], Some(&[self.counts_end]))?;
        }
        self.documents += 1;
        match (document, &self.chat) {
            (Passage::Text(text), _) => {
                self.bytes += text.len() as u64;
                self.counts_end = true;
                self.tokenizer.encode_to(text, &mut |ids| sink(ids, None))
            }
            (Passage::Chat(conversation), Some(chat)) => {
                let encoded = chat.encode(conversation)?;
                self.bytes += encoded.answer_bytes;
                self.counts_end = false;
                sink(&encoded.ids, Some(&encoded.counted))
            }
            (Passage::Chat(_), None) => unreachable!("needs say that there are conversations"),
        }
    }
}

/// A tokenizer that must keep documents or messages apart, and cannot.
///
/// # Errors
///
/// [`Error::Tokenizer`].
pub fn check_tokenizer(tokenizer: &Tokenizer, needs: Needs) -> Result<()> {
    if needs.turns {
        ChatEncoder::new(tokenizer)?;
    }
    if !needs.end_of_text || tokenizer.end_of_text().is_some() {
        return Ok(());
    }
    let names = END_OF_TEXT_NAMES.join(", ");
    Err(Error::Tokenizer(format!(
        "the tokenizer has no id that ends a text (one of {names}), which a corpus of several \
         documents needs; add one to its added_tokens"
    )))
}

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
        let starts = self.starts(settings, index);
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
            for start in self.starts(settings, micro) {
                let marks = self.train.mask.read(start + 1, settings.context)?;
                counted += marks.iter().flatten().filter(|mark| **mark).count();
            }
        }
        Ok(counted)
    }

    /// Where the windows of a micro-batch begin: a function of seed and index alone, so that a run
    /// that is resumed goes on where it was.
    fn starts(&self, settings: &TrainSettings, index: u64) -> Vec<usize> {
        let (len, context) = (self.train.tokens.len(), settings.context);
        let drawn = |index| {
            let mut rng = Rng::new(settings.seed, Stream::Batch, index);
            let draw = |_| rng.below(len - context);
            (0..settings.batch).map(draw).collect()
        };
        match settings.order {
            OrderKind::Random => drawn(index),
            OrderKind::Repeat => drawn(0),
            OrderKind::Shuffled => {
                let first = index * settings.batch as u64;
                let place = |i| shuffled_start(settings.seed, first + i, len, context);
                (0..settings.batch as u64).map(place).collect()
            }
        }
    }
}

/// Window number `place` of a run that takes every window once an epoch. Windows lie end to end
/// behind a shift that differs by epoch.
fn shuffled_start(seed: u64, place: u64, len: usize, context: usize) -> usize {
    let windows = ((len - 1) / context) as u64;
    let (epoch, place) = (place / windows, place % windows);
    let slack = (len - 1) % context;
    let shift = Rng::new(seed, Stream::Batch, epoch).below(slack + 1);
    let window = Permutation::new(seed, epoch, windows).at(place);
    shift + window as usize * context
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
    use crate::settings::Settings;
    use crate::tokenizer::TokenizerKind;
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
    fn fingerprint_is_fnv_1a_and_knows_where_texts_end() {
        let of = |texts: &[&str]| documents(texts).fingerprint();
        assert_eq!(of(&[]), "cbf29ce484222325");
        assert_eq!(of(&["a"]), "af63dc4c8601ec8c");
        assert_eq!(Fingerprint::of("a").value(), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
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
    fn a_shuffled_epoch_predicts_every_token_once() {
        for (len, context) in [(81, 8), (87, 8), (9, 8), (400, 7)] {
            let windows = (len - 1) / context;
            for epoch in 0..3 {
                let places = (epoch * windows..(epoch + 1) * windows).map(|i| i as u64);
                let starts = places.map(|i| shuffled_start(1, i, len, context));
                let mut starts: Vec<_> = starts.collect();
                starts.sort_unstable();
                assert!(starts.windows(2).all(|w| w[0] + context == w[1]));
                assert!(starts[windows - 1] + context < len);
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
