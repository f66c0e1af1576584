//! What a bench prints.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Bench, Setup, Test};
use crate::args::Args;
use crate::machine;
use crate::model_file::ModelFile;
use crate::output::{self, Table};
use crate::timing::{Rate, Samples};

pub(super) fn print(
    args: &Args,
    file: &ModelFile,
    bench: &Bench<'_>,
    setups: &[Setup<'_, '_>],
) -> Result<()> {
    let mut out = output::stdout();
    if args.json {
        let json = as_json(args, file, bench, setups);
        writeln!(out, "{json:#}")?;
        return Ok(());
    }
    print_head(args, file, bench, setups, &mut out)?;
    writeln!(out, "\ntokens/s, median (least to most)\n")?;
    write!(out, "{}", rates(bench, setups))?;
    writeln!(
        out,
        "\nweights read by a decode step, and by the machine's best read loop\n"
    )?;
    write!(out, "{}", traffic(bench, setups))?;
    Ok(())
}

impl Test {
    fn name(self) -> String {
        match self {
            Self::Prefill(n) => format!("prefill {n}"),
            Self::Decode(n) => format!("decode {n}"),
        }
    }

    const fn tokens(self) -> usize {
        match self {
            Self::Prefill(n) | Self::Decode(n) => n,
        }
    }
}

impl Setup<'_, '_> {
    fn layout(&self) -> &'static str {
        let first = self.model.ternary_matrices().next();
        first.map_or("none", |(_, matrix)| matrix.layout.name())
    }

    /// Bytes of the ternary weights that are in huge pages.
    fn huge_bytes(&self) -> Option<usize> {
        let mut matrices = self.model.ternary_matrices().map(|(_, m)| m.bytes());
        let first = matrices.next()?.as_ptr_range();
        let last = matrices.last().map_or(first.end, |m| m.as_ptr_range().end);
        machine::huge_bytes(first.start..last)
    }

    /// Gigabytes of weights a decode step reads in a second.
    fn step_rate(&self, bench: &Bench<'_>) -> Rate {
        let (test, samples) = bench
            .tests
            .iter()
            .zip(&self.tests)
            .next_back()
            .expect("decode");
        samples.rate(test.tokens() as f64 * self.step_bytes() as f64 / 1e9)
    }

    fn read_rate(&self) -> Rate {
        self.reading.rate(self.read.bytes() as f64 / 1e9)
    }

    fn columns(&self) -> [String; 3] {
        [
            format!("{} ({})", self.decision.asked(), self.layout()),
            self.threads.count().to_string(),
            self.model.kernels().isa().name().to_owned(),
        ]
    }
}

/// Heads of [`Setup::columns`].
const SETUP: [&str; 3] = ["weights", "threads", "kernels"];

fn print_head(
    args: &Args,
    file: &ModelFile,
    bench: &Bench<'_>,
    setups: &[Setup<'_, '_>],
    out: &mut impl Write,
) -> Result<()> {
    let (model, first) = (setups[0].model, &setups[0]);
    let config = model.config();
    let millions = config.parameter_count() as f64 / 1e6;
    writeln!(out, "model     {}, {millions:.1} M parameters", file.name())?;
    let head = model.head();
    let head_bytes = output::bytes(head.bytes().len());
    writeln!(out, "head      {}, {head_bytes}", head.dtype.name())?;
    let cpu = machine::cpu_name().unwrap_or_else(|| "unknown".into());
    writeln!(out, "machine   {cpu}")?;
    writeln!(
        out,
        "session   context {}, prompts read {} tokens at a time, cache {}; {} repetitions",
        bench.session.max_seq_len,
        bench.session.prefill_batch,
        bench.session.kv.name(),
        args.repetitions
    )?;
    let mut seen = None;
    for setup in setups {
        if seen.replace(std::ptr::from_ref(setup.decision)) != Some(setup.decision) {
            writeln!(out, "weights   {}", pages(setup))?;
        }
    }
    writeln!(
        out,
        "logits    equal everywhere, hash {:016x}",
        first.logits_hash
    )?;
    Ok(())
}

