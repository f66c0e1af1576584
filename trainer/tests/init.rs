//! Runs that start from a checkpoint: public ones, our own, and what cannot be started from.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bitnet_trainer::checkpoint::RunFolder;
use bitnet_trainer::corpus::{DataOptions, Passage};
use bitnet_trainer::error::{Error, Result};
use bitnet_trainer::eval::evaluate;
use bitnet_trainer::fit::{FitOptions, Outcome, Start, fit};
use bitnet_trainer::init::Masters;
use bitnet_trainer::keys;
use bitnet_trainer::model::{Model, Sequence};
use bitnet_trainer::progress::Progress;
use bitnet_trainer::settings::Settings;
use bitnet_trainer::tensor::flat;
use bitnet_trainer::tensor_file::{self, Named};
use bitnet_trainer::tokenizer::{Needs, Parts, Tokenizer, TokenizerKind};
use safetensors::SafeTensors;
use serde_json::Value;

const TEXT: &str = "It is a truth universally acknowledged, that a single man in possession of a \
                    good fortune, must be in want of a wife. However little known the feelings. ";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.chunks_exact(4);
    words
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// The tensors of a safetensors file of f32, in the order of their names.
fn tensors(path: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec(), floats(view.data())))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let named: Vec<_> = tensors
        .iter()
        .map(|(name, shape, values)| Named {
            name: name.clone(),
            shape: shape.clone(),
            values,
        })
        .collect();
    tensor_file::write(path, &named, ("format", "pt")).unwrap();
}

