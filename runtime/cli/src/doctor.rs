//! `--doctor`: what this machine has, and what is made of it.

use std::io::Write;

use anyhow::Result;
use bitnet_runtime::Kernels;
use serde_json::{Value, json};

use crate::args::{Args, Hold};
use crate::bandwidth::ReadLoop;
use crate::cores;
use crate::machine::{self, Cache};
use crate::model_file::ModelFile;
use crate::output::{self, bytes};
use crate::timing::Samples;
use crate::weight_memory::WeightMemory;
use crate::weights::Decision;

/// Sets whose reading is timed: in the second cache, in the last, in none, on most machines.
const READ_SETS: [usize; 3] = [1 << 20, 16 << 20, 256 << 20];

/// How fast one thread reads a set of bytes.
struct Read {
    bytes: usize,
    gb_per_s: f64,
    prefetch: usize,
    huge_bytes: Option<usize>,
}

pub(crate) fn run(args: &Args, file: Option<&ModelFile>) -> Result<()> {
    let reads = READ_SETS
        .into_iter()
        .map(read)
        .collect::<Result<Vec<_>>>()?;
    let decision = file.map(|file| decide(args, file)).transpose()?;
    let mut out = output::stdout();
    if args.json {
        writeln!(out, "{:#}", as_json(args, &reads, decision.as_ref()))?;
        return Ok(());
    }
    for (name, value) in lines(args, &reads, decision.as_ref()) {
        writeln!(out, "{name:<14} {value}")?;
    }
    Ok(())
}

/// How the model's weights would be held: as the options say, or as `fast` would choose.
fn decide(args: &Args, file: &ModelFile) -> Result<Decision> {
    let archive = file.archive()?;
    let hold = args.given_hold().unwrap_or(Hold::Fast);
    Decision::new(hold, &archive, args.kernels(), args.threads())
}

/// Reads a set in the pages that copied weights get. Where memory is short, a smaller set.
fn read(asked: usize) -> Result<Read> {
    let room = machine::available_memory().map_or(asked, |bytes| bytes / 4);
    let mut memory = WeightMemory::zeroed(asked.min(room))?;
    // Pages exist once they are written.
    memory.fill(1);
    let read = ReadLoop::new(vec![&memory[..]], 1)?;
    let mut samples = Samples::default();
    (0..5).for_each(|_| samples.push(read.seconds()));
    Ok(Read {
        bytes: memory.len(),
        gb_per_s: samples.rate(memory.len() as f64 / 1e9).median,
        prefetch: read.prefetch,
        huge_bytes: memory.huge_bytes(),
    })
}

fn available_kernels() -> Vec<&'static str> {
    Kernels::available().map(|set| set.isa().name()).collect()
}

/// Cores' worth of time the system gives this process.
fn offered_cores() -> Option<usize> {
    std::thread::available_parallelism().ok().map(usize::from)
}

fn lines(args: &Args, reads: &[Read], decision: Option<&Decision>) -> Vec<(String, String)> {
    let kernels = available_kernels().join(" ");
    let chosen = args.kernels().isa().name();
    let mut lines = vec![
        ("processor", or_unknown(machine::cpu_name())),
        ("architecture", std::env::consts::ARCH.to_owned()),
        ("features", machine::features().join(" ")),
        ("kernels", format!("{kernels}; {chosen} runs")),
        ("cores", cores_line()),
        ("caches", caches_line(&machine::caches())),
        ("memory", memory_line()),
        ("pages", pages_line()),
    ];
    if let Some(decision) = decision {
        let choice = format!("{} is {}", decision.asked(), decision.name());
        let parts = [
            Some(&*choice),
            decision.origin(),
            decision.reason.as_deref(),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        lines.push(("weights", parts.join("; ")));
    }
    let mut lines: Vec<_> = lines
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    lines.extend(reads.iter().map(|read| {
        let huge = or_unknown(read.huge_bytes.map(bytes));
        (
            format!("read {}", bytes(read.bytes)),
            format!(
                "{:.1} GB/s by one thread, prefetching {} ahead, {huge} in huge pages",
                read.gb_per_s,
                bytes(read.prefetch)
            ),
        )
    }));
    lines
}

fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "unknown".to_owned())
}

fn cores_line() -> String {
    let threads = cores::default_threads();
    let offered = or_unknown(offered_cores().map(|n| n.to_string()));
    let allowed = or_unknown(machine::allowed_cores());
    let quota = machine::cpu_quota();
    let quota = quota.map_or_else(|| "none".to_owned(), |cores| format!("{cores:.2} cores"));
    format!(
        "{threads} threads by default; {offered} offered, allowed {allowed}, control group quota {quota}"
    )
}

fn caches_line(caches: &[Cache]) -> String {
    if caches.is_empty() {
        return "unknown".to_owned();
    }
    let cache = |cache: &Cache| {
        let size = bytes(cache.bytes);
        format!("L{} {size} (cores {})", cache.level, cache.shared_by)
    };
    caches.iter().map(cache).collect::<Vec<_>>().join(", ")
}

fn memory_line() -> String {
    let total = or_unknown(machine::total_memory().map(bytes));
    let available = or_unknown(machine::available_memory().map(bytes));
    format!("{total}, available {available}")
}

fn pages_line() -> String {
    let small = or_unknown(machine::page_bytes().map(bytes));
    let huge = or_unknown(machine::huge_page_mode());
    format!("{small}; huge pages: {huge}")
}

fn as_json(args: &Args, reads: &[Read], decision: Option<&Decision>) -> Value {
    let caches = machine::caches();
    let caches = caches.iter().map(
        |cache| json!({ "level": cache.level, "bytes": cache.bytes, "shared_by": cache.shared_by }),
    );
    let reads = reads.iter().map(|read| {
        json!({
            "bytes": read.bytes,
            "gb_per_s": read.gb_per_s,
            "prefetch_bytes": read.prefetch,
            "huge_page_bytes": read.huge_bytes,
        })
    });
    let weights = decision.map(|decision| {
        json!({
            "asked": decision.asked(),
            "weights": decision.name(),
            "weights_reason": decision.reason,
            "packed": decision.packed,
        })
    });
    json!({
        "cpu": machine::cpu_name(),
        "arch": std::env::consts::ARCH,
        "features": machine::features(),
        "kernels": available_kernels(),
        "isa": args.kernels().isa().name(),
        "threads": cores::default_threads(),
        "cores": offered_cores(),
        "allowed_cores": machine::allowed_cores(),
        "quota_cores": machine::cpu_quota(),
        "caches": caches.collect::<Vec<_>>(),
        "memory_bytes": machine::total_memory(),
        "available_bytes": machine::available_memory(),
        "page_bytes": machine::page_bytes(),
        "huge_page_mode": machine::huge_page_mode(),
        "reads": reads.collect::<Vec<_>>(),
        "model": weights,
    })
}
