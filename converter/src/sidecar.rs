//! The files beside the weights: configuration, tokenizer, chat template, stop ids, licence.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bitnet_formats::Output;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::chat::ChatSource;
use crate::checkpoint::Checkpoint;
use crate::config_json::{CheckpointConfig, token_ids};
use crate::error::{ConfigJsonError, ConvertError};
use crate::family::TensorNames;

/// Largest JSON file other than a tokenizer that is read, in bytes.
pub const MAX_JSON_BYTES: u64 = 16 << 20;
/// Largest tokenizer.json that is read, in bytes.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Largest text that is read: a chat template or a licence.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// What stands beside the weights.
#[derive(Clone, Debug)]
pub struct Sidecars {
    /// `config.json`.
    pub config: CheckpointConfig,
    /// `tokenizer.json`, byte for byte.
    pub tokenizer: Option<String>,
    /// Chat template: a file of its own, or the key of `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// Names a chat template may ask for, such as `bos_token`, and their texts.
    pub template_names: Vec<(&'static str, String)>,
    /// Texts that end an answer, from `generation_config.json`.
    pub stop_strings: Vec<String>,
    /// Ids that end a text, sorted: those of `generation_config.json` and of `config.json`.
    pub stop_ids: Vec<u32>,
    /// Text of a licence file.
    pub licence: Option<String>,
}

impl Sidecars {
    /// What they say about conversations, where there is a template.
    #[must_use]
    pub fn chat(&self) -> Option<ChatSource<'_>> {
        let names = self.template_names.iter();
        Some(ChatSource {
            template: self.chat_template.as_deref()?,
            names: names.map(|(name, text)| (*name, &text[..])).collect(),
            stop_strings: &self.stop_strings,
        })
    }

    /// Reads the files beside a checkpoint. All but `config.json` may be absent.
    ///
    /// # Errors
    ///
    /// A file that is there cannot be read or understood.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, ConvertError> {
        let dir = checkpoint.dir();
        let config = read_config(checkpoint)?;
        Ok(Self {
            tokenizer: tokenizer(&dir.join("tokenizer.json"))?,
            chat_template: chat_template(dir)?,
            template_names: template_names(dir)?,
            stop_strings: stop_strings(dir)?,
            stop_ids: stop_ids(dir, &config)?,
            licence: licence(dir)?,
            config,
        })
    }
}

fn read_config(checkpoint: &Checkpoint) -> Result<CheckpointConfig, ConvertError> {
    let path = checkpoint.dir().join("config.json");
    let json = parse(&path, &read_capped(&path, MAX_JSON_BYTES)?)?;
    let any = |suffix: &str| checkpoint.names().any(|name| name.ends_with(suffix));
    CheckpointConfig::from_json(&json, TensorNames::new(&any)).map_err(in_config(&path))
}

fn stop_ids(dir: &Path, config: &CheckpointConfig) -> Result<Vec<u32>, ConvertError> {
    let path = dir.join("generation_config.json");
    let mut ids = config.eos_token_ids.clone();
    if config.model.output == Output::Embedding {
        // The id that ends a text to be embedded, not those that end a chat.
        return Ok(ids);
    }
    if let Some(json) = json(&path)? {
        ids.extend(token_ids(&json, "eos_token_id").map_err(in_config(&path))?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn in_config(path: &Path) -> impl FnOnce(ConfigJsonError) -> ConvertError {
    move |source| ConvertError::Config {
        path: path.to_owned(),
        source,
    }
}

/// The tokenizer's text. It goes into the file as it is, but text that is no JSON stops here.
fn tokenizer(path: &Path) -> Result<Option<String>, ConvertError> {
    let text = text(path, MAX_TOKENIZER_BYTES)?;
    if let Some(text) = &text {
        serde_json::from_str::<IgnoredAny>(text).map_err(in_json(path))?;
    }
    Ok(text)
}

/// The chat template in a folder: a file of its own, or the key of `tokenizer_config.json`.
///
/// # Errors
///
/// A file that is there cannot be read or understood.
pub fn chat_template(dir: &Path) -> Result<Option<String>, ConvertError> {
    if let Some(template) = text(&dir.join("chat_template.jinja"), MAX_TEXT_BYTES)? {
        return Ok(Some(template));
    }
    let path = dir.join("tokenizer_config.json");
    let Some(json) = json(&path)? else {
        return Ok(None);
    };
    default_template(&json).map_err(|reason| ConvertError::Sidecar { path, reason })
}

/// The template of a tokenizer_config.json: a string, or a list from which "default" is taken.
fn default_template(json: &Value) -> Result<Option<String>, &'static str> {
    match json.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(|template| Some(template.to_owned()))
            .ok_or("chat_template lists no template named default"),
        Some(_) => Err("chat_template is neither a string nor a list"),
    }
}

/// Special tokens that `tokenizer_config.json` names: texts, or entries with a content.
///
/// # Errors
///
/// The file is there and cannot be read or understood.
pub fn template_names(dir: &Path) -> Result<Vec<(&'static str, String)>, ConvertError> {
    let Some(json) = json(&dir.join("tokenizer_config.json"))? else {
        return Ok(Vec::new());
    };
    let name = |key: &'static str| {
        let entry = &json[key];
        let text = entry.as_str().or_else(|| entry["content"].as_str())?;
        Some((key, text.to_owned()))
    };
    let keys = ["bos_token", "eos_token", "pad_token", "unk_token"];
    Ok(keys.into_iter().filter_map(name).collect())
}

