//! Whole runs through the library: determinism, resuming, overfitting, failed saves.

mod library;

use std::fs;
use std::path::Path;

use bitnet_trainer::checkpoint::RunFolder;
use bitnet_trainer::data::{EncodedText, TokenDataset};
use bitnet_trainer::error::Error;
use bitnet_trainer::eval::evaluate;
use bitnet_trainer::fit::{Outcome, Start};
use bitnet_trainer::model::Keep;
use bitnet_trainer::param::Param;
use bitnet_trainer::settings::Settings;
use bitnet_trainer::tokenizer::TokenizerKind;
use bitnet_trainer::trainer::Trainer;
use library::{Place, TEXT, files, metrics, start};

fn settings(sets: &[&str]) -> Settings {
    let short = ["train.steps=10", "train.batch=4"];
    library::settings(&[&short[..], sets].concat())
}

fn fresh(sets: &[&str]) -> Start {
    start(settings(sets), TokenizerKind::Bpe(270))
}

/// The shape of Llama: no sub-norms, SiLU, a head of its own.
const LLAMA: [&str; 5] = [
    "model.attention=grouped",
    "model.n_kv_heads=2",
    "model.sub_norms=false",
    "model.activation=silu",
    "model.tie_embeddings=false",
];

/// Every norm that a grouped model may have.
const TWICE: [&str; 2] = ["model.attention=grouped", "model.norms.in_linear=1e-6"];

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    for sets in [
        &[][..],
        &["model.attention=grouped", "train.accumulation=2"],
        &LLAMA,
        &TWICE,
    ] {
        let place = Place::new();
        for threads in 1..=3 {
            let name = threads.to_string();
            place.fit(&name, fresh(sets), threads, None).unwrap();
        }
        let one = files(&place.out("1"));
        assert!(one == files(&place.out("2")) && one == files(&place.out("3")));
    }
}

#[test]
fn resuming_writes_the_bytes_of_an_uninterrupted_run() {
    for sets in [&[][..], &LLAMA, &TWICE] {
        resuming_writes_the_same_bytes(sets);
    }
}

