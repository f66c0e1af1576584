//! Exports, `--verify` and `--prune-dead`, as a terminal shows them.

mod util;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use bitnet_formats::{Archive, ModelConfig};
use safetensors::Dtype;
use util::{Draft, grouped, latent, names};

/// Exit code and standard error.
fn outcome(dir: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::cargo_bin("bitnet-convert").unwrap();
    let output = command.current_dir(dir).args(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), stderr)
}

fn success(dir: &Path, args: &[&str]) -> String {
    let (code, stderr) = outcome(dir, args);
    assert_eq!(code, 0, "{stderr}");
    stderr
}

/// Every width a multiple of 256, the block of the ternary types of GGUF.
fn wide() -> ModelConfig {
    ModelConfig {
        hidden_size: 256,
        intermediate_size: 256,
        n_heads: 16,
        ..grouped()
    }
}

#[test]
fn a_model_leaves_and_comes_back() {
    let dir = Draft::of(wide(), Dtype::F32).save();
    let dir = dir.path();
    success(dir, &[".", "m.btn", "--embedding", "source"]);
    fs::create_dir(dir.join("single")).unwrap();
    for args in [
        &["m.btn", "single/out.safetensors"][..],
        &["m.btn", "folder"],
        &["m.btn", "tq1.gguf", "--gguf", "tq1_0"],
        &["m.btn", "tq2.gguf", "--gguf", "tq2_0"],
    ] {
        success(dir, args);
        let back = [args[1], "back.btn", "--embedding", "source"];
        success(dir, &back);
        assert_eq!(
            hashes(&dir.join("back.btn")),
            hashes(&dir.join("m.btn")),
            "{args:?}"
        );
    }
}

/// Hashes of the logits of the self-test prompts.
fn hashes(file: &Path) -> Vec<u64> {
    let file = fs::read(file).unwrap();
    let tests: Vec<_> = Archive::open(&file).unwrap().self_tests().collect();
    assert!(!tests.is_empty());
    tests.iter().map(|test| test.logits_hash).collect()
}

#[test]
fn what_another_format_cannot_hold_is_refused() {
    let dir = Draft::of(latent(), Dtype::F32).save();
    let dir = dir.path();
    success(dir, &[".", "m.btn", "--no-self-test"]);
    let before = names(dir);
    let (code, stderr) = outcome(dir, &["m.btn", "m.gguf"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!("latent_to_gguf", stderr);
    assert_eq!(names(dir), before);
}

#[test]
fn verification_says_what_it_compared() {
    let dir = Draft::of(grouped(), Dtype::F32).save();
    let stderr = success(dir.path(), &[".", "m.btn", "--verify"]);
    let line = stderr.lines().find(|line| line.contains("verified"));
    insta::assert_snapshot!("verified", line.expect(&stderr));
}

/// A neuron whose gate row is zero gives zero, whatever comes in.
#[test]
fn pruning_says_what_it_removed() {
    let mut draft = Draft::of(grouped(), Dtype::F32);
    // Twenty of sixty rows of 40 elements, four bytes each.
    let gate = draft.tensor("model.layers.0.mlp.gate_proj.weight");
    gate.data[4 * 40 * 40..].fill(0);
    let dir = draft.save();
    let stderr = success(dir.path(), &[".", "m.btn", "--prune-dead"]);
    let line = stderr.lines().find(|line| line.contains("pruned"));
    insta::assert_snapshot!("pruned", line.expect(&stderr));
    let before = names(dir.path());
    let mut messages = String::new();
    for output in ["folder", "m.gguf"] {
        let (code, stderr) = outcome(dir.path(), &["m.btn", output]);
        assert_eq!(code, 1, "{stderr}");
        messages.push_str(&stderr);
    }
    insta::assert_snapshot!("pruned_exports", messages);
    assert_eq!(names(dir.path()), before);
}
