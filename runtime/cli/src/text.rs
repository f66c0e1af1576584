//! Between text and token ids.

use std::borrow::Cow;
use std::io::Read;

use anyhow::{Context, Result, bail};
use bitnet_formats::SectionKind;
use bitnet_runtime::tokenizer::{Decoder, EncodeError, Encoded};
use bitnet_runtime::{Archive, Tokenizer};

use crate::model_file::ModelFile;
use crate::output;

/// Words of scratch memory to begin with: enough for texts whose words are words.
const FIRST_SCRATCH: usize = 1 << 14;

/// The tokenizer in a file.
pub(crate) fn tokenizer<'w>(
    file: &ModelFile,
    archive: &Archive<'w>,
) -> Result<Option<Tokenizer<'w>>> {
    let tables = archive.tokenizer()?;
    if tables.is_none() && archive.section(SectionKind::TokenizerJson).is_some() {
        bail!(
            "{} holds its tokenizer as JSON, for other programs; convert the checkpoint with \
             --tokenizer tables, or give token ids with --ids",
            file.name()
        );
    }
    Ok(tables.map(Tokenizer::new))
}

/// A text as an argument gives it; `-` is all of stdin.
pub(crate) fn given(text: &str) -> Result<Cow<'_, str>> {
    if text != "-" {
        return Ok(text.into());
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("cannot read the text from stdin")?;
    Ok(text.into())
}

/// Ids of a text, with the ids that stand around every text or without any of them.
pub(crate) fn encode(tokenizer: &Tokenizer<'_>, text: &str, special: bool) -> Result<Vec<u32>> {
    let mut ids = vec![0; tokenizer.most_ids(text.len())];
    let mut scratch = vec![0; FIRST_SCRATCH.min(tokenizer.scratch_words(text.len()))];
    let Encoded { len, dropped } = loop {
        match tokenizer.encode(text, special, &mut scratch, &mut ids) {
            Err(EncodeError::Scratch { .. })
                if scratch.len() < tokenizer.scratch_words(text.len()) =>
            {
                let most = tokenizer.scratch_words(text.len());
                scratch = vec![0; scratch.len().saturating_mul(8).min(most)];
            }
            result => break result?,
        }
    };
    if dropped > 0 {
        output::note(format_args!(
            "note: {dropped} characters of the text have no token and are left out"
        ));
    }
    ids.truncate(len);
    Ok(ids)
}

/// Turns ids into text as they come, never half a character. Special tokens are left out.
pub(crate) struct TextStream<'w>(Decoder<'w>);

impl<'w> TextStream<'w> {
    /// A stream that goes on after `prompt`.
    pub(crate) fn new(tokenizer: &Tokenizer<'w>, prompt: &[u32]) -> Self {
        Self(tokenizer.decoder_after(prompt, true))
    }

    /// The text that this id completes; empty while a character is incomplete.
    pub(crate) fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.0.push(id, &mut |piece| text.push_str(piece));
        text
    }

    /// What is left at the end, incomplete or not.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::new();
        self.0.finish(&mut |piece| text.push_str(piece));
        text
    }
}
