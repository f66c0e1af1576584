//! `tokenizer.json` to the tables of a `.btn` file.
//!
//! The file format of the `tokenizers` library is a kit: normalisers, pre-tokenizers, a model,
//! decoders. What the runtime builds is a list of rules that language models use. This module
//! recognises those in the kit, and refuses by name whatever else would change an id: a tokenizer
//! is the same or it is not converted.
//!
//! `rules` reads the steps around the model, `vocabulary` the model, [`unicode`] holds the
//! tables that the steps need. What comes out are [`TokenizerParts`], which other formats can fill
//! just as well. [`json`] goes the way back.

mod export;
mod rules;
pub mod unicode;
mod vocabulary;

use bitnet_formats::tokenizer::{PartsError, TokenizerParts};
use serde::Deserialize;
use serde_json::Value;

pub use export::json;
use rules::Rules;
use vocabulary::{AddedJson, Model};

/// Why a tokenizer cannot be kept as tables.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file is not in the format of the `tokenizers` library.
    #[error("not a tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// Something that would change ids, and that the runtime does not do.
    #[error("{part} {what} is not supported: {reason}")]
    Unsupported {
        /// Which part of the file.
        part: &'static str,
        /// What stands there.
        what: String,
        /// Why that is refused.
        reason: &'static str,
    },
    /// The vocabulary contradicts itself.
    #[error("{what}: {reason}")]
    Vocabulary {
        /// The token or part concerned.
        what: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The tables are damaged, or mean something that the format of the library has no words for.
    #[error("its tables have no equal as a tokenizer.json")]
    NoJson,
    /// The parts do not fit the format.
    #[error("{0}")]
    Parts(#[from] PartsError),
}

impl TokenizerError {
    fn unsupported(part: &'static str, what: impl Into<String>, reason: &'static str) -> Self {
        Self::Unsupported {
            part,
            what: what.into(),
            reason,
        }
    }

    fn vocabulary(what: impl Into<String>, reason: &'static str) -> Self {
        let what = what.into();
        Self::Vocabulary { what, reason }
    }
}

/// A tokenizer.json. Limits of batches, `truncation` and `padding`, do not change how a text is cut
/// and are not kept.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedJson>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

/// The parts of a `tokenizer.json`.
///
/// # Errors
///
/// It is no such file, or holds something that would change ids and is not built.
pub fn parts(json: &str) -> Result<TokenizerParts, TokenizerError> {
    let file: TokenizerJson = serde_json::from_str(json)?;
    let rules = Rules::read(
        &file.normalizer,
        &file.pre_tokenizer,
        &file.post_processor,
        &file.decoder,
    )?;
    vocabulary::parts(rules, &file.model, &file.added_tokens)
}

/// The tokenizer section of a `tokenizer.json`.
///
/// # Errors
///
/// As [`parts`].
pub fn section(json: &str) -> Result<Vec<u8>, TokenizerError> {
    Ok(parts(json)?.encode()?)
}
