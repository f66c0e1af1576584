//! Running a model and reporting what it took.

use bitnet_formats::TokenizerTables;
use bitnet_runtime::{LogitsHash, Model, RunError, Session, SessionConfig, Step, Want, argmax};

use crate::console::{print, write};
use crate::counter::Counter;

/// Most token ids of a prompt.
pub const MAX_PROMPT: usize = 64;

/// Token ids separated by commas; `None` if one is no number or there are too many.
#[must_use]
pub fn parse_ids(text: &str, ids: &mut [u32; MAX_PROMPT]) -> Option<usize> {
    let mut n = 0;
    for id in text.split(',') {
        *ids.get_mut(n)? = id.parse().ok()?;
        n += 1;
    }
    Some(n)
}

/// Writes the bytes of a token, or its id where the model has no tokenizer.
pub fn write_token(tokenizer: Option<&TokenizerTables<'_>>, id: u32) {
    match tokenizer {
        Some(tables) => write(tables.token(id).unwrap_or_default()),
        None => print(format_args!("{id} ")),
    }
}

/// Continues a prompt greedily, one token at a time, and writes text, ids and figures.
///
/// # Errors
///
/// As [`Session::prefill`].
pub fn generate(
    session: &mut Session<'_, '_, '_>,
    counter: &Counter,
    prompt: &[u32],
    n_tokens: usize,
) -> Result<(), RunError> {
    let tokenizer = session.model().archive().tokenizer().ok().flatten();
    let start = counter.cycles();
    let mut id = argmax(session.prefill(prompt)?);
    let prefill = counter.instructions_since(start);
    let (mut decode, mut largest) = (0, 0);
    let mut hash = LogitsHash::new();
    hash.update(session.logits());
    for n in 0..n_tokens {
        write_token(tokenizer.as_ref(), id);
        if n + 1 < n_tokens {
            let start = counter.cycles();
            session.decode(id)?;
            let took = counter.instructions_since(start);
            (decode, largest) = (decode + took, took.max(largest));
            hash.update(session.logits());
            id = argmax(session.logits());
        }
    }
    let per_token = decode / n_tokens.saturating_sub(1).max(1) as u64;
    print(format_args!(
        "\n# generated hash {:016x}\n# instructions per token: prompt {}, decode {per_token}, at most {largest}\n",
        hash.finish(),
        prefill / prompt.len() as u64,
    ));
    Ok(())
}

/// Replays the self-test vectors of a file with work budgets of `budget`; returns the hash of all
/// their logits, and whether each case gave the hash in the file.
///
/// # Errors
///
/// A case that does not fit the session, or as [`Session::score`].
pub fn self_test(
    model: &Model<'_>,
    (kv, scratch): (&mut [u8], &mut [u8]),
    config: &SessionConfig,
    budget: usize,
) -> Result<(u64, bool), RunError> {
    let (mut all, mut ok) = (LogitsHash::new(), true);
    for case in model.archive().self_tests() {
        let mut session = Session::new(model, kv, scratch, config)?;
        let mut hash = LogitsHash::new();
        for id in case.ids() {
            session.begin(&[id], Want::Each)?;
            loop {
                match session.step(budget)? {
                    Step::Pending => (),
                    Step::Done => break,
                    Step::Logits { .. } => {
                        hash.update(session.logits());
                        all.update(session.logits());
                    }
                }
            }
        }
        ok &= hash.finish() == case.logits_hash;
    }
    Ok((all.finish(), ok))
}

/// The most instructions one `step(1)` takes while a token is read with a context of `position`
/// tokens before it.
///
/// # Errors
///
/// As [`Session::prefill`].
pub fn largest_step(
    session: &mut Session<'_, '_, '_>,
    counter: &Counter,
    position: usize,
) -> Result<u64, RunError> {
    session.truncate(0)?;
    while session.position() < position {
        session.decode(1)?;
    }
    session.begin(&[1], Want::Last)?;
    let mut largest = 0;
    loop {
        let start = counter.cycles();
        let step = session.step(1)?;
        largest = counter.instructions_since(start).max(largest);
        if step == Step::Done {
            return Ok(largest);
        }
    }
}
