//! `prepare`: a corpus to a folder of tokens that `fit` reads window by window.
//!
//! | file | holds |
//! | --- | --- |
//! | `shards.json` | what the others are; written last, so a folder without it is unfinished |
//! | `tokenizer.json` | what made the ids |
//! | `train-00000.bin`, `val-00000.bin`, ... | ids, raw little-endian u16 or u32 |
//! | `train-loss-00000.bin`, ... | of conversations: a byte per id, 1 where it is learned from, else 0 |
//! | `tokenizer_config.json` | their template |
//!
//! One document is in memory at a time. A tokenizer that learns from the text reads it first.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, DataOptions, Passage, Tally};
use crate::data::{
    EncodedText, Fingerprint, Joiner, Tokens, check_tokenizer, marks_of, settled_split,
};
use crate::error::{Error, Result};
use crate::files::write_bytes;
use crate::held_out::{HeldOut, SplitKind};
use crate::loss_mask::LossMask;
use crate::settings::TrainSettings;
use crate::shards::{IdWidth, SHARD_TOKENS, ShardEntry, ShardWriter, Shards};
use crate::tokenizer::{Needs, Parts, Tokenizer, TokenizerKind};

const INDEX: &str = "shards.json";
const FORMAT: &str = "bitnet-shards";
const VERSION: u32 = 1;
/// Names of the shards of both parts: of their ids, and of the marks that belong to them.
const PARTS: [[&str; 2]; 2] = [["train", "train-loss"], ["val", "val-loss"]];

/// What `prepare` is asked for.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// The corpus.
    pub data: DataOptions,
    /// Folder to write.
    pub out: PathBuf,
    /// Which tokenizer.
    pub tokenizer: TokenizerKind,
    /// How the corpus is divided: `split`, `val_fraction` and `seed` of it.
    pub train: TrainSettings,
    /// Replace a folder that is there.
    pub overwrite: bool,
}

/// A folder of tokens.
#[derive(Clone, Debug)]
pub struct Prepared {
    folder: PathBuf,
    index: Index,
    fingerprint: Fingerprint,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Index {
    format: String,
    version: u32,
    id_width: IdWidth,
    vocab_size: usize,
    end_of_text: Option<u32>,
    tokenizer_crc32: u32,
    documents: u64,
    empty_documents: u64,
    split: SplitKind,
    val_fraction: f64,
    split_seed: u64,
    train: Part,
    validation: Part,
}

/// The training or the validation part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    text_bytes: u64,
    shards: Vec<ShardEntry>,
    /// A byte per token, 1 where it is learned from; none if all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    marks: Vec<ShardEntry>,
    /// How many are 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    counted: u64,
}

const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Writes the folder.
///
/// # Errors
///
/// What is wrong with the corpus or the tokenizer; [`Error::Usage`] for a folder in use, and for
/// standard input where the text must be read twice.
pub fn prepare(options: &PrepareOptions) -> Result<Prepared> {
    let corpus = Corpus::new(&options.data)?;
    check_repeatable(&corpus, &options.tokenizer)?;
    let mut train = options.train.clone();
    train.split = settled_split(train.split, corpus.has_documents_to_spare());
    let (tokenizer, learned_from) = learn(&corpus, &options.tokenizer, &train)?;
    check_tokenizer(&tokenizer, corpus.needs())?;
    clear(&options.out, options.overwrite)?;
    let writer = Writer::new(&options.out, &tokenizer, corpus.needs(), SHARD_TOKENS)?;
    let index = writer.write(&corpus, &train, learned_from)?;
    let json = serde_json::to_string_pretty(&index);
    let path = options.out.join(INDEX);
    let json = json.map_err(|e| Error::checkpoint(&path, e.to_string()))?;
    write_bytes(&path, json.as_bytes())?;
    Prepared::open(&options.out)
}

fn check_repeatable(corpus: &Corpus, kind: &TokenizerKind) -> Result<()> {
    let learns = matches!(kind, TokenizerKind::Bpe(_) | TokenizerKind::Char);
    if !learns || corpus.is_repeatable() {
        return Ok(());
    }
    Err(Error::Usage(
        "--tokenizer bpe:N and char read the text twice, and a stream can be read once; give files, \
         or a tokenizer.json, or byte"
            .into(),
    ))
}

/// The tokenizer, and what it learned from, if it read the corpus.
fn learn(
    corpus: &Corpus,
    kind: &TokenizerKind,
    train: &TrainSettings,
) -> Result<(Tokenizer, Option<Fingerprint>)> {
    let mut fingerprint = None;
    let tokenizer = Tokenizer::new(kind, corpus.needs(), |see| {
        let mut seen = Fingerprint::default();
        divide(corpus, train, &mut seen, see)?;
        fingerprint = Some(seen);
        Ok(())
    })?;
    Ok((tokenizer, fingerprint))
}

