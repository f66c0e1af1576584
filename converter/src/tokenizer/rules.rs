//! The steps around the model: normaliser, pre-tokenizer, post-processor, decoder.

use bitnet_formats::tokenizer::{Alphabet, Prefix, SplitStep, Strip};
use serde_json::Value;

use super::TokenizerError;

/// The mark that SentencePiece writes for a space.
pub(super) const MARK: char = '\u{2581}';

/// What the steps come to.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) alphabet: Alphabet,
    pub(super) nfc: bool,
    pub(super) marks_spaces: bool,
    /// True where marks are put in before added tokens are looked for in normalised text.
    pub(super) marks_are_normalizer: bool,
    pub(super) prefix: Prefix,
    pub(super) steps: Vec<SplitStep>,
    pub(super) strip: Strip,
    /// True where the decoder reads `<0x0A>` as a byte.
    pub(super) decodes_bytes: bool,
    pub(super) ids_before: Vec<u32>,
    pub(super) ids_after: Vec<u32>,
}

impl Rules {
    pub(super) fn read(
        normalizer: &Value,
        pre_tokenizer: &Value,
        post_processor: &Value,
        decoder: &Value,
    ) -> Result<Self, TokenizerError> {
        let normalized = Normalizer::read(&flat(normalizer, "normalizers"))?;
        let cut = PreTokenizer::read(&flat(pre_tokenizer, "pretokenizers"))?;
        let bytes = cut.byte_level;
        if normalized.marks && (bytes || cut.marks) {
            let reason = "spaces would be marked twice";
            return Err(TokenizerError::unsupported("normalizer", "Replace", reason));
        }
        let sees_spaces = |step: &SplitStep| {
            use SplitStep::{Gpt2, WordsDigits1, WordsDigits3};
            matches!(step, Gpt2 | WordsDigits1 | WordsDigits3)
        };
        if normalized.marks && cut.steps.iter().any(sees_spaces) {
            let reason = "the pattern would see marks where there are spaces here";
            return Err(TokenizerError::unsupported(
                "pre_tokenizer",
                "Split",
                reason,
            ));
        }
        let mut rules = Self {
            alphabet: if bytes {
                Alphabet::Bytes
            } else {
                Alphabet::Characters
            },
            nfc: normalized.nfc,
            marks_spaces: normalized.marks || cut.marks,
            marks_are_normalizer: normalized.marks,
            prefix: if normalized.prepends {
                Prefix::Normalized
            } else {
                cut.prefix
            },
            steps: cut.steps,
            strip: Strip::None,
            decodes_bytes: false,
            ids_before: Vec::new(),
            ids_after: Vec::new(),
        };
        rules.read_decoder(&flat(decoder, "decoders"))?;
        rules.read_post_processor(&flat(post_processor, "processors"))?;
        Ok(rules)
    }

    fn read_decoder(&mut self, steps: &[&Value]) -> Result<(), TokenizerError> {
        let refuse =
            |step: &Value, reason| Err(TokenizerError::unsupported("decoder", name(step), reason));
        let bytes = self.alphabet == Alphabet::Bytes;
        let (mut unmarks, mut fused) = (false, false);
        for step in steps {
            match kind(step) {
                "ByteLevel" if bytes => fused = true,
                "Replace" if !bytes && replaces(step, MARK, " ") => unmarks = true,
                "ByteFallback" if !bytes => self.decodes_bytes = true,
                "Fuse" => fused = true,
                "Metaspace" if steps.len() == 1 && marks_with(step) => {
                    (unmarks, fused) = (true, true);
                    self.strip = match prepend_scheme(step) {
                        "never" => Strip::None,
                        _ => Strip::FirstToken,
                    };
                }
                "Strip" if fused && strips_one_space(step) => self.strip = Strip::Space,
                _ => return refuse(step, "the runtime does not decode so"),
            }
        }
        if !fused || unmarks != self.marks_spaces {
            let all: Vec<_> = steps.iter().map(|step| kind(step)).collect();
            let reason = "it does not undo what the pre-tokenizer does";
            return Err(TokenizerError::unsupported(
                "decoder",
                format!("[{}]", all.join(", ")),
                reason,
            ));
        }
        Ok(())
    }

