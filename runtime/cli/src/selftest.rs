//! `--selftest`: does this machine compute what the converter's did?

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use bitnet_formats::metadata::SelfTest;
use bitnet_runtime::{LogitsHash, Model, SessionConfig};

use crate::args::Args;
use crate::model_file::{ModelFile, with_session};
use crate::output;
use crate::weights::{Decision, Weights};

pub(crate) fn run(args: &Args, file: &ModelFile) -> Result<ExitCode> {
    let archive = file.archive()?;
    file.verified(&archive, args.trust, || Ok(()))?;
    let cases: Vec<SelfTest<'_>> = archive.self_tests().collect();
    if cases.is_empty() {
        bail!(
            "{} has no self-test vectors; convert it again without --no-self-test",
            file.name()
        );
    }
    let decision = Decision::of_run(args, &archive)?;
    let mut weights = Weights::new(decision, &archive)?;
    let model = weights.load(&archive, args.kernels())?;
    // Besides each case's own hash, one over the logits of all cases.
    let mut all = LogitsHash::new();
    let hashes = cases
        .iter()
        .map(|case| replay(args, &model, case, &mut all))
        .collect::<Result<Vec<_>>>()?;
    let ok = cases
        .iter()
        .zip(&hashes)
        .all(|(case, hash)| case.logits_hash == *hash);
    print(args, &cases, &hashes, all, ok)?;
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn replay(
    args: &Args,
    model: &Model<'_>,
    case: &SelfTest<'_>,
    all: &mut LogitsHash,
) -> Result<u64> {
    let ids: Vec<u32> = case.ids().collect();
    let session = SessionConfig {
        kv: case.kv,
        ..args.session(model.config(), ids.len())
    };
    with_session(model, &session, |session| {
        let mut hash = LogitsHash::new();
        session.score(&ids, |_, logits| {
            hash.update(logits);
            all.update(logits);
        })?;
        Ok(hash.finish())
    })
}

fn print(
    args: &Args,
    cases: &[SelfTest<'_>],
    hashes: &[u64],
    all: LogitsHash,
    ok: bool,
) -> Result<()> {
    let mut out = output::stdout();
    let rows = cases.iter().zip(hashes);
    if args.json {
        let cases: Vec<_> = rows
            .map(|(case, hash)| {
                serde_json::json!({
                    "kv": case.kv.name(),
                    "tokens": case.ids().len(),
                    "expected": format!("{:016x}", case.logits_hash),
                    "logits_hash": format!("{hash:016x}"),
                })
            })
            .collect();
        let all = format!("{:016x}", all.finish());
        let isa = args.kernels().isa().name();
        let json = serde_json::json!({ "ok": ok, "isa": isa, "logits_hash": all, "cases": cases });
        writeln!(out, "{json:#}")?;
        return Ok(());
    }
    for (case, hash) in rows {
        let (tokens, kv) = (case.ids().len(), case.kv.name());
        let verdict = if case.logits_hash == *hash {
            "ok"
        } else {
            "DIFFERS"
        };
        writeln!(
            out,
            "{tokens:>4} tokens, cache {kv:<6} {hash:016x} {verdict}"
        )?;
    }
    writeln!(out, "logits hash {:016x}", all.finish())?;
    if !ok {
        output::note(format_args!(
            "error: this machine does not compute what the file expects; please report it"
        ));
    }
    Ok(())
}
