//! `bitnet-convert` as people and scripts meet it.

mod util;

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use bitnet_formats::Archive;
use safetensors::Dtype;
use util::{Draft, grouped, latent, names};

fn convert(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("bitnet-convert").unwrap();
    command.current_dir(dir).args(args).output().unwrap()
}

/// Exit code, standard output, standard error.
fn outcome(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = convert(dir, args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// Blanks what differs from run to run, and the hashes, which `files.rs` compares.
fn stable(text: &str) -> String {
    let line = |line: &str| match line.split_once(" bytes in ") {
        Some((start, _)) => format!("{start} bytes in TIME"),
        None => match line.split_once("cache: ") {
            Some((start, _)) => format!("{start}cache: HASH"),
            None => line.to_owned(),
        },
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn help() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, _) = outcome(dir.path(), &["--help"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("help", stdout);
}

#[test]
fn a_conversion_reports() {
    let dir = Draft::of(latent(), Dtype::BF16).save();
    let (code, stdout, stderr) = outcome(dir.path(), &[".", "out.btn"]);
    assert_eq!(code, 0, "{stderr}");
    insta::assert_snapshot!("report", stdout);
    insta::assert_snapshot!("messages", stable(&stderr));
    let file = fs::read(dir.path().join("out.btn")).unwrap();
    Archive::open(&file).unwrap().verify().unwrap();
    assert_eq!(
        names(dir.path()),
        ["config.json", "model.safetensors", "out.btn"]
    );
}

#[test]
fn a_listing_says_what_is_inside() {
    let dir = Draft::of(latent(), Dtype::BF16).save();
    assert_eq!(outcome(dir.path(), &["model.safetensors", "out.btn"]).0, 0);
    let (code, stdout, stderr) = outcome(dir.path(), &["--inspect", "out.btn"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    insta::assert_snapshot!("listing", stable(&stdout));
}

#[test]
fn scripts_get_json() {
    let dir = Draft::of(grouped(), Dtype::F32).save();
    let parse = |args: &[&str]| {
        let (code, stdout, stderr) = outcome(dir.path(), args);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap()
    };
    let report = parse(&[".", "out.btn", "--json", "--embedding", "source"]);
    let bytes = fs::metadata(dir.path().join("out.btn")).unwrap().len();
    assert_eq!(report["file_bytes"], bytes);
    assert_eq!(report["kinds"][0]["role"], "embedding");
    assert_eq!(report["kinds"][0]["dtype"], "f32");
    assert_eq!(report["ternary"]["tensors"], 14);
    let listing = parse(&["--inspect", "out.btn", "--json"]);
    assert_eq!(listing["file_bytes"], bytes);
    assert_eq!(listing["config"]["hidden_size"], 40);
    assert_eq!(listing["tensors"].as_array().unwrap().len(), 25);
    assert_eq!(listing["self_tests"][0]["kv"], "native");
    assert_eq!(listing["bos_id"], 1);
    assert_eq!(listing["stop_ids"], serde_json::json!([3]));
}

#[test]
fn options_reach_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let dummy = |args: &[&str]| {
        let args = [&["--dummy", "nano", "out.btn"], args].concat();
        let (code, stdout, stderr) = outcome(dir.path(), &args);
        assert_eq!(code, 0, "{stderr}");
        // A model that was asked for at random is not missing a tokenizer.
        assert!(!stderr.contains("warning"), "{stderr}");
        (stdout, fs::read(dir.path().join("out.btn")).unwrap())
    };
    let (report, plain) = dummy(&[]);
    assert!(report.contains("q_proj           t5 "), "{report}");
    assert!(report.contains("embedding        i8 "), "{report}");
    let (report, _) = dummy(&["--pack", "t2", "--embedding", "bf16"]);
    assert!(report.contains("q_proj           t2 "), "{report}");
    assert!(report.contains("embedding        bf16 "), "{report}");
    assert!(dummy(&["--seed", "1"]).1 != plain);
    let untested = dummy(&["--no-self-test"]).1;
    assert_eq!(Archive::open(&untested).unwrap().self_tests().count(), 0);
    assert_eq!(Archive::open(&plain).unwrap().self_tests().count(), 3);
}

#[test]
fn failures_exit_with_one_and_name_the_file() {
    let dir = Draft::of(grouped(), Dtype::F32).save();
    let before = names(dir.path());
    let message = |args: &[&str]| {
        let (code, stdout, stderr) = outcome(dir.path(), args);
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        assert_eq!(names(dir.path()), before);
        stderr
    };
    let not_btn = message(&["--inspect", "model.safetensors"]);
    let expected = "error: model.safetensors: this is not a .btn file";
    assert!(not_btn.starts_with(expected), "{not_btn}");
    assert!(message(&["--inspect", "none.btn"]).starts_with("error: cannot open none.btn: "));
    assert!(message(&["none", "out.btn"]).starts_with("error: cannot open none: "));
    assert_eq!(
        message(&[".", "."]),
        "error: . is a folder; name a file in it\n"
    );
    assert_eq!(
        message(&["config.json", "out.btn"]),
        "error: config.json: not valid JSON: missing field `weight_map` at line 1 column 599\n"
    );
}

#[test]
fn nonsense_exits_with_two() {
    let dir = tempfile::tempdir().unwrap();
    let message = |args: &[&str]| {
        let (code, _, stderr) = outcome(dir.path(), args);
        assert_eq!(code, 2, "{stderr}");
        assert!(names(dir.path()).is_empty());
        stderr
    };
    assert!(message(&["one"]).contains("expected two files, input and output"));
    assert!(message(&["a", "b", "c"]).contains("expected two files, input and output"));
    assert!(message(&["--dummy", "nano", "a", "b"]).contains("--dummy takes one file, the output"));
    assert!(
        message(&["--dummy", "huge", "a"]).contains("presets are nano, tiny, small, bitnet-700m")
    );
    assert!(message(&["a", "b", "--embedding", "i4"]).contains("invalid value 'i4'"));
    assert!(message(&["a", "b", "--seed", "1"]).contains("--dummy"));
    message(&[]);
    message(&["--inspect", "a", "--dummy", "nano"]);
}

/// A disk that fills up, played by a limit on the size of files.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let program = assert_cmd::cargo::cargo_bin("bitnet-convert");
    // 256 blocks of 512 bytes, or of 1024: below the file's 0.4 MB either way.
    let script = r#"trap '' XFSZ; ulimit -f 256; exec "$0" --dummy nano out.btn"#;
    let output = std::process::Command::new("sh")
        .current_dir(dir.path())
        .args(["-c", script])
        .arg(program)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.starts_with("error: cannot write out.btn: "),
        "{message}"
    );
    assert!(names(dir.path()).is_empty());
}

/// A reader that closes the pipe early is no failure.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(outcome(dir.path(), &["--dummy", "nano", "out.btn"]).0, 0);
    let program = assert_cmd::cargo::cargo_bin("bitnet-convert");
    let script = r#"{ "$0" --inspect out.btn; echo "$?" >code; } | true"#;
    let output = std::process::Command::new("sh")
        .current_dir(dir.path())
        .args(["-c", script])
        .arg(program)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(fs::read_to_string(dir.path().join("code")).unwrap(), "0\n");
}