/// Calls `see` with the parts of every document.
fn divide(
    corpus: &Corpus,
    train: &TrainSettings,
    fingerprint: &mut Fingerprint,
    see: &mut Parts<'_>,
) -> Result<Tally> {
    let held_out = HeldOut::new(train);
    let mut index = 0;
    corpus.visit(&mut |document| {
        fingerprint.add_passage(document.passage());
        let (train, validation) = held_out.divide(index, document.passage());
        index += 1;
        see(train, validation)
    })
}

/// Creates the folder, and removes the files of an earlier call, index first.
fn clear(folder: &Path, overwrite: bool) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    if Prepared::is_at(folder) && !overwrite {
        return Err(Error::Usage(format!(
            "--out {}: there are tokens in this folder; replace them by --overwrite, or choose \
             another folder",
            folder.display()
        )));
    }
    let entries = fs::read_dir(folder).map_err(Error::io(folder, "read"))?;
    let mut old = vec![folder.join(INDEX), folder.join("tokenizer_config.json")];
    for entry in entries {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if is_shard(&path) {
            old.push(path);
        }
    }
    for path in old.iter().filter(|path| path.exists()) {
        fs::remove_file(path).map_err(Error::io(path, "remove"))?;
    }
    Ok(())
}

fn is_shard(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.and_then(|name| name.strip_suffix(".bin"));
    let number = name.and_then(|name| name.rsplit_once('-'));
    number.is_some_and(|(part, number)| {
        PARTS.iter().flatten().any(|name| *name == part)
            && number.bytes().all(|b| b.is_ascii_digit())
    })
}

/// Both parts on their way to disk.
struct Writer<'t> {
    folder: PathBuf,
    tokenizer: &'t Tokenizer,
    parts: [PartWriter<'t>; 2],
}

/// The training or the validation part on its way to disk.
struct PartWriter<'t> {
    joiner: Joiner<'t>,
    tokens: ShardWriter,
    /// Marks of what is learned from, where there are conversations.
    marks: Option<ShardWriter>,
    counted: u64,
}

impl<'t> Writer<'t> {
    fn new(
        folder: &Path,
        tokenizer: &'t Tokenizer,
        needs: Needs,
        shard_tokens: u64,
    ) -> Result<Self> {
        let width = IdWidth::of(tokenizer.vocab_size());
        let writer = |name, width| ShardWriter::new(folder, name, width, shard_tokens);
        let joiner = Joiner::new(tokenizer, needs)?;
        let part = |[tokens, marks]: [&'static str; 2]| PartWriter {
            joiner: joiner.clone(),
            tokens: writer(tokens, width),
            marks: needs.turns.then(|| writer(marks, IdWidth::U8)),
            counted: 0,
        };
        Ok(Self {
            folder: folder.into(),
            tokenizer,
            parts: PARTS.map(part),
        })
    }

    fn write(
        mut self,
        corpus: &Corpus,
        train: &TrainSettings,
        learned_from: Option<Fingerprint>,
    ) -> Result<Index> {
        let mut written = Fingerprint::default();
        let tally = divide(corpus, train, &mut written, &mut |train, validation| {
            let [train_part, validation_part] = &mut self.parts;
            train_part.add(train)?;
            validation_part.add(validation)
        })?;
        if learned_from.is_some_and(|learned_from| learned_from != written) {
            let message = "--data: the texts changed between the first and the second reading";
            return Err(Error::Data(message.into()));
        }
        let json = self.tokenizer.to_json()?;
        self.tokenizer.save(&self.folder)?;
        let end_of_text = self.parts[0].joiner.divides();
        let [train_part, validation] = self.parts.map(PartWriter::finish);
        Ok(Index {
            format: FORMAT.into(),
            version: VERSION,
            id_width: IdWidth::of(self.tokenizer.vocab_size()),
            vocab_size: self.tokenizer.vocab_size(),
            end_of_text,
            tokenizer_crc32: crc32fast::hash(json.as_bytes()),
            documents: tally.documents,
            empty_documents: tally.empty,
            split: train.split,
            val_fraction: train.val_fraction,
            split_seed: train.seed,
            train: train_part?,
            validation: validation?,
        })
    }
}

