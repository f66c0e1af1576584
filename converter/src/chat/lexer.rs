//! A template cut into text and tags, and tags into words.

use super::ChatTemplateError;

/// Text, or what stands between braces.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    /// `{{ ... }}`
    Output(Vec<Token>, usize),
    /// `{% ... %}`
    Block(Vec<Token>, usize),
}

/// A word of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Text(String),
    Number(i64),
    /// An operator or bracket.
    Mark(&'static str),
}

/// Longer marks first.
const MARKS: [&str; 22] = [
    "==", "!=", "<=", ">=", "//", "**", "<", ">", "+", "-", "~", "%", "*", "(", ")", "[", "]", ".",
    ",", "|", ":", "=",
];

/// Cuts a template as the `transformers` library does: the newline after a block tag goes, and so
/// does the indentation before one.
pub(super) fn parts(template: &str) -> Result<Vec<Part>, ChatTemplateError> {
    // A single newline at the end of a template is not part of it.
    let template = template.strip_suffix('\n').unwrap_or(template);
    let mut parts = Vec::new();
    let mut rest = template;
    // What the tag before the text takes off its beginning.
    let (mut strip_all, mut strip_newline) = (false, false);
    loop {
        let open = next_tag(rest);
        let (text, tag) = rest.split_at(open.unwrap_or(rest.len()));
        let line_starts = text_starts_line(template, rest, strip_newline);
        let text = match (strip_all, strip_newline) {
            (true, _) => text.trim_start(),
            (false, true) => text
                .strip_prefix('\n')
                .or_else(|| text.strip_prefix("\r\n"))
                .unwrap_or(text),
            (false, false) => text,
        };
        if tag.is_empty() {
            push_text(&mut parts, text);
            return Ok(parts);
        }
        let line = 1 + template[..template.len() - tag.len()].matches('\n').count();
        push_text(&mut parts, before_tag(text, tag, line_starts));
        let (part, tail, minus) = read_tag(tag, line)?;
        strip_all = minus;
        strip_newline = !matches!(part, Some(Part::Output(..)));
        parts.extend(part);
        rest = tail;
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

fn next_tag(text: &str) -> Option<usize> {
    ["{{", "{%", "{#"]
        .iter()
        .filter_map(|tag| text.find(tag))
        .min()
}

/// True where the text begins a line of the template, or a tag's newline before it was removed.
fn text_starts_line(template: &str, rest: &str, after_block: bool) -> bool {
    let before = &template[..template.len() - rest.len()];
    before.is_empty() || before.ends_with('\n') || after_block && rest.starts_with('\n')
}

/// The text before a tag, without what the tag takes off its end.
fn before_tag<'t>(text: &'t str, tag: &str, starts_line: bool) -> &'t str {
    match tag.as_bytes().get(2) {
        Some(b'-') => return text.trim_end(),
        Some(b'+') => return text,
        _ if tag.starts_with("{{") => return text,
        _ => (),
    }
    let indent = text.trim_end_matches([' ', '\t']);
    if indent.ends_with('\n') || indent.is_empty() && starts_line {
        indent
    } else {
        text
    }
}

/// Reads the tag in front: what it is (nothing for a comment), what follows, and whether it ends
/// with a minus.
fn read_tag(tag: &str, line: usize) -> Result<(Option<Part>, &str, bool), ChatTemplateError> {
    let unclosed = || ChatTemplateError::Syntax {
        line,
        reason: "a tag is not closed".into(),
    };
    let (kind, body) = tag.split_at(2);
    let body = body.strip_prefix(['-', '+']).unwrap_or(body);
    if kind == "{#" {
        let end = body.find("#}").ok_or_else(unclosed)?;
        return Ok((None, &body[end + 2..], body[..end].ends_with('-')));
    }
    let close = if kind == "{{" { "}}" } else { "%}" };
    let mut tokens = Vec::new();
    let mut rest = body;
    loop {
        rest = rest.trim_start();
        if let Some(tail) = rest.strip_prefix(close) {
            return Ok((Some(part(kind, tokens, line)), tail, false));
        }
        if let Some(tail) = rest
            .strip_prefix('-')
            .and_then(|tail| tail.strip_prefix(close))
        {
            return Ok((Some(part(kind, tokens, line)), tail, true));
        }
        if rest.is_empty() {
            return Err(unclosed());
        }
        let (token, tail) = read_token(rest, line)?;
        tokens.push(token);
        rest = tail;
    }
}

fn part(kind: &str, tokens: Vec<Token>, line: usize) -> Part {
    match kind {
        "{{" => Part::Output(tokens, line),
        _ => Part::Block(tokens, line),
    }
}

fn read_token(text: &str, line: usize) -> Result<(Token, &str), ChatTemplateError> {
    let syntax = |reason: String| ChatTemplateError::Syntax { line, reason };
    let first = text.chars().next().unwrap_or(' ');
    if first == '\'' || first == '"' {
        return read_text(&text[1..], first).ok_or_else(|| syntax("a text is not closed".into()));
    }
    let name_end = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let (word, tail) = text.split_at(text.find(name_end).unwrap_or(text.len()));
    if first.is_ascii_digit() {
        let number = word
            .parse()
            .map_err(|_| syntax(format!("{word} is no whole number")))?;
        return Ok((Token::Number(number), tail));
    }
    if !word.is_empty() {
        return Ok((Token::Name(word.to_owned()), tail));
    }
    let mark = MARKS.iter().find(|mark| text.starts_with(**mark));
    match mark {
        Some(mark) => Ok((Token::Mark(mark), &text[mark.len()..])),
        None => Err(syntax(format!("{first:?} is not expected here"))),
    }
}

/// A text up to its closing quote.
fn read_text(text: &str, quote: char) -> Option<(Token, &str)> {
    let mut read = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((Token::Text(read), &text[at + 1..])),
            '\\' => read.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                c @ ('\\' | '\'' | '"') => c,
                _ => return None,
            }),
            c => read.push(c),
        }
    }
    None
}
