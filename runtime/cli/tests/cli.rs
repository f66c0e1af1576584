//! `bitnet-run` as people and scripts meet it: help, usage, the plan.

mod util;

use bitnet_formats::Archive;
use bitnet_runtime::{
    KvType, LoadOptions, MemoryPlan, SessionConfig, TernaryLayout, WeightHold, weight_plan,
};
use bitnet_tests::packed::packed;
use util::{Place, grouped, latent, mute};

#[test]
fn help() {
    insta::assert_snapshot!("help", Place::new().run(&["--help"]).success());
}

#[test]
fn nonsense_exits_with_two() {
    let place = Place::with(&mute(&grouped()));
    let cases: &[&[&str]] = &[
        &[],
        &["m.btn"],
        &["--plan"],
        &["m.btn", "--plan", "--selftest"],
        &["m.btn", "--ids", "1", "--prompt", "a"],
        &["m.btn", "--ids", ""],
        &["m.btn", "--ids", "1,,2"],
        &["m.btn", "--ids", "-1"],
        &["m.btn", "--ids", "4294967296"],
        &["m.btn", "--ids", "1", "--context", "0"],
        &["m.btn", "--ids", "1", "--prefill-batch", "0"],
        &["m.btn", "--ids", "1", "--threads", "0"],
        &["m.btn", "--ids", "1", "--max-tokens", "-1"],
        &["m.btn", "--ids", "1", "--temperature", "nan"],
        &["m.btn", "--ids", "1", "--temperature", "-0.5"],
        &["m.btn", "--ids", "1", "--top-p", "1.5"],
        &["m.btn", "--ids", "1", "--min-p", "x"],
        &["m.btn", "--ids", "1", "--kv", "int8"],
        &["m.btn", "--ids", "1", "--weights", "t6"],
        &["m.btn", "--ids", "1", "--weights", "low,t2"],
        &["m.btn", "--ids", "1", "--isa", "scalar,portable"],
        &["m.btn", "--ids", "1", "--threads", "1,2"],
        &["m.btn", "--ids", "1", "--repetitions", "2"],
        &["m.btn", "--bench", "--repetitions", "0"],
        &["--bench"],
        &["m.btn", "--plan", "--logits", "l.safetensors"],
        &["m.btn", "--selftest", "--logits", "l.safetensors"],
        &["m.btn", "--embed", "a", "--ids", "1"],
        &["m.btn", "--embed", "a", "--chat"],
        &["m.btn", "--embed", "a", "--prompt", "a"],
        &["m.btn", "--embed", "a", "--logits", "l.safetensors"],
    ];
    let messages = cases.iter().map(|args| {
        let message = place.run(args).failure(2);
        format!("$ bitnet-run {}\n{}\n", args.join(" "), message.trim_end())
    });
    insta::assert_snapshot!("usage", messages.collect::<String>());
    // Which kernels there are depends on the machine.
    let message = place
        .run(&["m.btn", "--ids", "1", "--isa", "abacus"])
        .failure(2);
    assert!(message.contains("'abacus' for '--isa <NAME>': this machine has: scalar, portable"));
    assert_eq!(place.names(), ["m.btn"]);
}

#[test]
fn a_plan_is_readable() {
    let place = Place::with(&mute(&latent()));
    insta::assert_snapshot!(
        "plan",
        place.run(&["m.btn", "--plan", "--threads", "1"]).success()
    );
    let args = [
        "m.btn",
        "--plan",
        "--json",
        "--context",
        "8",
        "--threads",
        "4",
    ];
    insta::assert_snapshot!("plan_json", place.run(&args).success());
}

/// A packed file is decoded without being asked, and says so where it is asked to run in place.
#[test]
fn a_packed_file_is_decoded_to_memory() {
    let model = mute(&latent());
    let place = Place::with(&model);
    place.write("p.btn", packed(&model));
    let options = LoadOptions {
        hold: WeightHold::Copy(TernaryLayout::T5R16),
        ..LoadOptions::default()
    };
    let plan = place.run(&["p.btn", "--plan", "--json"]).json();
    let bytes = weight_plan(&Archive::open(&model).unwrap(), &options).unwrap();
    assert_eq!(plan["weights"], "t5");
    assert_eq!(plan["weight_bytes"], bytes);
    assert_eq!(plan["packed"], true);
    let readable = place.run(&["p.btn", "--plan"]).success();
    assert!(
        readable.contains("(t5; decoded: the file is packed)"),
        "{readable}"
    );
    let ids = |args: &[&str]| {
        let rest = ["--ids", "1,2,3", "--max-tokens", "8", "--json"];
        place.run(&[args, &rest[..]].concat()).json()["ids"].clone()
    };
    let expected = ids(&["m.btn"]);
    for hold in ["t5", "t2", "fast"] {
        assert_eq!(ids(&["p.btn", "--weights", hold]), expected, "{hold}");
    }
    assert_eq!(ids(&["p.btn", "--threads", "3"]), expected);
    let message = place
        .run(&["p.btn", "--plan", "--weights", "low"])
        .failure(1);
    assert!(
        message.contains("use --weights t5, t2 or fast"),
        "{message}"
    );
}

