//! The memory that `--dry-run` announces is what a run then holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_formats::Preset;
use bitnet_trainer::keys;
use bitnet_trainer::memory::{MemoryEstimate, Surroundings};
use bitnet_trainer::model::Keep;
use bitnet_trainer::settings::Settings;
use bitnet_trainer::trainer::Trainer;

const AROUND: Surroundings = Surroundings {
    threads: 3,
    validation_tokens: 1000,
    held_bytes: 0,
    reached_bytes: 0,
    ranks: 1,
    ranks_here: 1,
};

/// The system allocator, counting the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` unchanged, which keeps the contract; counting touches no
// memory that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `alloc` above, hence from `System`, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// One test at a time: what another allocates would be counted.
static ALONE: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// To the byte but for names, lists of buffers and the like.
#[test]
fn the_formula_is_what_is_allocated() {
    let _alone = ALONE.lock();
    let cases: [&[&str]; 8] = [
        &[],
        &["model.attention=grouped", "model.n_kv_heads=2"],
        &["model.attention=grouped", "model.sub_norms=false"],
        &["model.attention=grouped", "model.norms.in_linear=1e-6"],
        &[
            "model.attention=grouped",
            "model.sub_norms=false",
            "model.norms.in_linear=1e-6",
        ],
        &["train.batch=3", "train.context=200"],
        &["model.tie_embeddings=false", "train.batch=1"],
        &[
            "model.max_seq_len=900",
            "train.context=900",
            "train.batch=1",
        ],
    ];
    // One pool: what the threads of an earlier one give back late would be counted.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
    let pool = pool.unwrap();
    for sets in cases {
        let mut settings = Settings::preset(Preset::Nano);
        for assignment in sets {
            keys::apply(&mut settings, assignment).unwrap();
        }
        for keep in [Keep::Activations, Keep::Inputs] {
            let before = IN_USE.load(Ordering::Relaxed);
            let trainer = pool.install(|| Trainer::new(settings.clone(), None, keep));
            let held = IN_USE.load(Ordering::Relaxed) - before;
            let estimate = MemoryEstimate::new(&settings, keep, &AROUND);
            let formula = estimate.weight_bytes + estimate.activation_bytes;
            let apart = held as f64 / formula as f64 - 1.0;
            assert!((0.0..0.003).contains(&apart), "{sets:?}: {held} {formula}");
            assert_eq!(trainer.step(), 0);
        }
    }
}

/// The peak that the system saw, against the bytes that `--dry-run` prints: weights first, then
/// activations kept, then computed again.
#[test]
fn the_peak_of_a_run_is_what_was_announced() {
    if bitnet_trainer::system::peak_resident_bytes().is_none() {
        eprintln!("SKIP: this system does not say what a process has held at most");
        return;
    }
    let _alone = ALONE.lock();
    let wide = ["model.hidden_size=512", "model.intermediate_size=1376"];
    let deep = ["model.n_layers=8", "train.batch=8"];
    let again = [
        "model.n_layers=8",
        "train.batch=8",
        "train.checkpoint_activations=on",
    ];
    for (sets, at_least) in [(&wide[..], 200), (&deep, 200), (&again, 60)] {
        let (announced, peak) = announced_and_peak(sets);
        assert!(announced > f64::from(at_least), "{sets:?}: {announced}");
        let apart = (peak / announced - 1.0).abs();
        assert!(
            apart < 0.05,
            "{sets:?}: {peak} MiB at most, {announced} announced"
        );
    }
}

/// In MiB, of two steps with an evaluation, a sample and two checkpoints.
fn announced_and_peak(sets: &[&str]) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let text = "She was convinced that she could have been happy with him. ".repeat(400);
    std::fs::write(folder.path().join("text.txt"), text).unwrap();
    let fit = |more: &[&str]| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bitnet-trainer"));
        command
            .current_dir(folder.path())
            .args(["fit", "--data", "text.txt"]);
        command.args(["--out", "run", "--preset", "nano", "--tokenizer", "byte"]);
        command.args(["--threads", "2", "--set", "train.steps=2"]);
        sets.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        let output = command.args(more).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        (String::from_utf8(output.stdout).unwrap(), stderr)
    };
    let dry = fit(&["--dry-run"]).0;
    let line = dry.lines().find_map(|line| line.strip_prefix("memory "));
    let bytes = line.unwrap().trim().split(' ').next().unwrap();
    let ran = fit(&[]).1;
    let line = ran.lines().find_map(|line| line.strip_prefix("memory "));
    let peak = line.unwrap().split(' ').next().unwrap();
    let mib = f64::from(1 << 20);
    (bytes.parse::<f64>().unwrap() / mib, peak.parse().unwrap())
}
