//! Documents of a corpus: text files, globs, JSON Lines and standard input, one document at a time.
//!
//! A text file is one document, unless a separator divides it. A line of a JSON Lines file is one; its
//! first line says whether the file holds texts or conversations.
//! What is no text is refused by file, line and byte, and so is a file that changes while it is
//! read: what was learned must be what the files hold.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::chat::Conversation;
use crate::error::{Error, Result};
use crate::tokenizer::Needs;

/// Longest document, and longest line of JSON, in bytes. A document is in memory as a whole.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 30;
/// Fields that JSON Lines files are asked for unless another is named: a text, or else messages.
pub const DEFAULT_FIELDS: [&str; 2] = ["text", "messages"];
/// From so many text files on, whole files are held out, not the end of each.
const MANY_FILES: usize = 20;
const READ_BYTES: usize = 1 << 20;

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

#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    kind: SourceKind,
    /// What had to be read to know the kind of a stream.
    read_ahead: Vec<u8>,
    /// True if the user named this very file, rather than a pattern it matches.
    named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceKind {
    Text,
    JsonLines,
    Conversations,
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
            SourceKind::Text => visit_text(&mut reader, self.separator.as_deref(), see)?,
            kind => visit_json_lines(&mut reader, &self.fields, kind, see)?,
        }
        reader.finish()
    }
}

impl Source {
    /// Decides by the first line of JSON Lines whether they are conversations.
    fn look_for_messages(&mut self, fields: &[String]) -> Result<()> {
        if self.kind == SourceKind::Text {
            return Ok(());
        }
        let mut reader = Reader::open(self)?;
        let mut read = Vec::new();
        let first = loop {
            let line = reader.read_line(MAX_DOCUMENT_BYTES)?;
            read.extend_from_slice(&line);
            if line.is_empty() || !line.iter().all(u8::is_ascii_whitespace) {
                break line;
            }
        };
        if is_stdin(&self.path) {
            self.read_ahead = read;
        }
        // What is wrong with a line is said when it is read.
        let found = serde_json::from_slice(&first).map(|json| value_of(json, fields));
        if let Ok(Ok((_, Value::Array(_)))) = found {
            self.kind = SourceKind::Conversations;
        }
        Ok(())
    }
}

/// The files an argument stands for.
fn expand(input: &Path, stdin_is_json: bool) -> Result<Vec<Source>> {
    let source = |path: PathBuf, named| Source {
        kind: kind(&path, stdin_is_json),
        path,
        read_ahead: Vec::new(),
        named,
    };
    let pattern = input.to_str().filter(|text| text.contains(['*', '?', '[']));
    match pattern {
        Some(pattern) if !input.exists() => {
            let files = matches(pattern)?;
            Ok(files.into_iter().map(|path| source(path, false)).collect())
        }
        _ if input.is_dir() => Err(Error::Usage(format!(
            "--data {0}: this is a folder; name its files, as '{0}/*.txt', or a folder that \
             bitnet-trainer prepare wrote, alone",
            input.display()
        ))),
        _ => Ok(vec![source(input.into(), true)]),
    }
}

fn kind(path: &Path, stdin_is_json: bool) -> SourceKind {
    let extension = path.extension().and_then(|e| e.to_str());
    match extension {
        Some("jsonl" | "ndjson") => SourceKind::JsonLines,
        _ if is_stdin(path) && stdin_is_json => SourceKind::JsonLines,
        _ => SourceKind::Text,
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Files that match, in alphabetical order.
fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let usage = |what: String| Error::Usage(format!("--data {pattern}: {what}"));
    let found = glob::glob(pattern).map_err(|e| usage(format!("no pattern: {e}")))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|e| {
            let at = e.path().to_path_buf();
            Error::io(&at, "read")(e.into())
        })?;
        if !path.is_dir() {
            files.push(path);
        }
    }
    match files.is_empty() {
        true => Err(usage("no file matches".into())),
        false => Ok(files),
    }
}

/// A text that is there twice would be learned and held out at once.
fn refuse_repeats(sources: &[Source]) -> Result<()> {
    let mut seen = HashSet::new();
    for Source { path, .. } in sources {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !seen.insert(real) {
            let file = path.display();
            return Err(Error::Usage(format!("--data: {file} is given twice")));
        }
    }
    Ok(())
}

