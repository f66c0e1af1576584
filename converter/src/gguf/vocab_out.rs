//! A tokenizer.json as the vocabulary of a GGUF file: the inverse of [`super::vocab`].

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::gguf::vocab::{NAMED_RULES, REGEX_GPT2};
use crate::gguf::write::Header;

/// What a file is to say about text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VocabOut {
    /// The vocabulary, where there is one that can be said.
    pub tokens: Option<Tokens>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end one.
    pub stop_ids: Vec<u32>,
    /// Chat template, in Jinja.
    pub chat_template: Option<String>,
}

/// The lists of a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    model: &'static str,
    pre: &'static str,
    texts: Vec<String>,
    types: Vec<i32>,
    /// Byte-level BPE: two tokens with a space between.
    merges: Vec<String>,
    /// SentencePiece BPE: the earlier a merge, the higher.
    scores: Vec<f32>,
    unknown: Option<u32>,
    add_bos: bool,
    add_space_prefix: bool,
}

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

impl Tokens {
    /// The vocabulary of a tokenizer.json for a model with `vocab_size` tokens.
    ///
    /// # Errors
    ///
    /// What keeps it from being said in a GGUF file.
    pub fn of_json(json: &str, vocab_size: usize) -> Result<Self, &'static str> {
        let json: Json = serde_json::from_str(json).map_err(|_| "it does not parse")?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err("only BPE vocabularies have a form there");
        }
        let (texts, types) = texts_and_types(&json, vocab_size)?;
        let merges = merges(model)?;
        let unknown = model["unk_token"].as_str();
        let unknown = unknown.and_then(|text| texts.iter().position(|t| t == text));
        let mut tokens = match model["byte_fallback"] == true {
            true => Self::sentence_piece(&json, texts, types, &merges),
            false => Self::byte_level(&json, texts, types, &merges)?,
        };
        if let Some(id) = unknown {
            tokens.types[id] = UNKNOWN;
            tokens.unknown = Some(id as u32);
        }
        Ok(tokens)
    }

    fn byte_level(
        json: &Json,
        texts: Vec<String>,
        types: Vec<i32>,
        merges: &[(&str, &str)],
    ) -> Result<Self, &'static str> {
        Ok(Self {
            model: "gpt2",
            pre: split_name(json)?,
            merges: merges.iter().map(|(a, b)| format!("{a} {b}")).collect(),
            scores: Vec::new(),
            texts,
            types,
            unknown: None,
            add_bos: adds_bos(json),
            add_space_prefix: false,
        })
    }

    fn sentence_piece(
        json: &Json,
        texts: Vec<String>,
        mut types: Vec<i32>,
        merges: &[(&str, &str)],
    ) -> Self {
        for (kind, _) in types.iter_mut().zip(&texts).filter(|(_, t)| is_byte(t)) {
            *kind = BYTE;
        }
        Self {
            model: "llama",
            pre: "default",
            merges: Vec::new(),
            scores: scores(&texts, merges),
            texts,
            types,
            unknown: None,
            add_bos: adds_bos(json),
            add_space_prefix: json["normalizer"].to_string().contains("Prepend"),
        }
    }
}

fn adds_bos(json: &Json) -> bool {
    json["post_processor"]["type"] == "TemplateProcessing"
}

impl VocabOut {
    pub(crate) fn write(&self, header: &mut Header) {
        match &self.tokens {
            Some(tokens) => tokens.write(header),
            None => header.text("tokenizer.ggml.model", "no_vocab"),
        }
        if let Some(bos) = self.bos {
            header.u32("tokenizer.ggml.bos_token_id", bos);
        }
        let names = ["eos_token_id", "eot_token_id", "eom_token_id"];
        for (name, id) in names.iter().zip(&self.stop_ids) {
            header.u32(&format!("tokenizer.ggml.{name}"), *id);
        }
        if let Some(template) = &self.chat_template {
            header.text("tokenizer.chat_template", template);
        }
    }
}

