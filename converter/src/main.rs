//! `bitnet-convert`: packs ternary checkpoints into `.btn` files, and lists what those hold.
#![deny(unsafe_code)]

mod args;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::ops::{ControlFlow, Deref};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use bitnet_converter::convert::{FileBytes, FileView, InputKind, Outcome, open_verified};
use bitnet_converter::inspect::Listing;
use bitnet_converter::{Conversion, ConvertError, Export, convert, convert_dummy};
use bitnet_formats::Archive;
use indicatif::{ProgressBar, ProgressStyle};
use memmap2::Mmap;

use crate::args::{Action, Command, Input, Job};

fn main() -> ExitCode {
    let command = Command::from_env();
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error; the library's own already say their cause.
fn report(error: &anyhow::Error) {
    match error.downcast_ref::<ConvertError>() {
        Some(error) => eprintln!("error: {error}"),
        None => eprintln!("error: {error:#}"),
    }
}

/// A reader that has seen enough is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn run(command: &Command) -> anyhow::Result<()> {
    match &command.action {
        Action::Inspect(file) => inspect(file, command.json),
        Action::Write(job) => match job.export()? {
            Some(input) => export(input, job),
            None => print_outcome(&write(job)?, command.json),
        },
    }
}

impl Job {
    /// The `.btn` file that is to be given back in another format, if that is the job.
    fn export(&self) -> anyhow::Result<Option<&Path>> {
        let Input::Checkpoint(input) = &self.from else {
            return Ok(None);
        };
        let is_btn = InputKind::of(input)? == InputKind::Btn;
        let extension = self.output.extension().and_then(|e| e.to_str());
        match (is_btn, extension) {
            (true, Some("btn")) => Ok(None),
            (true, _) => Ok(Some(input)),
            (false, Some("gguf" | "safetensors")) => anyhow::bail!(
                "{}: from this input a .btn file can be written; that can then be converted",
                self.output.display()
            ),
            (false, _) => Ok(None),
        }
    }
}

fn export(input: &Path, job: &Job) -> anyhow::Result<()> {
    let file = File::open(input).with_context(|| format!("cannot open {}", input.display()))?;
    let bytes = map(&file).with_context(|| format!("cannot read {}", input.display()))?;
    let archive = open_verified(&bytes, input)?;
    let output = job.output.display();
    let export = Export {
        archive: &archive,
        release: &|| bytes.release(),
    };
    let problem = match job.output.extension().is_some_and(|e| e == "gguf") {
        true => export.gguf(&job.output, job.gguf)?,
        false => export.checkpoint(&job.output)?,
    };
    if let Some(reason) = problem {
        eprintln!("warning: {output} has no tokenizer: {reason}");
    }
    eprintln!("wrote {output}");
    Ok(())
}

fn inspect(path: &Path, json: bool) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {}", name()))?;
    let bytes = map(&file).with_context(|| format!("cannot read {}", name()))?;
    let archive = Archive::open(&bytes).with_context(name)?;
    archive.verify().with_context(name)?;
    let listing = Listing(&archive);
    let mut out = io::stdout().lock();
    match json {
        true => writeln!(out, "{:#}", listing.to_json())?,
        false => write!(out, "{listing}")?,
    }
    Ok(())
}

fn write(job: &Job) -> anyhow::Result<Outcome> {
    let bar = progress_bar();
    let stop = stop_on_interrupt()?;
    let start = Instant::now();
    let conversion = Conversion {
        pack: job.pack,
        read: job.read,
        prune_dead: job.prune_dead,
        verify: job.verify,
        self_test: job.self_test,
        read_back: map,
        progress: &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            match stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        },
    };
    let outcome = match &job.from {
        Input::Checkpoint(input) => convert(input, &job.output, conversion)?,
        Input::Dummy(preset, seed) => convert_dummy(*preset, *seed, &job.output, conversion)?,
    };
    bar.finish_and_clear();
    summarise(job, &outcome, start.elapsed().as_secs_f64());
    Ok(outcome)
}

fn summarise(job: &Job, outcome: &Outcome, seconds: f64) {
    if !outcome.has_tokenizer && matches!(job.from, Input::Checkpoint(_)) {
        eprintln!("warning: there is no tokenizer in the file; the model takes token ids only");
    }
    if let Some(problem) = &outcome.chat_problem {
        eprintln!(
            "warning: the chat template is kept, but bitnet-run --chat cannot use it: {problem}; \
             a file chat_template.jinja beside the checkpoint takes its place"
        );
    }
    let (output, bytes) = (job.output.display(), outcome.file_bytes);
    eprintln!("wrote {output}: {bytes} bytes in {seconds:.1} s");
    if let Some(pruned) = outcome.pruned {
        eprintln!(
            "pruned {pruned} dead neurons; the logits of the self-test prompts are the same bits"
        );
    }
    if let Some(verified) = outcome.verified {
        eprintln!(
            "verified: {} codes, {} scales, {} elements of norms and {} of embedding and head are \
             those of the input",
            verified.codes, verified.scales, verified.gains, verified.values
        );
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    const TEMPLATE: &str = "{bar:40} {percent} %, {human_pos} weights, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(TEMPLATE);
    let bar = ProgressBar::no_length();
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Ctrl-C stops between two row groups, so that the partial file is removed.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

fn print_outcome(outcome: &Outcome, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let mut value = outcome.report.to_json();
        value["file_bytes"] = outcome.file_bytes.into();
        writeln!(out, "{value:#}")?;
    } else {
        write!(out, "{}", outcome.report)?;
        writeln!(out, "file: {} bytes", outcome.file_bytes)?;
    }
    Ok(())
}

/// A mapped file.
struct Mapped(Mmap);

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl FileView for Mapped {
    #[cfg(unix)]
    #[allow(
        unsafe_code,
        reason = "dropping pages is unsafe for private maps, which this is not"
    )]
    fn release(&self) {
        // SAFETY: the map is shared and read-only: pages that are dropped are read again from the
        // file, with the same bytes.
        // Advice that is not taken costs memory and nothing else.
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

/// Maps a file into memory.
#[allow(
    unsafe_code,
    reason = "a memory map is as sound as the file is left alone"
)]
fn map(file: &File) -> io::Result<FileBytes> {
    // SAFETY: the bytes must not change while they are mapped. Nobody else knows the name of the
    // file that is being written; the one that is listed is the user's, who is told by its
    // checksums if it changes, and bytes are never trusted to be valid.
    let map = unsafe { Mmap::map(file) }?;
    Ok(Box::new(Mapped(map)))
}
