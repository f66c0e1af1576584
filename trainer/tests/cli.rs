//! The program as users meet it: what it prints, what it refuses, and how it exits.

mod program;

use std::fs;

use program::Place;

const SMALL: [&str; 16] = [
    "--preset",
    "nano",
    "--tokenizer",
    "byte",
    "--steps",
    "4",
    "--batch",
    "2",
    "--context",
    "16",
    "--set",
    "model.hidden_size=32",
    "--set",
    "model.intermediate_size=32",
    "--set",
    "model.n_layers=1",
];

/// A folder with a text in it.
fn place() -> Place {
    let text = "She was convinced that she could have been happy with him. ".repeat(30);
    Place::new(&[("text.txt", text.as_bytes())])
}

fn fit<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["fit", "--data", "text.txt", "--out", "run"];
    args.extend(SMALL);
    args.extend(more);
    args
}

#[test]
fn fit_eval_and_sample_work_together() {
    let place = place();
    let fitted = place.succeeds(&fit(&[]));
    assert!(fitted.stdout.contains("bits per byte"), "{}", fitted.stdout);
    assert!(fitted.stderr.contains("tokens/s"), "{}", fitted.stderr);
    for name in [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "state.safetensors",
        "metrics.jsonl",
        "loss.svg",
    ] {
        assert!(place.path("run").join(name).exists(), "{name}");
    }
    let measured = place.run(&["eval", "run", "--data", "text.txt", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&measured.stdout).unwrap();
    assert_eq!(found["tokens"], 59 * 30 - 1);
    assert!(found["nats_per_token"].as_f64().unwrap() < 6.0);
    let sample = ["sample", "run", "--prompt", "She was", "--max-tokens", "5"];
    let greedy = [&sample[..], &["--temperature", "0"]].concat();
    let sampled = place.run(&greedy);
    assert!(sampled.stdout.starts_with("She was"), "{}", sampled.stderr);
    assert_eq!(sampled.stdout, place.run(&greedy).stdout);
}

/// A tokenizer that is given is the one that is stored.
#[test]
fn a_given_tokenizer_is_used() {
    let place = place();
    place.succeeds(&fit(&[]));
    let args = [
        "fit",
        "--data",
        "text.txt",
        "--out",
        "second",
        "--tokenizer",
        "run/tokenizer.json",
    ];
    let small = SMALL
        .into_iter()
        .filter(|arg| !["--tokenizer", "byte"].contains(arg));
    let args: Vec<_> = args.into_iter().chain(small).collect();
    place.succeeds(&args);
    assert_eq!(
        place.read("run/tokenizer.json"),
        place.read("second/tokenizer.json")
    );
    assert_eq!(
        place.read("run/model.safetensors"),
        place.read("second/model.safetensors")
    );
}

/// Ctrl-C: the step is finished, the run saved, the exit code 0, and the run goes on from there.
#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_exits_cleanly() {
    use std::process::{Command as Process, Stdio};
    let place = place();
    let mut args = fit(&[]);
    let steps = args.iter().position(|arg| *arg == "4").unwrap();
    args[steps] = "1000000";
    let child = Process::new(assert_cmd::cargo::cargo_bin!("bitnet-trainer"))
        .current_dir(place.path("."))
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = place.path("run/metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = child.id().to_string();
    assert!(
        Process::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("saved at step") && said.contains("--resume"),
        "{said}"
    );
    let lines = fs::read_to_string(&metrics)
        .unwrap()
        .lines()
        .count()
        .to_string();
    let more = (lines.parse::<u64>().unwrap() + 2).to_string();
    let resume = [
        "fit",
        "--data",
        "text.txt",
        "--out",
        "run",
        "--resume",
        "--stop-at",
        &more,
    ];
    let resumed = place.run(&resume);
    assert!(
        resumed
            .stderr
            .contains(&format!("going on from step {lines}")),
        "{}",
        resumed.stderr
    );
    assert!(
        resumed.stdout.contains(&format!("saved at step {more}")),
        "{}",
        resumed.stdout
    );
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = place();
    let dry = place.succeeds(&fit(&["--dry-run"]));
    assert!(dry.stdout.contains("parameters   "), "{}", dry.stdout);
    assert!(dry.stdout.contains("MiB"));
    assert!(!place.path("run").exists());
}

/// What is wrong, what the message must say, and the exit code: 1 failed, 2 bad usage.
struct Refusal {
    args: Vec<&'static str>,
    says: &'static [&'static str],
    code: i32,
}

