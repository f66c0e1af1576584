//! The model: tokens, merges, added tokens.

use std::collections::{HashMap, HashSet};

use bitnet_formats::tokenizer::{
    AddedPart, Alphabet, MatchStage, MergeSource, Prefix, SplitStep, Strip, TokenPart,
    TokenizerParts,
};
use serde::Deserialize;

use super::rules::{MARK, Rules};
use super::{TokenizerError, unicode};

/// Ids may leave out this many below the highest.
const MOST_HOLES: usize = 1 << 16;

/// The model of a tokenizer.json.
#[derive(Deserialize)]
pub(super) struct Model {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    /// Other models have a list here.
    #[serde(default)]
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<MergeJson>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    Map(HashMap<String, u32>),
    Other(serde::de::IgnoredAny),
}

impl Default for Vocab {
    fn default() -> Self {
        Self::Map(HashMap::new())
    }
}

/// Two tokens, as a pair or with a space between them.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Pair(String, String),
    Line(String),
}

impl MergeJson {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) => line
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' ')),
        }
    }
}

/// An entry of the list of added tokens.
#[derive(Deserialize)]
pub(super) struct AddedJson {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// Puts model, rules and added tokens together.
pub(super) fn parts(
    rules: Rules,
    model: &Model,
    added: &[AddedJson],
) -> Result<TokenizerParts, TokenizerError> {
    let vocab = check(model, &rules)?;
    let merges = merges(model, vocab)?;
    let tokens = tokens(vocab, &rules)?;
    let added = added_parts(added, vocab, &rules)?;
    refuse_spaces_in_first_token(&rules, vocab, &added)?;
    let mut parts = TokenizerParts {
        alphabet: rules.alphabet,
        tokens,
        merges: MergeSource::Ranked(merges),
        whole_words_first: model.ignore_merges,
        byte_fallback: model.byte_fallback,
        fuse_unknown: model.fuse_unk,
        unknown: unknown(model, vocab)?,
        marks_spaces: rules.marks_spaces,
        prefix: rules.prefix,
        strip: rules.strip,
        steps: rules.steps,
        added,
        classes: None,
        normalization: rules.nfc.then(unicode::normalization),
        ids_before: rules.ids_before,
        ids_after: rules.ids_after,
    };
    cut_at_spaces(&mut parts);
    if parts.steps.iter().any(|step| step.needs_classes()) {
        parts.classes = Some(unicode::classes());
    }
    Ok(parts)
}

/// Refuses models of another kind and settings that are not built.
fn check<'m>(model: &'m Model, rules: &Rules) -> Result<&'m HashMap<String, u32>, TokenizerError> {
    let refuse = |what: String, reason| Err(TokenizerError::unsupported("model", what, reason));
    let kind = model.kind.as_deref().unwrap_or("BPE");
    let Vocab::Map(vocab) = &model.vocab else {
        return refuse(kind.into(), "only byte-pair encoding is built");
    };
    if kind != "BPE" {
        return refuse(kind.into(), "only byte-pair encoding is built");
    }
    if let Some(dropout) = model.dropout.filter(|dropout| *dropout != 0.0) {
        return refuse(format!("dropout {dropout}"), "ids would be random");
    }
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if let Some(affix) = affixes
        .into_iter()
        .flatten()
        .find(|affix| !affix.is_empty())
    {
        return refuse(
            format!("affix {affix:?}"),
            "tokens within words have no marks here",
        );
    }
    if model.byte_fallback && rules.alphabet == Alphabet::Bytes {
        return refuse("byte_fallback".into(), "the alphabet is bytes already");
    }
    if model.byte_fallback != rules.decodes_bytes {
        return refuse(
            "byte_fallback".into(),
            "model and decoder do not agree about it",
        );
    }
    let byte_token = |byte: u8| format!("<0x{byte:02X}>");
    let missing = (0..=255)
        .map(byte_token)
        .find(|token| !vocab.contains_key(token));
    match missing.filter(|_| model.byte_fallback) {
        Some(token) => Err(TokenizerError::vocabulary(
            token,
            "byte_fallback needs a token for every byte",
        )),
        None => Ok(vocab),
    }
}

