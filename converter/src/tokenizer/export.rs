//! The tables of a `.btn` file back to a `tokenizer.json`.
//!
//! The JSON is not the one the tables were made of: rules have several spellings, of which the tables
//! remember the meaning. It is checked to give the same tables, byte for byte.

use std::collections::HashMap;

use bitnet_formats::TokenizerTables;
use bitnet_formats::tokenizer::{AddedToken, Alphabet, MatchStage, Prefix, SplitStep, Strip};
use serde_json::{Map, Value, json};

use super::rules::{MARK, PATTERNS};
use super::vocabulary::char_of;
use super::{TokenizerError, section};

/// A `tokenizer.json` that gives this section.
///
/// # Errors
///
/// The section is damaged, or no `tokenizer.json` gives it: its tables of Unicode may be of another
/// version, or its merges of a kind that the JSON has no words for.
pub fn json(bytes: &[u8]) -> Result<String, TokenizerError> {
    let no_json = || TokenizerError::NoJson;
    let tables = TokenizerTables::open(bytes).map_err(|_| no_json())?;
    let json = Export::new(&tables).and_then(|export| export.json());
    let json = json.ok_or_else(no_json)?.to_string();
    match section(&json)? == bytes {
        true => Ok(json),
        false => Err(no_json()),
    }
}

struct Export<'t, 'w> {
    tables: &'t TokenizerTables<'w>,
    /// The vocabulary as the JSON spells it; empty where no token has the id.
    spelled: Vec<String>,
}

impl<'t, 'w> Export<'t, 'w> {
    fn new(tables: &'t TokenizerTables<'w>) -> Option<Self> {
        let spelled = (0..tables.n_tokens()).map(|id| spell(tables, id));
        Some(Self {
            tables,
            spelled: spelled.collect::<Option<_>>()?,
        })
    }

