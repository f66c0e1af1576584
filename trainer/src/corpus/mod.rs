//! Documents of a corpus: text files, globs, JSON Lines and standard input, one document at a time.
//!
//! A text file is one document, unless a separator divides it. A line of a JSON Lines file is one; its
//! first line says whether the file holds texts or conversations.
//! What is no text is refused by file, line and byte, and so is a file that changes while it is
//! read: what was learned must be what the files hold.

mod json_lines;
mod reader;
mod source;
mod text;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::chat::Conversation;
use crate::corpus::reader::Reader;
use crate::corpus::source::{Source, SourceKind, expand, refuse_repeats};
use crate::error::{Error, Result};
use crate::tokenizer::Needs;

/// Longest document, and longest line of JSON, in bytes. A document is in memory as a whole.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 30;
/// Fields that JSON Lines files are asked for unless another is named: a text, or else messages.
pub const DEFAULT_FIELDS: [&str; 2] = ["text", "messages"];
/// From so many text files on, whole files are held out, not the end of each.
const MANY_FILES: usize = 20;

/// What `--data` and its companions say.
#[derive(Clone, Debug, Default)]
pub struct DataOptions {
    /// Files, patterns, `-` for standard input, or one folder that `prepare` wrote.
    pub inputs: Vec<PathBuf>,
    /// Field of JSON Lines that holds the text or the messages; if given, standard input is JSON
    /// Lines.
    pub field: Option<String>,
    /// What stands between the documents of a text file.
    pub separator: Option<String>,
}

impl DataOptions {
    /// Files alone.
    #[must_use]
    pub fn files(inputs: Vec<PathBuf>) -> Self {
        Self {
            inputs,
            ..Self::default()
        }
    }
}

/// Where documents come from.
#[derive(Clone, Debug)]
pub struct Corpus {
    sources: Vec<Source>,
    fields: Vec<String>,
    separator: Option<String>,
}

/// A document of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// A text.
    Text(String),
    /// Messages.
    Chat(Conversation),
}

impl Document {
    /// All of it.
    #[must_use]
    pub fn passage(&self) -> Passage<'_> {
        match self {
            Self::Text(text) => Passage::Text(text),
            Self::Chat(conversation) => Passage::Chat(conversation),
        }
    }
}

/// A document or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage<'d> {
    /// A text or a part of one.
    Text(&'d str),
    /// A whole conversation.
    Chat(&'d Conversation),
}

impl Passage<'_> {
    /// No part of a document.
    pub const NONE: Self = Self::Text("");

    /// True if there is nothing to learn from: no text, or no answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Chat(conversation) => !conversation.has_answer(),
        }
    }

    /// Its text, from which a vocabulary is learned.
    #[must_use]
    pub fn plain_text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Chat(conversation) => Cow::Owned(conversation.plain_text()),
        }
    }
}

/// How many documents were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Documents with something to learn from.
    pub documents: u64,
    /// Documents without a text or an answer, which are left out.
    pub empty: u64,
}

/// Hears of one document after the other.
type Visit<'v> = dyn FnMut(Document) -> Result<()> + 'v;

impl Corpus {
    /// Finds the files.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a pattern that matches nothing, a folder, a file that is named twice;
    /// [`Error::Io`] for a file that is not there.
    pub fn new(options: &DataOptions) -> Result<Self> {
        let mut sources = Vec::new();
        for input in &options.inputs {
            sources.extend(expand(input, options.field.is_some())?);
        }
        refuse_repeats(&sources)?;
        let fields = match &options.field {
            Some(field) => vec![field.clone()],
            None => DEFAULT_FIELDS.map(str::to_owned).into(),
        };
        for source in &mut sources {
            source.look_for_messages(&fields)?;
        }
        if options.separator.as_ref().is_some_and(String::is_empty) {
            return Err(Error::Usage("--separator is empty".into()));
        }
        Ok(Self {
            sources,
            fields,
            separator: options.separator.clone(),
        })
    }

    /// True if there can be more than one document.
    #[must_use]
    pub fn has_many_documents(&self) -> bool {
        self.sources.len() > 1 || self.is_divided()
    }