/// Where the weights are, in which pages, and why.
fn pages(setup: &Setup<'_, '_>) -> String {
    let bytes: usize = setup
        .model
        .ternary_matrices()
        .map(|(_, m)| m.bytes().len())
        .sum();
    let huge = match setup.huge_bytes() {
        Some(huge) => output::bytes(huge),
        None => "unknown".into(),
    };
    let head = match setup.model.coarse_head_bytes() {
        0 => String::new(),
        bytes => format!("; coarse head {}", output::bytes(bytes)),
    };
    let reason = setup.decision.reason.as_ref();
    let reason = reason.map_or_else(String::new, |reason| format!("; {reason}"));
    format!(
        "{}: {} of ternary weights as {}, in huge pages {huge}{head}{reason}",
        setup.decision.asked(),
        output::bytes(bytes),
        setup.layout(),
    )
}

fn rates(bench: &Bench<'_>, setups: &[Setup<'_, '_>]) -> Table {
    let tests = bench.tests.iter().map(|test| test.name());
    let head = SETUP.map(str::to_owned).into_iter().chain(tests);
    let mut table = Table::new(head.collect());
    for setup in setups {
        let mut row = setup.columns().to_vec();
        let tests = bench.tests.iter().zip(&setup.tests);
        row.extend(tests.map(|(test, samples)| spread(samples.rate(test.tokens() as f64))));
        table.push(row);
    }
    table
}

fn spread(rate: Rate) -> String {
    format!("{:.1} ({:.1} to {:.1})", rate.median, rate.min, rate.max)
}

fn traffic(bench: &Bench<'_>, setups: &[Setup<'_, '_>]) -> Table {
    let columns = [
        "step GB/s",
        "read GB/s",
        "share",
        "weight passes",
        "reading t5 + head",
        "ratio",
    ];
    let head = SETUP.into_iter().chain(columns).map(str::to_owned);
    let mut table = Table::new(head.collect());
    for setup in setups {
        let (step, read) = (setup.step_rate(bench).median, setup.read_rate().median);
        let (pass, reading) = (setup.pass.median(), setup.reading.median());
        let mut row = setup.columns().to_vec();
        row.extend([
            format!("{step:.2}"),
            format!("{read:.2}"),
            format!("{:.0} %", step / read * 100.0),
            format!("{:.3} ms", pass * 1e3),
            format!("{:.3} ms", reading * 1e3),
            format!("{:.2}", pass / reading),
        ]);
        table.push(row);
    }
    table
}

fn as_json(args: &Args, file: &ModelFile, bench: &Bench<'_>, setups: &[Setup<'_, '_>]) -> Value {
    let model = setups[0].model;
    json!({
        "model": file.name().to_string(),
        "parameters": model.config().parameter_count(),
        "head": model.head().dtype.name(),
        "head_bytes": model.head().bytes().len(),
        "cpu": machine::cpu_name(),
        "context": bench.session.max_seq_len,
        "prefill_batch": bench.session.prefill_batch,
        "kv": bench.session.kv.name(),
        "repetitions": args.repetitions,
        "configurations": setups.iter().map(|setup| setup_json(bench, setup)).collect::<Vec<_>>(),
    })
}

fn setup_json(bench: &Bench<'_>, setup: &Setup<'_, '_>) -> Value {
    let tests = bench.tests.iter().zip(&setup.tests).map(|(test, samples)| {
        json!({
            "name": test.name(),
            "tokens": test.tokens(),
            "tokens_per_s": rate_json(samples.rate(test.tokens() as f64)),
        })
    });
    json!({
        "asked": setup.decision.asked(),
        "weights": setup.decision.name(),
        "weights_reason": setup.decision.reason,
        "layout": setup.layout(),
        "coarse_head_bytes": setup.model.coarse_head_bytes(),
        "huge_page_bytes": setup.huge_bytes(),
        "threads": setup.threads.count(),
        "isa": setup.model.kernels().isa().name(),
        "logits_hash": format!("{:016x}", setup.logits_hash),
        "tests": tests.collect::<Vec<_>>(),
        "step_bytes": setup.step_bytes(),
        "step_gb_per_s": rate_json(setup.step_rate(bench)),
        "read_gb_per_s": rate_json(setup.read_rate()),
        "read_prefetch_bytes": setup.read.prefetch,
        "share_of_read": setup.step_rate(bench).median / setup.read_rate().median,
        "weight_pass_s": seconds_json(&setup.pass),
        "read_bytes": setup.read.bytes(),
        "read_s": seconds_json(&setup.reading),
        "weight_pass_per_read": setup.pass.median() / setup.reading.median(),
    })
}

fn rate_json(rate: Rate) -> Value {
    json!({ "median": rate.median, "min": rate.min, "max": rate.max })
}

fn seconds_json(samples: &Samples) -> Value {
    json!({ "median": samples.median(), "min": samples.min(), "max": samples.max() })
}
