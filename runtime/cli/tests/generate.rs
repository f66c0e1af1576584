//! Continuing a prompt, whatever the options that must not matter.

mod util;

use bitnet_runtime::{Kernels, argmax};
use bitnet_tests::{Run, with_session};
use safetensors::SafeTensors;
use util::{BOS, Place, grouped, latent, mute, reciting, speaking};

const TEXT: &str = "gé€🦀!";

#[test]
fn greedy_ids_are_the_librarys() {
    for config in [grouped(), latent()] {
        let model = mute(&config);
        let expected = with_session(&model, Run::default(), |session| {
            let mut ids = vec![argmax(session.prefill(&[5, 17, 3]).unwrap())];
            while ids.len() < 9 {
                ids.push(argmax(session.decode(ids[ids.len() - 1]).unwrap()));
            }
            ids
        });
        let place = Place::with(&model);
        let args = [
            "m.btn",
            "--ids",
            "5,17,3",
            "--max-tokens",
            "9",
            "--kv",
            "f32",
        ];
        let found = place.run(&[&args[..], &["--json"]].concat()).json();
        assert_eq!(found["prompt_ids"], serde_json::json!([5, 17, 3]));
        assert_eq!(found["ids"], serde_json::json!(expected));
        assert_eq!(found["text"], "");
        assert_eq!(found["stop"], "max_tokens");
        // Without a tokenizer the ids themselves are the text.
        let ids: Vec<_> = expected.iter().map(u32::to_string).collect();
        assert_eq!(place.run(&args).success(), ids.join(",") + "\n");
    }
}

#[test]
fn text_comes_whole_and_stops_at_the_stop_id() {
    let place = Place::with(&reciting(TEXT));
    let found = place.run(&["m.btn", "--prompt", "g", "--json"]).json();
    assert_eq!(
        found["prompt_ids"],
        serde_json::json!([BOS, u32::from(b'g')])
    );
    assert_eq!(found["text"], "é€🦀!");
    assert_eq!(found["stop"], "stop_id");
    assert_eq!(found["ids"], serde_json::json!("é€🦀!".as_bytes()));
    let outcome = place.run(&["m.btn", "--prompt", "g"]);
    assert!(outcome.stderr.contains("tokens/s") && outcome.stderr.contains("memory: "));
    assert_eq!(outcome.success(), "é€🦀!\n");
}

/// What streams is the JSON text, where the bytes are no text as well.
#[test]
fn streamed_text_is_the_json_text() {
    for config in [grouped(), latent()] {
        let place = Place::with(&speaking(&config));
        for seed in ["1", "2", "3"] {
            let args = [
                "m.btn",
                "--prompt",
                "é",
                "--temperature",
                "2",
                "--seed",
                seed,
            ];
            let found = place.run(&[&args[..], &["--json"]].concat()).json();
            let text = found["text"].as_str().unwrap();
            assert_eq!(place.run(&args).success(), format!("{text}\n"));
            // Three tokens of the prompt, and one that is chosen but never read.
            assert_eq!(found["ids"].as_array().unwrap().len(), 30);
            assert_eq!(found["stop"], "context_full");
        }
    }
}

/// A datagram holds what one write gave: a whole character, as soon as it is known.
#[cfg(unix)]
#[test]
fn text_streams_by_whole_characters() {
    use std::os::{fd::OwnedFd, unix::net::UnixDatagram};
    let place = Place::with(&reciting(TEXT));
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_read_timeout(Some(std::time::Duration::from_secs(60)))
        .unwrap();
    let mut command = place.command(&["m.btn", "--prompt", "g"]);
    command.stdout(OwnedFd::from(theirs));
    let child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut buffer = [0; 64];
    let pieces = [(); 5].map(|()| {
        let n = ours.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    });
    assert_eq!(pieces, ["é", "€", "🦀", "!", "\n"]);
    assert!(child.wait_with_output().unwrap().status.success());
}

/// A prompt of characters that look like an option is a prompt.
#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    let place = Place::with(&reciting("-g!"));
    let outcome = place.run(&["m.btn", "--prompt", "--g"]);
    assert_eq!(outcome.success(), "!\n");
}

#[test]
fn max_tokens_ends_the_text() {
    let place = Place::with(&reciting(TEXT));
    let run = |n: &str| {
        let args = ["m.btn", "--prompt", "g", "--json", "--max-tokens", n];
        let found = place.run(&args).json();
        let ids = found["ids"].as_array().unwrap().len();
        (
            ids,
            found["text"].as_str().unwrap().to_owned(),
            found["stop"].clone(),
        )
    };
    assert_eq!(run("0"), (0, String::new(), "max_tokens".into()));
    assert_eq!(run("2"), (2, "é".to_owned(), "max_tokens".into()));
    // Within a character: what there is of it shows as a replacement.
    assert_eq!(run("3"), (3, "é\u{fffd}".to_owned(), "max_tokens".into()));
    assert_eq!(run("10"), (10, "é€🦀!".to_owned(), "max_tokens".into()));
    assert_eq!(run("11"), (10, "é€🦀!".to_owned(), "stop_id".into()));
}

