//! Documents of a corpus: text files, globs, JSON Lines and standard input, one document at a time.
//!
//! A text file is one document, unless a separator divides it. A line of a JSON Lines file is one.
//! What is no text is refused by file, line and byte, and so is a file that changes while it is
//! read: what was learned must be what the files hold.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::error::{Error, Result};

/// Longest document, and longest line of JSON, in bytes. A document is in memory as a whole.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 30;
/// Field that JSON Lines files are asked for unless another is named.
pub const DEFAULT_FIELD: &str = "text";
/// From so many text files on, whole files are held out, not the end of each.
const MANY_FILES: usize = 20;
const READ_BYTES: usize = 1 << 20;

/// What `--data` and its companions say.
#[derive(Clone, Debug, Default)]
pub struct DataOptions {
    /// Files, patterns, `-` for standard input, or one folder that `prepare` wrote.
    pub inputs: Vec<PathBuf>,
    /// Field of JSON Lines that holds the text; if given, standard input is JSON Lines.
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
    field: String,
    separator: Option<String>,
}

#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    kind: SourceKind,
    /// True if the user named this very file, rather than a pattern it matches.
    named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceKind {
    Text,
    JsonLines,
}

/// How many documents were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Documents with text.
    pub documents: u64,
    /// Documents without any, which are left out.
    pub empty: u64,
}

/// Hears of one document after the other.
type Visit<'v> = dyn FnMut(&str) -> Result<()> + 'v;

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
        if options.separator.as_ref().is_some_and(String::is_empty) {
            return Err(Error::Usage("--separator is empty".into()));
        }
        Ok(Self {
            sources,
            field: options
                .field
                .clone()
                .unwrap_or_else(|| DEFAULT_FIELD.into()),
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
        let json = |source: &Source| source.kind == SourceKind::JsonLines;
        self.separator.is_some() || self.sources.iter().any(json)
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
            self.visit_source(source, &mut |text| {
                if text.is_empty() {
                    tally.empty += 1;
                    return Ok(());
                }
                tally.documents += 1;
                see(text)
            })?;
            if source.named && tally.documents == before {
                return Err(problem(&source.path, "the file is empty"));
            }
        }
        match tally.documents {
            0 => Err(Error::Data("--data: every file is empty".into())),
            _ => Ok(tally),
        }
    }

    fn visit_source(&self, source: &Source, see: &mut Visit<'_>) -> Result<()> {
        let mut reader = Reader::open(&source.path)?;
        match source.kind {
            SourceKind::Text => visit_text(&mut reader, self.separator.as_deref(), see)?,
            SourceKind::JsonLines => visit_json_lines(&mut reader, &self.field, see)?,
        }
        reader.finish()
    }
}

/// The files an argument stands for.
fn expand(input: &Path, stdin_is_json: bool) -> Result<Vec<Source>> {
    let source = |path: PathBuf, named| Source {
        kind: kind(&path, stdin_is_json),
        path,
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
    fn open(path: &Path) -> Result<Self> {
        if is_stdin(path) {
            return Ok(Self::new(path, Box::new(io::stdin().lock()), None));
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
    see(&pending.text)
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
            see(&self.text[start..end])?;
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
fn visit_json_lines(reader: &mut Reader, field: &str, see: &mut Visit<'_>) -> Result<()> {
    for number in 1u64.. {
        let line = reader.read_line(MAX_DOCUMENT_BYTES)?;
        if line.is_empty() {
            break;
        }
        let wrong = |what: &str| problem(&reader.path, &format!("line {number}: {what}"));
        if line.len() == MAX_DOCUMENT_BYTES {
            return Err(wrong(&format!("longer than {MAX_DOCUMENT_BYTES} bytes")));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let text = field_of(&line, field).map_err(|what| wrong(&what))?;
        see(&text)?;
    }
    Ok(())
}

fn field_of(line: &[u8], field: &str) -> std::result::Result<String, String> {
    let json: Value = serde_json::from_slice(line).map_err(|e| format!("no JSON: {e}"))?;
    let Value::Object(mut object) = json else {
        return Err("no JSON object".into());
    };
    match object.remove(field) {
        Some(Value::String(text)) if text.contains('\0') => {
            Err(format!("field {field:?} holds a zero byte: no text"))
        }
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("field {field:?} is no string")),
        None => {
            let names: Vec<_> = object.keys().map(String::as_str).collect();
            let names = names.join(", ");
            Err(format!("no field {field:?}; --field names one of: {names}"))
        }
    }
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
        let tally = Corpus::new(options)?.visit(&mut |text| {
            all.push(text.to_owned());
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
        let all = Corpus::new(&options).unwrap().visit(&mut |text| {
            if seen.is_empty() {
                change(place.0.path());
            }
            seen.push(text[..1].to_owned());
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