fn refusal(args: &[&'static str], says: &'static [&'static str], code: i32) -> Refusal {
    Refusal {
        args: fit(args),
        says,
        code,
    }
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let place = place();
    fs::write(place.path("empty.txt"), "").unwrap();
    fs::write(place.path("latin1.txt"), b"caf\xe9 au lait").unwrap();
    fs::write(place.path("short.txt"), "too short").unwrap();
    let data = |file| {
        let mut args = fit(&[]);
        args[2] = file;
        args
    };
    let cases = [
        Refusal {
            args: data("empty.txt"),
            says: &["empty.txt: the file is empty"],
            code: 1,
        },
        Refusal {
            args: data("none.txt"),
            says: &["none.txt: cannot read"],
            code: 1,
        },
        Refusal {
            args: data("latin1.txt"),
            says: &["latin1.txt: byte 3 is not UTF-8"],
            code: 1,
        },
        Refusal {
            args: data("short.txt"),
            says: &["has 8 tokens", "needs 33"],
            code: 1,
        },
        refusal(&["--context", "300"], &["cannot be used multiple times"], 2),
        refusal(
            &["--set", "train.context=300"],
            &["train.context is 300", "max_seq_len is 256"],
            2,
        ),
        refusal(
            &["--set", "model.hidden=1"],
            &["nearest is model.hidden_size"],
            2,
        ),
        refusal(&["--set", "train.steps=many"], &["not a whole number"], 2),
        refusal(&["--set", "model.n_heads=0"], &["model.n_heads is 0"], 2),
        refusal(&["--resume"], &["cannot be used with"], 2),
        refusal(&["--threads", "0"], &["between 1 and 1024"], 2),
        refusal(&["--out", "x"], &["cannot be used multiple times"], 2),
    ];
    for Refusal { args, says, code } in cases {
        let outcome = place.run(&args);
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{args:?}");
        for words in says {
            assert!(
                outcome.stderr.contains(words),
                "{args:?}: {}",
                outcome.stderr
            );
        }
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        assert!(!place.path("run").exists(), "{args:?}");
    }
}

#[test]
fn unknown_presets_and_tokenizers_are_named() {
    let place = place();
    let base = ["fit", "--data", "text.txt", "--out", "run"];
    let preset = place.run(&[&base[..], &["--preset", "tny"]].concat());
    assert_eq!(preset.code, 2);
    assert!(
        preset.stderr.contains("nearest is tiny"),
        "{}",
        preset.stderr
    );
    let bpe = place.run(&[&base[..], &["--tokenizer", "bpe:9"]].concat());
    assert_eq!(bpe.code, 2);
    assert!(bpe.stderr.contains("at least 256"), "{}", bpe.stderr);
    let file = place.run(&[&base[..], &["--tokenizer", "text.txt"]].concat());
    assert_eq!(file.code, 1);
    assert!(
        file.stderr.contains("text.txt: not a tokenizer.json"),
        "{}",
        file.stderr
    );
    assert!(!place.path("run").exists());
}

/// The file below flags, flags below `--set`; what a run stores makes the same run again.
#[test]
fn settings_come_from_a_file_and_are_stored_as_one() {
    let place = place();
    let config = "preset = 'nano'\nrecipe = 'b158'\ntokenizer = 'byte'\n\
                  [model]\nhidden_size = 32\nintermediate_size = 32\nn_layers = 1\n\
                  [train]\nsteps = 3\nbatch = 5\ncontext = 16\nseed = 9\n";
    fs::write(place.path("c.toml"), config).unwrap();
    let data = ["fit", "--data", "text.txt"];
    let more = "--config c.toml --out run --batch 3 --seed 4 --set train.batch=2";
    let args: Vec<_> = data.into_iter().chain(more.split(' ')).collect();
    place.succeeds(&args);
    let stored = fs::read_to_string(place.path("run/settings.toml")).unwrap();
    for line in [
        "lr = 0.0015",
        "schedule = \"two-stage\"",
        "batch = 2",
        "seed = 4",
        "steps = 3",
    ] {
        assert!(stored.lines().any(|l| l == line), "{line}: {stored}");
    }
    let again = "--config run/settings.toml --out again --tokenizer byte";
    let args: Vec<_> = data.into_iter().chain(again.split(' ')).collect();
    place.succeeds(&args);
    assert_eq!(
        place.read("run/model.safetensors"),
        place.read("again/model.safetensors")
    );
    assert_eq!(
        place.read("run/settings.toml"),
        place.read("again/settings.toml")
    );
    fs::write(place.path("c.toml"), "[train]\nwarm_up = 3\n").unwrap();
    let refused = place.run(&[&data[..], &["--config", "c.toml", "--out", "x"]].concat());
    assert_eq!(refused.code, 2);
    let says = "no setting \"train.warm_up\"; the nearest is train.warmup";
    assert!(refused.stderr.contains(says), "{}", refused.stderr);
}

/// What is exported is what `bitnet-convert` makes of the best model, and opens as a model.
#[test]
fn a_run_ends_as_a_packed_file() {
    let place = place();
    place.succeeds(&fit(&["--export", "out.btn"]));
    let bytes = place.read("out.btn");
    let archive = bitnet_formats::Archive::open(&bytes).unwrap();
    assert_eq!(archive.config().hidden_size, 32);
    let refused = |more: &[&str], says: &str| {
        let outcome = place.run(&fit(more));
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    };
    let elsewhere = ["--overwrite", "--export", "none/out.btn"];
    refused(&elsewhere, "there is no such folder");
    let plain = [
        "--overwrite",
        "--export",
        "out.btn",
        "--set",
        "train.quantize=false",
    ];
    refused(&plain, "train.quantize is false");
}

#[test]
fn a_run_is_not_replaced_by_accident() {
    let place = place();
    let nothing = place.run(&["fit", "--data", "text.txt", "--out", "run", "--resume"]);
    assert_eq!(nothing.code, 2);
    assert!(
        nothing.stderr.contains("there is no run"),
        "{}",
        nothing.stderr
    );
    place.succeeds(&fit(&["--stop-at", "2"]));
    let model = place.read("run/model.safetensors");
    let again = place.run(&fit(&[]));
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("--overwrite"), "{}", again.stderr);
    assert_eq!(place.read("run/model.safetensors"), model);
    let resume = ["fit", "--data", "text.txt", "--out", "run", "--resume"];
    place.succeeds(&resume);
    place.succeeds(&fit(&["--overwrite", "--stop-at", "2"]));
    assert_eq!(place.read("run/model.safetensors"), model);
}

#[test]
fn an_unwritable_folder_is_named() {
    let place = place();
    fs::write(place.path("run"), "a file in the way").unwrap();
    let outcome = place.run(&fit(&[]));
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("run: cannot create"),
        "{}",
        outcome.stderr
    );
    assert_eq!(place.read("run"), b"a file in the way");
}

