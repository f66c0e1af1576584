//! Figures about a model: self-test, perplexity.

mod util;

use bitnet_formats::metadata::push_self_test;
use bitnet_formats::{KvType, ModelConfig, SectionKind};
use bitnet_runtime::Kernels;
use bitnet_tests::synthetic::{Storage, model_with};
use bitnet_tests::{Run, logits_hash, with_session};
use util::{Place, grouped, latent, mute, speaking};

const IDS: [u32; 5] = [3, 1, 4, 1, 5];

/// A random model with self-test vectors, hashes changed by `break_bits`.
fn tested(config: &ModelConfig, caches: &[KvType], break_bits: u64) -> Vec<u8> {
    let model = mute(config);
    let mut section = Vec::new();
    for kv in caches {
        let run = Run {
            kv: *kv,
            ..Run::default()
        };
        let hash = logits_hash(&model, &IDS, run);
        push_self_test(&mut section, *kv, &IDS, hash ^ break_bits);
    }
    let sections = [(SectionKind::SelfTest, &section[..])];
    model_with(config, Storage::default(), 3, &sections)
}

#[test]
fn a_self_test_passes_on_every_kernel_and_layout() {
    let cases = [
        (grouped(), &[KvType::Native, KvType::F32][..]),
        (latent(), &[KvType::Native]),
    ];
    for (config, caches) in cases {
        let place = Place::with(&tested(&config, caches, 0));
        let mut all = Vec::new();
        for kernels in Kernels::available() {
            let isa = kernels.isa().name();
            for options in [&["--weights", "t2"][..], &["--prefill-batch", "2"]] {
                let args = [&["m.btn", "--selftest", "--json", "--isa", isa], options].concat();
                let found = place.run(&args).json();
                assert_eq!((&found["ok"], &found["isa"]), (&true.into(), &isa.into()));
                assert_eq!(found["cases"].as_array().unwrap().len(), caches.len());
                for case in found["cases"].as_array().unwrap() {
                    assert_eq!(case["expected"], case["logits_hash"]);
                    assert_eq!(case["tokens"], IDS.len());
                }
                all.push(found["logits_hash"].clone());
            }
        }
        // With one case the hash over all logits is that case's own.
        all.dedup();
        assert_eq!(all.len(), 1);
        if caches.len() == 1 {
            let hash = logits_hash(&mute(&config), &IDS, Run::default());
            assert_eq!(all[0], format!("{hash:016x}"));
        }
        let text = place.run(&["m.btn", "--selftest"]).success();
        assert_eq!(text.matches(" ok\n").count(), caches.len(), "{text}");
    }
}

#[test]
fn a_wrong_hash_fails_and_says_which() {
    let place = Place::with(&tested(&latent(), &[KvType::Native], 1));
    let outcome = place.run(&["m.btn", "--selftest"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stdout.contains(" DIFFERS\n"), "{}", outcome.stdout);
    assert_eq!(
        outcome.stderr,
        "error: this machine does not compute what the file expects; please report it\n"
    );
    let outcome = place.run(&["m.btn", "--selftest", "--json"]);
    assert_eq!(outcome.code, 1);
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert_ne!(
        json["cases"][0]["expected"],
        json["cases"][0]["logits_hash"]
    );
}

/// Nats of a text, summed in f64 by the textbook, window by window.
fn nats(model: &[u8], ids: &[u32], context: usize) -> f64 {
    let mut sum = 0.0;
    let inputs = ids[..ids.len() - 1].chunks(context);
    for (inputs, targets) in inputs.zip(ids[1..].chunks(context)) {
        with_session(model, Run::default(), |session| {
            session
                .score(inputs, |position, logits| {
                    let p = logits.iter().map(|l| f64::from(*l).exp());
                    let target = f64::from(logits[targets[position] as usize]);
                    sum -= (target.exp() / p.sum::<f64>()).ln();
                })
                .unwrap();
        });
    }
    sum
}

#[test]
fn perplexity_is_the_textbooks() {
    let text = "It is a truth universally acknowledged, that a single man in possession of a good \
                fortune, must be in want of a wife. é€🦀";
    // The tests' tokenizer has an id for every byte, and texts to measure get no special token.
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    for config in [grouped(), latent()] {
        let model = speaking(&config);
        let place = Place::with(&model);
        place.write("text.txt", text);
        // One window short of the text, windows that fit it exactly, the model's own context.
        for (context, args) in [
            (5, &["--context", "5"][..]),
            (1, &["--context", "1"]),
            (32, &["--prefill-batch", "7"]),
        ] {
            let task = ["m.btn", "--perplexity", "text.txt", "--kv", "f32", "--json"];
            let found = place.run(&[&task, args].concat()).json();
            let expected = nats(&model, &ids, context);
            let n = ids.len() - 1;
            assert_eq!(found["tokens"], n);
            assert_eq!(found["bytes"], text.len());
            assert_eq!(found["context"], context);
            let close = |field: &str, expected: f64| {
                let found = found[field].as_f64().unwrap();
                assert!(
                    (found / expected - 1.0).abs() < 1e-6,
                    "{field}: {found}, {expected}"
                );
            };
            close("nats_per_token", expected / n as f64);
            close("perplexity", (expected / n as f64).exp());
            close("bits_per_byte", expected / 2f64.ln() / text.len() as f64);
        }
    }
}

/// A model that is sure of each next byte: hardly any nats, and a report a person can read.
#[test]
fn perplexity_of_what_a_model_recites() {
    let place = Place::with(&util::reciting("gé€🦀!"));
    place.write("text.txt", "gé€🦀!");
    let report = place.run(&["m.btn", "--perplexity", "text.txt"]).success();
    insta::assert_snapshot!("perplexity", report);
}
