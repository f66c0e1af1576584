//! `bitnet-trainer`: see `bitnet-trainer --help`.

use std::process::ExitCode;

use bitnet_trainer::cli::{Cli, exit_code};
use clap::Parser;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}
