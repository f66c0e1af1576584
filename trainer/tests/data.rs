//! Corpora as users bring them: patterns, JSON Lines, standard input, folders of tokens, and dirt.

mod program;

use std::fs;

use program::{Outcome, Place};

const SENTENCE: &str = "She was convinced that she could have been happy with him. ";

const SMALL: [&str; 14] = [
    "--preset",
    "nano",
    "--steps",
    "3",
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

impl Place {
    fn fit(&self, out: &str, data: &[&str], stdin: &str) -> Outcome {
        let args = [&["fit", "--out", out], &SMALL[..], &["--data"], data].concat();
        self.succeeds_with(&args, stdin)
    }
}

/// Thirty documents, as lines of JSON.
fn json_lines() -> String {
    let line = |i: usize| {
        let text = format!("{i}: {}", SENTENCE.repeat(1 + i % 3));
        serde_json::json!({"id": i, "body": text}).to_string() + "\n"
    };
    (0..30).map(line).collect()
}

#[test]
fn one_corpus_in_many_shapes_trains_one_model() {
    let lines = json_lines();
    let place = Place::new(&[("lines.jsonl", lines.as_bytes())]);
    let texts: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|json| json["body"].as_str().unwrap().to_owned())
        .collect();
    fs::create_dir(place.path("texts")).unwrap();
    for (i, text) in texts.iter().enumerate() {
        fs::write(place.path(&format!("texts/{i:02}.txt")), text).unwrap();
    }
    fs::write(place.path("one.txt"), texts.join("<END>")).unwrap();
    let tokenizer = ["--tokenizer", "bpe:300"];
    let shapes: [(&str, Vec<&str>, &str); 4] = [
        ("lines", vec!["lines.jsonl", "--field", "body"], ""),
        ("files", vec!["texts/*.txt"], ""),
        ("divided", vec!["one.txt", "--separator", "<END>"], ""),
        ("stdin", vec!["-", "--field", "body"], &lines),
    ];
    for (out, data, stdin) in &shapes {
        let said = place.fit(out, &[&data[..], &tokenizer].concat(), stdin);
        assert!(
            said.stderr.contains("30 documents; 0 empty"),
            "{}",
            said.stderr
        );
        for file in ["model.safetensors", "tokenizer.json", "config.json"] {
            let same = place.read(&format!("{out}/{file}")) == place.read(&format!("lines/{file}"));
            assert!(same, "{out}/{file}");
        }
    }
    let prepare = [
        "prepare",
        "--out",
        "tokens",
        "--field",
        "body",
        "--data",
        "lines.jsonl",
    ];
    let said = place.succeeds(&[&prepare[..], &tokenizer].concat());
    assert!(
        said.stdout.contains("30 documents (0 empty"),
        "{}",
        said.stdout
    );
    place.fit("prepared", &["tokens"], "");
    assert!(place.read("prepared/model.safetensors") == place.read("lines/model.safetensors"));
    let eval = |data: &[&str]| {
        place
            .succeeds(&[&["eval", "prepared", "--json", "--data"], data].concat())
            .stdout
    };
    let held_out: serde_json::Value = serde_json::from_str(&eval(&["tokens"])).unwrap();
    let metrics = String::from_utf8(place.read("prepared/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert!(last["val_loss"].is_number() && held_out["nats_per_token"].is_number());
    // All thirty texts, their bytes without the ends of text between them.
    let all: serde_json::Value =
        serde_json::from_str(&eval(&["lines.jsonl", "--field", "body"])).unwrap();
    assert_eq!(all["bytes"], texts.iter().map(String::len).sum::<usize>());
}

/// A document in front changes nothing for those behind it: no loss looks across an end of text.
#[test]
fn documents_do_not_see_each_other() {
    let place = Place::new(&[
        ("a.txt", SENTENCE.repeat(20).as_bytes()),
        (
            "b.txt",
            b"But he was gone, and she was left alone with her mother.",
        ),
        (
            "c.txt",
            b"3.14159265358979323846264338327950288419716939937510",
        ),
    ]);
    place.fit("run", &["a.txt", "b.txt", "--tokenizer", "byte"], "");
    let sum = |data: &[&str]| {
        let args = [
            &["eval", "run", "--json", "--context", "256", "--data"],
            data,
        ]
        .concat();
        let found: serde_json::Value = serde_json::from_str(&place.succeeds(&args).stdout).unwrap();
        found["nats_per_token"].as_f64().unwrap() * found["tokens"].as_f64().unwrap()
    };
    // c, its end, the first byte of b (which nothing comes before), the rest of b.
    let extra = sum(&["c.txt", "b.txt"]) - sum(&["c.txt"]) - sum(&["b.txt"]);
    let again = sum(&["b.txt", "c.txt"]) - sum(&["c.txt"]) - sum(&["b.txt"]);
    let near_uniform = |x: f64| (x / 257f64.ln() - 2.0).abs() < 0.5;
    assert!(
        near_uniform(extra) && near_uniform(again),
        "{extra} {again}"
    );
}

#[test]
fn a_stream_that_is_needed_twice_is_refused() {
    let place = Place::new(&[]);
    let prepare = ["prepare", "--data", "-", "--out", "tokens"];
    let refused = place.run_with(&prepare, SENTENCE);
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("can be read once"),
        "{}",
        refused.stderr
    );
    assert!(!place.path("tokens").exists());
    let bytes = [&prepare[..], &["--tokenizer", "byte"]].concat();
    place.succeeds_with(&bytes, &SENTENCE.repeat(20));
    let again = place.run_with(&bytes, SENTENCE);
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("--overwrite"), "{}", again.stderr);
    assert_eq!(place.read("tokens/train-00000.bin").len(), 2 * 59 * 18);
}