fn resuming_writes_the_same_bytes(sets: &[&str]) {
    let place = Place::new();
    place.fit("whole", fresh(sets), 2, None).unwrap();
    let stopped = place.fit("halves", fresh(sets), 1, Some(5)).unwrap();
    assert_eq!(stopped, Outcome::Stopped { step: 5 });
    assert_ne!(files(&place.out("halves")), files(&place.out("whole")));
    let finished = place
        .fit("halves", Start::Resume { steps: None }, 2, None)
        .unwrap();
    assert!(matches!(finished, Outcome::Finished(Some(_))));
    assert!(files(&place.out("halves")) == files(&place.out("whole")));
    let steps = |name: &str| {
        let records = metrics(&place.out(name)).into_iter();
        records
            .map(|record| record["step"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("halves"), steps("whole"));
    assert_eq!(steps("whole").len(), 10);
}

/// A run that has ended takes more steps, those of the longer schedule.
#[test]
fn a_run_can_be_made_longer() {
    let place = Place::new();
    place.fit("run", fresh(&[]), 1, None).unwrap();
    let longer = |steps| Start::Resume { steps: Some(steps) };
    let shorter = place.fit("run", longer(9), 1, None).unwrap_err();
    assert!(shorter.to_string().contains("step 10 of 10"), "{shorter}");
    let stopped = place.fit("run", longer(14), 1, Some(12)).unwrap();
    assert_eq!(stopped, Outcome::Stopped { step: 12 });
    let outcome = place.fit("run", Start::Resume { steps: None }, 1, None);
    assert!(matches!(outcome.unwrap(), Outcome::Finished(Some(_))));
    place.fit("again", fresh(&[]), 2, None).unwrap();
    place.fit("again", longer(14), 2, None).unwrap();
    assert!(files(&place.out("run")) == files(&place.out("again")));
    let (state, _, _) = RunFolder::new(place.out("run")).load_state().unwrap();
    assert_eq!((state.step, state.settings.train.steps), (14, 14));
    assert_eq!(state.settings.train.warmup, settings(&[]).train.warmup);
}

/// A rate that ruins the model: evaluations get worse, the best is kept, and the run stops.
#[test]
fn a_run_that_gets_worse_stops_and_keeps_its_best() {
    let sets = [
        "train.steps=40",
        "train.eval_every=2",
        "train.save_every=4",
        "train.patience=3",
        "train.keep_last=2",
        "train.lr=0.7",
        "train.min_lr=0.7",
        "train.warmup=6",
        "train.spike_factor=0",
    ];
    let place = Place::new();
    let outcome = place.fit("run", fresh(&sets), 1, None).unwrap();
    let Outcome::EarlyStopped {
        step,
        best_step,
        best_loss,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!(step, best_step + 6);
    let best = RunFolder::new(place.out("run").join("best"));
    let (model, tokenizer) = best.load_model().unwrap();
    let text = TEXT.repeat(20);
    let (_, validation) = bitnet_trainer::held_out::split(&text, 0.1);
    let text = EncodedText::new(&tokenizer, validation).unwrap();
    assert_eq!(
        evaluate(&model, &text, 24).unwrap().nats_per_token,
        best_loss
    );
    let mut copies: Vec<_> = fs::read_dir(place.out("run"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.starts_with("step-"))
        .collect();
    copies.sort();
    assert_eq!(copies.len(), 2);
    assert_eq!(copies[1], format!("step-{step:08}"));
    // A run that is interrupted before knows the same.
    place
        .fit("halves", fresh(&sets), 1, Some(best_step + 3))
        .unwrap();
    let resumed = place.fit("halves", Start::Resume { steps: None }, 1, None);
    let Outcome::EarlyStopped { step: again, .. } = resumed.unwrap() else {
        panic!("it did not stop");
    };
    assert_eq!(again, step);
    assert!(files(&place.out("halves")) == files(&place.out("run")));
    assert!(files_of_model(&place.out("halves/best")) == files_of_model(&place.out("run/best")));
}

fn files_of_model(folder: &Path) -> [Vec<u8>; 2] {
    ["model.safetensors", "config.json"].map(|name| fs::read(folder.join(name)).unwrap())
}

/// A step above the limit changes no weight and counts as a step; the next one learns again.
#[test]
fn a_spike_is_left_out() {
    let mut settings = settings(&[]);
    settings.model.vocab_size = 256;
    let ids: Vec<u32> = TEXT.repeat(3).bytes().map(u32::from).collect();
    let text = EncodedText::from_ids(ids, 3 * TEXT.len());
    let data = TokenDataset {
        train: text.clone(),
        validation: text,
    };
    let mut trainer = Trainer::new(settings, None, Keep::Activations);
    let weights = |trainer: &Trainer| -> Vec<_> {
        let params = trainer.model().params().into_iter();
        params.map(|param| param.value.clone()).collect()
    };
    let fresh = weights(&trainer);
    let skipped = trainer.take_step(&data, Some(1e-9), Path::new("out"));
    let skipped = skipped.unwrap();
    assert!(skipped.skipped && skipped.flips == 0.0 && skipped.step == 1);
    assert!(weights(&trainer) == fresh);
    let taken = trainer.take_step(&data, Some(1e9), Path::new("out"));
    assert!(!taken.unwrap().skipped);
    assert!(weights(&trainer) != fresh);
}

#[test]
fn evaluations_record_every_tensor() {
    let place = Place::new();
    place
        .fit("run", fresh(&["train.steps=4"]), 1, None)
        .unwrap();
    let last = metrics(&place.out("run")).pop().unwrap();
    let (_, model, _) = RunFolder::new(place.out("run")).load_state().unwrap();
    let tensors = last["tensors"].as_object().unwrap();
    assert_eq!(tensors.len(), model.params().len());
    let squares = tensors
        .values()
        .map(|t| t["grad_norm"].as_f64().unwrap().powi(2));
    let norm = squares.sum::<f64>().sqrt();
    assert!((norm / last["grad_norm"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    let gate = &tensors["model.layers.0.mlp.gate_proj.weight"];
    assert!((gate["zero_share"].as_f64().unwrap() - 0.31).abs() < 0.1);
    assert!((gate["scale"].as_f64().unwrap() - 0.016).abs() < 0.005);
    assert!(tensors["model.norm.weight"].get("scale").is_none());
}

#[test]
fn seeds_matter() {
    let place = Place::new();
    place.fit("1", fresh(&["train.steps=2"]), 1, None).unwrap();
    place
        .fit("2", fresh(&["train.steps=2", "train.seed=2"]), 1, None)
        .unwrap();
    assert_ne!(files(&place.out("1"))[0], files(&place.out("2"))[0]);
}

/// A checkpoint gives the loss that training reported, through its files alone.
#[test]
fn a_checkpoint_evaluates_as_training_did() {
    for sets in [
        &[][..],
        &["model.attention=grouped", "model.tie_embeddings=false"],
    ] {
        let place = Place::new();
        let outcome = place.fit("run", fresh(sets), 2, None).unwrap();
        let Outcome::Finished(Some(reported)) = outcome else {
            panic!("{outcome:?}");
        };
        let (model, tokenizer) = RunFolder::new(place.out("run")).load_model().unwrap();
        let text = TEXT.repeat(20);
        let (_, validation) = bitnet_trainer::held_out::split(&text, 0.1);
        let text = EncodedText::new(&tokenizer, validation).unwrap();
        assert_eq!(evaluate(&model, &text, 24).unwrap(), reported);
    }
}

/// One batch, learned by heart. The quantised network can, so forward and backward fit together.
#[test]
fn one_batch_can_be_learned_by_heart() {
    for attention in ["latent", "grouped"] {
        let attention = format!("model.attention={attention}");
        let sets = [
            "model.hidden_size=64",
            "model.intermediate_size=128",
            "train.steps=200",
            "train.batch=2",
            "train.context=32",
            "train.lr=5e-3",
            "train.schedule=linear",
            &attention,
        ];
        let mut settings = settings(&sets);
        settings.model.vocab_size = 256;
        let ids: Vec<u32> = TEXT.bytes().map(u32::from).collect();
        // With exactly one window, every batch is the same.
        let part = |n: usize| EncodedText::from_ids(ids[..n].to_vec(), n);
        let data = TokenDataset {
            train: part(33),
            validation: part(33),
        };
        let mut trainer = Trainer::new(settings, None, Keep::Activations);
        let mut last = f64::INFINITY;
        for _ in 0..200 {
            last = trainer
                .take_step(&data, None, Path::new("out"))
                .unwrap()
                .loss;
        }
        assert!(last < 0.1, "{attention}: {last}");
    }
}

#[test]
fn a_learning_rate_beyond_reason_stops_with_the_checkpoint_kept() {
    let place = Place::new();
    let wild = fresh(&["train.lr=1e30", "train.clip=1e30", "train.warmup=0"]);
    let error = place.fit("run", wild, 1, None).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::NonFinite { .. }), "{message}");
    assert!(
        message.contains("last good checkpoint is kept"),
        "{message}"
    );
    let (state, model, _) = RunFolder::new(place.out("run")).load_state().unwrap();
    let finite = |p: &&Param<f32>| p.value.iter().all(|w| w.is_finite());
    assert!(state.step < 10 && model.params().iter().all(finite));
}

/// The state cannot be written half-way: the checkpoint that was there stays, both files of it.
#[test]
fn a_failed_save_keeps_the_earlier_checkpoint() {
    let place = Place::new();
    place.fit("run", fresh(&[]), 1, Some(3)).unwrap();
    let before = files(&place.out("run"));
    // A folder where the temporary file would go.
    fs::create_dir(place.out("run").join("state.safetensors.tmp")).unwrap();
    let error = place
        .fit("run", Start::Resume { steps: None }, 1, None)
        .unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("state.safetensors: cannot write"),
        "{message}"
    );
    assert!(files(&place.out("run")) == before);
    fs::remove_dir(place.out("run").join("state.safetensors.tmp")).unwrap();
    place
        .fit("run", Start::Resume { steps: None }, 1, None)
        .unwrap();
}

/// A machine that stopped between the two files of a save: resuming writes the model again.
#[test]
fn resuming_completes_an_interrupted_save() {
    let place = Place::new();
    place.fit("run", fresh(&[]), 1, Some(2)).unwrap();
    let old_model = fs::read(place.out("run").join("model.safetensors")).unwrap();
    place
        .fit("run", Start::Resume { steps: None }, 1, None)
        .unwrap();
    let done = files(&place.out("run"));
    fs::write(place.out("run").join("model.safetensors"), old_model).unwrap();
    let outcome = place
        .fit("run", Start::Resume { steps: None }, 1, None)
        .unwrap();
    assert_eq!(outcome, Outcome::Finished(None));
    assert!(files(&place.out("run")) == done);
}

#[test]
fn another_text_cannot_resume_a_run() {
    let place = Place::new();
    place.fit("run", fresh(&[]), 1, Some(1)).unwrap();
    fs::write(&place.data, TEXT.repeat(21)).unwrap();
    let error = place
        .fit("run", Start::Resume { steps: None }, 1, None)
        .unwrap_err();
    assert!(
        error.to_string().contains("the text is not the one"),
        "{error}"
    );
}
