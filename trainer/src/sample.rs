//! Text from a model, to see what it has learned. The runtime is what runs models fast; this
//! computes every position again for each token.

use crate::chat::{ChatEncoder, Conversation};
use crate::error::{Error, Result};
use crate::model::{Model, Sequence};
use crate::rng::{Rng, Stream};
use crate::tokenizer::Tokenizer;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct SampleOptions {
    /// Tokens to add.
    pub max_tokens: usize,
    /// 0 takes the likeliest; above, logits are divided by this.
    pub temperature: f64,
    /// Keeps the likeliest so many; 0 keeps all.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// What a model continues.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its ids; at least one.
    pub ids: Vec<u32>,
    /// As it is shown.
    pub text: String,
    /// Ids that end the continuation.
    pub ends: Vec<u32>,
}

impl Prompt {
    /// A text. Its continuation ends where a text ends.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`]; [`Error::Data`] for a prompt of no tokens.
    pub fn of_text(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let ids = tokenizer.encode(text)?;
        if ids.is_empty() {
            let message = "the prompt has no tokens; give at least one character";
            return Err(Error::Data(message.into()));
        }
        Ok(Self {
            ids,
            text: text.into(),
            ends: tokenizer.end_of_text().into_iter().collect(),
        })
    }

    /// A question, written by the chat template.
    ///
    /// # Errors
    ///
    /// As [`ChatEncoder::new`] and [`ChatEncoder::prompt`].
    pub fn of_question(
        tokenizer: &Tokenizer,
        system: Option<&str>,
        question: &str,
    ) -> Result<Self> {
        let chat = ChatEncoder::new(tokenizer)?;
        let ids = chat.prompt(&Conversation::question(system, question))?;
        Ok(Self {
            text: tokenizer.decode(&ids)?,
            ends: chat.end_ids().chain(tokenizer.end_of_text()).collect(),
            ids,
        })
    }
}

/// The continuation of `prompt`, without it and without what ends it.
///
/// Past `max_seq_len` tokens the model sees the last `max_seq_len`.
///
/// # Errors
///
/// [`Error::Data`] if an activation is not finite.
pub fn sample(
    model: &Model<f32>,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    options: &SampleOptions,
) -> Result<String> {
    let mut ids = prompt.ids.clone();
    let mut rng = Rng::new(options.seed, Stream::Sample, 0);
    for _ in 0..options.max_tokens {
        let seen = &ids[ids.len().saturating_sub(model.config().max_seq_len)..];
        let mut seq = Sequence::to_evaluate(model.config(), seen.len());
        let logits = model
            .next_logits(seen, &mut seq)
            .map_err(|e| Error::Data(e.to_string()))?;
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(Error::Data("a logit is infinite or not a number".into()));
        }
        let next = choose(logits, options, &mut rng);
        if prompt.ends.contains(&next) {
            break;
        }
        ids.push(next);
    }
    tokenizer.decode(&ids[prompt.ids.len()..])
}

/// One token id. Equal logits go to the lower id.
fn choose(logits: &[f32], options: &SampleOptions, rng: &mut Rng) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |id: u32| logits[id as usize];
    order.sort_by(|a, b| logit(*b).total_cmp(&logit(*a)));
    if options.temperature == 0.0 {
        return order[0];
    }
    if options.top_k > 0 {
        order.truncate(options.top_k);
    }
    let top = f64::from(logit(order[0]));
    let weight = |id: &u32| ((f64::from(logit(*id)) - top) / options.temperature).exp();
    let weights: Vec<f64> = order.iter().map(weight).collect();
    let mut left = rng.uniform() * weights.iter().sum::<f64>();
    for (id, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    order[order.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(options: SampleOptions) -> Vec<u32> {
        let mut rng = Rng::new(options.seed, Stream::Sample, 0);
        let logits = [0.0, 2.0, 1.0, 2.0];
        (0..2000)
            .map(|_| choose(&logits, &options, &mut rng))
            .collect()
    }

    const OPTIONS: SampleOptions = SampleOptions {
        max_tokens: 0,
        temperature: 1.0,
        top_k: 0,
        seed: 5,
    };

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let greedy = SampleOptions {
            temperature: 0.0,
            ..OPTIONS
        };
        assert!(draws(greedy).iter().all(|id| *id == 1));
    }

    #[test]
    fn top_k_keeps_the_likeliest() {
        let two = SampleOptions {
            top_k: 2,
            ..OPTIONS
        };
        assert!(draws(two).iter().all(|id| *id == 1 || *id == 3));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let count = |id| draws(OPTIONS).iter().filter(|x| **x == id).count() as f64 / 2000.0;
        let sum = 1.0 + 2.0 * 2.0f64.exp() + 1.0f64.exp();
        assert!((count(0) - 1.0 / sum).abs() < 0.03);
        assert!((count(1) - 2.0f64.exp() / sum).abs() < 0.03);
        assert_eq!(draws(OPTIONS), draws(OPTIONS));
    }
}
