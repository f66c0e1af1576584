//! `--plan`: the exact bytes, before anything runs.

use std::io::Write;

use anyhow::Result;
use bitnet_runtime::MemoryPlan;

use crate::args::Args;
use crate::model_file::ModelFile;
use crate::output;
use crate::weights::Decision;

pub(crate) fn print(args: &Args, file: &ModelFile) -> Result<()> {
    let archive = file.archive()?;
    let config = *archive.config();
    let session = args.session(&config, args.context.unwrap_or(config.max_seq_len));
    let plan = MemoryPlan::new(&config, &session)?;
    let weights = Decision::of_generation(args, &archive)?;
    let memory = file.memory(&weights, &plan)?;
    let total = memory.weight_bytes + memory.kv_bytes + memory.scratch_bytes;
    let mut out = output::stdout();
    if args.json {
        let json = serde_json::json!({
            "context": session.max_seq_len,
            "prefill_batch": session.prefill_batch,
            "threads": session.threads,
            "kv": session.kv.name(),
            "parameters": config.parameter_count(),
            "weights": weights.name(),
            "weights_reason": weights.reason,
            "packed": weights.packed,
            "file_bytes": memory.file_bytes,
            "weight_bytes": memory.weight_bytes,
            "kv_bytes": memory.kv_bytes,
            "scratch_bytes": memory.scratch_bytes,
            "total_bytes": total,
        });
        writeln!(out, "{json:#}")?;
        return Ok(());
    }
    writeln!(out, "parameters     {:>14}", config.parameter_count())?;
    writeln!(out, "context        {:>14} positions", session.max_seq_len)?;
    writeln!(out, "threads        {:>14}", session.threads)?;
    writeln!(out, "file, mapped   {:>14} bytes", memory.file_bytes)?;
    writeln!(
        out,
        "weights copied {:>14} bytes{}",
        memory.weight_bytes,
        weights.remark()
    )?;
    writeln!(
        out,
        "cache          {:>14} bytes ({})",
        memory.kv_bytes,
        session.kv.name()
    )?;
    writeln!(out, "scratch        {:>14} bytes", memory.scratch_bytes)?;
    writeln!(out, "buffers, total {total:>14} bytes")?;
    Ok(())
}
