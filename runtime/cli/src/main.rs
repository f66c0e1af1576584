//! `bitnet-run`: runs a `.btn` language model.
#![deny(unsafe_code)]

mod args;
mod bandwidth;
mod bench;
mod chat;
mod cores;
mod doctor;
mod embed;
mod generate;
mod layout_choice;
mod logits_file;
mod machine;
mod model_file;
mod output;
mod perplexity;
mod plan;
mod selftest;
mod stop;
mod text;
mod timing;
mod weight_memory;
mod weights;

use std::process::ExitCode;

use anyhow::Result;

use args::{Args, Prompt, Task};
use model_file::ModelFile;

fn main() -> ExitCode {
    match run(&Args::read()) {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let file = args.model().map(ModelFile::open).transpose()?;
    let done = |()| ExitCode::SUCCESS;
    let Some(file) = &file else {
        return doctor::run(args, None).map(done);
    };
    match args.task() {
        Task::Plan => plan::print(args, file).map(done),
        Task::SelfTest => selftest::run(args, file),
        Task::Embed(text) => embed::run(args, file, &Prompt::Text(text)).map(done),
        Task::Generate(prompt @ Prompt::Ids(_)) if embed::gives_embeddings(file)? => {
            embed::run(args, file, &prompt).map(done)
        }
        Task::Perplexity(_) | Task::Chat(_) | Task::Generate(_)
            if embed::gives_embeddings(file)? =>
        {
            anyhow::bail!("{} gives embeddings: use --embed or --ids", file.name())
        }
        Task::Perplexity(text) => perplexity::run(args, file, text).map(done),
        Task::Bench => bench::run(args, file).map(done),
        Task::Doctor => doctor::run(args, Some(file)).map(done),
        Task::Chat(question) => chat::run(args, file, question).map(done),
        Task::Generate(prompt) => generate::run(args, file, prompt).map(done),
    }
}
