//! `bitnet-run`: runs a `.btn` language model.
#![deny(unsafe_code)]

mod args;
mod cores;
mod generate;
mod logits_file;
mod model_file;
mod output;
mod perplexity;
mod plan;
mod selftest;
mod text;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use args::{Args, Task};
use model_file::ModelFile;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let file = ModelFile::open(&args.model)?;
    match args.task() {
        Task::Plan => plan::print(args, &file).map(|()| ExitCode::SUCCESS),
        Task::SelfTest => selftest::run(args, &file),
        Task::Perplexity(text) => perplexity::run(args, &file, text).map(|()| ExitCode::SUCCESS),
        Task::Generate(prompt) => generate::run(args, &file, prompt).map(|()| ExitCode::SUCCESS),
    }
}
