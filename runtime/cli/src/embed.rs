//! `--embed`: one vector for a text.

use std::io::Write;

use anyhow::{Result, bail};
use bitnet_formats::Output;
use bitnet_runtime::Archive;

use crate::args::{Args, Prompt};
use crate::model_file::{ModelFile, with_session};
use crate::output;
use crate::text;
use crate::weights::{Decision, Weights};

/// True where the model gives embeddings and no logits.
pub(crate) fn gives_embeddings(file: &ModelFile) -> Result<bool> {
    Ok(file.archive()?.config().output == Output::Embedding)
}

pub(crate) fn run(args: &Args, file: &ModelFile, prompt: &Prompt<'_>) -> Result<()> {
    let archive = file.archive()?;
    if archive.config().output != Output::Embedding {
        bail!(
            "{} continues texts and gives no embeddings: use --prompt",
            file.name()
        );
    }
    if args.logits.is_some() {
        bail!("{} gives embeddings and no logits", file.name());
    }
    let ids = file.verified(&archive, args.trust, || ids(file, &archive, prompt))?;
    let max = archive.config().max_seq_len;
    if ids.len() > max {
        bail!(
            "the text has {} tokens and the model reads at most {max}: shorten it",
            ids.len()
        );
    }
    let session = args.session(archive.config(), ids.len().max(1));
    let decision = Decision::of_run(args, &archive)?;
    let mut weights = Weights::new(decision, &archive)?;
    let model = weights.load(&archive, args.kernels())?;
    let embedding = with_session(&model, &session, |session| {
        Ok(session.prefill(&ids)?.to_vec())
    })?;
    print(args, &ids, &embedding)
}

/// Ids of a text, with the one after it whose hidden state stands for the text. Ids are taken as given.
fn ids(file: &ModelFile, archive: &Archive<'_>, prompt: &Prompt<'_>) -> Result<Vec<u32>> {
    let text = match prompt {
        Prompt::Ids(ids) => return Ok(ids.to_vec()),
        Prompt::Text(text) => text::given(text)?,
    };
    let Some(tokenizer) = text::tokenizer(file, archive)? else {
        bail!(
            "{} has no tokenizer: give token ids with --ids",
            file.name()
        );
    };
    let mut ids = text::encode(&tokenizer, &text, true)?;
    let end = archive
        .special_tokens()
        .and_then(|tokens| tokens.stop_ids().next());
    let Some(end) = end else {
        bail!(
            "{} does not say which token ends a text: give token ids with --ids, that one last",
            file.name()
        );
    };
    if ids.last() != Some(&end) {
        ids.push(end);
    }
    Ok(ids)
}

fn print(args: &Args, ids: &[u32], embedding: &[f32]) -> Result<()> {
    let mut out = output::stdout();
    if args.json {
        let json = serde_json::json!({ "ids": ids, "embedding": embedding });
        writeln!(out, "{json}")?;
    } else {
        let numbers: Vec<_> = embedding.iter().map(f32::to_string).collect();
        writeln!(out, "{}", numbers.join(" "))?;
    }
    Ok(())
}
