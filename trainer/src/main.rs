//! `bitnet-trainer`: see `bitnet-trainer --help`.

use std::process::ExitCode;

use bitnet_trainer::cli::{Cli, exit_code};
use bitnet_trainer::error::Error;
use clap::Parser;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Prints an error; the library's own already say their cause.
fn report(error: &anyhow::Error) {
    match error.downcast_ref::<Error>() {
        Some(error) => eprintln!("error: {error}"),
        None => eprintln!("error: {error:#}"),
    }
}
