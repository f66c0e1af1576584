//! The vocabulary of a GGUF file, as a tokenizer.json.
//!
//! Two kinds are read. `gpt2` is byte-level BPE: tokens and merges as in a tokenizer.json, and a name for
//! the rule that splits text before it is merged. `llama` is SentencePiece BPE: pieces with scores, of
//! which the best pair is merged first; the merges of a tokenizer.json are every way to make a piece of
//! two others, by falling score, as the `transformers` library converts such models.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use crate::chat::ChatSource;
use crate::gguf::error::GgufError;
use crate::gguf::model::text;
use crate::gguf::reader::{Gguf, Strings, Value};

type Result<T> = std::result::Result<T, GgufError>;

/// What a file says about text.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocab {
    /// Names a chat template may ask for, such as `bos_token`, and their texts.
    pub template_names: Vec<(&'static str, String)>,
    /// A tokenizer.json; `None` where the file has no tokenizer, or one that is not read.
    pub tokenizer: Option<String>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end one, ascending.
    pub stop_ids: Vec<u32>,
    /// Chat template, in Jinja.
    pub chat_template: Option<String>,
    /// Licence, as the file names it.
    pub licence: Option<String>,
}

/// Kinds of tokens, as `tokenizer.ggml.token_type` counts them.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// Names of tokens that end a turn, whatever the file says of its end token.
const TURN_ENDS: [&[u8]; 3] = [b"<|eot_id|>", b"<|im_end|>", b"<|end_of_turn|>"];

impl Vocab {
    /// What it says about conversations, where there is a template.
    #[must_use]
    pub fn chat(&self) -> Option<ChatSource<'_>> {
        let names = self.template_names.iter();
        Some(ChatSource {
            template: self.chat_template.as_deref()?,
            names: names.map(|(name, text)| (*name, &text[..])).collect(),
            stop_strings: &[],
        })
    }

    /// Reads the tokenizer of a file whose model has `vocab_size` tokens.
    ///
    /// # Errors
    ///
    /// A key has the wrong type, or the lists do not fit each other.
    pub fn read(file: &Gguf, vocab_size: usize) -> Result<Self> {
        let raw = Raw::read(file, vocab_size)?;
        let tokenizer = match (&raw, text(file, "tokenizer.ggml.model")?) {
            (Some(raw), Some("gpt2")) => Some(raw.byte_level(file)?.to_string()),
            (Some(raw), Some("llama")) => Some(raw.sentence_piece().to_string()),
            _ => None,
        };
        Ok(Self {
            template_names: template_names(file, raw.as_ref(), vocab_size)?,
            tokenizer,
            bos: id(file, "bos_token_id", vocab_size)?,
            stop_ids: stop_ids(file, raw.as_ref(), vocab_size)?,
            chat_template: chat_template(file, vocab_size)?,
            licence: text(file, "general.license")?.map(str::to_owned),
        })
    }
}

/// Special tokens by the names that templates have for them.
fn template_names(
    file: &Gguf,
    raw: Option<&Raw<'_>>,
    vocab_size: usize,
) -> Result<Vec<(&'static str, String)>> {
    const NAMES: [(&str, &str); 4] = [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("pad_token", "padding_token_id"),
        ("unk_token", "unknown_token_id"),
    ];
    let mut names = Vec::new();
    for (name, key) in NAMES {
        if let (Some(id), Some(raw)) = (id(file, key, vocab_size)?, raw) {
            names.push((name, raw.text(id as usize)));
        }
    }
    Ok(names)
}