impl Tokens {
    fn write(&self, header: &mut Header) {
        header.text("tokenizer.ggml.model", self.model);
        header.text("tokenizer.ggml.pre", self.pre);
        let texts = self.texts.iter().map(String::as_str);
        header.texts("tokenizer.ggml.tokens", texts);
        header.i32s("tokenizer.ggml.token_type", &self.types);
        if self.scores.is_empty() {
            let merges = self.merges.iter().map(String::as_str);
            header.texts("tokenizer.ggml.merges", merges);
        } else {
            header.f32s("tokenizer.ggml.scores", &self.scores);
            header.bool("tokenizer.ggml.add_space_prefix", self.add_space_prefix);
        }
        header.bool("tokenizer.ggml.add_bos_token", self.add_bos);
        if let Some(id) = self.unknown {
            header.u32("tokenizer.ggml.unknown_token_id", id);
        }
    }
}

fn texts_and_types(
    json: &Json,
    vocab_size: usize,
) -> Result<(Vec<String>, Vec<i32>), &'static str> {
    const BEYOND: &str = "it has ids beyond the embedding";
    let mut texts: Vec<String> = (0..vocab_size).map(|id| format!("[UNUSED{id}]")).collect();
    let mut types = vec![UNUSED; vocab_size];
    let id = |value: &Json| value.as_u64().and_then(|id| usize::try_from(id).ok());
    let mut put = |at: Option<usize>, text: &str, kind| -> Result<(), &'static str> {
        let at = at.filter(|at| *at < vocab_size).ok_or(BEYOND)?;
        text.clone_into(&mut texts[at]);
        types[at] = kind;
        Ok(())
    };
    let vocab = json["model"]["vocab"].as_object();
    for (text, value) in vocab.ok_or("it has no vocabulary")? {
        put(id(value), text, NORMAL)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true {
            CONTROL
        } else {
            USER_DEFINED
        };
        put(
            id(&added["id"]),
            added["content"].as_str().unwrap_or_default(),
            kind,
        )?;
    }
    Ok((texts, types))
}

/// Merges as pairs; the file may hold them as strings with a space between.
fn merges(model: &Json) -> Result<Vec<(&str, &str)>, &'static str> {
    let list = model["merges"].as_array().ok_or("it has no merges")?;
    let pairs: Option<Vec<_>> = list.iter().map(pair).collect();
    pairs.ok_or("a merge is no pair")
}

fn pair(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(text) => text.split_once(' '),
        Json::Array(parts) => match parts.as_slice() {
            [a, b] => Some((a.as_str()?, b.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}

/// A score for each token, so that the best pair is the one that is merged first.
fn scores(texts: &[String], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut first = HashMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        first.entry(format!("{a}{b}")).or_insert(rank);
    }
    let last = merges.len();
    let score = |text: &String| -(*first.get(text).unwrap_or(&last) as f32);
    texts.iter().map(score).collect()
}

fn is_byte(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// The name of the rule that splits text.
fn split_name(json: &Json) -> Result<&'static str, &'static str> {
    const NO_NAME: &str = "its rule to split text has no name there";
    let pre = &json["pre_tokenizer"];
    let parts = match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"]
            .as_array()
            .map_or(&[][..], Vec::as_slice),
        _ => std::slice::from_ref(pre),
    };
    let byte_level = |part: &Json| part["type"] == "ByteLevel";
    let own_regex = |part: &Json| byte_level(part) && part["use_regex"] != false;
    let split = parts
        .iter()
        .find_map(|part| part["pattern"]["Regex"].as_str());
    let regex = match split {
        Some(regex) => regex,
        None if parts.iter().any(own_regex) => REGEX_GPT2,
        None => return Err(NO_NAME),
    };
    let named = NAMED_RULES.iter().find(|(_, known)| *known == regex);
    named.map(|(name, _)| *name).ok_or(NO_NAME)
}
