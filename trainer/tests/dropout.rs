//! Dropout in the whole network: gradients are those of the masked network, runs repeat themselves.

mod library;

use bitnet_formats::{ModelConfig, Preset};
use bitnet_trainer::checkpoint::RunFolder;
use bitnet_trainer::data::EncodedText;
use bitnet_trainer::eval::evaluate;
use bitnet_trainer::fit::Start;
use bitnet_trainer::model::gradient::{Example, Worker};
use bitnet_trainer::model::{Keep, Model, Sequence};
use bitnet_trainer::ops::dropout::Dropout;
use bitnet_trainer::tensor::{flat, flat_mut};
use bitnet_trainer::tokenizer::TokenizerKind;
use library::{Place, TEXT, files, metrics, settings, start};

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

fn fresh(rate: &str) -> Start {
    let rate = format!("train.dropout={rate}");
    let short = ["train.steps=6", "train.batch=3", "train.accumulation=2"];
    start(
        settings(&[&short[..], &[&rate]].concat()),
        TokenizerKind::Byte,
    )
}

#[test]
fn threads_and_interruptions_change_no_mask() {
    let place = Place::new();
    let fit = |name: &str, start, threads, stop_at| {
        place.fit(name, start, threads, stop_at).unwrap();
        files(&place.out(name))
    };
    let one = fit("one", fresh("0.2"), 1, None);
    assert!(one == fit("three", fresh("0.2"), 3, None));
    fit("halves", fresh("0.2"), 2, Some(3));
    assert!(one == fit("halves", Start::Resume { steps: None }, 1, None));
    assert!(one[0] != fit("none", fresh("0"), 1, None)[0]);
}

/// The rate of a run is no part of its model: what is evaluated has every feature.
#[test]
fn evaluations_leave_nothing_out() {
    let place = Place::new();
    place.fit("run", fresh("0.5"), 1, None).unwrap();
    let last = metrics(&place.out("run")).pop().unwrap();
    let (model, tokenizer) = RunFolder::new(place.out("run")).load_model().unwrap();
    let text = TEXT.repeat(20);
    let (_, validation) = bitnet_trainer::held_out::split(&text, 0.1);
    let text = EncodedText::new(&tokenizer, validation).unwrap();
    let found = evaluate(&model, &text, 24).unwrap();
    assert_eq!(last["val_loss"], found.nats_per_token);
}