    fn json(&self) -> Option<Value> {
        let unknown = self.tables.unknown();
        let unknown = unknown.map(|id| self.spelled.get(id as usize));
        Some(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens()?,
            "normalizer": self.normalizer(),
            "pre_tokenizer": self.pre_tokenizer(),
            "post_processor": self.post_processor()?,
            "decoder": self.decoder(),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown.flatten(),
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": self.tables.fuse_unknown(),
                "byte_fallback": self.tables.byte_fallback(),
                "ignore_merges": self.tables.whole_words_first(),
                "vocab": self.vocab(), "merges": self.merges(),
            },
        }))
    }

    fn vocab(&self) -> Map<String, Value> {
        let tokens = (0_u32..).zip(&self.spelled);
        let tokens = tokens.filter(|(_, text)| !text.is_empty());
        tokens.map(|(id, text)| (text.clone(), json!(id))).collect()
    }

    /// Every pair that merges, the first to merge first.
    fn merges(&self) -> Vec<Value> {
        let mut merges = Vec::new();
        for id in 0..self.tables.n_tokens() {
            let token = self.tables.token(id).unwrap_or_default();
            for split in 1..token.len() {
                let (left, right) = token.split_at(split);
                let merge = self.tables.merge(token, split);
                let parts = self.tables.lookup(left).zip(self.tables.lookup(right));
                if let (Some(merge), Some((left, right))) = (merge.filter(|m| m.id == id), parts) {
                    merges.push((merge.rank, left, right));
                }
            }
        }
        merges.sort_unstable();
        let text = |id: u32| &self.spelled[id as usize];
        let pairs = merges.into_iter();
        pairs.map(|(_, a, b)| json!([text(a), text(b)])).collect()
    }

    fn added_tokens(&self) -> Option<Vec<Value>> {
        let mut added: Vec<_> = self.tables.all_added().collect();
        added.sort_unstable_by_key(|token| token.id);
        added.iter().map(|token| self.added_token(token)).collect()
    }

    fn added_token(&self, token: &AddedToken<'_>) -> Option<Value> {
        let normalized = token.stage == MatchStage::Normalized;
        let name = std::str::from_utf8(token.name).ok()?;
        // The mark before it is put there again.
        let begins = normalized && self.tables.prefix() == Prefix::Normalized;
        let name = if begins {
            name.strip_prefix(' ')?
        } else {
            name
        };
        let in_vocab = self.spelled.get(token.id as usize);
        let marked = name.replace(' ', &MARK.to_string());
        let content = match in_vocab {
            Some(spelled) if normalized && *spelled == marked => &marked,
            _ => name,
        };
        Some(json!({
            "id": token.id, "content": content, "single_word": false, "lstrip": token.lstrip,
            "rstrip": token.rstrip, "normalized": normalized, "special": token.special,
        }))
    }

    /// True where the pre-tokenizer marks spaces, and not the normaliser.
    fn metaspace(&self) -> bool {
        let spaces = self.tables.steps().contains(&SplitStep::Spaces);
        let prefix = self.tables.prefix();
        let put_there = matches!(prefix, Prefix::Always | Prefix::First);
        self.tables.marks_spaces() && (put_there || spaces || self.tables.nfc())
    }

    fn normalizer(&self) -> Value {
        if self.tables.nfc() {
            return json!({"type": "NFC"});
        }
        if !self.tables.marks_spaces() || self.metaspace() {
            return Value::Null;
        }
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": MARK});
        match self.tables.prefix() {
            Prefix::Normalized => {
                let prepend = json!({"type": "Prepend", "prepend": MARK});
                json!({"type": "Sequence", "normalizers": [prepend, replace]})
            }
            _ => replace,
        }
    }

    fn pre_tokenizer(&self) -> Value {
        let steps = match self.tables.alphabet() {
            Alphabet::Bytes => self.byte_level_steps(),
            Alphabet::Characters if self.metaspace() => vec![self.metaspace_step()],
            Alphabet::Characters => self.tables.steps().iter().filter_map(step).collect(),
        };
        match steps.is_empty() {
            true => Value::Null,
            false => json!({"type": "Sequence", "pretokenizers": steps}),
        }
    }

    /// The alphabet of bytes begins before the first step that cuts bytes, or right away where a space
    /// is put before the text.
    fn byte_level_steps(&self) -> Vec<Value> {
        let space = self.tables.prefix() == Prefix::Always;
        let steps = self.tables.steps();
        let regex = space && steps.first() == Some(&SplitStep::Gpt2);
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex,
        });
        if space {
            let rest = &steps[usize::from(regex)..];
            return [byte_level]
                .into_iter()
                .chain(rest.iter().filter_map(step))
                .collect();
        }
        let of_bytes =
            |s: &SplitStep| matches!(s, SplitStep::ByteDigits | SplitStep::ByteDigitRuns);
        let at = steps.iter().position(of_bytes).unwrap_or(steps.len());
        let (before, after) = steps.split_at(at);
        let before = before.iter().filter_map(step);
        let after = after.iter().filter_map(step);
        before.chain([byte_level]).chain(after).collect()
    }

    fn metaspace_step(&self) -> Value {
        let split = self.tables.steps().contains(&SplitStep::Spaces);
        json!({
            "type": "Metaspace", "replacement": MARK, "prepend_scheme": self.scheme(), "split": split,
        })
    }

    fn scheme(&self) -> &'static str {
        match self.tables.prefix() {
            Prefix::Always => "always",
            Prefix::First => "first",
            Prefix::Never | Prefix::Normalized => "never",
        }
    }

    fn decoder(&self) -> Value {
        let strip = self.tables.strip();
        if strip == Strip::FirstToken {
            return json!({"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": true});
        }
        let bytes = self.tables.alphabet() == Alphabet::Bytes;
        let unmark = json!({"type": "Replace", "pattern": {"String": MARK}, "content": " "});
        let strip_one = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        });
        let steps = [
            (bytes, byte_level),
            (self.tables.marks_spaces(), unmark),
            (self.tables.byte_fallback(), json!({"type": "ByteFallback"})),
            (!bytes, json!({"type": "Fuse"})),
            (strip == Strip::Space, strip_one),
        ];
        let steps = steps.into_iter().filter(|(on, _)| *on);
        let steps: Vec<Value> = steps.map(|(_, step)| step).collect();
        json!({"type": "Sequence", "decoders": steps})
    }

    /// Special tokens around the text; null where there are none.
    fn post_processor(&self) -> Option<Value> {
        let before: Vec<u32> = self.tables.ids_before().collect();
        let after: Vec<u32> = self.tables.ids_after().collect();
        if before.is_empty() && after.is_empty() {
            return Some(Value::Null);
        }
        let mut special = HashMap::new();
        for id in before.iter().chain(&after) {
            let name = self.name(*id)?;
            special.insert(name, json!({"id": name, "ids": [id], "tokens": [name]}));
        }
        let token = |id: &u32| json!({"SpecialToken": {"id": self.name(*id), "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let around = |texts: &[&str]| -> Vec<Value> {
            let texts = texts.iter().map(|name| text(name));
            let first = before.iter().map(token);
            first.chain(texts).chain(after.iter().map(token)).collect()
        };
        Some(json!({
            "type": "TemplateProcessing", "single": around(&["A"]), "pair": around(&["A", "B"]),
            "special_tokens": special,
        }))
    }

    fn name(&self, id: u32) -> Option<&str> {
        match self.tables.added(id) {
            Some(token) => std::str::from_utf8(token.name).ok(),
            None => self.spelled.get(id as usize).map(String::as_str),
        }
    }
}

/// A token as the JSON spells it: in the characters of the alphabet, or with marks for spaces. What
/// text cannot hold stands there as it is.
fn spell(tables: &TokenizerTables<'_>, id: u32) -> Option<String> {
    let bytes = tables.token(id)?;
    let matchable = tables.lookup(bytes) == Some(id);
    match tables.alphabet() {
        Alphabet::Bytes if matchable => Some(bytes.iter().map(|byte| char_of(*byte)).collect()),
        Alphabet::Characters if matchable && tables.marks_spaces() => {
            let text = std::str::from_utf8(bytes).ok()?;
            Some(text.replace(' ', &MARK.to_string()))
        }
        _ => String::from_utf8(bytes.to_vec()).ok(),
    }
}

/// A step as the JSON has it; none where the tables hold it for speed alone.
fn step(step: &SplitStep) -> Option<Value> {
    let digits = |individual| json!({"type": "Digits", "individual_digits": individual});
    let punctuation = |behavior| json!({"type": "Punctuation", "behavior": behavior});
    Some(match step {
        SplitStep::Gpt2
        | SplitStep::WordsDigits1
        | SplitStep::WordsDigits3
        | SplitStep::DigitTriples => {
            let (_, spelled) = PATTERNS.iter().find(|(known, _)| known == step)?;
            json!({
                "type": "Split", "pattern": {"Regex": spelled[0]}, "behavior": "Isolated",
                "invert": false,
            })
        }
        SplitStep::Punctuation => punctuation("Isolated"),
        SplitStep::PunctuationRuns => punctuation("Contiguous"),
        SplitStep::Digits | SplitStep::ByteDigits => digits(true),
        SplitStep::DigitRuns | SplitStep::ByteDigitRuns => digits(false),
        SplitStep::Spaces | SplitStep::SpaceRuns => return None,
    })
}