/// A folder of f32 master weights that quantise to the very codes and scales of a packed fixture.
///
/// A zero becomes a fifth of the mean magnitude `m`, alternating in sign, and the others what makes the
/// mean of all `m` again: at least `m`, hence still 1.
fn unpacked(name: &str, to: &Path) {
    fs::create_dir(to).unwrap();
    let bytes = fs::read(fixture(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let half = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
    let values = |name: &str| file.tensor(name).unwrap().data().chunks_exact(2).map(half);
    let mut masters = Vec::new();
    for (name, view) in file.tensors().into_iter() {
        match view.dtype() {
            _ if name.ends_with("_scale") => {}
            safetensors::Dtype::U8 => {
                let scale = values(&format!("{name}_scale")).next().unwrap();
                let shape = vec![4 * view.shape()[0], view.shape()[1]];
                masters.push((name, shape, weights(view.data(), 1.0 / f64::from(scale))));
            }
            _ => masters.push((name.clone(), view.shape().to_vec(), values(&name).collect())),
        }
    }
    write_tensors(&to.join("model.safetensors"), &masters);
    let config = fs::read_to_string(fixture(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let quantization = &mut config["quantization_config"];
    quantization["linear_class"] = "autobitlinear".into();
    quantization["quantization_mode"] = "online".into();
    fs::write(to.join("config.json"), config.to_string()).unwrap();
}

/// Weights of this mean magnitude, of packed codes: a quarter of the rows in each two bits.
fn weights(packed: &[u8], mean: f64) -> Vec<f32> {
    let codes = [0, 2, 4, 6].map(|shift| packed.iter().map(move |byte| (byte >> shift) & 3));
    let codes: Vec<u8> = codes.into_iter().flatten().collect();
    let zeros = codes.iter().filter(|code| **code == 1).count() as f64;
    let all = codes.len() as f64;
    let large = (all - 0.2 * zeros) / (all - zeros) * mean;
    let weight = |(i, code): (usize, u8)| match code {
        1 if i % 2 == 0 => 0.2 * mean,
        1 => -0.2 * mean,
        code => large * (f64::from(code) - 1.0),
    };
    let weights = codes.into_iter().enumerate().map(weight);
    weights.map(|w| w as f32).collect()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text.txt"), TEXT.repeat(20)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A tokenizer of so many ids.
    fn tokenizer(&self, ids: usize) -> TokenizerKind {
        let text: String = (0..4000u32)
            .map(|i| format!("{} ", i * 7919 % 9973))
            .collect();
        let read = |see: &mut Parts<'_>| see(Passage::Text(&text), Passage::NONE);
        let made = Tokenizer::new(&TokenizerKind::Bpe(ids), Needs::default(), read).unwrap();
        assert_eq!(made.vocab_size(), ids);
        let path = self.path(&format!("tokenizer-{ids}.json"));
        fs::write(&path, made.to_json().unwrap()).unwrap();
        TokenizerKind::File(path)
    }

    fn fit(&self, out: &str, start: Start, stop_at: Option<u64>) -> Result<Outcome> {
        let options = FitOptions {
            data: DataOptions::files(vec![self.path("text.txt")]),
            out: self.path(out),
            start,
            threads: 2,
            stop_at,
            export: None,
            ignore_memory: false,
        };
        fit(&options, &AtomicBool::new(false), &mut Progress::silent())
    }

    /// A run of ours, `sets` applied.
    fn train(&self, out: &str, sets: &[&str]) {
        let mut settings = Settings::preset(bitnet_formats::Preset::Nano);
        apply(
            &mut settings,
            &["model.hidden_size=32", "model.intermediate_size=48"],
        );
        apply(&mut settings, &["model.n_layers=2"]);
        apply(&mut settings, &SHORT);
        apply(&mut settings, sets);
        let start = Start::Fresh {
            settings: Box::new(settings),
            tokenizer: Some(TokenizerKind::Bpe(270)),
            init: None,
            overwrite: false,
        };
        self.fit(out, start, None).unwrap();
    }
}

const SHORT: [&str; 4] = [
    "train.steps=6",
    "train.batch=4",
    "train.context=24",
    "train.sample_tokens=4",
];

fn apply(settings: &mut Settings, sets: &[&str]) {
    for set in sets {
        keys::apply(settings, set).unwrap();
    }
}

/// A run from `checkpoint`, `sets` applied.
fn from(checkpoint: &Path, tokenizer: Option<TokenizerKind>, sets: &[&str]) -> Result<Start> {
    let masters = Masters::open(checkpoint)?;
    let mut settings = masters.settings();
    apply(&mut settings, &SHORT);
    apply(&mut settings, sets);
    Ok(Start::Fresh {
        settings: Box::new(settings),
        tokenizer,
        init: Some(Arc::new(masters)),
        overwrite: false,
    })
}

fn loaded(folder: &Path) -> Model<f32> {
    let masters = Masters::open(folder).unwrap();
    let mut model = Model::new(*masters.model(), masters.quantized());
    masters.load_into(&mut model).unwrap();
    model
}

/// The network as we read it gives the logits of the code that defined it. Prompts of 1 and 7 ids were
/// chosen so that no activation is near a rounding boundary; of the long ones some may cross one.
#[test]
fn public_checkpoints_compute_what_their_own_code_computes() {
    let place = Place::new();
    let masters = ["bitnet_online_f32", "bitnet_online_bf16", "b158_large"];
    let masters = masters.map(|name| (name, fixture(name)));
    let packed = ["llama_packed", "falcon_e", "llama_packed_rmsnorm"].map(|name| {
        unpacked(name, &place.path(name));
        (name, place.path(name))
    });
    for (name, folder) in masters.into_iter().chain(packed) {
        let model = loaded(&folder);
        let text = fs::read_to_string(fixture(name).join("golden.json")).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        let expected = tensors(&fixture(name).join("golden.safetensors"));
        for (length, most, mean) in [
            ("len1", 1e-4, 1e-4),
            ("len7", 1e-4, 1e-4),
            ("len33", 0.5, 0.02),
            ("len64", 0.5, 0.02),
        ] {
            let ids = golden["sequences"][length].as_array().unwrap().iter();
            let ids: Vec<u32> = ids.map(|id| id.as_u64().unwrap() as u32).collect();
            let mut seq = Sequence::to_evaluate(model.config(), ids.len());
            let logits = model.all_logits(&ids, &mut seq).unwrap();
            let name_of = format!("logits.{length}");
            let (_, _, expected) = expected.iter().find(|t| t.0 == name_of).unwrap();
            let apart = flat(&logits)
                .iter()
                .zip(expected)
                .map(|(a, b)| (a - b).abs());
            let sum = apart.clone().sum::<f32>() / expected.len() as f32;
            let largest = apart.fold(0.0, f32::max);
            println!("{name} {length}: {largest:e}, mean {sum:e}");
            assert!(
                largest < most && sum < mean,
                "{name} {length}: {largest} {sum}"
            );
        }
    }
}

/// Fine-tuning a public checkpoint writes one under the names of the `transformers` library's classes.
#[test]
fn public_checkpoints_can_be_trained_on() {
    for (name, ids, class) in [
        ("bitnet_online_bf16", 257, "BitNetForCausalLM"),
        ("b158_large", 322, "BitNetForCausalLM"),
        ("falcon_e/prequantized", 300, "LlamaForCausalLM"),
    ] {
        let place = Place::new();
        let tokenizer = Some(place.tokenizer(ids));
        let start = |sets| from(&fixture(name), tokenizer.clone(), sets).unwrap();
        place.fit("start", start(&[]), Some(0)).unwrap();
        let before = loaded(&fixture(name));
        for (a, b) in before
            .params()
            .iter()
            .zip(loaded(&place.path("start")).params())
        {
            assert_eq!((&a.name, &a.value), (&b.name, &b.value), "{name}");
        }
        let outcome = place.fit("run", start(&["train.lr=1e-3"]), None).unwrap();
        assert!(matches!(outcome, Outcome::Finished(Some(_))), "{outcome:?}");
        let config = fs::read_to_string(place.path("run/config.json")).unwrap();
        assert!(config.contains(class), "{config}");
        assert!(Masters::open(&place.path("run")).unwrap().quantized());
        let after = loaded(&place.path("run"));
        assert_eq!(after.config(), before.config(), "{name}");
        let changed = |(a, b): (&_, &_)| flat::<f32>(a) != flat::<f32>(b);
        for (a, b) in before.params().iter().zip(after.params()) {
            assert!(changed((&a.value, &b.value)), "{name}: {}", a.name);
        }
    }
}

/// From a plain Llama, which has no `quantization_config`, to ternary: the first step is one of the
/// network as it was, and the last of a quantised one. A head is its own or the embedding.
#[test]
fn a_plain_llama_becomes_ternary() {
    for tied in [false, true] {
        let place = Place::new();
        let source = place.path("source");
        fs::create_dir(&source).unwrap();
        let prequantized = fixture("falcon_e/prequantized");
        let config = fs::read_to_string(prequantized.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["tie_word_embeddings"] = tied.into();
        fs::write(source.join("config.json"), config.to_string()).unwrap();
        let bytes = fs::read(prequantized.join("model.safetensors")).unwrap();
        let bytes = if tied { without_head(&bytes) } else { bytes };
        fs::write(source.join("model.safetensors"), bytes).unwrap();

        let masters = Masters::open(&source).unwrap();
        assert!(!masters.quantized());
        let sets = ["train.fp_steps=2", "train.ramp_steps=2"];
        let start = from(&source, Some(place.tokenizer(300)), &sets).unwrap();
        place.fit("run", start, None).unwrap();
        let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
        let records: Vec<Value> = metrics
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let lambdas: Vec<_> = records.iter().map(|r| r["lambda"].as_f64()).collect();
        assert_eq!(lambdas[..2], [Some(0.0); 2]);
        assert_eq!(lambdas[4..], [None; 2]);
        let after = loaded(&place.path("run"));
        assert!(Masters::open(&place.path("run")).unwrap().quantized());
        assert_eq!(after.config(), masters.model());
    }
}

/// A safetensors file without its `lm_head.weight`.
fn without_head(bytes: &[u8]) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensors = file.tensors().into_iter();
    let kept = tensors.filter(|(name, _)| name != "lm_head.weight");
    safetensors::serialize(kept, None).unwrap()
}

/// Weights and tokenizer go over as they are; optimiser and step do not.
#[test]
fn a_run_starts_from_another_ones_weights() {
    for attention in ["latent", "grouped", "llama", "norms in linears"] {
        let place = Place::new();
        let llama = ["model.attention=grouped", "model.sub_norms=false"];
        let twice = ["model.attention=grouped", "model.norms.in_linear=1e-6"];
        match attention {
            "llama" => place.train("first", &llama),
            "norms in linears" => place.train("first", &twice),
            _ => place.train("first", &[&format!("model.attention={attention}")]),
        }
        let first = place.path("first");
        place
            .fit("second", from(&first, None, &[]).unwrap(), Some(0))
            .unwrap();
        for name in ["model.safetensors", "config.json", "tokenizer.json"] {
            let bytes = |run: &str| fs::read(place.path(run).join(name)).unwrap();
            assert!(bytes("first") == bytes("second"), "{attention}: {name}");
        }
        let state = tensors(&place.path("second/state.safetensors"));
        let moments = state.iter().filter(|t| !t.0.starts_with("weight/"));
        assert!(moments.flat_map(|t| &t.2).all(|x| *x == 0.0));
        let resumed = place
            .fit("second", Start::Resume { steps: None }, None)
            .unwrap();
        place
            .fit("whole", from(&first, None, &[]).unwrap(), None)
            .unwrap();
        let model = |run: &str| fs::read(place.path(run).join("model.safetensors")).unwrap();
        assert!(model("second") == model("whole") && model("whole") != model("first"));
        let Outcome::Finished(Some(resumed)) = resumed else {
            panic!("{resumed:?}");
        };
        assert!(resumed.nats_per_token.is_finite());
    }
}

/// A folder may be replaced by the run that starts from it.
#[test]
fn a_run_may_replace_its_own_start() {
    let place = Place::new();
    place.train("run", &[]);
    let before = fs::read(place.path("run/model.safetensors")).unwrap();
    let mut start = from(&place.path("run"), None, &[]).unwrap();
    assert!(matches!(
        place.fit("run", start.clone(), None),
        Err(Error::Usage(_))
    ));
    if let Start::Fresh { overwrite, .. } = &mut start {
        *overwrite = true;
    }
    place.fit("run", start, Some(0)).unwrap();
    assert!(before == fs::read(place.path("run/model.safetensors")).unwrap());
}

/// Begin and end of a text and what chats need stay with the model, also in the copy of the best one, and
/// go when another run takes the folder.
#[test]
fn what_is_known_of_texts_stays() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    for name in ["config.json", "model.safetensors", "generation_config.json"] {
        fs::copy(fixture("bitnet_online_f32").join(name), source.join(name)).unwrap();
    }
    fs::write(source.join("chat_template.jinja"), "{{ bos_token }}").unwrap();
    let start = from(&source, Some(place.tokenizer(320)), &[]).unwrap();
    place.fit("run", start, None).unwrap();
    for folder in ["run", "run/best"] {
        let read = |name: &str| fs::read_to_string(place.path(folder).join(name)).unwrap();
        let config: Value = serde_json::from_str(&read("config.json")).unwrap();
        assert_eq!(
            (&config["bos_token_id"], &config["eos_token_id"]),
            (&1.into(), &2.into())
        );
        assert_eq!(read("chat_template.jinja"), "{{ bos_token }}");
        assert!(read("generation_config.json").contains("eos_token_id"));
    }
    RunFolder::new(place.path("run")).clear().unwrap();
    assert!(!place.path("run/chat_template.jinja").exists());
    assert!(!place.path("run/best").exists());
}

/// Trained in full precision first: the same weights, from then on with quantisers.
#[test]
fn full_precision_weights_go_on_with_quantisers() {
    let place = Place::new();
    place.train("plain", &["train.quantize=false"]);
    let start = from(&place.path("plain"), None, &[]).unwrap();
    place.fit("run", start, None).unwrap();
    assert!(!Masters::open(&place.path("plain")).unwrap().quantized());
    assert!(Masters::open(&place.path("run")).unwrap().quantized());
}

#[test]
fn shards_are_read_as_one() {
    let place = Place::new();
    place.train("run", &[]);
    let whole = tensors(&place.path("run/model.safetensors"));
    let sharded = place.path("sharded");
    fs::create_dir(&sharded).unwrap();
    let (a, b) = whole.split_at(whole.len() / 2);
    let mut map = serde_json::Map::new();
    for (file, part) in [("a.safetensors", a), ("b.safetensors", b)] {
        write_tensors(&sharded.join(file), part);
        map.extend(part.iter().map(|t| (t.0.clone(), file.into())));
    }
    let index = serde_json::json!({ "weight_map": map });
    fs::write(
        sharded.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(place.path("run").join(name), sharded.join(name)).unwrap();
    }
    let (model, tokenizer) = RunFolder::new(&sharded).load_model().unwrap();
    let (again, _) = RunFolder::new(place.path("run")).load_model().unwrap();
    let text = bitnet_trainer::data::EncodedText::new(&tokenizer, TEXT).unwrap();
    assert_eq!(
        evaluate(&model, &text, 24).unwrap(),
        evaluate(&again, &text, 24).unwrap()
    );
}

fn refusal(path: &Path) -> String {
    match Masters::open(path) {
        Err(error) => error.to_string(),
        Ok(masters) => {
            let mut model = Model::new(*masters.model(), true);
            masters.load_into(&mut model).unwrap_err().to_string()
        }
    }
}

#[test]
fn codes_and_other_architectures_are_refused_with_the_reason() {
    for (name, reason) in [
        (
            "bitnet_packed",
            "the weights are packed codes. Training goes on from master weights",
        ),
        ("llama_packed", "packed codes"),
        ("falcon_e", "packed codes"),
        (
            "embedding_qwen3",
            "does not train Qwen3Model: it gives embeddings",
        ),
        ("bitnet700_fixed", "does not train bitnet700: LayerNorms"),
        ("gguf/TQ2_0/model.gguf", "a GGUF file holds ternary codes"),
        ("text", "holds neither model.safetensors nor"),
    ] {
        let message = refusal(&fixture(name));
        assert!(message.contains(reason), "{name}: {message}");
    }
}

#[test]
fn each_defect_of_a_checkpoint_is_named() {
    let place = Place::new();
    place.train("run", &["model.attention=grouped"]);
    let whole = tensors(&place.path("run/model.safetensors"));
    let path = place.path("run/model.safetensors");
    let find = |name: &str| whole.iter().position(|t| t.0.ends_with(name)).unwrap();
    let (q, norm) = (find("0.self_attn.q_proj.weight"), find("model.norm.weight"));
    type Change<'a> = &'a dyn Fn(&mut Vec<(String, Vec<usize>, Vec<f32>)>);
    let cases: [(&str, Change<'_>); 6] = [
        ("q_proj.weight is missing", &|t| drop(t.remove(q))),
        ("extra.weight belongs to no part", &|t| {
            t.push(("extra.weight".into(), vec![1], vec![0.5]))
        }),
        ("q_proj.weight has shape [1024]", &|t| t[q].1 = vec![1024]),
        ("norm.weight has shape [31]", &|t| {
            t[norm].1 = vec![31];
            t[norm].2.pop();
        }),
        ("q_proj.weight holds NaN at index 5", &|t| {
            t[q].2[5] = f32::NAN
        }),
        ("ternary codes written out as floats", &|t| {
            t[q].2.iter_mut().for_each(|w| *w = 0.02 * w.signum());
        }),
    ];
    for (says, change) in cases {
        let mut changed = whole.clone();
        change(&mut changed);
        write_tensors(&path, &changed);
        let message = refusal(&place.path("run"));
        assert!(message.contains(says), "{message}");
    }
    fs::write(&path, &fs::read(&path).unwrap()[..4000]).unwrap();
    assert!(refusal(&place.path("run")).contains("model.safetensors"));
    write_tensors(&path, &whole);
    fs::remove_file(place.path("run/config.json")).unwrap();
    assert!(refusal(&place.path("run")).contains("config.json: cannot read"));
}

#[test]
fn tokenizers_and_shapes_must_agree() {
    let place = Place::new();
    place.train("run", &[]);
    let run = place.path("run");
    let message = |start: Result<Start>| match start.and_then(|start| place.fit("new", start, None))
    {
        Err(error) => error.to_string(),
        Ok(outcome) => panic!("{outcome:?}"),
    };
    let cases = [
        (
            from(&run, Some(place.tokenizer(270)), &[]),
            "its ids are not those of",
        ),
        (
            from(&run, Some(TokenizerKind::Char), &[]),
            "have their vocabulary already",
        ),
        (
            from(&run, None, &["model.n_layers=3"]),
            "model.n_layers is 3, but the weights of --init",
        ),
        (
            from(&run, None, &["model.attention=grouped"]),
            "model.attention is grouped",
        ),
        (
            from(&run, None, &["model.sub_norms=false"]),
            "model.sub_norms is false, but the weights of --init",
        ),
        (
            from(&fixture("bitnet_online_f32"), None, &[]),
            "there is no tokenizer.json beside the weights",
        ),
        (
            from(
                &fixture("bitnet_online_f32"),
                Some(place.tokenizer(330)),
                &[],
            ),
            "has 330 ids, but config.json says vocab_size 320",
        ),
    ];
    for (start, says) in cases {
        let message = message(start);
        assert!(message.contains(says), "{message}");
    }
    // The tokenizer of the run by another way, and more positions, are no contradiction.
    let own = Some(TokenizerKind::File(run.join("tokenizer.json")));
    let longer = from(&run, own, &["model.max_seq_len=512"]).unwrap();
    place.fit("new", longer, Some(0)).unwrap();
}