/// The template in the file; the public BitNet-b1.58-2B-4T file has a wrong one, which is replaced by
/// that of the model's own repository: roles with a capital, a colon, the text, the end of the turn.
fn chat_template(file: &Gguf, vocab_size: usize) -> Result<Option<String>> {
    const BITNET_2B: &str = "{% for message in messages %}{{ message['role'] | capitalize + ': ' + \
        message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}\
        {{ 'Assistant: ' }}{% endif %}";
    let template = text(file, "tokenizer.chat_template")?;
    let is_2b = matches!(
        text(file, "general.architecture")?,
        Some("bitnet-25" | "bitnet-b1.58")
    ) && vocab_size == 128_256;
    let wrong = |text: &str| text.contains("BITNETAssistant");
    match template {
        Some(template) if is_2b && wrong(template) => Ok(Some(BITNET_2B.to_owned())),
        template => Ok(template.map(str::to_owned)),
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn id(file: &Gguf, name: &str, vocab_size: usize) -> Result<Option<u32>> {
    match file.value(&key(name)) {
        None => Ok(None),
        Some(Value::Uint(id)) if *id < vocab_size as u64 => Ok(Some(*id as u32)),
        Some(_) => Err(GgufError::WrongType {
            key: key(name),
            expected: "an id of the vocabulary",
        }),
    }
}

fn flag(file: &Gguf, name: &str) -> Result<Option<bool>> {
    match file.value(&key(name)) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(GgufError::WrongType {
            key: key(name),
            expected: "a flag",
        }),
    }
}

fn stop_ids(file: &Gguf, raw: Option<&Raw<'_>>, vocab_size: usize) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ids.extend(id(file, name, vocab_size)?);
    }
    for (id, token) in raw.iter().flat_map(|raw| raw.tokens.iter()).enumerate() {
        let control = raw.is_some_and(|raw| raw.is_added(id));
        if control && TURN_ENDS.contains(&token) {
            ids.push(id as u32);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The lists of a tokenizer, of one length.
struct Raw<'f> {
    tokens: &'f Strings,
    types: &'f [f64],
    scores: &'f [f64],
    unknown: Option<u32>,
    bos: Option<u32>,
    add_bos: Option<bool>,
    add_space_prefix: bool,
}

impl<'f> Raw<'f> {
    fn read(file: &'f Gguf, vocab_size: usize) -> Result<Option<Self>> {
        let tokens = match file.value(&key("tokens")) {
            None => return Ok(None),
            Some(Value::Strings(tokens)) => tokens,
            Some(_) => return Err(wrong("tokens", "a list of strings")),
        };
        if tokens.len() != vocab_size {
            let n = tokens.len();
            return Err(vocab(format!(
                "{n} tokens for an embedding of {vocab_size} rows"
            )));
        }
        Ok(Some(Self {
            tokens,
            types: numbers(file, "token_type", vocab_size)?,
            scores: numbers(file, "scores", vocab_size)?,
            unknown: id(file, "unknown_token_id", vocab_size)?,
            bos: id(file, "bos_token_id", vocab_size)?,
            add_bos: flag(file, "add_bos_token")?,
            add_space_prefix: flag(file, "add_space_prefix")?.unwrap_or(true),
        }))
    }

    fn kind(&self, id: usize) -> f64 {
        self.types.get(id).copied().unwrap_or(1.0)
    }

    fn is_added(&self, id: usize) -> bool {
        [UNKNOWN, CONTROL, USER_DEFINED].contains(&self.kind(id))
    }

    fn text(&self, id: usize) -> String {
        String::from_utf8_lossy(self.tokens.get(id).unwrap_or_default()).into_owned()
    }

    /// Every token by its text; of two with one text the first counts.
    fn vocab(&self) -> serde_json::Map<String, Json> {
        let mut vocab = serde_json::Map::new();
        for id in 0..self.tokens.len() {
            vocab.entry(self.text(id)).or_insert(json!(id));
        }
        vocab
    }

    fn added_tokens(&self) -> Vec<Json> {
        let added = (0..self.tokens.len()).filter(|id| self.is_added(*id));
        let token = |id: usize| {
            json!({
                "id": id, "content": self.text(id), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": self.kind(id) != USER_DEFINED,
            })
        };
        added.map(token).collect()
    }

    /// Puts the begin token before a text, where the file asks for it or, silent, its kind does.
    fn post_processor(&self, default: bool) -> Json {
        let Some(bos) = self.bos.filter(|_| self.add_bos.unwrap_or(default)) else {
            return Json::Null;
        };
        let token = self.text(bos as usize);
        let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        json!({
            "type": "TemplateProcessing",
            "single": [special, sequence("A")],
            "pair": [special, sequence("A"), sequence("B")],
            "special_tokens": { &token: {"id": token, "ids": [bos], "tokens": [token]} },
        })
    }

    fn byte_level(&self, file: &Gguf) -> Result<Json> {
        let merges = match file.value(&key("merges")) {
            Some(Value::Strings(merges)) => merges,
            Some(_) => return Err(wrong("merges", "a list of strings")),
            None => return Err(GgufError::Missing(key("merges"))),
        };
        let merges: Vec<Json> = merges
            .iter()
            .map(|merge| json!(String::from_utf8_lossy(merge)))
            .collect();
        let pre = text(file, &key("pre"))?;
        let (regex, ignore_merges) = split_rule(pre, self.tokens.len())?;
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]},
            "post_processor": self.post_processor(false),
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
                "vocab": self.vocab(), "merges": merges,
            },
        }))
    }

    fn sentence_piece(&self) -> Json {
        let space = "\u{2581}";
        let mut normalizers =
            vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": space})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_space_prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": space}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.unknown.map(|id| self.text(id as usize));
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "post_processor": self.post_processor(true),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": self.vocab(), "merges": self.merges(),
            },
        })
    }

    /// Every way to make a piece of two others, best score first; of equal scores the one whose parts
    /// come first in the vocabulary.
    fn merges(&self) -> Vec<Json> {
        let texts: Vec<String> = (0..self.tokens.len()).map(|id| self.text(id)).collect();
        let mut ids = HashMap::new();
        for (id, text) in texts.iter().enumerate() {
            ids.entry(text.as_str()).or_insert(id);
        }
        let mut merges = Vec::new();
        for (id, piece) in texts
            .iter()
            .enumerate()
            .filter(|(id, _)| !self.is_added(*id))
        {
            let cuts = piece.char_indices().skip(1).take(MOST_CUTS);
            for (at, _) in cuts {
                let parts = piece.split_at(at);
                if let (Some(left), Some(right)) = (ids.get(parts.0), ids.get(parts.1)) {
                    let score = self.scores.get(id).copied().unwrap_or(0.0);
                    merges.push((score, *left, *right, parts));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        merges.iter().map(|(.., (a, b))| json!([a, b])).collect()
    }
}

/// Longest piece that is cut, in characters: those of real models have at most 64, and a stranger's
/// must not make the work quadratic.
const MOST_CUTS: usize = 256;

fn numbers<'f>(file: &'f Gguf, name: &str, len: usize) -> Result<&'f [f64]> {
    match file.value(&key(name)) {
        None => Ok(&[]),
        Some(Value::Numbers(numbers)) if numbers.len() == len => Ok(numbers),
        Some(_) => Err(wrong(name, "a list as long as the vocabulary")),
    }
}

