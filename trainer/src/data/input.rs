//! What a run learns from, before it is tokens.

use crate::corpus::{Corpus, DataOptions, Document, Tally};
use crate::data::Fingerprint;
use crate::error::Result;
use crate::held_out::{HeldOut, SplitKind};
use crate::prepare::Prepared;
use crate::settings::TrainSettings;
use crate::tokenizer::{Needs, Parts};

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
    pub(super) all: Vec<Document>,
    pub(super) needs: Needs,
    pub(super) has_some_to_spare: bool,
    pub(super) fingerprint: Fingerprint,
    pub(super) tally: Tally,
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