fn unknown(model: &Model, vocab: &HashMap<String, u32>) -> Result<Option<u32>, TokenizerError> {
    let Some(token) = &model.unk_token else {
        return Ok(None);
    };
    match vocab.get(token) {
        Some(id) => Ok(Some(*id)),
        None => Err(TokenizerError::vocabulary(
            token,
            "unk_token is not in the vocabulary",
        )),
    }
}

fn merges(model: &Model, vocab: &HashMap<String, u32>) -> Result<Vec<(u32, u32)>, TokenizerError> {
    let merges = model.merges.iter().enumerate().map(|(rank, merge)| {
        let pair = merge.pair().and_then(|(left, right)| {
            let fixed = |part: &str| {
                Some(part) == model.unk_token.as_deref()
                    || model.byte_fallback && is_byte_token(part)
            };
            let pair = (*vocab.get(left)?, *vocab.get(right)?);
            (!fixed(left) && !fixed(right)).then_some(pair)
        });
        pair.ok_or_else(|| {
            TokenizerError::vocabulary(
                format!("merge {rank}"),
                "it does not name two tokens of text",
            )
        })
    });
    merges.collect()
}

fn is_byte_token(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

fn tokens(vocab: &HashMap<String, u32>, rules: &Rules) -> Result<Vec<TokenPart>, TokenizerError> {
    let end = vocab.values().max().map_or(0, |id| *id as usize + 1);
    if end > vocab.len() + MOST_HOLES {
        return Err(TokenizerError::vocabulary(
            "the vocabulary",
            "its ids leave out too many",
        ));
    }
    let mut tokens = vec![TokenPart::default(); end];
    let mut taken = vec![false; end];
    for (token, id) in vocab {
        let id = *id as usize;
        if std::mem::replace(&mut taken[id], true) {
            return Err(TokenizerError::vocabulary(
                token,
                "another token has its id",
            ));
        }
        tokens[id] = token_part(token, rules);
    }
    Ok(tokens)
}

/// A token as text has it: in bytes, with spaces for marks.
fn token_part(token: &str, rules: &Rules) -> TokenPart {
    match rules.alphabet {
        Alphabet::Bytes => match token.chars().map(byte_of).collect() {
            Some(bytes) => TokenPart {
                bytes,
                matchable: true,
            },
            None => TokenPart {
                bytes: token.into(),
                matchable: false,
            },
        },
        Alphabet::Characters => TokenPart {
            bytes: unmarked(token, rules).into_bytes(),
            // Where spaces are marked, no text has a space for it to match.
            matchable: !(rules.marks_spaces && token.contains(' ')),
        },
    }
}

fn unmarked(text: &str, rules: &Rules) -> String {
    match rules.marks_spaces {
        true => text.replace(MARK, " "),
        false => text.to_owned(),
    }
}

/// The byte a character stands for in the alphabet of GPT-2: itself where it prints, else one of
/// those from U+0100 on, in order.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ ..=0xff => u8::try_from(code).ok().filter(|byte| prints(*byte)),
        code => hidden().nth(code as usize - 0x100),
    }
}