    fn read_post_processor(&mut self, steps: &[&Value]) -> Result<(), TokenizerError> {
        let mut templates = 0;
        for step in steps {
            match kind(step) {
                // It moves offsets only.
                "ByteLevel" => (),
                "TemplateProcessing" if templates == 0 => {
                    templates += 1;
                    self.read_template(step)?;
                }
                _ => {
                    let reason = "only one TemplateProcessing is understood";
                    return Err(TokenizerError::unsupported(
                        "post_processor",
                        name(step),
                        reason,
                    ));
                }
            }
        }
        Ok(())
    }

    /// Special tokens around the one text.
    fn read_template(&mut self, step: &Value) -> Result<(), TokenizerError> {
        let refuse = |what: &Value| {
            let reason = "a template is special tokens around sequence A";
            TokenizerError::unsupported("post_processor", what.to_string(), reason)
        };
        let pieces = step["single"]
            .as_array()
            .ok_or_else(|| refuse(&step["single"]))?;
        let mut texts = 0;
        for piece in pieces {
            if let Some(id) = piece["SpecialToken"]["id"].as_str() {
                let ids = &step["special_tokens"][id]["ids"];
                let ids: Option<Vec<u32>> = ids
                    .as_array()
                    .and_then(|ids| ids.iter().map(id_of).collect());
                let place = if texts == 0 {
                    &mut self.ids_before
                } else {
                    &mut self.ids_after
                };
                place.extend(ids.ok_or_else(|| refuse(piece))?);
            } else if piece["Sequence"]["id"] == "A" && texts == 0 {
                texts += 1;
            } else {
                return Err(refuse(piece));
            }
        }
        if texts == 0 {
            return Err(refuse(&step["single"]));
        }
        Ok(())
    }
}

fn id_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[derive(Default)]
struct Normalizer {
    nfc: bool,
    /// Spaces become marks.
    marks: bool,
    /// A mark is put before the text.
    prepends: bool,
}

impl Normalizer {
    fn read(steps: &[&Value]) -> Result<Self, TokenizerError> {
        let mut all = Self::default();
        for step in steps {
            let seen = match kind(step) {
                "NFC" if steps.len() == 1 => &mut all.nfc,
                "Prepend" if step["prepend"].as_str() == Some("\u{2581}") => &mut all.prepends,
                "Replace" if replaces(step, ' ', "\u{2581}") => &mut all.marks,
                _ => {
                    let reason = "it would change the text in a way the runtime does not";
                    return Err(TokenizerError::unsupported(
                        "normalizer",
                        name(step),
                        reason,
                    ));
                }
            };
            if std::mem::replace(seen, true) {
                let reason = "it stands there twice";
                return Err(TokenizerError::unsupported(
                    "normalizer",
                    name(step),
                    reason,
                ));
            }
        }
        if all.prepends && !all.marks {
            let reason = "spaces within the text are not marked";
            return Err(TokenizerError::unsupported("normalizer", "Prepend", reason));
        }
        Ok(all)
    }
}

struct PreTokenizer {
    byte_level: bool,
    marks: bool,
    prefix: Prefix,
    steps: Vec<SplitStep>,
}

impl PreTokenizer {
    fn read(steps: &[&Value]) -> Result<Self, TokenizerError> {
        let mut all = Self {
            byte_level: false,
            marks: false,
            prefix: Prefix::Never,
            steps: Vec::new(),
        };
        for (at, step) in steps.iter().enumerate() {
            let known = all.add(step, at == 0, steps.len() == 1);
            known.ok_or_else(|| {
                let reason =
                    "the runtime does not cut text so, and another rule would give other ids";
                TokenizerError::unsupported("pre_tokenizer", name(step), reason)
            })?;
        }
        Ok(all)
    }

