//! Chat templates to lists of operations.
//!
//! Public checkpoints carry their template as a program in Jinja. `parse` reads the part of the
//! language that such templates use, `compile` runs the program on a conversation whose texts are
//! not known yet: what depends on the conversation becomes an operation or a condition, everything
//! else is worked out once and for all. What cannot be written so is refused by name.

mod compile;
mod lexer;
mod parse;

use bitnet_formats::TokenizerTables;
use bitnet_formats::chat::{ChatOp, encode_chat};
use bitnet_formats::tokenizer::MatchStage;

/// Most bytes of a template.
const MOST_BYTES: usize = 1 << 16;

/// Why a chat template is not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// The text is no template, or uses a part of the language that is not read.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Where, counted from 1.
        line: usize,
        /// What stands there.
        reason: String,
    },
    /// The program does something that no list of operations can.
    #[error("{what} is not supported")]
    Unsupported {
        /// What it does.
        what: String,
    },
    /// The operations are too many.
    #[error("the template is too large or branches too much")]
    TooLarge,
}

impl ChatTemplateError {
    fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}

/// Names that a template may ask for and what they stand for: `bos_token`, `eos_token`.
pub type Names<'n> = &'n [(&'n str, &'n str)];

/// A compiled template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chat {
    /// The operations.
    pub ops: Vec<ChatOp>,
    /// The texts they name by number.
    pub texts: Vec<String>,
    /// Texts that end an answer.
    pub stop_strings: Vec<String>,
    /// Ids that end an answer.
    pub stop_ids: Vec<u32>,
}

/// What a checkpoint or another file says about conversations.
#[derive(Clone, Debug, Default)]
pub struct ChatSource<'s> {
    /// The template.
    pub template: &'s str,
    /// Special tokens it may ask for.
    pub names: Vec<(&'s str, &'s str)>,
    /// Texts that end an answer.
    pub stop_strings: &'s [String],
}

impl ChatSource<'_> {
    /// The template with what it asks for by name in front, so that it means the same without the
    /// files it came with. A name that it sets itself is left alone.
    #[must_use]
    pub fn with_names(&self) -> String {
        let asked = |name: &str| {
            self.template.contains(name) && !self.template.contains(&format!("set {name} ="))
        };
        let names = self.names.iter().filter(|(name, _)| asked(name));
        // Jinja drops the newline after a statement.
        let set = names.map(|(name, text)| format!("{{% set {name} = {text:?} %}}\n"));
        set.chain([self.template.to_owned()]).collect()
    }
}

/// The chat section of a source. Besides the stop strings it names, an answer ends with the token
/// that the template writes after a message, and with `eos_token`.
///
/// # Errors
///
/// The template cannot be compiled.
pub fn section(
    source: &ChatSource<'_>,
    tokenizer: Option<&TokenizerTables<'_>>,
) -> Result<Vec<u8>, ChatTemplateError> {
    let mut chat = Chat::compile(source.template, &source.names)?;
    chat.stop_strings.extend_from_slice(source.stop_strings);
    if let Some(tokenizer) = tokenizer {
        let eos = source.names.iter().filter(|(name, _)| *name == "eos_token");
        let ends = chat.texts_after_content().chain(eos.map(|(_, text)| *text));
        let id = |text: &str| Some(tokenizer.added_at(MatchStage::Raw, text.as_bytes())?.id);
        let mut ids: Vec<u32> = ends.filter_map(id).collect();
        ids.sort_unstable();
        ids.dedup();
        chat.stop_ids = ids;
    }
    chat.encode()
}

impl Chat {
    /// Compiles a template.
    ///
    /// # Errors
    ///
    /// It is no template, or does more than operations can.
    pub fn compile(template: &str, names: Names<'_>) -> Result<Self, ChatTemplateError> {
        if template.len() > MOST_BYTES {
            return Err(ChatTemplateError::TooLarge);
        }
        let program = parse::program(template)?;
        let (ops, texts) = compile::program(&program, names)?;
        Ok(Self {
            ops,
            texts,
            ..Self::default()
        })
    }

    /// Texts that the template writes right after a message.
    pub fn texts_after_content(&self) -> impl Iterator<Item = &str> {
        let after = |pair: &[ChatOp]| match pair {
            [ChatOp::Content(_), ChatOp::Text(text)] => Some(usize::from(*text)),
            _ => None,
        };
        let texts = self.ops.windows(2).filter_map(after);
        texts
            .filter_map(|text| self.texts.get(text))
            .map(String::as_str)
    }

    /// The section.
    ///
    /// # Errors
    ///
    /// More of something than the section can number.
    pub fn encode(&self) -> Result<Vec<u8>, ChatTemplateError> {
        encode_chat(&self.ops, &self.texts, &self.stop_strings, &self.stop_ids)
            .ok_or(ChatTemplateError::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_means_the_same_with_its_names_in_front() {
        let template =
            "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}";
        let source = ChatSource {
            template,
            names: vec![
                ("bos_token", "<s>"),
                ("eos_token", "a \"quote\""),
                ("unk_token", "?"),
            ],
            stop_strings: &[],
        };
        let complete = source.with_names();
        assert!(!complete.contains("unk_token"));
        let alone = ChatSource {
            template: &complete,
            ..ChatSource::default()
        };
        assert_eq!(section(&alone, None), section(&source, None));
        let again = ChatSource {
            template: &complete,
            ..source
        };
        assert_eq!(again.with_names(), complete);
    }
}