/// The character that stands for a byte there.
pub(super) fn char_of(byte: u8) -> char {
    let at = hidden().position(|hidden| hidden == byte);
    let code = at.map_or(byte.into(), |at| 0x100 + at as u32);
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn prints(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

fn hidden() -> impl Iterator<Item = u8> {
    (0..=255).filter(|byte| !prints(*byte))
}

/// What a token decodes to: bytes in the alphabet of bytes, if all its characters are of it.
fn decoded(token: &str, rules: &Rules) -> Vec<u8> {
    token_part(token, rules).bytes
}

fn added_parts(
    added: &[AddedJson],
    vocab: &HashMap<String, u32>,
    rules: &Rules,
) -> Result<Vec<AddedPart>, TokenizerError> {
    let special: HashSet<&str> = added
        .iter()
        .filter(|token| token.special)
        .map(|token| &token.content[..])
        .collect();
    // As the reference numbers them: those the vocabulary lacks follow it, in order.
    let mut next_id = vocab.len() as u32;
    let mut parts: Vec<AddedPart> = Vec::new();
    for token in added {
        let id = vocab.get(&token.content).copied().unwrap_or_else(|| {
            next_id += 1;
            next_id - 1
        });
        if id != token.id {
            let reason = "an added token has the id of its name in the vocabulary, or follows the vocabulary in order";
            return Err(TokenizerError::vocabulary(
                format!("{:?} with id {}", token.content, token.id),
                reason,
            ));
        }
        parts.push(added_part(token, &special, rules)?);
    }
    Ok(parts)
}

fn added_part(
    token: &AddedJson,
    special: &HashSet<&str>,
    rules: &Rules,
) -> Result<AddedPart, TokenizerError> {
    let refuse = |reason| {
        let what = format!("{:?}", token.content);
        Err(TokenizerError::unsupported("added token", what, reason))
    };
    if token.single_word {
        return refuse("single_word is not built");
    }
    let has_space = token.content.contains([' ', MARK]);
    if token.normalized && rules.marks_spaces {
        if token.lstrip || token.rstrip {
            return refuse("it would strip spaces that are marked already");
        }
        if !rules.marks_are_normalizer && has_space {
            return refuse("it is looked for before spaces are marked");
        }
    }
    let written = match token.normalized {
        true => normalized(&token.content, rules),
        false => token.content.clone(),
    };
    Ok(AddedPart {
        id: token.id,
        name: match token.normalized {
            true => unmarked(&written, rules).into_bytes(),
            false => written.clone().into_bytes(),
        },
        text: decoded(&written, rules),
        stage: match token.normalized {
            true => MatchStage::Normalized,
            false => MatchStage::Raw,
        },
        special: special.contains(&written[..]),
        lstrip: token.lstrip,
        rstrip: token.rstrip,
    })
}

fn normalized(content: &str, rules: &Rules) -> String {
    let mut text = match rules.nfc {
        true => unicode::nfc(content),
        false => content.to_owned(),
    };
    if rules.marks_are_normalizer {
        text = text.replace(' ', &MARK.to_string());
    }
    if rules.prefix == Prefix::Normalized {
        text.insert(0, MARK);
    }
    text
}

/// Decoding takes the marks off the first token, but not its spaces; here both are spaces.
fn refuse_spaces_in_first_token(
    rules: &Rules,
    vocab: &HashMap<String, u32>,
    added: &[AddedPart],
) -> Result<(), TokenizerError> {
    if rules.strip != Strip::FirstToken {
        return Ok(());
    }
    let in_vocab = vocab.keys().find(|token| token.contains(' '));
    let in_added = added.iter().find(|part| part.name.contains(&b' '));
    let name = in_added.map(|part| String::from_utf8_lossy(&part.name).into_owned());
    match in_vocab.cloned().or(name) {
        Some(token) => Err(TokenizerError::unsupported(
            "token",
            format!("{token:?}"),
            "a space in it could not be told from a mark",
        )),
        None => Ok(()),
    }
}

/// Where no token has a space after another character, nothing ever merges across that border, and
/// text may be cut there first. A text is then many short words, not one long one.
fn cut_at_spaces(parts: &mut TokenizerParts) {
    let crosses = |bytes: &[u8]| {
        bytes
            .windows(2)
            .any(|pair| pair[0] != b' ' && pair[1] == b' ')
    };
    let tokens = || parts.tokens.iter().filter(|token| token.matchable);
    let whole = parts.steps.is_empty() && parts.marks_spaces && !parts.whole_words_first;
    if whole
        && tokens().any(|token| token.bytes == b" ")
        && !tokens().any(|token| crosses(&token.bytes))
    {
        parts.steps.push(SplitStep::SpaceRuns);
    }
}
