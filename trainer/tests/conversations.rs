//! Training on conversations: one model from files, streams and folders of tokens, exact to the bit.

mod program;

use std::fs;

use program::{Outcome, Place};
use serde_json::{Value, json};

const SMALL: [&str; 16] = [
    "--preset",
    "nano",
    "--steps",
    "6",
    "--batch",
    "3",
    "--context",
    "24",
    "--set",
    "model.hidden_size=32",
    "--set",
    "model.intermediate_size=32",
    "--set",
    "model.n_layers=1",
    "--set",
    "train.sample_tokens=6",
];

impl Place {
    fn fit(&self, out: &str, more: &[&str], stdin: &str) -> Outcome {
        self.succeeds_with(&[&["fit", "--out", out], &SMALL[..], more].concat(), stdin)
    }

    fn is_same_run(&self, a: &str, b: &str) {
        for file in [
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            let same = self.read(&format!("{a}/{file}")) == self.read(&format!("{b}/{file}"));
            assert!(same, "{a} {b}: {file}");
        }
    }
}

/// Forty conversations of two to four messages.
fn chats(field: &str) -> String {
    let line = |i: usize| {
        let mut messages = vec![
            json!({"role": "user", "content": format!("What is {i} and {i}?")}),
            json!({"role": "assistant", "content": format!("It is {}, I think.", 2 * i)}),
        ];
        if i.is_multiple_of(2) {
            messages.insert(0, json!({"role": "system", "content": "Be kind."}));
            messages.push(json!({"role": "user", "content": "Thank you!"}));
        }
        json!({ field: messages }).to_string() + "\n"
    };
    (0..40).map(line).collect()
}

/// A folder with conversations.
fn place() -> Place {
    Place::new(&[("chat.jsonl", chats("messages").as_bytes())])
}