#[test]
fn damaged_checkpoints_are_refused() {
    let place = place();
    place.succeeds(&fit(&[]));
    let path = place.path("run/model.safetensors");
    let model = fs::read(&path).unwrap();
    let evaluate = |says: &str| {
        let outcome = place.run(&["eval", "run", "--data", "text.txt"]);
        assert_eq!(outcome.code, 1);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    };
    fs::write(&path, &model[..model.len() - 4]).unwrap();
    evaluate("run/model.safetensors: ");
    let mut poisoned = model.clone();
    let last = poisoned.len() - 4;
    poisoned[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &poisoned).unwrap();
    evaluate("holds NaN");
    fs::write(&path, &model).unwrap();
    let config = place.path("run/config.json");
    let json = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        json.replace("\"hidden_size\": 32", "\"hidden_size\": 64"),
    )
    .unwrap();
    evaluate("has shape");
    fs::remove_file(&config).unwrap();
    evaluate("config.json: cannot read");
}

/// Shape and tokenizer come from the checkpoint, everything else from the flags.
#[test]
fn runs_start_from_a_checkpoint() {
    let place = place();
    place.succeeds(&fit(&[]));
    let from = [
        "fit", "--data", "text.txt", "--out", "next", "--init", "run",
    ];
    let tuned = |more: &[&str]| {
        let short = ["--steps", "2", "--batch", "2", "--context", "16"];
        place.run(&[&from[..], &short[..], more].concat())
    };
    let planned = tuned(&["--dry-run"]);
    assert_eq!(planned.code, 0, "{}", planned.stderr);
    for line in [
        "model.hidden_size=32",
        "vocabulary     256",
        "train.lr=0.0002",
    ] {
        assert!(planned.stdout.contains(line), "{}", planned.stdout);
    }
    assert!(!place.path("next").exists());
    let fitted = tuned(&[]);
    assert_eq!(fitted.code, 0, "{}", fitted.stderr);
    for (more, says) in [
        (["--preset", "nano"], "cannot be used with"),
        (
            ["--set", "model.n_heads=8"],
            "model.n_heads is 8, but the weights of --init run are 4",
        ),
        (["--init", "text.txt"], "cannot be used multiple times"),
    ] {
        let refused = tuned(&[&more[..], &["--dry-run"]].concat());
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
    }
    let stopped = place.run(
        &[
            &from[..],
            &["--overwrite", "--context", "16", "--stop-at", "0"],
        ]
        .concat(),
    );
    assert!(
        stopped.stdout.contains("saved at step 0"),
        "{}",
        stopped.stderr
    );
    assert!(place.read("run/model.safetensors") == place.read("next/model.safetensors"));
}

#[test]
fn contexts_and_prompts_out_of_range_are_refused() {
    let place = place();
    place.succeeds(&fit(&[]));
    let long = place.run(&["eval", "run", "--data", "text.txt", "--context", "257"]);
    assert_eq!(long.code, 2);
    assert!(long.stderr.contains("takes 1 to 256"), "{}", long.stderr);
    let empty = place.run(&["sample", "run", "--prompt", ""]);
    assert_eq!(empty.code, 1);
    assert!(
        empty.stderr.contains("the prompt has no tokens"),
        "{}",
        empty.stderr
    );
    let cold = place.run(&["sample", "run", "--prompt", "a", "--temperature", "-1"]);
    assert_eq!(cold.code, 2);
}

#[test]
fn help_lists_every_setting() {
    let place = place();
    let help = place.succeeds(&["fit", "--help"]);
    for key in bitnet_trainer::keys::KEYS {
        assert!(help.stdout.contains(key.name), "{}", key.name);
    }
}