/// An input that is being read, and what it was when it was opened.
struct Reader {
    path: PathBuf,
    input: Box<dyn BufRead>,
    /// A second handle of a regular file, and what the system said of it.
    watched: Option<(File, u64, Option<SystemTime>)>,
    read_bytes: u64,
}

impl Reader {
    fn open(source: &Source) -> Result<Self> {
        let path = &source.path;
        if is_stdin(path) {
            let ahead = io::Cursor::new(source.read_ahead.clone());
            let input = Box::new(ahead.chain(io::stdin().lock()));
            return Ok(Self::new(path, input, None));
        }
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let metadata = file.metadata().map_err(Error::io(path, "read"))?;
        let watched = match metadata.is_file() {
            true => Some((
                file.try_clone().map_err(Error::io(path, "read"))?,
                metadata.len(),
                modified(&metadata),
            )),
            false => None,
        };
        let input = Box::new(BufReader::with_capacity(READ_BYTES, file));
        Ok(Self::new(path, input, watched))
    }

    fn new(
        path: &Path,
        input: Box<dyn BufRead>,
        watched: Option<(File, u64, Option<SystemTime>)>,
    ) -> Self {
        Self {
            path: path.into(),
            input,
            watched,
            read_bytes: 0,
        }
    }

    /// Appends the next bytes; 0 at the end.
    fn read_some(&mut self, into: &mut Vec<u8>) -> Result<usize> {
        let bytes = self.input.fill_buf();
        let bytes = bytes.map_err(Error::io(&self.path, "read"))?;
        into.extend_from_slice(bytes);
        let count = bytes.len();
        self.input.consume(count);
        self.read_bytes += count as u64;
        Ok(count)
    }

    /// The next line with its end, at most `most` bytes of it.
    fn read_line(&mut self, most: usize) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut limited = self.input.by_ref().take(most as u64);
        let read = limited.read_until(b'\n', &mut line);
        self.read_bytes += read.map_err(Error::io(&self.path, "read"))? as u64;
        Ok(line)
    }

    /// Checks that the file is what it was when it was opened.
    fn finish(self) -> Result<()> {
        let Some((file, bytes, time)) = self.watched else {
            return Ok(());
        };
        let now = file.metadata().map_err(Error::io(&self.path, "read"))?;
        if now.len() == bytes && self.read_bytes == bytes && modified(&now) == time {
            return Ok(());
        }
        let message = format!(
            "the file changed while it was read ({bytes} bytes at first, {} read, {} now); wait \
             until it is complete, or copy it",
            self.read_bytes,
            now.len()
        );
        Err(problem(&self.path, &message))
    }
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}

fn problem(path: &Path, what: &str) -> Error {
    Error::Data(format!("{}: {what}", path.display()))
}

/// Documents of a text: the whole of it, or what stands between separators.
fn visit_text(reader: &mut Reader, separator: Option<&str>, see: &mut Visit<'_>) -> Result<()> {
    let mut pending = Pending::default();
    while reader.read_some(&mut pending.raw)? > 0 {
        pending.decode(&reader.path, false)?;
        if let Some(separator) = separator {
            pending.take_divided(separator, see)?;
        }
        if pending.text.len() > MAX_DOCUMENT_BYTES {
            let message = format!(
                "a document is longer than {MAX_DOCUMENT_BYTES} bytes; --separator TEXT divides a \
                 file into documents"
            );
            return Err(problem(&reader.path, &message));
        }
    }
    pending.decode(&reader.path, true)?;
    see(Document::Text(pending.text))
}

/// Text that has been read and not yet been handed on.
#[derive(Default)]
struct Pending {
    text: String,
    /// Bytes that end in the middle of a character.
    raw: Vec<u8>,
    /// Bytes of the file before `raw`.
    decoded: usize,
    /// Bytes of `text` that hold no beginning of a separator.
    searched: usize,
}

