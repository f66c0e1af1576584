//! Small tokenizers in the configurations of public models, trained by the library.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{NormalizerWrapper, Tokenizer};

const MULTILINGUAL: &str = include_str!("../../fixtures/text/multilingual.txt");
const ENGLISH: &str = include_str!("../../../trainer/corpus/austen.txt");

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How merges are listed.
#[derive(Clone, Copy, PartialEq)]
enum Merges {
    /// As trained: one for each token, mostly.
    Trained,
    /// Every pair that makes a token, sorted by token and left part.
    All,
    /// The same, the tokens in another order than their ids.
    AllReordered,
    /// Some of all pairs, in any order.
    Shuffled,
}

/// A configuration.
pub(crate) struct Config {
    pub(crate) name: &'static str,
    /// True to try every character there is.
    pub(crate) every_char: bool,
    /// True where the library asks Rust what a digit is.
    pub(crate) digits_by_rust: bool,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    /// Settings of the model besides vocabulary and merges.
    model: Value,
    added: Value,
    merges: Merges,
    /// Tokens before the trained ones.
    first_tokens: Vec<String>,
}

fn split(regex: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert})
}

fn byte_level(use_regex: bool, add_prefix_space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
}

fn sequence(list: &str, steps: &[Value]) -> Value {
    json!({"type": "Sequence", list: steps})
}

/// Added tokens of every kind; ids are filled in later.
fn added(normalized: bool) -> Value {
    let token = |content: &str, special: bool, lstrip: bool, rstrip: bool, normalized: bool| {
        json!({"id": 0, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": rstrip,
               "normalized": normalized, "special": special})
    };
    json!([
        token("<|begin|>", true, false, false, false),
        token("<|end|>", true, false, false, false),
        token("<|end|>more", true, false, false, false),
        token("<mask>", true, true, false, false),
        token("<trim>", true, false, true, false),
        token("<both>", false, true, true, false),
        token("plain words", false, false, false, normalized),
        token("é̂ŝ", false, false, false, normalized),
        token("über", false, false, false, normalized),
    ])
}

fn template() -> Value {
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [special("<|begin|>"), text("A"), special("<|end|>")],
        "pair": [text("A"), text("B")],
        // Ids are filled in later.
        "special_tokens": {
            "<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]},
            "<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]},
        },
    })
}

fn mark_normalizer() -> Value {
    sequence(
        "normalizers",
        &[
            json!({"type": "Prepend", "prepend": "▁"}),
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        ],
    )
}