    /// True if documents are so many that whole ones can be held out.
    #[must_use]
    pub fn has_documents_to_spare(&self) -> bool {
        self.sources.len() >= MANY_FILES || self.is_divided()
    }

    fn is_divided(&self) -> bool {
        let json = |source: &Source| source.kind != SourceKind::Text;
        self.separator.is_some() || self.sources.iter().any(json)
    }

    /// What its tokenizer has to tell apart.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let chat = |source: &Source| source.kind == SourceKind::Conversations;
        Needs {
            end_of_text: self.has_many_documents(),
            turns: self.sources.iter().any(chat),
        }
    }

    /// True if the corpus can be read again.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        self.sources.iter().all(|source| source.path.is_file())
    }

    /// Calls `see` with every document that is not empty, in order.
    ///
    /// # Errors
    ///
    /// What `see` returns; [`Error::Io`], [`Error::NotUtf8`], and [`Error::Data`] for what is no
    /// text, no JSON, has no such field, is too long, changes while it is read, or is empty although
    /// it was named, or if all is empty.
    pub fn visit(&self, see: &mut Visit<'_>) -> Result<Tally> {
        let mut tally = Tally::default();
        for source in &self.sources {
            let before = tally.documents;
            self.visit_source(source, &mut |document| {
                if document.passage().is_empty() {
                    tally.empty += 1;
                    return Ok(());
                }
                tally.documents += 1;
                see(document)
            })?;
            if source.named && tally.documents == before {
                let what = match source.kind {
                    SourceKind::Conversations => "no conversation has a message of the assistant",
                    SourceKind::Text | SourceKind::JsonLines => "the file is empty",
                };
                return Err(problem(&source.path, what));
            }
        }
        match tally.documents {
            0 => Err(Error::Data("--data: every file is empty".into())),
            _ => Ok(tally),
        }
    }

    fn visit_source(&self, source: &Source, see: &mut Visit<'_>) -> Result<()> {
        let mut reader = Reader::open(source)?;
        match source.kind {
            SourceKind::Text => text::visit(&mut reader, self.separator.as_deref(), see)?,
            kind => json_lines::visit(&mut reader, &self.fields, kind, see)?,
        }
        reader.finish()
    }
}

