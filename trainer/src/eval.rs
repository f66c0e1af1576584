//! The loss of a model on a text, by a definition that other programs can repeat.
//!
//! The text is encoded whole, without special tokens, to ids `t[0..N]`. Window `w` of context `C`
//! reads `t[wC .. min(wC + C, N - 1)]` at positions from 0 and predicts the same range shifted by
//! one. So every token but the first is predicted exactly once, from at most `C` before it.
//!
//! - nats per token: the sum of `-ln p` over all predictions, divided by `N - 1`;
//! - perplexity: `e` to that power;
//! - bits per byte: the sum divided by `ln 2` and by the UTF-8 bytes of the whole text.
//!
//! The sum is f64, windows in order.

use rayon::prelude::*;
use serde::Serialize;

use crate::data::EncodedText;
use crate::error::{Error, Result};
use crate::model::{Diverged, Model, Sequence};

/// What an evaluation finds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Tokens predicted: all but the first.
    pub tokens: usize,
    /// Bytes of the text.
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

/// A window's inputs and targets.
type Window<'a> = (&'a [u32], &'a [u32]);

fn windows(ids: &[u32], context: usize) -> impl Iterator<Item = Window<'_>> {
    let inputs = ids[..ids.len() - 1].chunks(context);
    inputs.zip(ids[1..].chunks(context))
}

/// Evaluates on the current rayon pool; a thread owns whole windows.
///
/// # Errors
///
/// [`Error::Data`] for a text of fewer than two tokens or a context the model cannot have, and if
/// an activation or the loss is not finite.
pub fn evaluate(model: &Model<f32>, text: &EncodedText, context: usize) -> Result<Evaluation> {
    check(model, text, context)?;
    let windows: Vec<_> = windows(&text.ids, context).collect();
    let losses: Vec<_> = windows
        .into_par_iter()
        .map_init(|| None, |buffer, window| window_loss(model, window, buffer))
        .collect();
    let losses: std::result::Result<Vec<f64>, Diverged> = losses.into_iter().collect();
    let sum: f64 = losses.map_err(|e| Error::Data(e.to_string()))?.iter().sum();
    if !sum.is_finite() {
        return Err(Error::Data("the loss is infinite or not a number".into()));
    }
    let tokens = text.ids.len() - 1;
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

fn check(model: &Model<f32>, text: &EncodedText, context: usize) -> Result<()> {
    let max_seq_len = model.config().max_seq_len;
    if context == 0 || context > max_seq_len {
        return Err(Error::Usage(format!(
            "--context is {context}; this model takes 1 to {max_seq_len} tokens"
        )));
    }
    if text.ids.len() < 2 {
        let n = text.ids.len();
        let message = format!("the text has {n} tokens; an evaluation needs at least 2");
        return Err(Error::Data(message));
    }
    Ok(())
}

/// Loss of one window. The buffers are kept from window to window; the last may be shorter.
fn window_loss(
    model: &Model<f32>,
    (inputs, targets): Window<'_>,
    buffer: &mut Option<Sequence<f32>>,
) -> std::result::Result<f64, Diverged> {
    let seq = match buffer.take() {
        Some(seq) if seq.len() == inputs.len() => seq,
        _ => Sequence::to_evaluate(model.config(), inputs.len()),
    };
    model.loss(inputs, targets, buffer.insert(seq))
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
                for (w, (inputs, targets)) in windows(&ids, context).enumerate() {
                    assert_eq!(inputs[0] as usize, w * context);
                    assert!(inputs.iter().zip(targets).all(|(x, y)| x + 1 == *y));
                    assert_eq!(inputs.len(), targets.len());
                    predicted.extend(targets);
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
        let text = EncodedText {
            ids: (0..200).map(|i| i * i % 50).collect(),
            bytes: 400,
        };
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
