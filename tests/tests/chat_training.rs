//! Conversations from JSON Lines to `bitnet-run --chat`: what the trainer's template wrote is what the
//! runtime writes, and what was learned is what it answers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bitnet_tests::programs::Programs;
use serde_json::json;

const TALKS: [(&str, &str); 4] = [
    ("Who are you?", "A very small model."),
    ("What is the sea?", "Salt water, and a lot of it."),
    ("Say <|im_end|> twice", "<|im_end|><|im_end|>"),
    ("Bye.", "Farewell – à bientôt!"),
];

fn run(folder: &Path, program: &Path, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.current_dir(folder).args(args).stdin(Stdio::null());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_was_learned_is_what_is_answered() {
    let programs = Programs::build();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Forty times the same four, so that those held out are known as well.
    let line = |i: usize| {
        let (question, answer) = TALKS[i % TALKS.len()];
        let messages = [
            json!({"role": "user", "content": question}),
            json!({"role": "assistant", "content": answer}),
        ];
        json!({ "messages": messages }).to_string() + "\n"
    };
    let lines: String = (0..160).map(line).collect();
    fs::write(folder.join("chat.jsonl"), lines).unwrap();
    let settings = [
        "model.hidden_size=64",
        "model.intermediate_size=128",
        "model.n_layers=2",
        "model.max_seq_len=96",
    ];
    let set = settings.iter().flat_map(|setting| ["--set", setting]);
    let fit = [
        "fit",
        "--data",
        "chat.jsonl",
        "--out",
        "run",
        "--preset",
        "nano",
        "--tokenizer",
        "bpe:320",
        "--steps",
        "240",
        "--batch",
        "4",
        "--context",
        "96",
        "--lr",
        "6e-3",
        "--threads",
        "1",
    ];
    let fit: Vec<_> = fit.into_iter().chain(set).collect();
    run(folder, &programs.trainer, &fit);
    run(
        folder,
        &programs.convert,
        &["run", "chat.btn", "--embedding", "f32"],
    );
    for (question, answer) in TALKS {
        if question.contains("<|im_end|>") {
            // A name of a special token is text to the trainer and that token to the runtime.
            continue;
        }
        let greedy = ["--prompt", question, "--temperature", "0"];
        let sample = [&["sample", "run", "--chat"], &greedy[..]].concat();
        let trained = run(folder, &programs.trainer, &sample);
        let chat = [&["chat.btn", "--chat"], &greedy[..]].concat();
        let answered = run(folder, &programs.run, &chat);
        assert_eq!(trained.trim_end(), answer);
        assert_eq!(answered.trim_end(), answer);
    }
}
