//! Whatever is wrong, one clear message, exit code 1, and nothing left behind.

mod util;

use std::fs::File;
use std::process::Stdio;

use bitnet_formats::SectionKind;
use bitnet_tests::synthetic::{Storage, model_with};
use util::{Outcome, Place, grouped, latent, mute, reciting, speaking};

/// One line, from a run that printed no result and left no file.
fn message(place: &Place, args: &[&str]) -> String {
    let before = place.names();
    let message = place.run(args).failure(1);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("error: "), "{message}");
    assert_eq!(place.names(), before, "{args:?}");
    message
}

#[test]
fn each_failure_has_its_message() {
    let place = Place::with(&speaking(&grouped()));
    place.write("mute.btn", mute(&latent()));
    place.write("notes.txt", "These are notes.");
    place.write("empty.btn", "");
    place.write("short.txt", "a");
    place.write("empty.txt", "");
    place.write("latin1.txt", b"caf\xe9");
    std::fs::create_dir(place.path("folder")).unwrap();
    let mut future = mute(&grouped());
    future[8] = 2;
    place.write("future.btn", future);
    let bad = model_with(
        &grouped(),
        Storage::default(),
        1,
        &[(SectionKind::TokenizerJson, b"{}")],
    );
    place.write("only_json.btn", bad);
    let long = "a".repeat(40);
    let ids = vec!["1"; 40].join(",");
    let cases: &[&[&str]] = &[
        &["none.btn", "--ids", "1"],
        &["folder", "--ids", "1"],
        &["notes.txt", "--plan"],
        &["empty.btn", "--plan"],
        &["future.btn", "--selftest"],
        &["mute.btn", "--prompt", "hello"],
        &["mute.btn", "--perplexity", "notes.txt"],
        &["mute.btn", "--selftest"],
        &["mute.btn", "--plan", "--kv", "f16"],
        &["only_json.btn", "--prompt", "hello"],
        &["m.btn", "--ids", "1,258"],
        &["m.btn", "--ids", &ids],
        &["m.btn", "--prompt", &long],
        &["m.btn", "--prompt", "hello", "--context", "5"],
        &["m.btn", "--ids", "1", "--context", "33"],
        &["m.btn", "--ids", "1", "--logits", "none/l.safetensors"],
        &["m.btn", "--ids", "1", "--logits", "folder"],
        &["m.btn", "--ids", "1", "--logits", "m.btn"],
        &["m.btn", "--ids", "1", "--logits", "folder/../m.btn"],
        &["m.btn", "--ids", "1,258", "--logits", "l.safetensors"],
        &["m.btn", "--perplexity", "none.txt"],
        &["m.btn", "--perplexity", "folder"],
        &["m.btn", "--perplexity", "latin1.txt"],
        &["m.btn", "--perplexity", "short.txt"],
        &["m.btn", "--perplexity", "empty.txt"],
    ];
    let model = place.read("m.btn");
    let listing = cases.iter().map(|args| {
        let shown = args
            .join(" ")
            .replace(&long, "aaa...")
            .replace(&ids, "1,1,...");
        format!("$ bitnet-run {shown}\n{}", message(&place, args))
    });
    insta::assert_snapshot!("messages", listing.collect::<String>());
    assert!(place.read("m.btn") == model);
}

/// A prompt that is empty is a mistake only where nothing would be read.
#[test]
fn an_empty_prompt() {
    let begins = Place::with(&speaking(&grouped()));
    let found = begins.run(&["m.btn", "--prompt", "", "--json", "--max-tokens", "1"]);
    assert_eq!(found.json()["prompt_ids"], serde_json::json!([util::BOS]));
    let mut tokenizer: serde_json::Value = serde_json::from_str(&util::tokenizer_json()).unwrap();
    tokenizer["post_processor"] = serde_json::Value::Null;
    let tokenizer = util::tokenizer(&tokenizer.to_string());
    let section = (SectionKind::Tokenizer, &tokenizer[..]);
    let model = model_with(&grouped(), Storage::default(), 3, &[section]);
    let place = Place::with(&model);
    assert_eq!(
        message(&place, &["m.btn", "--prompt", ""]),
        "error: the prompt is empty and the tokenizer has no begin-of-text token: give some text\n"
    );
}

/// A tokenizer of more ids than the model has is no way out of the vocabulary.
#[test]
fn a_tokenizer_with_more_ids_than_the_model() {
    let mut config = grouped();
    config.vocab_size = 100;
    let place = Place::with(&speaking(&config));
    let expected = "error: token id 122 is outside the vocabulary of 100\n";
    assert_eq!(message(&place, &["m.btn", "--ids", "122"]), expected);
    // The tokenizer's begin-of-text comes first.
    assert_eq!(
        message(&place, &["m.btn", "--prompt", "z"]),
        "error: token id 256 is outside the vocabulary of 100\n"
    );
    place.write("text.txt", "Azure");
    assert_eq!(
        message(&place, &["m.btn", "--perplexity", "text.txt"]),
        expected
    );
}