impl PartWriter<'_> {
    fn add(&mut self, document: Passage<'_>) -> Result<()> {
        let Self {
            joiner,
            tokens,
            marks,
            counted: all_counted,
        } = self;
        joiner.add(document, &mut |ids, counted| {
            tokens.push(ids)?;
            let Some(marks) = marks else {
                return Ok(());
            };
            let of_ids: Vec<u32> = marks_of(ids, counted).map(u32::from).collect();
            *all_counted += of_ids.iter().map(|mark| u64::from(*mark)).sum::<u64>();
            marks.push(&of_ids)
        })
    }

    fn finish(self) -> Result<Part> {
        Ok(Part {
            text_bytes: self.joiner.bytes,
            shards: self.tokens.finish()?,
            marks: match self.marks {
                Some(marks) => marks.finish()?,
                None => Vec::new(),
            },
            counted: self.counted,
        })
    }
}

impl Prepared {
    /// True if there is a finished folder of tokens at `path`.
    #[must_use]
    pub fn is_at(path: &Path) -> bool {
        path.join(INDEX).exists()
    }

    /// Reads the index.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or [`Error::Checkpoint`] if it cannot be understood.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|e| Error::checkpoint(&path, format!("cannot be understood: {e}")))?;
        if index.format != FORMAT || index.version != VERSION {
            let (format, version) = (&index.format, index.version);
            let problem = format!("is {format} version {version}, not {FORMAT} version {VERSION}");
            return Err(Error::checkpoint(&path, problem));
        }
        Ok(Self {
            folder: folder.into(),
            index,
            fingerprint: Fingerprint::of(&text),
        })
    }

    /// Of the index, which holds a checksum of every shard.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Documents that went in.
    #[must_use]
    pub const fn tally(&self) -> Tally {
        Tally {
            documents: self.index.documents,
            empty: self.index.empty_documents,
        }
    }

    /// The division is that of the folder.
    pub const fn settle(&self, train: &mut TrainSettings) {
        train.split = self.index.split;
        train.val_fraction = self.index.val_fraction;
    }

    /// What made the ids.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::from_file`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_file(&self.folder.join("tokenizer.json"))
    }

    /// Checks that the ids are this tokenizer's.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        if crc32fast::hash(tokenizer.to_json()?.as_bytes()) == self.index.tokenizer_crc32 {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "--data {}: these tokens were made by another tokenizer",
            self.folder.display()
        )))
    }

    /// The training tokens; `is_divided` if documents do not see each other.
    ///
    /// # Errors
    ///
    /// As [`Shards::open`].
    pub fn train(&self, is_divided: bool) -> Result<EncodedText> {
        self.part(&self.index.train, is_divided)
    }

    /// The validation tokens.
    ///
    /// # Errors
    ///
    /// As [`Shards::open`].
    pub fn validation(&self, is_divided: bool) -> Result<EncodedText> {
        self.part(&self.index.validation, is_divided)
    }

    fn part(&self, part: &Part, is_divided: bool) -> Result<EncodedText> {
        let Index {
            id_width,
            vocab_size,
            end_of_text,
            ..
        } = self.index;
        let shards = Shards::open(&self.folder, &part.shards, id_width, vocab_size)?;
        Ok(EncodedText {
            mask: self.mask(part, &shards)?,
            tokens: Tokens::Shards(shards),
            bytes: part.text_bytes as usize,
            end_of_text: end_of_text.filter(|_| is_divided),
        })
    }

    fn mask(&self, part: &Part, tokens: &Shards) -> Result<LossMask> {
        if part.marks.is_empty() {
            return Ok(LossMask::All);
        }
        let marks = Shards::open(&self.folder, &part.marks, IdWidth::U8, 2)?;
        let (n, of) = (marks.len(), tokens.len());
        if n != of {
            let problem =
                format!("has {n} marks for {of} tokens; run bitnet-trainer prepare again");
            return Err(Error::checkpoint(&self.folder.join(INDEX), problem));
        }
        let counted = part.counted as usize;
        Ok(LossMask::Shards { marks, counted })
    }

    /// What was written, for people.
    ///
    /// # Errors
    ///
    /// As [`Shards::open`].
    pub fn summary(&self) -> Result<String> {
        let Tally { documents, empty } = self.tally();
        let (train, validation) = (self.train(false)?, self.validation(false)?);
        Ok(format!(
            "{documents} documents ({empty} empty ones left out), vocabulary {}\n\
             {} training tokens in {} files, {} validation tokens in {}\n",
            self.index.vocab_size,
            train.tokens.len(),
            self.index.train.shards.len(),
            validation.tokens.len(),
            self.index.validation.shards.len(),
        ))
    }
}
