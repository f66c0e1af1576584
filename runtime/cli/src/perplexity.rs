//! `--perplexity`: how well the model predicts a text.
//!
//! The definition is the trainer's `eval`: the text is encoded whole, without special tokens; window
//! `w` reads ids `w C .. w C + C` from position 0 and predicts each next one, so that every token but
//! the first is predicted exactly once.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::model_file::{ModelFile, with_session};
use crate::output;
use crate::text;
use crate::weights::{Decision, Weights};

pub(crate) fn run(args: &Args, file: &ModelFile, path: &Path) -> Result<()> {
    let archive = file.archive()?;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    let ids = file.verified(&archive, args.trust, || {
        let Some(tokenizer) = text::tokenizer(file, &archive)? else {
            bail!(
                "{} has no tokenizer, so a text cannot be measured",
                file.name()
            );
        };
        text::encode(&tokenizer, &text, false)
    })?;
    if ids.len() < 2 {
        bail!(
            "{} has {} tokens; at least 2 are needed",
            path.display(),
            ids.len()
        );
    }
    let max_seq_len = args.context.unwrap_or(archive.config().max_seq_len);
    let session = args.session(archive.config(), max_seq_len);
    let decision = Decision::of_run(args, &archive)?;
    let mut weights = Weights::new(decision, &archive)?;
    let model = weights.load(&archive, args.kernels())?;
    let nats = with_session(&model, &session, |session| {
        let mut nats = 0.0;
        for start in (0..ids.len() - 1).step_by(max_seq_len) {
            let end = (start + max_seq_len).min(ids.len() - 1);
            session.truncate(0)?;
            session.score(&ids[start..end], |position, logits| {
                nats += surprise(logits, ids[start + position + 1]);
            })?;
        }
        Ok(nats)
    })?;
    print(args, nats, ids.len() - 1, text.len(), max_seq_len)
}

/// `-ln p` of a token, in f64.
fn surprise(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, l| max.max(*l));
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    sum.ln() - f64::from(logits[id as usize] - max)
}

fn print(args: &Args, nats: f64, tokens: usize, bytes: usize, context: usize) -> Result<()> {
    let per_token = nats / tokens as f64;
    let bits_per_byte = nats / (std::f64::consts::LN_2 * bytes as f64);
    let mut out = output::stdout();
    if args.json {
        let json = serde_json::json!({
            "tokens": tokens,
            "bytes": bytes,
            "context": context,
            "nats_per_token": per_token,
            "perplexity": per_token.exp(),
            "bits_per_byte": bits_per_byte,
        });
        writeln!(out, "{json:#}")?;
        return Ok(());
    }
    writeln!(out, "tokens         {tokens}")?;
    writeln!(out, "nats per token {per_token:.6}")?;
    writeln!(out, "perplexity     {:.4}", per_token.exp())?;
    writeln!(out, "bits per byte  {bits_per_byte:.6}")?;
    Ok(())
}
