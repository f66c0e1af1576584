//! `--bench` and `--doctor`: what they print is whole and checked. How fast it was is never asked.

mod util;

use bitnet_runtime::{Kernels, LogitsHash};
use bitnet_tests::packed::packed;
use bitnet_tests::{Run, with_session};
use serde_json::Value;
use util::{Place, grouped, latent, mute};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/austen-nano.btn");

fn names(list: &Value, field: &str) -> Vec<String> {
    let entries = list.as_array().unwrap().iter();
    let names = entries.map(|entry| entry[field].as_str().unwrap().to_owned());
    names.collect()
}

fn isa_names() -> Vec<&'static str> {
    Kernels::available().map(|set| set.isa().name()).collect()
}

/// Median, least and most are numbers in order.
fn assert_spread(value: &Value) {
    let [min, median, max] = ["min", "median", "max"].map(|name| value[name].as_f64().unwrap());
    assert!(0.0 < min && min <= median && median <= max, "{value}");
}

#[test]
fn a_bench_of_the_shipped_model_is_whole() {
    let place = Place::new();
    let args = [
        SHIPPED,
        "--bench",
        "--json",
        "--repetitions",
        "1",
        "--threads",
        "1,2",
    ];
    let outcome = place.run(&args);
    let expected = "a context of 256 positions: longer tests are cut to it\n";
    assert_eq!(outcome.stderr, expected);
    let found = outcome.json();
    assert_eq!(found["context"], 256);
    assert_eq!(found["repetitions"], 1);
    assert!(found["parameters"].as_u64() > Some(0) && found["head_bytes"].as_u64() > Some(0));
    let configurations = found["configurations"].as_array().unwrap();
    assert_eq!(
        names(&found["configurations"], "asked"),
        ["low", "low", "fast", "fast"]
    );
    for (i, configuration) in configurations.iter().enumerate() {
        let tests = ["prefill 128", "prefill 256", "decode 128"];
        assert_eq!(names(&configuration["tests"], "name"), tests);
        for test in configuration["tests"].as_array().unwrap() {
            assert_spread(&test["tokens_per_s"]);
        }
        for field in ["step_gb_per_s", "read_gb_per_s", "weight_pass_s", "read_s"] {
            assert_spread(&configuration[field]);
        }
        for field in ["share_of_read", "weight_pass_per_read"] {
            assert!(configuration[field].as_f64() > Some(0.0), "{field}");
        }
        assert_eq!(configuration["threads"], [1, 2][i % 2]);
        assert_eq!(configuration["isa"], *isa_names().last().unwrap());
        assert_eq!(
            configuration["logits_hash"],
            configurations[0]["logits_hash"]
        );
        // All weights of a step, and as T5 without the halves of the latent projection.
        let [step, read] = ["step_bytes", "read_bytes"].map(|f| configuration[f].as_u64().unwrap());
        assert!(found["head_bytes"].as_u64().unwrap() < read && read < step);
    }
    assert_eq!(configurations[1]["weights"], "low");
    assert!(["t5", "t2"].contains(&configurations[3]["weights"].as_str().unwrap()));
}

/// Each configuration runs, and the hash is that of the logits of all tests.
#[test]
fn a_bench_hashes_what_it_times() {
    for config in [grouped(), latent()] {
        let model = mute(&config);
        let place = Place::with(&model);
        let isa = isa_names();
        let args = [
            "m.btn",
            "--bench",
            "--json",
            "--repetitions",
            "1",
            "--kv",
            "f32",
            "--threads",
            "1",
        ];
        let lists = ["--weights", "low,t5,t2,fast", "--isa", &isa.join(",")];
        let found = place.run(&[&args[..], &lists].concat()).json();
        let configurations = found["configurations"].as_array().unwrap();
        assert_eq!(configurations.len(), 4 * isa.len());
        let expected = with_session(&model, Run::default(), |session| {
            let ids: Vec<u32> = (0..32).map(|i| (i * 7_919 + 13) % 258).collect();
            let mut hash = LogitsHash::new();
            hash.update(session.prefill(&ids).unwrap());
            session.truncate(0).unwrap();
            for id in ids {
                hash.update(session.decode(id).unwrap());
            }
            hash.update(session.weight_pass().unwrap());
            format!("{:016x}", hash.finish())
        });
        for (i, configuration) in configurations.iter().enumerate() {
            assert_eq!(configuration["logits_hash"], expected, "{configuration}");
            assert_eq!(configuration["isa"], isa[i % isa.len()]);
            assert_eq!(
                names(&configuration["tests"], "name"),
                ["prefill 32", "decode 32"]
            );
        }
    }
}

#[test]
fn a_bench_is_readable() {
    let place = Place::with(&mute(&grouped()));
    let args = [
        "m.btn",
        "--bench",
        "--repetitions",
        "1",
        "--weights",
        "low,t2",
        "--threads",
        "1",
    ];
    let text = place.run(&args).success();
    let rows = |name: &str| {
        text.lines()
            .filter(|line| line.trim().starts_with(name))
            .count()
    };
    // Two tables, a row for each configuration.
    assert_eq!((rows("low (t5) "), rows("t2 (t2) ")), (2, 2), "{text}");
    assert!(text.contains("prefill 32") && text.contains("logits    equal everywhere, hash "));
    let message = place
        .run(&["m.btn", "--bench", "--context", "33"])
        .failure(1);
    assert!(
        message.contains("a context of 33 positions; the model has 1 to 32"),
        "{message}"
    );
}

#[test]
fn a_doctor_knows_the_machine() {
    let model = mute(&grouped());
    let place = Place::with(&model);
    let found = place.run(&["--doctor", "--json"]).json();
    assert_eq!(found["kernels"], serde_json::json!(isa_names()));
    assert_eq!(found["isa"], *isa_names().last().unwrap());
    assert_eq!(found["model"], Value::Null);
    let reads = found["reads"].as_array().unwrap();
    assert_eq!(reads.len(), 3);
    assert!(
        reads
            .iter()
            .all(|read| read["gb_per_s"].as_f64() > Some(0.0))
    );
    let found = place.run(&["m.btn", "--doctor", "--json"]).json();
    assert_eq!(found["model"]["asked"], "fast");
    assert!(["t5", "t2"].contains(&found["model"]["weights"].as_str().unwrap()));
    let text = place
        .run(&["m.btn", "--doctor", "--weights", "low"])
        .success();
    for line in [
        "processor ",
        "kernels ",
        "caches ",
        "pages ",
        "read 16.0 MiB ",
        "weights        low",
    ] {
        assert!(
            text.lines().any(|found| found.starts_with(line)),
            "{line}: {text}"
        );
    }
    place.write("p.btn", packed(&model));
    let text = place
        .run(&["p.btn", "--doctor", "--weights", "t2"])
        .success();
    let found = "weights        t2 is t2; decoded: the file is packed";
    assert!(text.contains(found), "{text}");
}
