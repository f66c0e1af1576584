//! Losses over a part of the tokens: what is ignored teaches nothing.

use bitnet_formats::{ModelConfig, Preset};
use bitnet_trainer::data::{EncodedText, TokenDataset};
use bitnet_trainer::loss_mask::LossMask;
use bitnet_trainer::model::gradient::{Example, Worker};
use bitnet_trainer::model::{Keep, Model};
use bitnet_trainer::ops::target::{IGNORED, counted};
use bitnet_trainer::settings::{OrderKind, Settings};
use bitnet_trainer::tensor::flat;
use bitnet_trainer::trainer::Trainer;

const VOCAB: usize = 23;
const LEN: usize = 12;

fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 32,
        intermediate_size: 48,
        n_layers: 2,
        vocab_size: VOCAB,
        max_seq_len: 16,
        ..Preset::Nano.config()
    }
}

/// Loss and gradients of one example, all losses with the same weight.
fn gradients(targets: &[u32]) -> (f64, Vec<f32>) {
    let mut model = Model::<f32>::new(config(), true);
    model.init(3);
    let inputs: Vec<u32> = (0..LEN as u32).map(|i| i * i % VOCAB as u32).collect();
    let example = Example {
        inputs,
        targets: targets.to_vec(),
    };
    let mut workers = [Worker::new(&config(), LEN)];
    model.zero_grad();
    let loss = model.accumulate_gradient(&[example], 0.125, &mut workers);
    let grads = model.params().into_iter();
    let grads = grads.flat_map(|param| flat(&param.grad).to_vec());
    (loss.unwrap(), grads.collect())
}

/// Loss and gradient of some targets and of the others add up to those of all.
#[test]
fn losses_and_gradients_are_those_of_the_targets_that_count() {
    let all: Vec<u32> = (0..LEN as u32)
        .map(|i| (i * 7 + 3) % VOCAB as u32)
        .collect();
    let some = |keep: fn(usize) -> bool| -> Vec<u32> {
        let one = |(i, target): (usize, &u32)| if keep(i) { *target } else { IGNORED };
        all.iter().enumerate().map(one).collect()
    };
    let (odd, even) = (some(|i| i % 3 == 1), some(|i| i % 3 != 1));
    assert_eq!(counted(&odd) + counted(&even), LEN);
    let (whole, whole_grads) = gradients(&all);
    let ((a, a_grads), (b, b_grads)) = (gradients(&odd), gradients(&even));
    assert!((a + b - whole).abs() < 1e-5 * whole, "{a} {b} {whole}");
    assert!(a > 0.0 && b > 0.0);
    let norm = whole_grads.iter().map(|g| g * g).sum::<f32>().sqrt();
    for ((a, b), whole) in a_grads.iter().zip(&b_grads).zip(&whole_grads) {
        assert!((a + b - whole).abs() < 1e-5 * norm, "{a} {b} {whole}");
    }
    let (nothing, no_grads) = gradients(&[IGNORED; LEN]);
    assert!(nothing == 0.0 && no_grads.iter().all(|g| *g == 0.0));
}

fn dataset(mask: LossMask) -> TokenDataset {
    let ids: Vec<u32> = (0..200).map(|i| i * i % VOCAB as u32).collect();
    let text = EncodedText {
        mask,
        ..EncodedText::from_ids(ids, 200)
    };
    TokenDataset {
        train: text.clone(),
        validation: text,
    }
}

fn settings() -> Settings {
    let mut settings = Settings::preset(Preset::Nano);
    settings.model = config();
    settings.train.context = LEN;
    (settings.train.batch, settings.train.accumulation) = (3, 2);
    settings
}

fn weights(trainer: &Trainer) -> Vec<f32> {
    let params = trainer.model().params().into_iter();
    params
        .flat_map(|param| flat(&param.value).to_vec())
        .collect()
}

/// The loss of a step is the mean over what it predicts, wherever in its micro-batches that is.
#[test]
fn the_loss_of_a_step_is_the_mean_over_its_targets() {
    let marks: Vec<bool> = (0..200).map(|i| i % 7 < 2).collect();
    let data = dataset(LossMask::Memory(marks));
    for order in [OrderKind::Random, OrderKind::Shuffled] {
        let mut settings = settings();
        settings.train.order = order;
        let train = settings.train.clone();
        let mut trainer = Trainer::new(settings, None, Keep::Activations);
        let mut buffers = bitnet_trainer::model::Sequence::to_evaluate(&config(), LEN);
        let (mut sum, mut targets) = (0.0, 0);
        for micro in 0..2 {
            for example in data.batch(&train, micro).unwrap() {
                targets += counted(&example.targets);
                let loss = trainer
                    .model()
                    .loss(&example.inputs, &example.targets, &mut buffers);
                sum += loss.unwrap();
            }
        }
        assert!(targets > 0 && targets < 2 * 3 * LEN);
        assert_eq!(data.counted_targets(&train, 0).unwrap(), targets);
        let step = trainer.take_step(&data, None, "out".as_ref()).unwrap();
        let mean = sum / targets as f64;
        assert!((step.loss - mean).abs() < 1e-6, "{} {mean}", step.loss);
    }
}

/// A mask of ones is no mask.
#[test]
fn a_mask_that_counts_all_changes_no_bit() {
    let trained = |mask| {
        let data = dataset(mask);
        let mut trainer = Trainer::new(settings(), None, Keep::Activations);
        for _ in 0..3 {
            trainer.take_step(&data, None, "out".as_ref()).unwrap();
        }
        weights(&trainer)
    };
    let all = trained(LossMask::Memory(vec![true; 200]));
    assert!(all == trained(LossMask::All));
}

/// Windows without an answer change nothing, and the run goes on.
#[test]
fn a_step_without_a_target_is_left_out() {
    let data = dataset(LossMask::Memory(vec![false; 200]));
    let mut trainer = Trainer::new(settings(), None, Keep::Activations);
    let before = weights(&trainer);
    let step = trainer.take_step(&data, None, "out".as_ref()).unwrap();
    assert!(step.skipped && step.loss == 0.0 && step.grad_norm == 0.0);
    assert!(before == weights(&trainer) && trainer.step() == 1);
}