fn problem(path: &Path, what: &str) -> Error {
    Error::Data(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::reader::READ_BYTES;
    use super::*;
    use std::fs;
    use std::io::Write;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            for (name, bytes) in files {
                fs::write(place.path(name), bytes).unwrap();
            }
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn options(&self, names: &[&str]) -> DataOptions {
            DataOptions::files(names.iter().map(|name| self.path(name)).collect())
        }
    }

    fn read(options: &DataOptions) -> Result<(Vec<String>, Tally)> {
        let mut all = Vec::new();
        let tally = Corpus::new(options)?.visit(&mut |document| {
            all.push(document.passage().plain_text().into_owned());
            Ok(())
        })?;
        Ok((all, tally))
    }

    fn error(options: &DataOptions) -> String {
        read(options).unwrap_err().to_string()
    }

    #[test]
    fn files_patterns_and_lines_give_their_documents_in_order() {
        let place = Place::new(&[
            ("b.txt", b"\xef\xbb\xbfwith a mark"),
            ("a.txt", b"first"),
            ("c.txt", b""),
            (
                "d.jsonl",
                b"{\"text\":\"one\"}\n\n{\"id\":3,\"text\":\"\"}\r\n{\"text\":\"t\\nwo\"}",
            ),
        ]);
        let (texts, tally) = read(&place.options(&["*.txt", "d.jsonl"])).unwrap();
        assert_eq!(texts, ["first", "with a mark", "one", "t\nwo"]);
        assert_eq!((tally.documents, tally.empty), (4, 2));
    }

    #[test]
    fn separators_divide_wherever_a_read_ends() {
        let long = "é".repeat(READ_BYTES / 2 - 1);
        let text = format!("<|><|>a<|>{long}<|>b");
        let place = Place::new(&[("a.txt", text.as_bytes())]);
        let mut options = place.options(&["a.txt"]);
        options.separator = Some("<|>".into());
        let (texts, tally) = read(&options).unwrap();
        assert_eq!(texts, ["a", &long, "b"]);
        assert_eq!(tally.empty, 2);
    }

    #[test]
    fn what_is_no_text_is_named() {
        let far = [&b"x".repeat(READ_BYTES + 5)[..], b"\xff"].concat();
        let place = Place::new(&[
            ("empty", b""),
            ("latin1", b"caf\xe9 au lait"),
            ("cut", b"caf\xc3"),
            ("far", &far),
            ("junk", b"ELF\x02\0\0"),
            ("array.jsonl", b"{\"text\":\"a\"}\n[1]\n"),
            ("junk.jsonl", b"\x00\xff\n"),
            ("other.jsonl", b"{\"body\":\"a\",\"id\":1}\n"),
            ("number.jsonl", b"{\"text\":4}\n"),
            ("zero.jsonl", b"{\"text\":\"\\u0000\"}\n"),
        ]);
        let cases: [(&[&str], &str); 13] = [
            (&["empty"], "empty: the file is empty"),
            (&["emp*"], "every file is empty"),
            (&["none"], "none: cannot read"),
            (&["none*"], "no file matches"),
            (&["latin1"], "latin1: byte 3 is not UTF-8"),
            (&["cut"], "cut: byte 3 is not UTF-8"),
            (&["far"], "far: byte 1048581 is not UTF-8"),
            (&["junk"], "junk: byte 4 is zero"),
            (&["array.jsonl"], "array.jsonl: line 2: no JSON object"),
            (&["junk.jsonl"], "junk.jsonl: line 1: no JSON"),
            (&["other.jsonl"], "--field names one of: body, id"),
            (&["number.jsonl"], "field \"text\" is no string"),
            (&["zero.jsonl"], "holds a zero byte"),
        ];
        for (names, says) in cases {
            let message = error(&place.options(names));
            assert!(message.contains(says), "{names:?}: {message}");
        }
        assert!(error(&place.options(&["far", "fa*"])).contains("given twice"));
        assert!(error(&place.options(&["."])).contains("this is a folder"));
    }

    /// Reads three documents and changes a file after the first.
    fn changed(change: impl Fn(&Path)) -> std::result::Result<Vec<String>, String> {
        let long = format!("a|{}|c", "b".repeat(3 * READ_BYTES));
        let place = Place::new(&[("1.txt", long.as_bytes()), ("2.txt", b"d")]);
        let mut options = place.options(&["1.txt", "2.txt"]);
        options.separator = Some("|".into());
        let mut seen = Vec::new();
        let all = Corpus::new(&options).unwrap().visit(&mut |document| {
            if seen.is_empty() {
                change(place.0.path());
            }
            seen.push(document.passage().plain_text()[..1].to_owned());
            Ok(())
        });
        all.map(|_| seen).map_err(|e| e.to_string())
    }

    #[test]
    fn files_that_grow_shrink_or_vanish_are_noticed() {
        assert_eq!(changed(|_| {}).unwrap(), ["a", "b", "c", "d"]);
        let grown = changed(|at| {
            let file = fs::OpenOptions::new().append(true).open(at.join("1.txt"));
            file.unwrap().write_all(b"more").unwrap();
        });
        assert!(grown.unwrap_err().contains("1.txt: the file changed"));
        let cut = changed(|at| {
            let file = fs::OpenOptions::new().write(true).open(at.join("1.txt"));
            file.unwrap().set_len(1_500_000).unwrap();
        });
        assert!(cut.unwrap_err().contains("1.txt: the file changed"));
        let gone = changed(|at| fs::remove_file(at.join("2.txt")).unwrap());
        assert!(gone.unwrap_err().contains("2.txt: cannot read"));
        // An open file that loses its name is still read to its end.
        #[cfg(unix)]
        assert!(changed(|at| fs::remove_file(at.join("1.txt")).unwrap()).is_ok());
    }
}
