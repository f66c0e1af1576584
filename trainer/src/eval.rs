//! The loss of a model on a text, by a definition that other programs can repeat.
//!
//! The text is encoded whole, without special tokens, to ids `t[0..N]`. Window `w` of context `C`
//! reads `t[wC .. min(wC + C, N - 1)]` at positions from 0 and predicts the same range shifted by
//! one. So every token but the first is predicted exactly once, from at most `C` before it.
//!
//! Several texts have the tokenizer's end of text between them, where it has one. It is predicted like
//! any token and has no bytes, and what stands after it does not see what stands before.
//!
//! Of conversations only the answers are predicted, each with the token that ends it; their bytes are
//! those that count.
//!
//! - nats per token: the sum of `-ln p` over all predictions, divided by their number;
//! - perplexity: `e` to that power;
//! - bits per byte: the sum divided by `ln 2` and by the UTF-8 bytes of the whole text.
//!
//! The sum is f64, windows in order.

use rayon::prelude::*;
use serde::Serialize;

use crate::data::EncodedText;
use crate::error::{Error, Result};
use crate::memory::heads_at_once;
use crate::model::sequence::parts;
use crate::model::{Model, Sequence};
use crate::ops::target;

/// What an evaluation finds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Tokens predicted: all but the first, or those of answers.
    pub tokens: usize,
    /// Bytes of the text or the answers.
    pub bytes: usize,
    /// Tokens per window.
    pub context: usize,
    /// Mean loss.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`.
    pub perplexity: f64,
    /// Loss per byte of text, in bits.
    pub bits_per_byte: f64,
}

/// First token and number of predictions of each window.
fn windows(len: usize, context: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = (0..len - 1).step_by(context);
    starts.map(move |start| (start, context.min(len - 1 - start)))
}

/// Evaluates on the current rayon pool, as many windows at a time as fill it.
///
/// # Errors
///
/// [`Error::Data`] for a text of fewer than two tokens or a context the model cannot have, and if
/// an activation or the loss is not finite; as [`Tokens::read`](crate::data::Tokens::read).
pub fn evaluate(model: &Model<f32>, text: &EncodedText, context: usize) -> Result<Evaluation> {
    check(model, text, context)?;
    let windows: Vec<_> = windows(text.tokens.len(), context).collect();
    let threads = rayon::current_num_threads();
    let at_once = sequences_at_once(threads, windows[0].1).min(windows.len());
    let heads = heads_at_once(model.config(), threads, at_once);
    let mut buffers: Vec<_> = (0..at_once).map(|_| None).collect();
    let (mut sum, mut tokens) = (0.0, 0);
    for round in windows.chunks(at_once) {
        let losses: Vec<_> = buffers
            .par_iter_mut()
            .zip(round)
            .map(|(buffer, window)| window_loss(model, text, *window, heads, buffer))
            .collect();
        for found in losses {
            let (loss, predicted) = found?;
            sum += loss;
            tokens += predicted;
        }
    }
    if !sum.is_finite() {
        return Err(Error::Data("the loss is infinite or not a number".into()));
    }
    if tokens == 0 {
        let message = "there is no answer of an assistant, so nothing to predict";
        return Err(Error::Data(message.into()));
    }
    let nats_per_token = sum / tokens as f64;
    Ok(Evaluation {
        tokens,
        bytes: text.bytes,
        context,
        nats_per_token,
        perplexity: nats_per_token.exp(),
        bits_per_byte: sum / (std::f64::consts::LN_2 * text.bytes as f64),
    })
}

/// Sequences of `len` tokens that keep so many threads busy: each has work for as many as it has
/// parts.
#[must_use]
pub fn sequences_at_once(threads: usize, len: usize) -> usize {
    threads.div_ceil(parts(len).count().max(1))
}

fn check(model: &Model<f32>, text: &EncodedText, context: usize) -> Result<()> {
    let max_seq_len = model.config().max_seq_len;
    if context == 0 || context > max_seq_len {
        return Err(Error::Usage(format!(
            "--context is {context}; this model takes 1 to {max_seq_len} tokens"
        )));
    }
    if text.tokens.len() < 2 {
        let n = text.tokens.len();
        let message = format!("the text has {n} tokens; an evaluation needs at least 2");
        return Err(Error::Data(message));
    }
    Ok(())
}

/// Loss of one window, and how many tokens it predicts. The buffers are kept from window to window;
/// the last may be shorter.
fn window_loss(
    model: &Model<f32>,
    text: &EncodedText,
    (start, count): (usize, usize),
    heads: usize,
    buffer: &mut Option<Sequence<f32>>,
) -> Result<(f64, usize)> {
    let ids = text.tokens.read(start, count + 1)?;
    let seq = match buffer.take() {
        Some(seq) if seq.len() == count => seq,
        old => {
            drop(old);
            Sequence::to_evaluate(model.config(), count)
                .divided_by(text.end_of_text)
                .with_heads(heads)
        }
    };
    let targets = text.targets(&ids, start)?;
    let loss = model.loss(&ids[..count], &targets, buffer.insert(seq));
    let loss = loss.map_err(|e| Error::Data(e.to_string()))?;
    Ok((loss, target::counted(&targets)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::{ModelConfig, Preset};

    #[test]
    fn windows_predict_every_token_but_the_first_once() {
        for n in 2..20u32 {
            let ids: Vec<u32> = (0..n).collect();
            for context in 1..22 {
                let mut predicted: Vec<u32> = Vec::new();
                for (w, (start, count)) in windows(ids.len(), context).enumerate() {
                    assert_eq!(start, w * context);
                    assert!((1..=context).contains(&count));
                    predicted.extend(&ids[start + 1..=start + count]);
                }
                assert_eq!(predicted, ids[1..]);
            }
        }
    }

    #[test]
    fn units_agree_and_threads_do_not_matter() {
        let config = ModelConfig {
            vocab_size: 50,
            ..Preset::Nano.config()
        };
        let mut model = Model::new(config, true);
        model.init(3);
        let text = EncodedText::from_ids((0..200).map(|i| i * i % 50).collect(), 400);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap()
                .install(|| evaluate(&model, &text, 64).unwrap())
        };
        let one = run(1);
        assert_eq!(one, run(3));
        assert_eq!(one.tokens, 199);
        assert!((one.perplexity.ln() - one.nats_per_token).abs() < 1e-12);
        let bits = one.nats_per_token * 199.0 / 400.0 / std::f64::consts::LN_2;
        assert!((one.bits_per_byte - bits).abs() < 1e-12);
        let error = evaluate(&model, &text, 257).unwrap_err().to_string();
        assert!(error.contains("1 to 256"), "{error}");
    }
}
