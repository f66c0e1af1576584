//! Runs through the library, in a folder of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bitnet_formats::Preset;
use bitnet_trainer::corpus::DataOptions;
use bitnet_trainer::error::Result;
use bitnet_trainer::fit::{FitOptions, Outcome, Start, fit};
use bitnet_trainer::keys;
use bitnet_trainer::progress::Progress;
use bitnet_trainer::settings::Settings;
use bitnet_trainer::tokenizer::TokenizerKind;
use serde_json::Value;
use tempfile::TempDir;

/// What runs learn from, twenty times over.
pub(crate) const TEXT: &str = "It is a truth universally acknowledged, that a single man in \
                               possession of a good fortune, must be in want of a wife. However \
                               little known the feelings. ";

/// A folder with a text and the runs on it.
pub(crate) struct Place {
    folder: TempDir,
    pub(crate) data: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("text.txt");
        fs::write(&data, TEXT.repeat(20)).unwrap();
        Self { folder, data }
    }

    pub(crate) fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn fit(
        &self,
        name: &str,
        start: Start,
        threads: usize,
        stop_at: Option<u64>,
    ) -> Result<Outcome> {
        let options = FitOptions {
            data: DataOptions::files(vec![self.data.clone()]),
            out: self.out(name),
            start,
            threads,
            stop_at,
            export: None,
            ignore_memory: false,
        };
        fit(&options, &AtomicBool::new(false), &mut Progress::silent())
    }
}

/// A network of two small blocks, and these settings.
pub(crate) fn settings(sets: &[&str]) -> Settings {
    let mut settings = Settings::preset(Preset::Nano);
    let small = [
        "model.hidden_size=32",
        "model.intermediate_size=48",
        "model.n_layers=2",
        "train.context=24",
        "train.sample_tokens=4",
    ];
    for assignment in small.iter().chain(sets) {
        keys::apply(&mut settings, assignment).unwrap();
    }
    settings
}

/// A run from its beginning, where there is none.
pub(crate) fn start(settings: Settings, tokenizer: TokenizerKind) -> Start {
    Start::Fresh {
        settings: Box::new(settings),
        tokenizer: Some(tokenizer),
        init: None,
        overwrite: false,
    }
}

/// All that a run is: its model, its state, and what belongs to them.
pub(crate) fn files(run: &Path) -> [Vec<u8>; 4] {
    let names = [
        "model.safetensors",
        "state.safetensors",
        "config.json",
        "tokenizer.json",
    ];
    names.map(|name| fs::read(run.join(name)).unwrap())
}

/// The lines of the metrics of a run.
pub(crate) fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let read = |line| serde_json::from_str(line).unwrap();
    text.lines().map(read).collect()
}
