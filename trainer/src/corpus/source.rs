//! The files that `--data` names, and what they hold.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::corpus::MAX_DOCUMENT_BYTES;
use crate::corpus::json_lines::value_of;
use crate::corpus::reader::Reader;
use crate::error::{Error, Result};

/// Where some of the documents come from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) kind: SourceKind,
    /// What had to be read to know the kind of a stream.
    pub(super) read_ahead: Vec<u8>,
    /// True if the user named this very file, rather than a pattern it matches.
    pub(super) named: bool,
}

/// How documents are written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceKind {
    Text,
    JsonLines,
    Conversations,
}

impl Source {
    /// Decides by the first line of JSON Lines whether they are conversations.
    pub(super) fn look_for_messages(&mut self, fields: &[String]) -> Result<()> {
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
pub(super) fn expand(input: &Path, stdin_is_json: bool) -> Result<Vec<Source>> {
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

pub(super) fn is_stdin(path: &Path) -> bool {
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
pub(super) fn refuse_repeats(sources: &[Source]) -> Result<()> {
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
