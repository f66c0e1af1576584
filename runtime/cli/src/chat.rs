//! Talking with a model: one question, or one after the other.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, Result, bail};
use bitnet_formats::SectionKind;
use bitnet_formats::chat::ChatTables;
use bitnet_runtime::chat::{ChatMessage, render};
use bitnet_runtime::{Archive, MemoryPlan, Session, Tokenizer};

use crate::args::Args;
use crate::generate::{self, Ends};
use crate::model_file::{ModelFile, with_session};
use crate::output;
use crate::text;
use crate::weights::{Decision, Weights};

/// One question if there is one, else as many as stdin has lines.
pub(crate) fn run(args: &Args, file: &ModelFile, question: Option<&str>) -> Result<()> {
    if question.is_none() && args.json {
        bail!("--chat with --json needs a question: give it with --prompt");
    }
    let archive = file.archive()?;
    let talk = file.verified(&archive, args.trust, || Talk::new(args, file, &archive))?;
    match question {
        Some(question) => one(talk, file, text::given(question)?.into_owned()),
        None => many(talk),
    }
}

/// A conversation: who said what.
struct Talk<'a, 'w> {
    args: &'a Args,
    archive: &'a Archive<'w>,
    tokenizer: Tokenizer<'w>,
    template: ChatTables<'w>,
    ends: Ends,
    messages: Vec<(&'static str, String)>,
}

impl<'a, 'w> Talk<'a, 'w> {
    fn new(args: &'a Args, file: &ModelFile, archive: &'a Archive<'w>) -> Result<Self> {
        let Some(tokenizer) = text::tokenizer(file, archive)? else {
            bail!(
                "{} has no tokenizer, so nobody can talk with it",
                file.name()
            );
        };
        let Some(template) = archive.chat()? else {
            let name = file.name();
            match archive.section(SectionKind::ChatTemplate) {
                Some(_) => bail!(
                    "the chat template in {name} is not compiled: bitnet-convert said why when it \
                     wrote the file; write the model's own form of a conversation with --prompt"
                ),
                None => bail!("{name} has no chat template: continue a text with --prompt"),
            }
        };
        let mut ends = Ends::new(args, archive);
        ends.ids.extend(template.stop_ids());
        ends.texts
            .extend(template.stop_strings().map(str::to_owned));
        let system = args.system.iter().map(|text| ("system", text.clone()));
        Ok(Self {
            args,
            archive,
            tokenizer,
            template,
            ends,
            messages: system.collect(),
        })
    }

    fn weights(&self) -> Result<Decision> {
        Decision::of_generation(self.args, self.archive)
    }

    /// The ids of the conversation, up to where the answer begins. Names of special tokens are those
    /// tokens, in the template and in what people say; the ids that begin a text are there once.
    fn ids(&self) -> Result<Vec<u32>> {
        let messages: Vec<_> = self
            .messages
            .iter()
            .map(|(role, content)| ChatMessage { role, content })
            .collect();
        let mut conversation = String::new();
        render(&self.template, &messages, true, &mut |piece| {
            conversation.push_str(piece)
        })
        .map_err(|error| anyhow::anyhow!("{error}"))?;
        let ids = text::encode(&self.tokenizer, &conversation, false)?;
        let begin: Vec<u32> = self.tokenizer.tables().ids_before().collect();
        match ids.starts_with(&begin) {
            true => Ok(ids),
            false => Ok([begin, ids].concat()),
        }
    }
}

fn one(mut talk: Talk<'_, '_>, file: &ModelFile, question: String) -> Result<()> {
    talk.messages.push(("user", question));
    let ids = talk.ids()?;
    let args = talk.args;
    let config = generate::session_config(args, talk.archive, ids.len())?;
    let plan = MemoryPlan::new(talk.archive.config(), &config)?;
    let decision = talk.weights()?;
    let memory = file.memory(&decision, &plan)?;
    let mut weights = Weights::new(decision.clone(), talk.archive)?;
    let model = weights.load(talk.archive, args.kernels())?;
    let generated = with_session(&model, &config, |session| {
        generate::generate(args, session, Some(&talk.tokenizer), &ids, &talk.ends)
    })?;
    generate::report(args, &ids, &generated, &memory, &decision)
}

fn many(mut talk: Talk<'_, '_>) -> Result<()> {
    let args = talk.args;
    let max_seq_len = args.context.unwrap_or(talk.archive.config().max_seq_len);
    let config = args.session(talk.archive.config(), max_seq_len);
    let mut weights = Weights::new(talk.weights()?, talk.archive)?;
    let model = weights.load(talk.archive, args.kernels())?;
    with_session(&model, &config, |session| {
        // Ids whose keys and values the session holds.
        let mut known = Vec::new();
        while let Some(question) = ask()? {
            talk.messages.push(("user", question));
            answer(&mut talk, session, &mut known)?;
        }
        Ok(())
    })
}

/// The next line of stdin; `None` at its end. Empty lines are passed over.
fn ask() -> Result<Option<String>> {
    loop {
        if io::stdin().is_terminal() {
            output::prompt();
        }
        let mut line = String::new();
        let n = io::stdin().lock().read_line(&mut line);
        if n.context("cannot read a question from stdin")? == 0 {
            return Ok(None);
        }
        let question = line.trim_end_matches(['\r', '\n']);
        if !question.trim().is_empty() {
            return Ok(Some(question.to_owned()));
        }
    }
}

/// Answers the last question, reading only what is new since the last answer.
fn answer(
    talk: &mut Talk<'_, '_>,
    session: &mut Session<'_, '_, '_>,
    known: &mut Vec<u32>,
) -> Result<()> {
    let ids = talk.ids()?;
    let max = known.len() + session.remaining();
    if ids.len() > max {
        bail!(
            "the conversation has {} tokens and the context {max}: begin a new one",
            ids.len()
        );
    }
    let same = known.iter().zip(&ids).take_while(|(a, b)| a == b).count();
    // The last token is read again for its logits, if nothing else is new.
    let kept = same.min(ids.len() - 1);
    session.truncate(kept)?;
    let generated = generate::continue_with(
        talk.args,
        session,
        Some(&talk.tokenizer),
        &ids,
        kept,
        &talk.ends,
    )?;
    generate::end_line(&generated)?;
    *known = ids;
    known.extend(&generated.ids);
    // The last token of an answer is never read.
    known.truncate(max - session.remaining());
    talk.messages.push(("assistant", generated.text));
    Ok(())
}