impl Pending {
    /// Moves what is whole from `raw` to `text`.
    fn decode(&mut self, path: &Path, at_end: bool) -> Result<()> {
        let (valid, is_bad) = match std::str::from_utf8(&self.raw) {
            Ok(text) => (text.len(), false),
            Err(e) => (e.valid_up_to(), at_end || e.error_len().is_some()),
        };
        if is_bad {
            let offset = self.decoded + valid;
            let path = path.to_path_buf();
            return Err(Error::NotUtf8 { path, offset });
        }
        let mut new = std::str::from_utf8(&self.raw[..valid]).expect("it was just checked");
        refuse_zeros(path, new, self.decoded)?;
        if self.decoded == 0 {
            new = new.strip_prefix('\u{feff}').unwrap_or(new);
        }
        self.text.push_str(new);
        self.raw.drain(..valid);
        self.decoded += valid;
        Ok(())
    }

    /// Hands on what stands before each separator.
    fn take_divided(&mut self, separator: &str, see: &mut Visit<'_>) -> Result<()> {
        let mut start = 0;
        while let Some(at) = self.text[self.searched..].find(separator) {
            let end = self.searched + at;
            see(Document::Text(self.text[start..end].to_owned()))?;
            start = end + separator.len();
            self.searched = start;
        }
        self.text.drain(..start);
        let mut searched = (self.text.len() + 1).saturating_sub(separator.len());
        while !self.text.is_char_boundary(searched) {
            searched -= 1;
        }
        self.searched = searched;
        Ok(())
    }
}

/// No text has a zero byte; a program, a picture or UTF-16 has many.
fn refuse_zeros(path: &Path, text: &str, offset: usize) -> Result<()> {
    match text.find('\0') {
        Some(at) => {
            let message = format!("byte {} is zero: this is no text file", offset + at);
            Err(problem(path, &message))
        }
        None => Ok(()),
    }
}

/// One document per line; lines of white space alone are skipped.
fn visit_json_lines(
    reader: &mut Reader,
    fields: &[String],
    kind: SourceKind,
    see: &mut Visit<'_>,
) -> Result<()> {
    for number in 1u64.. {
        let line = reader.read_line(MAX_DOCUMENT_BYTES)?;
        if line.is_empty() {
            break;
        }
        let place = || format!("{}: line {number}", reader.path.display());
        let wrong = |what: &str| Error::Data(format!("{}: {what}", place()));
        if line.len() == MAX_DOCUMENT_BYTES {
            return Err(wrong(&format!("longer than {MAX_DOCUMENT_BYTES} bytes")));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let document = document_of(&line, fields, kind, &place).map_err(|what| wrong(&what))?;
        see(document)?;
    }
    Ok(())
}

fn document_of(
    line: &[u8],
    fields: &[String],
    kind: SourceKind,
    place: &dyn Fn() -> String,
) -> std::result::Result<Document, String> {
    let json = serde_json::from_slice(line).map_err(|e| format!("no JSON: {e}"))?;
    let (field, value) = value_of(json, fields)?;
    match (value, kind) {
        (Value::String(text), SourceKind::JsonLines) if text.contains('\0') => {
            Err(format!("field {field:?} holds a zero byte: no text"))
        }
        (Value::String(text), SourceKind::JsonLines) => Ok(Document::Text(text)),
        (list @ Value::Array(_), SourceKind::Conversations) => {
            let conversation = Conversation::from_json(&list, place());
            conversation.map(Document::Chat)
        }
        (Value::String(_), _) => Err(mixed(field, "a text", "messages")),
        (Value::Array(_), _) => Err(mixed(field, "a list", "a text")),
        _ => Err(format!("field {field:?} is no string")),
    }
}

fn mixed(field: &str, found: &str, first: &str) -> String {
    format!("field {field:?} is {found}, but the first line of the file has {first}")
}

/// The first of the fields that a line has.
fn value_of(json: Value, fields: &[String]) -> std::result::Result<(&str, Value), String> {
    let Value::Object(mut object) = json else {
        return Err("no JSON object".into());
    };
    let mut found = fields
        .iter()
        .filter_map(|field| Some((&field[..], object.remove(field)?)));
    if let Some(found) = found.next() {
        return Ok(found);
    }
    let wanted: Vec<_> = fields.iter().map(|field| format!("{field:?}")).collect();
    let wanted = wanted.join(" or ");
    let names: Vec<_> = object.keys().map(String::as_str).collect();
    let names = names.join(", ");
    Err(format!("no field {wanted}; --field names one of: {names}"))
}

#[cfg(test)]
mod tests {
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