/// How GPT-2 splits text; also the rule that the ByteLevel pre-tokenizer has built in.
pub(crate) const REGEX_GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// How LLaMA 3 does.
const REGEX_LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 does.
const REGEX_QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The names that `tokenizer.ggml.pre` has for them.
pub(crate) const NAMED_RULES: [(&str, &str); 3] = [
    ("llama-bpe", REGEX_LLAMA3),
    ("qwen2", REGEX_QWEN2),
    ("gpt-2", REGEX_GPT2),
];

/// How text is split before it is merged, and whether a whole part that is a token stays whole.
fn split_rule(pre: Option<&str>, vocab_size: usize) -> Result<(&'static str, bool)> {
    match pre {
        Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon_e" | "falcon-e") => {
            Ok((REGEX_LLAMA3, true))
        }
        // The public BitNet-b1.58-2B-4T file names no rule; its vocabulary is LLaMA 3's.
        None if vocab_size == 128_256 => Ok((REGEX_LLAMA3, true)),
        Some("qwen2") => Ok((REGEX_QWEN2, false)),
        Some("gpt-2") => Ok((REGEX_GPT2, false)),
        other => Err(GgufError::Unsupported {
            key: key("pre"),
            found: other.unwrap_or("absent").to_owned(),
            reason: "known are llama-bpe, falcon3, falcon_e, qwen2 and gpt-2",
        }),
    }
}

fn wrong(name: &str, expected: &'static str) -> GgufError {
    let key = key(name);
    GgufError::WrongType { key, expected }
}

const fn vocab(message: String) -> GgufError {
    GgufError::Vocab(message)
}