/// A text, or a list of them.
fn stop_strings(dir: &Path) -> Result<Vec<String>, ConvertError> {
    let path = dir.join("generation_config.json");
    let Some(json) = json(&path)? else {
        return Ok(Vec::new());
    };
    let strings = match &json["stop_strings"] {
        Value::Null => Some(Vec::new()),
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(list) => list.iter().map(|s| s.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let strings = strings.filter(|strings| strings.iter().all(|s| !s.is_empty()));
    let reason = "stop_strings is neither a text nor a list of texts";
    strings.ok_or(ConvertError::Sidecar { path, reason })
}

fn licence(dir: &Path) -> Result<Option<String>, ConvertError> {
    for name in ["LICENSE", "LICENSE.txt", "LICENSE.md"] {
        if let Some(text) = text(&dir.join(name), MAX_TEXT_BYTES)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

fn json(path: &Path) -> Result<Option<Value>, ConvertError> {
    match if_present(read_capped(path, MAX_JSON_BYTES))? {
        Some(bytes) => Ok(Some(parse(path, &bytes)?)),
        None => Ok(None),
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value, ConvertError> {
    serde_json::from_slice(bytes).map_err(in_json(path))
}

fn in_json(path: &Path) -> impl FnOnce(serde_json::Error) -> ConvertError {
    move |source| ConvertError::Json {
        path: path.to_owned(),
        source,
    }
}

fn text(path: &Path, max: u64) -> Result<Option<String>, ConvertError> {
    let Some(bytes) = if_present(read_capped(path, max))? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|_| ConvertError::Sidecar {
        path: path.to_owned(),
        reason: "not UTF-8 text",
    })?;
    Ok(Some(text))
}

/// Turns "there is no such file" into `None`.
fn if_present<T>(result: Result<T, ConvertError>) -> Result<Option<T>, ConvertError> {
    match result {
        Err(ConvertError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Reads a whole file of at most `max` bytes.
pub(crate) fn read_capped(path: &Path, max: u64) -> Result<Vec<u8>, ConvertError> {
    let file = File::open(path).map_err(ConvertError::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(ConvertError::io("read", path))?;
    if bytes.len() as u64 > max {
        return Err(ConvertError::TooLarge {
            path: path.to_owned(),
            max,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn templates_have_three_homes() {
        let dir = tempfile::tempdir().unwrap();
        let read = || chat_template(dir.path()).map_err(|e| e.to_string());
        assert_eq!(read(), Ok(None));
        let config = dir.path().join("tokenizer_config.json");
        let put = |value: Value| fs::write(&config, json!({"chat_template": value}).to_string());
        put(json!("one")).unwrap();
        assert_eq!(read(), Ok(Some("one".to_owned())));
        put(json!([{"name": "tool", "template": "x"}, {"name": "default", "template": "two"}]))
            .unwrap();
        assert_eq!(read(), Ok(Some("two".to_owned())));
        put(json!([{"name": "tool", "template": "x"}])).unwrap();
        assert!(
            read()
                .unwrap_err()
                .ends_with("chat_template lists no template named default")
        );
        put(json!(3)).unwrap();
        assert!(
            read()
                .unwrap_err()
                .ends_with("chat_template is neither a string nor a list")
        );
        fs::write(dir.path().join("chat_template.jinja"), "three").unwrap();
        assert_eq!(read(), Ok(Some("three".to_owned())));
    }

    #[test]
    fn files_beyond_the_cap_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LICENSE");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_capped(&path, 5).unwrap(), b"12345");
        let message = read_capped(&path, 4).unwrap_err().to_string();
        assert_eq!(
            message,
            format!(
                "{} has more than 4 bytes, the most that are read",
                path.display()
            )
        );
    }

    #[test]
    fn text_must_be_utf8() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LICENSE");
        fs::write(&path, [0xff]).unwrap();
        let message = licence(dir.path()).unwrap_err().to_string();
        assert_eq!(message, format!("{}: not UTF-8 text", path.display()));
    }
}
