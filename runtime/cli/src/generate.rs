//! Continuing a prompt.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bitnet_runtime::sampler::Candidate;
use bitnet_runtime::{Archive, MemoryPlan, Sampler, Session, SessionConfig, Tokenizer, Want};

use crate::args::{Args, Prompt};
use crate::logits_file::LogitsFile;
use crate::model_file::{Memory, ModelFile, with_session};
use crate::output;
use crate::stop::StopFilter;
use crate::text::{self, TextStream};
use crate::weights::{Decision, Weights};

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    MaxTokens,
    StopId,
    StopText,
    ContextFull,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::StopId => "stop_id",
            Self::StopText => "stop_text",
            Self::ContextFull => "context_full",
        }
    }
}

/// What ends a text.
pub(crate) struct Ends {
    /// Tokens; they are not part of the text.
    pub(crate) ids: Vec<u32>,
    /// Texts; they are not part of it either.
    pub(crate) texts: Vec<String>,
}

impl Ends {
    /// The stop ids of the file and the texts of `--stop`.
    pub(crate) fn new(args: &Args, archive: &Archive<'_>) -> Self {
        let tokens = archive.special_tokens();
        Self {
            ids: tokens.iter().flat_map(|t| t.stop_ids()).collect(),
            texts: args.stop.clone(),
        }
    }
}

/// What came out.
pub(crate) struct Generated {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    stop: End,
    prefill: Duration,
    decode: Duration,
}

pub(crate) fn run(args: &Args, file: &ModelFile, prompt: Prompt<'_>) -> Result<()> {
    if let Some(logits) = &args.logits {
        file.refuse_overwriting(logits)?;
    }
    let archive = file.archive()?;
    let (tokenizer, ids) = file.verified(&archive, args.trust, || {
        let tokenizer = text::tokenizer(file, &archive)?;
        let ids = prompt_ids(file, &prompt, tokenizer.as_ref())?;
        Ok((tokenizer, ids))
    })?;
    let session = session_config(args, &archive, ids.len())?;
    let plan = MemoryPlan::new(archive.config(), &session)?;
    let decision = Decision::of_generation(args, &archive)?;
    let memory = file.memory(&decision, &plan)?;
    let mut weights = Weights::new(decision.clone(), &archive)?;
    let model = weights.load(&archive, args.kernels())?;
    let ends = Ends::new(args, &archive);
    let generated = with_session(&model, &session, |session| {
        generate(args, session, tokenizer.as_ref(), &ids, &ends)
    })?;
    report(args, &ids, &generated, &memory, &decision)
}

fn prompt_ids(
    file: &ModelFile,
    prompt: &Prompt<'_>,
    tokenizer: Option<&Tokenizer<'_>>,
) -> Result<Vec<u32>> {
    let text = match prompt {
        Prompt::Ids(ids) => return Ok(ids.to_vec()),
        Prompt::Text(text) => text::given(text)?,
    };
    let Some(tokenizer) = tokenizer else {
        bail!(
            "{} has no tokenizer: give token ids with --ids",
            file.name()
        );
    };
    let ids = text::encode(tokenizer, &text, true)?;
    if ids.is_empty() {
        bail!("the prompt is empty and the tokenizer has no begin-of-text token: give some text");
    }
    Ok(ids)
}

/// A session just large enough for the prompt and the answer, unless told otherwise.
pub(crate) fn session_config(
    args: &Args,
    archive: &Archive<'_>,
    prompt: usize,
) -> Result<SessionConfig> {
    let max = archive.config().max_seq_len;
    let wanted = prompt
        .saturating_add(args.max_tokens.saturating_sub(1))
        .max(1);
    let max_seq_len = args.context.unwrap_or(wanted.min(max));
    if prompt > max_seq_len {
        let raise = match args.context {
            Some(context) if context < max => format!(" or raise --context (at most {max})"),
            _ => String::new(),
        };
        bail!(
            "the prompt has {prompt} tokens and the context {max_seq_len}: shorten the prompt{raise}"
        );
    }
    Ok(args.session(archive.config(), max_seq_len))
}

/// Reads a prompt and goes on with it.
pub(crate) fn generate(
    args: &Args,
    session: &mut Session<'_, '_, '_>,
    tokenizer: Option<&Tokenizer<'_>>,
    prompt: &[u32],
    ends: &Ends,
) -> Result<Generated> {
    continue_with(args, session, tokenizer, prompt, 0, ends)
}

