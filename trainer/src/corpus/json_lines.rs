//! Documents of a JSON Lines file.

use serde_json::Value;

use crate::chat::Conversation;
use crate::corpus::reader::Reader;
use crate::corpus::source::SourceKind;
use crate::corpus::{Document, MAX_DOCUMENT_BYTES, Visit};
use crate::error::{Error, Result};

/// One document per line; lines of white space alone are skipped.
pub(super) fn visit(
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
pub(super) fn value_of(
    json: Value,
    fields: &[String],
) -> std::result::Result<(&str, Value), String> {
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