#[test]
fn damaged_folders_of_tokens_are_refused() {
    let place = Place::new(&[("text.txt", SENTENCE.repeat(20).as_bytes())]);
    let prepare = [
        "prepare",
        "--data",
        "text.txt",
        "--out",
        "tokens",
        "--tokenizer",
        "byte",
    ];
    place.succeeds(&prepare);
    let refused = |says: &str| {
        let args = [
            &["fit", "--overwrite", "--data", "tokens", "--out", "run"],
            &SMALL[..],
        ]
        .concat();
        let outcome = place.run(&args);
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    };
    let (shard, index) = (
        place.path("tokens/train-00000.bin"),
        place.path("tokens/shards.json"),
    );
    let tokens = fs::read(&shard).unwrap();
    fs::write(&shard, &tokens[1..]).unwrap();
    refused("train-00000.bin: has 2123 bytes, but the index says 1062 tokens");
    fs::write(&shard, vec![0xff; tokens.len()]).unwrap();
    refused("train-00000.bin: holds id 65535");
    fs::remove_file(&shard).unwrap();
    refused("train-00000.bin: cannot read");
    fs::write(&index, "{}").unwrap();
    refused("shards.json: cannot be understood");
}

#[test]
fn a_tokenizer_without_an_end_of_text_takes_one_document() {
    let place = Place::new(&[
        ("a.txt", SENTENCE.repeat(20).as_bytes()),
        ("b.txt", SENTENCE.repeat(20).as_bytes()),
    ]);
    place.fit("run", &["a.txt", "--tokenizer", "byte"], "");
    let args = [
        "fit",
        "--out",
        "two",
        "--tokenizer",
        "run/tokenizer.json",
        "--data",
        "a.txt",
    ];
    place.succeeds(&[&args[..], &["--dry-run"]].concat());
    let refused = place.run(&[&args[..], &["b.txt"]].concat());
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("no id that ends a text"),
        "{}",
        refused.stderr
    );
}

/// Whatever is wrong with one file of many, nothing is learned and the file is named.
#[test]
fn dirt_anywhere_in_a_corpus_is_named_and_nothing_is_written() {
    let good = SENTENCE.repeat(20);
    let huge_line = "x".repeat(300_000);
    let cases: [(&str, &[u8], &str); 5] = [
        ("dirt.txt", b"caf\xe9", "dirt.txt: byte 3 is not UTF-8"),
        ("dirt.txt", b"\x7fELF\0\0\0", "dirt.txt: byte 4 is zero"),
        ("dirt.txt", b"\xff\xfea\0", "dirt.txt: byte 0 is not UTF-8"),
        (
            "dirt.jsonl",
            b"{\"text\": \"cut",
            "dirt.jsonl: line 1: no JSON",
        ),
        (
            "dirt.jsonl",
            b"{\"text\": null}",
            "dirt.jsonl: line 1: field \"text\" is no string",
        ),
    ];
    for (name, bytes, says) in cases {
        let place = Place::new(&[
            ("in/a.txt", good.as_bytes()),
            ("in/b.txt", huge_line.as_bytes()),
            ("in/empty.txt", b""),
            (&format!("in/{name}"), bytes),
        ]);
        for command in ["fit", "prepare"] {
            let args = [
                command,
                "--out",
                "out",
                "--tokenizer",
                "bpe:300",
                "--data",
                "in/*",
            ];
            let outcome = place.run(&args);
            assert_eq!(outcome.code, 1, "{command} {says}: {}", outcome.stderr);
            assert!(
                outcome.stderr.contains(says),
                "{command}: {}",
                outcome.stderr
            );
            assert!(!place.path("out").exists(), "{command} {says}");
        }
    }
    // Without the dirt: one huge line is a document like any other, and empty files are counted.
    let place = Place::new(&[
        ("in/a.txt", good.as_bytes()),
        ("in/b.txt", huge_line.as_bytes()),
        ("in/empty.txt", b""),
    ]);
    let said = place.fit("run", &["in/*", "--tokenizer", "bpe:300"], "");
    assert!(
        said.stderr.contains("2 documents; 1 empty"),
        "{}",
        said.stderr
    );
}
