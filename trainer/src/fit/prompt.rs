//! What a run's samples go on from.

use crate::chat::ChatEncoder;
use crate::data::EncodedText;
use crate::error::Result;
use crate::memory::PROMPT_TOKENS;
use crate::sample::Prompt;
use crate::tokenizer::Tokenizer;

/// Validation tokens in which a prompt for samples is looked for.
const PROMPT_SEARCH_TOKENS: usize = 1024;

/// A prompt from the beginning of the validation text: the first words of a line, or the end of a
/// question.
pub(super) fn prompt(tokenizer: &Tokenizer, validation: &EncodedText) -> Result<Prompt> {
    let count = validation.tokens.len().min(PROMPT_SEARCH_TOKENS);
    let ids = validation.tokens.read(0, count)?;
    let marks = validation.mask.read(0, count)?;
    let before_answer = marks.and_then(|marks| marks.iter().position(|counted| *counted));
    if let Some(before_answer @ 1..) = before_answer {
        let first = before_answer.saturating_sub(PROMPT_TOKENS);
        let ids = ids[first..before_answer].to_vec();
        return Ok(Prompt {
            text: tokenizer.decode(&ids)?,
            ends: ChatEncoder::new(tokenizer)?.end_ids().collect(),
            ids,
        });
    }
    let is_end = |id: &u32| Some(*id) == tokenizer.end_of_text();
    let first = ids.split(is_end).find(|text| !text.is_empty());
    let text = tokenizer.decode(first.unwrap_or(&ids))?;
    Prompt::of_text(tokenizer, &first_words(&text))
}

/// A prompt of three words or less: the beginning of a line of the text, or its first character.
fn first_words(text: &str) -> String {
    let line = text
        .lines()
        .skip(1)
        .map(str::trim)
        .find(|line| line.len() > 20);
    let end = |line: &str| {
        line.match_indices(char::is_whitespace)
            .nth(2)
            .map(|(at, _)| at)
    };
    match line {
        Some(line) => line[..end(line).unwrap_or(line.len())].to_string(),
        None => text.chars().take(1).collect(),
    }
}
