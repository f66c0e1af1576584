//! Runs that begin in full precision and turn their quantisers on.

mod library;

use std::fs;

use bitnet_trainer::checkpoint::RunFolder;
use bitnet_trainer::fit::Start;
use bitnet_trainer::model::{Model, Sequence};
use bitnet_trainer::ops::ramp::Quantizers;
use bitnet_trainer::settings::Settings;
use bitnet_trainer::tokenizer::TokenizerKind;
use library::{Place, TEXT, files, metrics, start};

impl Place {
    fn fresh(&self, name: &str, sets: &[&str], threads: usize, stop_at: Option<u64>) {
        let start = start(settings(sets), TokenizerKind::Byte);
        self.fit(name, start, threads, stop_at).unwrap();
    }

    fn resume(&self, name: &str, threads: usize) {
        let start = Start::Resume { steps: None };
        self.fit(name, start, threads, None).unwrap();
    }
}

fn settings(sets: &[&str]) -> Settings {
    let short = ["train.steps=9", "train.eval_every=2", "train.batch=3"];
    library::settings(&[&short[..], sets].concat())
}

const START: [&str; 2] = ["train.fp_steps=3", "train.ramp_steps=3"];

/// Interrupted before, at, within and after every switch, with any number of threads.
#[test]
fn a_start_in_full_precision_resumes_to_the_same_bytes() {
    let place = Place::new();
    place.fresh("whole", &START, 2, None);
    for stop in 1..9 {
        let name = stop.to_string();
        place.fresh(&name, &START, 1, Some(stop));
        place.resume(&name, 3);
        let same = files(&place.out(&name)) == files(&place.out("whole"));
        assert!(same, "stopped at {stop}");
    }
    let records = metrics(&place.out("whole"));
    let lambdas: Vec<_> = records.iter().map(|r| r["lambda"].as_f64()).collect();
    let expected = [0.0, 0.0, 0.0, 0.25, 0.5, 0.75].map(Some);
    assert_eq!(lambdas[..6], expected);
    assert_eq!(lambdas[6..], [None; 3]);
    // The best model is one of a quantised network, and flips are of its codes.
    for record in &records[..6] {
        assert_eq!(record["flips"], 0.0);
        assert!(record.get("zero_share").is_none());
    }
    assert!(records[8]["zero_share"].as_f64().unwrap() > 0.2);
    assert!(place.out("whole/best/model.safetensors").exists());
    place.fresh("early", &START, 1, Some(6));
    assert!(!place.out("early/best").exists());
}

/// Before the switch the run is one without quantisers.
#[test]
fn the_first_steps_are_those_of_a_plain_network() {
    let place = Place::new();
    place.fresh("start", &START, 1, Some(3));
    place.fresh("plain", &["train.quantize=false"], 1, Some(3));
    let weights = |name: &str| {
        let (_, model, _) = RunFolder::new(place.out(name)).load_state().unwrap();
        let params = model.params().into_iter();
        params.map(|p| p.value.clone()).collect::<Vec<_>>()
    };
    assert!(weights("start") == weights("plain"));
}

/// At its end the ramp is the present network, to the bit; just before, it is near it.
#[test]
fn the_ramp_ends_in_the_quantised_network() {
    let settings = settings(&["model.max_seq_len=24"]);
    let mut model = Model::<f32>::new(settings.model, true);
    model.init(1);
    let ids: Vec<u32> = TEXT.bytes().take(24).map(u32::from).collect();
    let loss = |model: &Model<f32>| {
        let mut buffers = Sequence::to_evaluate(model.config(), 23);
        model.loss(&ids[..23], &ids[1..], &mut buffers).unwrap()
    };
    let quantized = loss(&model);
    model.set_quantizers(Quantizers::Off);
    let plain = loss(&model);
    model.set_quantizers(Quantizers::Ramp(1e-6));
    assert!((loss(&model) - plain).abs() < 1e-3);
    model.set_quantizers(Quantizers::Ramp(0.999_999));
    // What is left are the int8 codes of the activations.
    let near = loss(&model);
    assert!(
        (near - quantized).abs() < 0.02 * quantized,
        "{near} {quantized}"
    );
    model.set_quantizers(Quantizers::On);
    assert_eq!(loss(&model), quantized);
}

/// The figures for TensorBoard: a file per start, each saying where it takes over.
#[test]
fn every_start_of_a_run_has_its_event_file() {
    let place = Place::new();
    place.fresh("run", &[], 1, Some(4));
    place.resume("run", 1);
    let events = |name: &str| {
        let entries = fs::read_dir(place.out(name)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("tfevents")).count()
    };
    assert_eq!(events("run"), 2);
    place.fresh("none", &["train.tensorboard=false"], 1, None);
    assert_eq!(events("none"), 0);
    let again = Start::Fresh {
        settings: Box::new(settings(&[])),
        tokenizer: Some(TokenizerKind::Byte),
        init: None,
        overwrite: true,
    };
    place.fit("run", again, 1, Some(1)).unwrap();
    assert_eq!(events("run"), 1);
}