fn mark_decoder(byte_fallback: bool, strip: bool) -> Value {
    let mut steps = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
    if byte_fallback {
        steps.push(json!({"type": "ByteFallback"}));
    }
    steps.push(json!({"type": "Fuse"}));
    if strip {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    sequence("decoders", &steps)
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
}

/// In the alphabet of bytes.
fn bytes(name: &'static str, pre_tokenizer: Value) -> Config {
    Config {
        name,
        every_char: false,
        digits_by_rust: false,
        normalizer: Value::Null,
        pre_tokenizer,
        post_processor: template(),
        decoder: byte_level(true, true),
        model: json!({}),
        added: added(false),
        merges: Merges::Trained,
        first_tokens: Vec::new(),
    }
}

/// In the alphabet of characters.
fn chars(name: &'static str, normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Config {
    Config {
        normalizer,
        pre_tokenizer,
        decoder,
        model: json!({"unk_token": "<unk>", "fuse_unk": true}),
        first_tokens: vec!["<unk>".into()],
        ..bytes(name, Value::Null)
    }
}

/// A character vocabulary that can write every byte.
fn with_bytes(config: Config) -> Config {
    let byte = |byte: u8| format!("<0x{byte:02X}>");
    Config {
        first_tokens: ["<unk>".to_owned()]
            .into_iter()
            .chain((0..=255).map(byte))
            .collect(),
        model: json!({"unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true}),
        ..config
    }
}

/// Without an added token that has a space in its name, which some rules cannot have.
fn without_spaces(mut config: Config) -> Config {
    if let Some(added) = config.added.as_array_mut() {
        added.retain(|token| token["content"] != "plain words");
    }
    config
}

/// All configurations.
pub(crate) fn all() -> Vec<Config> {
    let words = |regex| {
        sequence(
            "pretokenizers",
            &[split(regex, "Isolated", false), byte_level(false, false)],
        )
    };
    let falcon = sequence(
        "pretokenizers",
        &[
            json!({"type": "Punctuation", "behavior": "Contiguous"}),
            byte_level(true, false),
            json!({"type": "Digits", "individual_digits": false}),
            split("[0-9][0-9][0-9]", "Isolated", false),
        ],
    );
    let steps = sequence(
        "pretokenizers",
        &[
            json!({"type": "Punctuation", "behavior": "Isolated"}),
            json!({"type": "Digits", "individual_digits": true}),
            split(LLAMA3, "Removed", true),
            byte_level(false, false),
            json!({"type": "Digits", "individual_digits": true}),
        ],
    );
    let runs = sequence(
        "pretokenizers",
        &[
            json!({"type": "Digits", "individual_digits": false}),
            byte_level(true, false),
        ],
    );
    vec![
        Config {
            every_char: true,
            ..bytes("gpt2", byte_level(true, false))
        },
        Config {
            added: added(true),
            ..bytes("gpt2-prefix", byte_level(true, true))
        },
        Config {
            every_char: true,
            model: json!({"ignore_merges": true}),
            merges: Merges::All,
            ..bytes("llama3", words(LLAMA3))
        },
        bytes("cl100k", words(CL100K)),
        Config {
            every_char: true,
            normalizer: json!({"type": "NFC"}),
            added: added(true),
            ..bytes("qwen2", words(QWEN2))
        },
        Config {
            every_char: true,
            digits_by_rust: true,
            ..bytes("falcon", falcon)
        },
        Config {
            digits_by_rust: true,
            ..bytes("steps", steps)
        },
        Config {
            digits_by_rust: true,
            ..bytes("digit-runs", runs)
        },
        bytes("bytes-without-words", byte_level(false, false)),
        Config {
            merges: Merges::Shuffled,
            ..bytes("listed-merges", byte_level(true, false))
        },
        Config {
            merges: Merges::AllReordered,
            ..bytes("reordered-merges", byte_level(true, false))
        },
        with_bytes(Config {
            every_char: true,
            merges: Merges::All,
            ..chars(
                "llama2",
                mark_normalizer(),
                Value::Null,
                mark_decoder(true, true),
            )
        }),
        with_bytes(Config {
            merges: Merges::AllReordered,
            added: added(true),
            ..chars(
                "mistral",
                mark_normalizer(),
                Value::Null,
                mark_decoder(true, true),
            )
        }),
        with_bytes(Config {
            merges: Merges::Shuffled,
            ..chars(
                "metaspace-first",
                Value::Null,
                metaspace("first", false),
                mark_decoder(true, false),
            )
        }),
        without_spaces(chars(
            "metaspace-always",
            Value::Null,
            metaspace("always", true),
            metaspace("always", true),
        )),
        Config {
            model: json!({"unk_token": "<unk>", "fuse_unk": false}),
            ..chars(
                "metaspace-never",
                Value::Null,
                metaspace("never", true),
                metaspace("never", true),
            )
        },
        Config {
            model: json!({}),
            first_tokens: Vec::new(),
            ..chars(
                "dropping",
                Value::Null,
                Value::Null,
                json!({"type": "Fuse"}),
            )
        },
    ]
}

impl Config {
    /// The tokenizer.json, trained.
    pub(crate) fn json(&self) -> String {
        let mut trained = Tokenizer::new(BPE::default());
        let normalizer: Option<NormalizerWrapper> =
            serde_json::from_value(self.normalizer.clone()).unwrap();
        let pre: Option<PreTokenizerWrapper> =
            serde_json::from_value(self.pre_tokenizer.clone()).unwrap();
        let bytes = self.pre_tokenizer.to_string().contains("ByteLevel");
        trained.with_normalizer(normalizer).unwrap();
        // Without words the trainer would learn whole texts.
        let words = pre
            .clone()
            .unwrap_or(tokenizers::pre_tokenizers::metaspace::Metaspace::default().into());
        trained.with_pre_tokenizer(Some(words));
        let alphabet = if bytes {
            ByteLevel::alphabet()
        } else {
            Default::default()
        };
        let mut trainer = TrainerWrapper::from(
            BpeTrainerBuilder::new()
                .vocab_size(1500)
                .show_progress(false)
                .max_token_length(Some(24))
                .limit_alphabet(if bytes { 300 } else { 400 })
                .initial_alphabet(alphabet.into_iter().collect())
                .build(),
        );
        let english: Vec<_> = ENGLISH.lines().take(4000).collect();
        let texts = MULTILINGUAL
            .lines()
            .chain(MULTILINGUAL.lines())
            .chain(english);
        trained.train(&mut trainer, texts).unwrap();
        let json: Value = serde_json::from_str(&trained.to_string(false).unwrap()).unwrap();
        self.assemble(&json["model"])
    }

    fn assemble(&self, trained: &Value) -> String {
        let vocab: HashMap<String, u32> = serde_json::from_value(trained["vocab"].clone()).unwrap();
        let mut tokens: Vec<String> = self.first_tokens.clone();
        let mut by_id: Vec<_> = vocab.iter().collect();
        by_id.sort_by_key(|(_, id)| **id);
        tokens.extend(by_id.into_iter().map(|(token, _)| token.clone()));
        let ids: HashMap<&str, usize> = tokens
            .iter()
            .enumerate()
            .map(|(id, t)| (&t[..], id))
            .collect();
        let trained: Vec<(String, String)> =
            serde_json::from_value(trained["merges"].clone()).unwrap();
        let mut model =
            json!({"type": "BPE", "vocab": ids, "merges": self.list(&tokens, &ids, trained)});
        let settings = self.model.as_object().unwrap().clone();
        model.as_object_mut().unwrap().extend(settings);
        let mut added = self.added.clone();
        let mut numbered = Map::new();
        for (at, token) in added.as_array_mut().unwrap().iter_mut().enumerate() {
            token["id"] = json!(tokens.len() + at);
            numbered.insert(
                token["content"].as_str().unwrap().to_owned(),
                token["id"].clone(),
            );
        }
        let mut post_processor = self.post_processor.clone();
        for (name, entry) in post_processor["special_tokens"].as_object_mut().unwrap() {
            entry["ids"] = json!([numbered[name]]);
        }
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer,
            "post_processor": post_processor, "decoder": self.decoder, "model": model,
        })
        .to_string()
    }

    fn list(
        &self,
        tokens: &[String],
        ids: &HashMap<&str, usize>,
        trained: Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        if self.merges == Merges::Trained {
            return trained;
        }
        let mut all = Vec::new();
        for (id, token) in tokens.iter().enumerate() {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(left_id), true) = (ids.get(left), ids.contains_key(right)) {
                    all.push((id, *left_id, left.to_owned(), right.to_owned()));
                }
            }
        }
        // A stand-in for chance that is the same every time.
        let scramble = |n: usize| (n as u32).wrapping_mul(0x9e37_79b1) >> 7;
        all.sort_by_key(|(id, left, ..)| match self.merges {
            Merges::All | Merges::Trained => (*id, *left),
            Merges::AllReordered => (id ^ 5, *left),
            Merges::Shuffled => (scramble(id * 7919 + left) as usize, *left),
        });
        if self.merges == Merges::Shuffled {
            all.retain(|(id, left, ..)| (id + left) % 5 != 0);
        }
        all.into_iter()
            .map(|(_, _, left, right)| (left, right))
            .collect()
    }
}