#[test]
fn one_corpus_in_many_shapes_trains_one_model() {
    let place = place();
    for kind in ["bpe:330", "byte", "char"] {
        let tokenizer = ["--tokenizer", kind];
        let with = |data: &[&'static str]| [data, &tokenizer].concat();
        let out = |name: &str| format!("{name}-{kind}");
        let said = place.fit(&out("file"), &with(&["--data", "chat.jsonl"]), "");
        assert!(said.stderr.contains("40 documents"), "{}", said.stderr);
        let sampled = "| <|im_start|>";
        assert!(said.stderr.contains(sampled), "{}", said.stderr);
        let data = with(&["--data", "-", "--field", "dialog", "--threads", "1"]);
        place.fit(&out("stdin"), &data, &format!("\n{}", chats("dialog")));
        place.is_same_run(&out("file"), &out("stdin"));
        let prepare = [
            &["prepare", "--overwrite", "--out", "tokens"][..],
            &with(&["--data", "chat.jsonl"]),
        ];
        place.succeeds(&prepare.concat());
        place.fit(&out("tokens"), &["--data", "tokens"], "");
        place.is_same_run(&out("file"), &out("tokens"));
        let eval = |data: &str| {
            let args = ["eval", &out("file"), "--json", "--data", data];
            let found: Value = serde_json::from_str(&place.succeeds(&args).stdout).unwrap();
            found
        };
        // Answers alone have bytes; tokens are theirs and one more each.
        let answers: Vec<usize> = (0..40)
            .map(|i| format!("It is {}, I think.", 2 * i).len())
            .collect();
        let all = eval("chat.jsonl");
        assert_eq!(all["bytes"], answers.iter().sum::<usize>(), "{kind}");
        if kind != "bpe:330" {
            assert_eq!(all["tokens"], answers.iter().sum::<usize>() + 40, "{kind}");
        }
        // Four of forty are held out, whole.
        let held_out = eval("tokens")["bytes"].as_u64().unwrap();
        assert!((4 * 16..=4 * 18).contains(&held_out), "{kind}: {held_out}");
    }
    // Tokens of a corpus without conversations have no marks.
    assert!(place.path("tokens/train-loss-00000.bin").exists());
    fs::write(place.path("text.txt"), "She was convinced. ".repeat(40)).unwrap();
    let text = [
        "prepare",
        "--overwrite",
        "--out",
        "tokens",
        "--data",
        "text.txt",
    ];
    place.succeeds(&[&text[..], &["--tokenizer", "byte"]].concat());
    for old in [
        "train-loss-00000.bin",
        "val-loss-00000.bin",
        "tokenizer_config.json",
    ] {
        assert!(!place.path("tokens").join(old).exists(), "{old}");
    }
}

#[test]
fn a_run_that_is_resumed_ends_with_the_same_bytes() {
    let place = place();
    let data = ["--data", "chat.jsonl", "--tokenizer", "byte"];
    let accumulate = ["--set", "train.accumulation=2"];
    place.fit(
        "whole",
        &[&data[..], &accumulate, &["--threads", "2"]].concat(),
        "",
    );
    place.fit(
        "halves",
        &[&data[..], &accumulate, &["--stop-at", "2"]].concat(),
        "",
    );
    place.succeeds(&["fit", "--out", "halves", "--resume", "--data", "chat.jsonl"]);
    place.is_same_run("whole", "halves");
    assert!(place.read("whole/state.safetensors") == place.read("halves/state.safetensors"));
    place.is_same_run("whole", "whole/best");
    let changed = chats("messages").replace("Be kind.", "Be curt.");
    fs::write(place.path("chat.jsonl"), changed).unwrap();
    let other = place.run(&["fit", "--out", "halves", "--resume", "--data", "chat.jsonl"]);
    assert!(
        other.stderr.contains("the text is not the one"),
        "{}",
        other.stderr
    );
}

/// Texts are learned whole, beside conversations that are not.
#[test]
fn texts_and_conversations_mix() {
    let place = place();
    let text = "She was convinced that she could have been happy with him. ";
    fs::write(place.path("text.txt"), text.repeat(9)).unwrap();
    let data = ["--data", "text.txt", "chat.jsonl", "--tokenizer", "byte"];
    place.fit("run", &data, "");
    let tokens = |data: &[&str]| {
        let args = [&["eval", "run", "--json", "--data"], data].concat();
        let found: Value = serde_json::from_str(&place.succeeds(&args).stdout).unwrap();
        found["tokens"].as_u64().unwrap()
    };
    // All of the text, and its end, but not the end of a conversation.
    let (chat, both) = (tokens(&["chat.jsonl"]), tokens(&["text.txt", "chat.jsonl"]));
    assert_eq!(both - chat, 9 * 59);
    assert_eq!(tokens(&["chat.jsonl", "text.txt"]) - chat, 9 * 59);
    // The template stays with the tokenizer.
    let again = ["--data", "chat.jsonl", "--tokenizer", "run/tokenizer.json"];
    place.fit("again", &again, "");
    assert!(place.read("run/tokenizer_config.json") == place.read("again/tokenizer_config.json"));
}

#[test]
fn a_question_is_written_by_the_template() {
    let place = place();
    place.fit("run", &["--data", "chat.jsonl", "--tokenizer", "byte"], "");
    let ask = [
        "sample",
        "run",
        "--chat",
        "--prompt",
        "What?",
        "--max-tokens",
        "4",
    ];
    let answer = place.succeeds(&ask).stdout;
    assert!(
        !answer.contains("What?") && !answer.contains("<|im"),
        "{answer}"
    );
    let system = place.succeeds(&[&ask[..], &["--system", "Be kind."]].concat());
    assert!(system.stdout.len() > 1);
    let misplaced = place.run(&["sample", "run", "--prompt", "a", "--system", "b"]);
    assert_eq!(misplaced.code, 2);
}

#[test]
fn what_is_wrong_with_a_conversation_is_named() {
    let place = place();
    let good = chats("messages").lines().next().unwrap().to_owned();
    let cases = [
        (
            r#"{"messages": [{"role": "user"}]}"#,
            "bad.jsonl: line 2: message 1: no \"content\"",
        ),
        (
            r#"{"messages": []}"#,
            "bad.jsonl: line 2: the conversation is no list of messages",
        ),
        (
            r#"{"text": "a"}"#,
            "bad.jsonl: line 2: field \"text\" is a text, but the first line",
        ),
        (
            r#"{"body": "a"}"#,
            "bad.jsonl: line 2: no field \"text\" or \"messages\"",
        ),
    ];
    for (line, says) in cases {
        fs::write(place.path("bad.jsonl"), format!("{good}\n{line}\n")).unwrap();
        for command in ["fit", "prepare"] {
            let args = [
                command,
                "--out",
                "out",
                "--data",
                "bad.jsonl",
                "--tokenizer",
                "bpe:300",
            ];
            let outcome = place.run(&args);
            assert_eq!(outcome.code, 1, "{says}");
            assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
            assert!(!place.path("out").exists(), "{says}");
        }
    }
    let question = r#"{"messages": [{"role": "user", "content": "Hm?"}]}"#;
    fs::write(place.path("bad.jsonl"), question).unwrap();
    let fit = ["fit", "--out", "out", "--tokenizer", "byte", "--data"];
    let silent = place.run(&[&fit[..], &["bad.jsonl"]].concat());
    assert!(
        silent
            .stderr
            .contains("no conversation has a message of the assistant"),
        "{}",
        silent.stderr
    );
    // A tokenizer without a template, and one whose turns end as texts do.
    fs::write(place.path("a.txt"), "She was convinced. ".repeat(40)).unwrap();
    fs::write(place.path("b.txt"), "She was convinced. ".repeat(40)).unwrap();
    place.fit(
        "plain",
        &["--data", "a.txt", "b.txt", "--tokenizer", "byte"],
        "",
    );
    let given = [
        "fit",
        "--out",
        "out",
        "--data",
        "chat.jsonl",
        "--tokenizer",
        "plain/tokenizer.json",
    ];
    let refused = place.run(&given);
    assert!(
        refused.stderr.contains("no chat template; put"),
        "{}",
        refused.stderr
    );
    let config = json!({
        "chat_template": "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}",
        "eos_token": "<|endoftext|>",
    });
    fs::write(
        place.path("plain/tokenizer_config.json"),
        config.to_string(),
    )
    .unwrap();
    let divided = place.run(&[&given[..], &SMALL].concat());
    assert_eq!(divided.code, 2, "{}", divided.stderr);
    assert!(
        divided.stderr.contains("train.mask_documents=false"),
        "{}",
        divided.stderr
    );
    let together = ["--set", "train.mask_documents=false"];
    place.succeeds(&[&given[..], &SMALL, &together].concat());
}
