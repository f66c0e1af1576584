//! Dropout in the whole network: gradients are those of the masked network, runs repeat themselves.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use bitnet_formats::{ModelConfig, Preset};
use bitnet_trainer::corpus::DataOptions;
use bitnet_trainer::fit::{FitOptions, Start, fit};
use bitnet_trainer::keys;
use bitnet_trainer::model::gradient::{Example, Worker};
use bitnet_trainer::model::{Keep, Model, Sequence};
use bitnet_trainer::ops::dropout::Dropout;
use bitnet_trainer::progress::Progress;
use bitnet_trainer::settings::Settings;
use bitnet_trainer::tensor::{flat, flat_mut};
use bitnet_trainer::tokenizer::TokenizerKind;

const LEN: usize = 9;

fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 20,
        intermediate_size: 28,
        n_layers: 2,
        vocab_size: 23,
        max_seq_len: 16,
        ..Preset::Nano.config()
    }
}

fn example() -> Example {
    let ids: Vec<u32> = (0..=LEN as u32).map(|i| i * i * 5 % 23).collect();
    Example {
        inputs: ids[..LEN].to_vec(),
        targets: ids[1..].to_vec(),
    }
}

/// The loss of the network with these masks.
fn loss(model: &Model<f64>, dropout: Dropout) -> f64 {
    let Example { inputs, targets } = example();
    let mut buffers = Sequence::to_evaluate(&config(), LEN);
    buffers.set_dropout(dropout);
    model.loss(&inputs, &targets, &mut buffers).unwrap()
}

#[test]
fn gradients_match_finite_differences() {
    let mut model = Model::<f64>::new(config(), false);
    model.init(5);
    for param in model.params_mut() {
        flat_mut(&mut param.value)
            .iter_mut()
            .for_each(|w| *w *= 4.0);
    }
    model.refresh();
    let dropout = Dropout::new(0.3, 1, 17);
    assert!((loss(&model, dropout) - loss(&model, Dropout::OFF)).abs() > 1e-3);
    let mut workers = [Worker::new(&config(), LEN)];
    workers[0].set_dropout(dropout);
    model.zero_grad();
    let found = model.accumulate_gradient(&[example()], 1.0, &mut workers);
    assert!((found.unwrap() - loss(&model, dropout)).abs() < 1e-9);
    let grads: Vec<Vec<f64>> = model
        .params()
        .iter()
        .map(|p| flat(&p.grad).to_vec())
        .collect();
    let step = 1e-5;
    for (i, grads) in grads.iter().enumerate() {
        let largest = grads.iter().fold(0.0f64, |max, g| max.max(g.abs()));
        for at in (0..grads.len()).step_by(grads.len().div_ceil(7)) {
            let mut moved = |by: f64| {
                flat_mut(&mut model.params_mut()[i].value)[at] += by;
                model.refresh();
                loss(&model, dropout)
            };
            let slope = (moved(step) - moved(-2.0 * step)) / (2.0 * step);
            moved(step);
            let apart = (slope - grads[at]).abs();
            assert!(
                apart <= 1e-5 * largest.max(1e-3),
                "{i} {at}: {slope} {}",
                grads[at]
            );
        }
    }
}

/// A forward pass that is repeated draws the same masks.
#[test]
fn what_is_kept_changes_no_bit() {
    let gradients = |keep| {
        let mut model = Model::<f32>::new(config(), true);
        model.init(5);
        let mut workers = [Worker::keeping(keep, &config(), LEN)];
        workers[0].set_dropout(Dropout::new(0.3, 1, 17));
        model.zero_grad();
        let loss = model.accumulate_gradient(&[example()], 1.0, &mut workers);
        let params = model.params().into_iter();
        let grads: Vec<f32> = params.flat_map(|p| flat(&p.grad).to_vec()).collect();
        (loss.unwrap(), grads)
    };
    assert!(gradients(Keep::Activations) == gradients(Keep::Inputs));
}

struct Place {
    folder: tempfile::TempDir,
    data: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("text.txt");
        fs::write(
            &data,
            "She was convinced that she could have been happy. ".repeat(40),
        )
        .unwrap();
        Self { folder, data }
    }

    fn fit(&self, name: &str, start: Start, threads: usize, stop_at: Option<u64>) {
        let options = FitOptions {
            data: DataOptions::files(vec![self.data.clone()]),
            out: self.folder.path().join(name),
            start,
            threads,
            stop_at,
            export: None,
            ignore_memory: false,
        };
        fit(&options, &AtomicBool::new(false), &mut Progress::silent()).unwrap();
    }

    fn state(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name).join("state.safetensors")).unwrap()
    }
}

fn fresh(rate: &str) -> Start {
    let mut settings = Settings::preset(Preset::Nano);
    let sets = [
        "model.hidden_size=32",
        "model.intermediate_size=48",
        "model.n_layers=2",
        "train.steps=6",
        "train.batch=3",
        "train.accumulation=2",
        "train.context=24",
        "train.sample_tokens=0",
        &format!("train.dropout={rate}"),
    ];
    for assignment in sets {
        keys::apply(&mut settings, assignment).unwrap();
    }
    Start::Fresh {
        settings: Box::new(settings),
        tokenizer: Some(TokenizerKind::Byte),
        init: None,
        overwrite: false,
    }
}

#[test]
fn threads_and_interruptions_change_no_mask() {
    let place = Place::new();
    place.fit("one", fresh("0.2"), 1, None);
    place.fit("three", fresh("0.2"), 3, None);
    place.fit("halves", fresh("0.2"), 2, Some(3));
    place.fit("halves", Start::Resume { steps: None }, 1, None);
    assert!(place.state("one") == place.state("three"));
    assert!(place.state("one") == place.state("halves"));
    place.fit("none", fresh("0"), 1, None);
    let weights = |name: &str| {
        let model = place.folder.path().join(name).join("model.safetensors");
        fs::read(model).unwrap()
    };
    assert!(weights("one") != weights("none"));
}

/// The rate of a run is no part of its model: what is evaluated has every feature.
#[test]
fn evaluations_leave_nothing_out() {
    let place = Place::new();
    place.fit("run", fresh("0.5"), 1, None);
    let folder = place.folder.path().join("run");
    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let run = bitnet_trainer::checkpoint::RunFolder::new(folder);
    let (model, tokenizer) = run.load_model().unwrap();
    let text = fs::read_to_string(&place.data).unwrap();
    let (_, validation) = bitnet_trainer::held_out::split(&text, 0.1);
    let text = bitnet_trainer::data::EncodedText::new(&tokenizer, validation).unwrap();
    let found = bitnet_trainer::eval::evaluate(&model, &text, 24).unwrap();
    assert_eq!(last["val_loss"], found.nats_per_token);
}