    fn add(&mut self, step: &Value, first: bool, only: bool) -> Option<()> {
        let flag = |key: &str, default| step[key].as_bool().unwrap_or(default);
        match kind(step) {
            "ByteLevel" if !self.byte_level => {
                self.byte_level = true;
                if flag("add_prefix_space", true) {
                    // After another step it would put a space before every piece.
                    first.then_some(())?;
                    self.prefix = Prefix::Always;
                }
                if flag("use_regex", true) {
                    self.steps.push(SplitStep::Gpt2);
                }
            }
            "Split" => {
                let split = pattern(step)?;
                // In the alphabet of bytes the patterns would see other characters.
                (split == SplitStep::DigitTriples || !self.byte_level).then_some(())?;
                self.steps.push(split);
            }
            "Digits" => {
                self.steps
                    .push(match (self.byte_level, flag("individual_digits", false)) {
                        (false, true) => SplitStep::Digits,
                        (false, false) => SplitStep::DigitRuns,
                        (true, true) => SplitStep::ByteDigits,
                        (true, false) => SplitStep::ByteDigitRuns,
                    })
            }
            "Punctuation" if !self.byte_level => self.steps.push(match step["behavior"].as_str() {
                Some("Contiguous") => SplitStep::PunctuationRuns,
                Some("Isolated") | None => SplitStep::Punctuation,
                Some(_) => return None,
            }),
            "Metaspace" if only && marks_with(step) => {
                self.marks = true;
                self.prefix = match prepend_scheme(step) {
                    "always" => Prefix::Always,
                    "first" => Prefix::First,
                    "never" => Prefix::Never,
                    _ => return None,
                };
                if flag("split", true) {
                    self.steps.push(SplitStep::Spaces);
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// Patterns that are the same rule.
pub(super) const PATTERNS: [(SplitStep, &[&str]); 4] = [
    (
        SplitStep::Gpt2,
        &[
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        SplitStep::WordsDigits1,
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        SplitStep::WordsDigits3,
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    ),
    (SplitStep::DigitTriples, &["[0-9][0-9][0-9]", "[0-9]{3}"]),
];

/// The rule of a Split. One that keeps matches apart is the same as one that removes what does not
/// match, where everything does.
fn pattern(step: &Value) -> Option<SplitStep> {
    let regex = step["pattern"]["Regex"].as_str()?;
    let rule = PATTERNS
        .iter()
        .find(|(_, spelled)| spelled.contains(&regex))?
        .0;
    let isolated = step["behavior"] == "Isolated" && step["invert"] != true;
    let kept = step["behavior"] == "Removed" && step["invert"] == true;
    (isolated || kept && rule != SplitStep::DigitTriples).then_some(rule)
}

/// The steps of a sequence, however nested; none for null.
fn flat<'v>(value: &'v Value, list: &str) -> Vec<&'v Value> {
    match value {
        Value::Null => Vec::new(),
        _ if kind(value) == "Sequence" => {
            let steps = value[list].as_array().map_or(&[][..], Vec::as_slice);
            steps.iter().flat_map(|step| flat(step, list)).collect()
        }
        step => vec![step],
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("")
}

/// What an error calls a step: its JSON, if that is short.
fn name(step: &Value) -> String {
    let json = step.to_string();
    if json.len() <= 400 {
        json
    } else {
        kind(step).to_owned()
    }
}

fn replaces(step: &Value, from: char, to: &str) -> bool {
    let pattern = step["pattern"]["String"].as_str();
    pattern.is_some_and(|p| p.chars().eq([from])) && step["content"].as_str() == Some(to)
}

fn marks_with(step: &Value) -> bool {
    step["replacement"].as_str() == Some("\u{2581}")
}

/// Old files say add_prefix_space.
fn prepend_scheme(step: &Value) -> &str {
    let old = match step["add_prefix_space"].as_bool() {
        Some(false) => "never",
        _ => "always",
    };
    step["prepend_scheme"].as_str().unwrap_or(old)
}

fn strips_one_space(step: &Value) -> bool {
    step["content"] == " " && step["start"] == 1 && step["stop"] == 0
}