/// The bytes that are printed are those the library asks for.
#[test]
fn a_plan_is_what_the_library_asks_for() {
    let copies = [
        ("low", WeightHold::InPlace),
        ("t5", WeightHold::Copy(TernaryLayout::T5R16)),
        ("t2", WeightHold::Copy(TernaryLayout::T2R16)),
    ];
    let caches = [
        ("native", KvType::Native),
        ("f16", KvType::F16),
        ("f32", KvType::F32),
    ];
    for (config, caches) in [
        (grouped(), &caches[..]),
        (latent(), &[caches[0], caches[2]]),
    ] {
        let model = mute(&config);
        let place = Place::with(&model);
        for (kv_name, kv) in caches {
            for (hold_name, hold) in copies {
                for (context, prefill_batch, threads) in [(1, 1, 1), (7, 3, 5), (32, 32, 2)] {
                    let [n, batch, workers] =
                        [context, prefill_batch, threads].map(|n: usize| n.to_string());
                    let args = [
                        "m.btn",
                        "--plan",
                        "--json",
                        "--kv",
                        kv_name,
                        "--weights",
                        hold_name,
                        "--context",
                        &n,
                        "--prefill-batch",
                        &batch,
                        "--threads",
                        &workers,
                    ];
                    let found = place.run(&args).json();
                    let session = SessionConfig {
                        max_seq_len: context,
                        prefill_batch,
                        kv: *kv,
                        threads,
                    };
                    let plan = MemoryPlan::new(&config, &session).unwrap();
                    let options = LoadOptions {
                        hold,
                        ..LoadOptions::default()
                    };
                    let weights = weight_plan(&Archive::open(&model).unwrap(), &options).unwrap();
                    let total = weights + plan.kv_bytes + plan.scratch_bytes;
                    let expected = serde_json::json!({
                        "parameters": config.parameter_count(),
                        "context": context,
                        "prefill_batch": prefill_batch,
                        "threads": threads,
                        "kv": kv_name,
                        "weights": hold_name,
                        "weights_reason": null,
                        "packed": false,
                        "file_bytes": model.len(),
                        "weight_bytes": weights,
                        "kv_bytes": plan.kv_bytes,
                        "scratch_bytes": plan.scratch_bytes,
                        "total_bytes": total,
                    });
                    assert_eq!(found, expected, "{args:?}");
                }
            }
        }
    }
}

/// What a run says it used is what the plan said.
#[test]
fn a_run_uses_what_the_plan_says() {
    let place = Place::with(&mute(&grouped()));
    let options = ["--kv", "f32", "--weights", "t2", "--context", "9", "--json"];
    let with = |task: &[&str]| place.run(&[&["m.btn"], task, &options[..]].concat()).json();
    let (plan, run) = (
        with(&["--plan"]),
        with(&["--ids", "1,2", "--max-tokens", "2"]),
    );
    for field in ["file_bytes", "weight_bytes", "kv_bytes", "scratch_bytes"] {
        assert!(plan[field].as_u64().unwrap() > 0, "{field}");
        assert_eq!(plan[field], run[field], "{field}");
    }
}

/// `fast` is one of the copies, and says why.
#[test]
fn fast_weights_are_a_copy() {
    let config = grouped();
    let place = Place::with(&mute(&config));
    let plan = |weights: &str| {
        place
            .run(&["m.btn", "--plan", "--json", "--weights", weights])
            .json()
    };
    let fast = plan("fast");
    let reason = fast["weights_reason"].as_str().unwrap();
    assert!(reason.starts_with("measured: t2 takes "), "{reason}");
    let copy = plan(fast["weights"].as_str().unwrap());
    assert!(fast["weight_bytes"].as_u64().unwrap() > 0);
    assert_eq!(fast["weight_bytes"], copy["weight_bytes"]);
    let args = ["m.btn", "--ids", "1", "--weights", "fast"];
    let stderr = place.run(&args).stderr;
    assert!(stderr.contains("; measured: t2 takes "), "{stderr}");
}

/// A chunk cannot be longer than the context, so a huge one costs no more memory than that.
#[test]
fn a_huge_prefill_batch_is_cut_to_the_context() {
    let place = Place::with(&mute(&grouped()));
    let plan = |batch: &str| {
        let args = ["m.btn", "--plan", "--json", "--prefill-batch", batch];
        place.run(&args).json()
    };
    assert_eq!(plan("99999999999999"), plan("32"));
    assert_ne!(plan("31"), plan("32"));
    let args = ["m.btn", "--ids", "1", "--prefill-batch", "99999999999999"];
    place.run(&args).success();
}

/// A context above the model's is refused wherever one can be given.
#[test]
fn a_context_above_the_models_is_refused() {
    let model = util::speaking(&grouped());
    assert_eq!(Archive::open(&model).unwrap().config().max_seq_len, 32);
    let place = Place::with(&model);
    place.write("text.txt", "some text");
    let tasks: [&[&str]; 3] = [&["--plan"], &["--ids", "1"], &["--perplexity", "text.txt"]];
    for task in tasks {
        let args = [&["m.btn", "--context", "33"], task].concat();
        assert_eq!(
            place.run(&args).failure(1),
            "error: a context of 33 positions; the model has 1 to 32\n",
            "{task:?}"
        );
    }
}