#[test]
fn a_full_context_ends_the_text() {
    let place = Place::with(&reciting(TEXT));
    let args = ["m.btn", "--prompt", "g", "--context", "4"];
    let outcome = place.run(&args);
    assert!(outcome.stderr.ends_with("stopped: the context is full\n"));
    // Two tokens of prompt, two of answer, and one that is chosen but never read.
    assert_eq!(outcome.success(), "é\u{fffd}\n");
    let json = place.run(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(json["stop"], "context_full");
}

#[test]
fn a_prompt_can_come_from_a_pipe() {
    let place = Place::with(&reciting(TEXT));
    let outcome = place.run_with_input(&["m.btn", "--prompt", "-"], b"g");
    assert_eq!(outcome.success(), "é€🦀!\n");
    let outcome = place.run_with_input(&["m.btn", "--prompt", "-"], b"\xff\xfe");
    assert_eq!(
        outcome.failure(1),
        "error: cannot read the text from stdin: stream did not contain valid UTF-8\n"
    );
}

#[test]
fn one_seed_one_text() {
    let place = Place::with(&mute(&latent()));
    let run = |seed: &str| {
        let args = [
            "m.btn",
            "--ids",
            "1",
            "--temperature",
            "1.5",
            "--top-k",
            "50",
            "--seed",
            seed,
        ];
        place.run(&args).success()
    };
    let texts = ["0", "1", "2"].map(run);
    assert_eq!(texts, ["0", "1", "2"].map(run));
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
}

/// Shape and bits of a `--logits` file.
fn logits(place: &Place, name: &str) -> (Vec<usize>, Vec<u32>) {
    let bytes = place.read(name);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["logits"]);
    let view = file.tensor("logits").unwrap();
    assert_eq!(view.dtype(), safetensors::Dtype::F32);
    let bits = view.data().chunks(4);
    let bits = bits.map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    (view.shape().to_vec(), bits.collect())
}

#[test]
fn logits_are_the_librarys() {
    for config in [grouped(), latent()] {
        let model = mute(&config);
        let place = Place::with(&model);
        let args = [
            "m.btn",
            "--ids",
            "7,0,255,7,31",
            "--kv",
            "f32",
            "--max-tokens",
            "0",
            "--logits",
            "l.safetensors",
        ];
        place.run(&args).success();
        let mut expected = Vec::new();
        with_session(&model, Run::default(), |session| {
            let visit = |_, logits: &[f32]| expected.extend(logits.iter().map(|l| l.to_bits()));
            session.score(&[7, 0, 255, 7, 31], visit).unwrap();
        });
        let found = logits(&place, "l.safetensors");
        assert_eq!(found, (vec![5, config.vocab_size], expected));
        assert_eq!(place.names(), ["l.safetensors", "m.btn"]);
    }
}

/// A result is as readable as any new file, though it was a temporary one.
#[cfg(unix)]
#[test]
fn logits_have_the_permissions_of_a_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::with(&mute(&grouped()));
    let args = ["m.btn", "--ids", "1", "--logits", "l.safetensors"];
    place.run(&args).success();
    place.write("new", "");
    let mode = |name| place.path(name).metadata().unwrap().permissions().mode();
    assert_eq!(mode("l.safetensors"), mode("new"));
}

#[test]
fn weights_kernels_and_chunks_do_not_change_a_bit() {
    for config in [grouped(), latent()] {
        let place = Place::with(&mute(&config));
        let run = |options: &[&str]| {
            let args = ["m.btn", "--ids", "1,2,3,4,5,6,7", "--max-tokens", "12"];
            let logits = ["--logits", "l.safetensors"];
            let ids = place.run(&[&args[..], &logits, options].concat()).success();
            (ids, place.read("l.safetensors"))
        };
        let expected = run(&[]);
        for weights in ["low", "mapped", "fast", "t5", "t2"] {
            for kernels in Kernels::available() {
                let isa = kernels.isa().name();
                for batch in ["1", "3"] {
                    let options = ["--weights", weights, "--isa", isa, "--prefill-batch", batch];
                    assert!(run(&options) == expected, "{options:?}");
                }
            }
        }
        assert!(run(&["--trust"]) == expected);
    }
}

#[test]
fn caches() {
    let logits_with = |place: &Place, kv: &str| {
        let args = ["m.btn", "--ids", "9,8,7,6", "--kv", kv, "--logits", "l"];
        place.run(&args).success();
        logits(place, "l").1
    };
    // Grouped attention: native is f16, which rounds.
    let place = Place::with(&mute(&grouped()));
    let [native, f16, f32] = ["native", "f16", "f32"].map(|kv| logits_with(&place, kv));
    assert!(native == f16 && f16 != f32);
    // Latent attention: one lossless cache.
    let place = Place::with(&mute(&latent()));
    assert!(logits_with(&place, "native") == logits_with(&place, "f32"));
    assert_eq!(
        place
            .run(&["m.btn", "--ids", "1", "--kv", "f16"])
            .failure(1),
        "error: a latent cache is stored without loss as int8 and cannot be f16; use native or f32\n"
    );
}
