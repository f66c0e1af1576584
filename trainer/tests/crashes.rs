//! Runs that are killed while they save, and disks that are full: `--resume` always goes on, and
//! ends with the bytes of a run that nothing happened to.
#![cfg(unix)]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Times a run is killed in the middle of a checkpoint.
const KILLS: usize = 10;
/// Kills at most, those that hit another moment included.
const ATTEMPTS: u64 = 60;

const SETTINGS: [&str; 10] = [
    "model.hidden_size=64",
    "model.intermediate_size=64",
    "model.n_layers=1",
    "train.steps=100000",
    "train.save_every=1",
    "train.eval_every=0",
    "train.sample_tokens=0",
    "train.warmup=3",
    "train.batch=1",
    "train.context=8",
];

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let text = "She had never been so happy, nor so sure of it. ".repeat(30);
        fs::write(place.path("text.txt"), text).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bitnet-trainer"));
        command.current_dir(self.0.path());
        command.args(["fit", "--data", "text.txt", "--out", out, "--threads", "1"]);
        command
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn begin(&self, out: &str, stop_at: &str) {
        let set = SETTINGS.iter().flat_map(|setting| ["--set", setting]);
        let base = [
            "--preset",
            "nano",
            "--tokenizer",
            "byte",
            "--stop-at",
            stop_at,
        ];
        let args: Vec<_> = base.into_iter().chain(set).collect();
        succeed(&self.command(out, &args).output().unwrap());
    }

    fn resume(&self, out: &str, stop_at: u64) {
        let stop_at = stop_at.to_string();
        let args = ["--resume", "--stop-at", &stop_at];
        succeed(&self.command(out, &args).output().unwrap());
    }

    fn files(&self, out: &str) -> [Vec<u8>; 2] {
        ["state.safetensors", "model.safetensors"]
            .map(|name| fs::read(self.path(out).join(name)).unwrap())
    }

    /// Step and loss of every line of the metrics.
    fn losses(&self, out: &str) -> Vec<(u64, f64)> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        let read = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
        text.lines()
            .map(read)
            .map(|json| {
                (
                    json["step"].as_u64().unwrap(),
                    json["loss"].as_f64().unwrap(),
                )
            })
            .collect()
    }

    /// True if a file of a checkpoint is being written.
    fn is_saving(&self, out: &str) -> bool {
        let names = ["state.safetensors.tmp", "model.safetensors.tmp"];
        names.iter().any(|name| self.path(out).join(name).exists())
    }
}

fn succeed(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Kills after some saves, at a moment within a save if the machine is quick enough.
fn kill_while_saving(place: &Place, mut child: Child, saves: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for _ in 0..=saves {
        while !place.is_saving("killed") {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the run ended by itself: {status}");
            }
            assert!(Instant::now() < deadline, "no checkpoint within a minute");
        }
        std::thread::sleep(Duration::from_micros(500 * saves));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_runs_go_on_and_end_with_the_same_bytes() {
    let place = Place::new();
    place.begin("killed", "1");
    let mut hits = 0;
    for attempt in 0..ATTEMPTS {
        // Moments that differ: some saves later, some parts of a save later.
        let child = place.command("killed", &["--resume"]).spawn().unwrap();
        kill_while_saving(&place, child, attempt * 7 % 4);
        hits += usize::from(place.is_saving("killed"));
        if hits == KILLS {
            break;
        }
    }
    assert_eq!(hits, KILLS, "a half-written checkpoint in {ATTEMPTS} kills");
    let taken = place.losses("killed").len() as u64;
    place.resume("killed", taken + 3);
    place.begin("whole", &(taken + 3).to_string());
    assert!(place.files("killed") == place.files("whole"));
    assert!(!place.is_saving("killed"), "no temporary file is left");
    let losses = place.losses("killed");
    assert_eq!(losses, place.losses("whole"));
    assert!(losses.iter().map(|(step, _)| *step).eq(1..=taken + 3));
}

/// A limit on the size of files is what a full disk looks like to a writer.
#[test]
fn a_full_disk_keeps_the_earlier_checkpoint() {
    let place = Place::new();
    place.begin("run", "2");
    let before = place.files("run");
    let [state, model] = before.each_ref().map(Vec::len);
    // In blocks of 512 bytes: the model fits, the state does not.
    let blocks = (state + model) / 2 / 512;
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let resume = place.command("run", &["--resume"]);
    let output = Command::new("sh")
        .current_dir(place.0.path())
        .args(["-c", &limited])
        .arg(resume.get_program())
        .args(resume.get_args())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("state.safetensors: cannot write"), "{said}");
    assert!(place.files("run") == before && !place.is_saving("run"));
    place.resume("run", 5);
    place.begin("whole", "5");
    assert!(place.files("run") == place.files("whole"));
}