/// The same, where the session has read the first `known` tokens of the prompt already.
pub(crate) fn continue_with(
    args: &Args,
    session: &mut Session<'_, '_, '_>,
    tokenizer: Option<&Tokenizer<'_>>,
    prompt: &[u32],
    known: usize,
    ends: &Ends,
) -> Result<Generated> {
    let start = Instant::now();
    let mut sampler = Sampler::new(args.sampler());
    read_prompt(args, session, &prompt[known..], sampler.wants())?;
    let mut out = Generated {
        ids: Vec::new(),
        text: String::new(),
        stop: End::MaxTokens,
        prefill: start.elapsed(),
        decode: Duration::ZERO,
    };
    let mut work = vec![Candidate::default(); session.logits().len()];
    let mut stream = tokenizer.map(|tokenizer| TextStream::new(tokenizer, prompt));
    let mut filter = StopFilter::new(ends.texts.clone());
    while out.ids.len() < args.max_tokens {
        let id = sampler.sample(session.logits(), &mut work);
        if ends.ids.contains(&id) {
            out.stop = End::StopId;
            break;
        }
        out.ids.push(id);
        if let Some(stream) = &mut stream {
            let (text, stopped) = filter.push(&stream.push(id));
            emit(args, &mut out.text, &text)?;
            if stopped {
                out.stop = End::StopText;
                return Ok(out);
            }
        }
        if out.ids.len() == args.max_tokens {
            break;
        }
        if session.remaining() == 0 {
            out.stop = End::ContextFull;
            break;
        }
        let start = Instant::now();
        session.read(&[id], sampler.wants())?;
        out.decode += start.elapsed();
    }
    if let Some(stream) = &mut stream {
        let (text, stopped) = filter.push(&stream.finish());
        emit(args, &mut out.text, &text)?;
        if !stopped {
            emit(args, &mut out.text, &filter.finish())?;
        }
    }
    Ok(out)
}

/// Reads the prompt; with `--logits` every position's logits go to the file.
fn read_prompt(
    args: &Args,
    session: &mut Session<'_, '_, '_>,
    prompt: &[u32],
    want: Want,
) -> Result<()> {
    let Some(path) = &args.logits else {
        session.read(prompt, want)?;
        return Ok(());
    };
    let vocab_size = session.model().config().vocab_size;
    let mut file = LogitsFile::create(path, prompt.len(), vocab_size)?;
    let mut written = Ok(());
    session.score(prompt, |_, logits| {
        if written.is_ok() {
            written = file.push(logits);
        }
    })?;
    written?;
    file.finish()
}

fn emit(args: &Args, all: &mut String, piece: &str) -> Result<()> {
    all.push_str(piece);
    if !args.json && !piece.is_empty() {
        let mut out = output::stdout();
        out.write_all(piece.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}

/// Ends the line of an answer, and says why it ended if that is no end.
pub(crate) fn end_line(generated: &Generated) -> Result<()> {
    writeln!(output::stdout())?;
    match generated.stop {
        End::ContextFull => output::note(format_args!("stopped: the context is full")),
        End::MaxTokens => output::note(format_args!("stopped: --max-tokens is reached")),
        End::StopId | End::StopText => (),
    }
    Ok(())
}

pub(crate) fn report(
    args: &Args,
    prompt: &[u32],
    generated: &Generated,
    memory: &Memory,
    weights: &Decision,
) -> Result<()> {
    let Generated {
        ids,
        text,
        stop,
        prefill,
        decode,
    } = generated;
    let prefill_rate = output::rate(prompt.len(), *prefill);
    // The first token comes from the prompt's logits: decoding makes the others.
    let decode_rate = output::rate(ids.len().saturating_sub(1), *decode);
    let mut out = output::stdout();
    if args.json {
        let json = serde_json::json!({
            "prompt_ids": prompt,
            "ids": ids,
            "text": text,
            "stop": stop.name(),
            "prefill_tokens_per_s": prefill_rate,
            "decode_tokens_per_s": decode_rate,
            "weights": weights.name(),
            "weights_reason": weights.reason,
            "file_bytes": memory.file_bytes,
            "weight_bytes": memory.weight_bytes,
            "kv_bytes": memory.kv_bytes,
            "scratch_bytes": memory.scratch_bytes,
        });
        writeln!(out, "{json:#}")?;
        return Ok(());
    }
    if text.is_empty() && !ids.is_empty() {
        let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
        write!(out, "{}", ids.join(","))?;
    }
    writeln!(out)?;
    output::note(format_args!(
        "prefill {} tokens, {prefill_rate:.1} tokens/s; decode {} tokens, {decode_rate:.1} tokens/s",
        prompt.len(),
        ids.len().saturating_sub(1),
    ));
    output::note(format_args!(
        "memory: file mapped {}, weights copied {}{}, cache {}, scratch {}",
        output::bytes(memory.file_bytes),
        output::bytes(memory.weight_bytes),
        weights.remark(),
        output::bytes(memory.kv_bytes),
        output::bytes(memory.scratch_bytes),
    ));
    if *stop == End::ContextFull {
        output::note(format_args!("stopped: the context is full"));
    }
    Ok(())
}