#[test]
fn a_file_that_is_cut_short() {
    let model = speaking(&latent());
    let place = Place::new();
    for len in [
        1,
        7,
        8,
        63,
        64,
        100,
        1_000,
        model.len() / 2,
        model.len() - 1,
    ] {
        place.write("m.btn", &model[..len]);
        for task in [
            &["--plan"][..],
            &["--ids", "1"],
            &["--prompt", "a", "--trust"],
        ] {
            let message = message(&place, &[&["m.btn"], task].concat());
            // Too short for the signature is not yet known to be one.
            let named = ["the file is cut short", "this is not a .btn file"];
            assert!(
                message.starts_with("error: m.btn: ") && named.iter().any(|n| message.contains(n)),
                "{len}: {message}"
            );
        }
    }
    place.write("m.btn", [&model[..], b"\n"].concat());
    let message = message(&place, &["m.btn", "--ids", "1"]);
    assert!(message.contains("copy or download it again"), "{message}");
}

/// One bit anywhere is found before the first token, and called by its name.
#[test]
fn a_file_with_a_flipped_bit() {
    let model = speaking(&latent());
    let place = Place::new();
    place.write("text.txt", "some text");
    let logits = &["--ids", "1,2", "--logits", "l.safetensors"][..];
    let tasks = [
        logits,
        &["--prompt", "a"],
        &["--selftest"],
        &["--perplexity", "text.txt"],
    ];
    // The first twelve bytes are signature and version; what they say is told otherwise.
    let places = (12..model.len()).step_by(model.len() / 100);
    for (i, at) in places.chain([63, 64, model.len() - 1]).enumerate() {
        let mut damaged = model.clone();
        damaged[at] ^= 1 << (i % 8);
        place.write("m.btn", &damaged);
        let message = message(&place, &[&["m.btn"], tasks[i % tasks.len()]].concat());
        // Text that is no longer UTF-8 is noticed before its checksum is.
        let named = ["the file is damaged", "section cannot be decoded"];
        assert!(
            message.starts_with("error: m.btn: ") && named.iter().any(|n| message.contains(n)),
            "byte {at}: {message}"
        );
    }
    for at in 0..12 {
        let mut damaged = model.clone();
        damaged[at] ^= 1;
        place.write("m.btn", &damaged);
        message(&place, &["m.btn", "--ids", "1"]);
    }
}

/// Damage that nobody looked for may change the text, never more than that.
#[test]
fn trust_runs_a_damaged_file_without_harm() {
    let model = speaking(&latent());
    let place = Place::new();
    for at in (model.len() / 2..model.len()).step_by(model.len() / 20) {
        let mut damaged = model.clone();
        damaged[at] ^= 0x10;
        place.write("m.btn", &damaged);
        let outcome = place.run(&["m.btn", "--ids", "1,2,3", "--trust"]);
        assert!(matches!(outcome.code, 0 | 1), "{outcome:?}");
    }
}

/// A reader that has gone is no failure, whatever is being printed.
#[test]
fn a_closed_pipe_is_no_failure() {
    let place = Place::with(&reciting("gé€🦀!"));
    place.write("text.txt", "some text");
    let tasks: [&[&str]; 5] = [
        &["--prompt", "g"],
        &["--prompt", "g", "--json"],
        &["--plan"],
        &["--perplexity", "text.txt"],
        &["--plan", "--json"],
    ];
    for task in tasks {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = place.command(&[&["m.btn"], task].concat());
        let output = command.stdout(writer).output().unwrap();
        let outcome = Outcome::from(output);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{task:?}");
    }
}

/// A device on which every write fails for lack of space.
#[cfg(target_os = "linux")]
fn full() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_a_failure() {
    let place = Place::with(&reciting("gé€🦀!"));
    place.write("text.txt", "some text");
    let tasks: [&[&str]; 4] = [
        &["--prompt", "g"],
        &["--prompt", "g", "--json"],
        &["--plan"],
        &["--perplexity", "text.txt"],
    ];
    for task in tasks {
        let mut command = place.command(&[&["m.btn"], task].concat());
        let outcome = Outcome::from(command.stdout(full()).output().unwrap());
        assert_eq!(outcome.code, 1);
        assert_eq!(
            outcome.stderr,
            "error: cannot write to stdout: No space left on device (os error 28)\n"
        );
    }
}

/// Figures that nobody can read are no reason to lose the text, nor to panic.
#[cfg(target_os = "linux")]
#[test]
fn a_stderr_that_fails_is_ignored() {
    let place = Place::with(&reciting("gé€🦀!"));
    let run = |args: &[&str]| {
        let output = place.command(args).stderr(full()).output().unwrap();
        Outcome::from(output)
    };
    assert_eq!(run(&["m.btn", "--prompt", "g"]).success(), "é€🦀!\n");
    assert_eq!(run(&["none.btn", "--plan"]).failure(1), "");
}

/// A disk that fills up, played by a limit on the size of files.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_logits() {
    let place = Place::with(&mute(&grouped()));
    // One block of 512 bytes, or of 1024: below the 1032 of a position's logits either way.
    let script = r#"trap '' XFSZ; ulimit -f 1; exec "$0" m.btn --ids 1,2,3 --logits l.safetensors"#;
    let output = std::process::Command::new("sh")
        .current_dir(place.path(""))
        .args(["-c", script, env!("CARGO_BIN_EXE_bitnet-run")])
        .output()
        .unwrap();
    let message = Outcome::from(output).failure(1);
    assert!(
        message.starts_with("error: cannot write l.safetensors: "),
        "{message}"
    );
    assert_eq!(place.names(), ["m.btn"]);
}
