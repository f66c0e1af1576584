//! The folder of a run.
//!
//! | file | holds |
//! | --- | --- |
//! | `model.safetensors` | f32 master weights under the public names |
//! | `config.json`, `tokenizer.json` | what belongs to them |
//! | `tokenizer_config.json` | the chat template, where there is one |
//! | `settings.toml` | all settings of the run, as `--config` takes them |
//! | `state.safetensors` | the whole run: weights, both moments, step, settings |
//! | `metrics.jsonl`, `loss.svg` | what happened |
//! | `events.out.tfevents.*` | the same for TensorBoard, a file per start |
//! | `best/`, `step-00000100/` | model, `config.json` and `tokenizer.json` as they were at the best evaluation and at earlier checkpoints, where that is asked for |
//!
//! The first three are what other programs read. `state.safetensors` is what `--resume` reads, and
//! nothing else: being one file that is renamed into place, it cannot mix two steps. It is written
//! first; if the machine stops before `model.safetensors` follows, resuming writes that again.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config_file::to_toml;
use crate::config_json;
use crate::error::{Error, Result};
use crate::events;
use crate::files::write_bytes;
use crate::init::{Masters, SIDECARS};
use crate::model::Model;
use crate::optim::{AdamW, Moments};
use crate::param::Param;
use crate::settings::Settings;
use crate::tensor::flat;
use crate::tensor_file::{self, Named, TensorFile};
use crate::tokenizer::Tokenizer;

/// Key of the JSON in the state file's metadata. One key only.
const STATE_KEY: &str = "run";

/// Folder of the model of the best evaluation.
pub const BEST: &str = "best";
const STEP_PREFIX: &str = "step-";
/// Files of a copy of the model, besides the [`SIDECARS`].
const COPY_FILES: [&str; 4] = [
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "settings.toml",
];

/// Where a run stands, apart from its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps taken. Batches are drawn by step, so this is the state of the data as well.
    pub step: u64,
    /// What the run computes.
    pub settings: Settings,
    /// [`crate::data::Input::fingerprint`].
    pub text_fingerprint: String,
}

/// The run that a folder holds.
#[derive(Debug)]
pub struct SavedRun {
    /// Where it stands.
    pub state: RunState,
    file: TensorFile,
}

impl SavedRun {
    /// Reads weights and moments, one tensor at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Checkpoint`], naming the file and the tensor.
    pub fn load(&self) -> Result<(Model<f32>, AdamW)> {
        let (file, train) = (&self.file, &self.state.settings.train);
        let mut model = Model::new(self.state.settings.model, train.quantize);
        let parts = ["weight/", "m/", "v/"];
        file.check_names(names(&model, &parts))?;
        for param in model.params_mut() {
            file.read_into(&format!("weight/{}", param.name), param)?;
        }
        let betas = (train.beta1, train.beta2);
        let mut adam = AdamW::new(&model, betas, train.eps, train.decay_embedding);
        for (param, Moments { m, v }) in model.params().into_iter().zip(&mut adam.moments) {
            file.read_values(&format!("m/{}", param.name), &param.shape(), m)?;
            file.read_values(&format!("v/{}", param.name), &param.shape(), v)?;
        }
        model.refresh();
        Ok((model, adam))
    }
}

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder at this path, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// True if there is a model or a run to lose.
    #[must_use]
    pub fn is_occupied(&self) -> bool {
        ["state.safetensors", "model.safetensors"]
            .iter()
            .any(|name| self.file(name).exists())
    }

    /// Creates the folder and removes an earlier run's files, state first.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn clear(&self) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(Error::io(&self.path, "create"))?;
        let names = [
            "state.safetensors",
            "model.safetensors",
            "metrics.jsonl",
            "loss.svg",
        ];
        for name in names.iter().chain(&SIDECARS) {
            remove_file(&self.file(name))?;
        }
        events::clear(&self.path)?;
        self.remove_copy(BEST)?;
        self.drop_copies(0)
    }

    /// Writes the model as it is to a folder of its own inside this one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save_copy(
        &self,
        name: &str,
        settings: &Settings,
        tokenizer: &Tokenizer,
        model: &Model<f32>,
    ) -> Result<()> {
        let copy = Self::new(self.file(name));
        fs::create_dir_all(&copy.path).map_err(Error::io(&copy.path, "create"))?;
        copy.save_description(settings, tokenizer)?;
        for name in SIDECARS.iter().chain(&["config.json"]) {
            if let Ok(bytes) = fs::read(self.file(name)) {
                write_bytes(&copy.file(name), &bytes)?;
            }
        }
        copy.save_model(model)
    }

    /// Removes all copies of steps but the last `keep`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn drop_copies(&self, keep: u64) -> Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path, "read"))? {
            let entry = entry.map_err(Error::io(&self.path, "read"))?;
            names.extend(entry.file_name().into_string().ok());
        }
        names.retain(|name| step_of_copy(name).is_some());
        names.sort_by_key(|name| step_of_copy(name));
        let drop = names.len().saturating_sub(keep as usize);
        names[..drop]
            .iter()
            .try_for_each(|name| self.remove_copy(name))
    }

    /// Removes what [`RunFolder::save_copy`] wrote, and the folder if nothing else is in it.
    fn remove_copy(&self, name: &str) -> Result<()> {
        let copy = Self::new(self.file(name));
        for file in COPY_FILES.iter().chain(&SIDECARS) {
            remove_file(&copy.file(file))?;
        }
        match fs::remove_dir(&copy.path) {
            Err(e) if copy.path.exists() => Err(Error::io(&copy.path, "remove")(e)),
            _ => Ok(()),
        }
    }

    /// Writes what does not change during a run.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save_description(&self, settings: &Settings, tokenizer: &Tokenizer) -> Result<()> {
        let path = self.file("config.json");
        let (model, quantize) = (&settings.model, settings.train.quantize);
        let config = config_json::write(model, quantize, tokenizer.end_of_text())
            .map_err(|problem| Error::checkpoint(&path, problem))?;
        write_bytes(&path, config.as_bytes())?;
        self.save_settings(settings)?;
        tokenizer.save(&self.path)
    }

    /// Writes `settings.toml`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save_settings(&self, settings: &Settings) -> Result<()> {
        let text = to_toml(settings);
        write_bytes(&self.file("settings.toml"), text.as_bytes())
    }

    /// Writes the run, then the model.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; what was saved before is then still there.
    pub fn save(&self, state: &RunState, model: &Model<f32>, adam: &AdamW) -> Result<()> {
        self.save_state(state, model, adam)?;
        self.save_model(model)
    }

    /// Writes `model.safetensors`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save_model(&self, model: &Model<f32>) -> Result<()> {
        let params = model.params();
        let tensors: Vec<_> = params
            .iter()
            .map(|param| named("", param, flat(&param.value)))
            .collect();
        tensor_file::write(&self.file("model.safetensors"), &tensors, ("format", "pt"))
    }

    fn save_state(&self, state: &RunState, model: &Model<f32>, adam: &AdamW) -> Result<()> {
        let path = self.file("state.safetensors");
        let json =
            serde_json::to_string(state).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
        let params = model.params();
        let tensors: Vec<_> = params
            .iter()
            .zip(&adam.moments)
            .flat_map(|(param, Moments { m, v })| {
                let weight = named("weight/", param, flat(&param.value));
                [weight, named("m/", param, m), named("v/", param, v)]
            })
            .collect();
        tensor_file::write(&path, &tensors, (STATE_KEY, &json))
    }

    /// Opens the run to go on with; nothing of its tensors is read yet.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Checkpoint`], naming the file.
    pub fn open_state(&self) -> Result<SavedRun> {
        let file = TensorFile::open(&self.file("state.safetensors"))?;
        let state = run_state(&file)?;
        Ok(SavedRun { file, state })
    }

    /// Reads the run to go on with.
    ///
    /// # Errors
    ///
    /// As [`RunFolder::open_state`] and [`SavedRun::load`].
    pub fn load_state(&self) -> Result<(RunState, Model<f32>, AdamW)> {
        let saved = self.open_state()?;
        let (model, adam) = saved.load()?;
        Ok((saved.state, model, adam))
    }

    /// Reads a model and its tokenizer, as `eval` and `sample` do.
    ///
    /// # Errors
    ///
    /// As [`Masters::open`] and [`Masters::load_into`]; [`Error::Checkpoint`] for files of two models.
    pub fn load_model(&self) -> Result<(Model<f32>, Tokenizer)> {
        let masters = Masters::open(&self.path)?;
        let tokenizer = self.load_tokenizer()?;
        masters.check_vocabulary(&tokenizer)?;
        let mut model = Model::new(*masters.model(), masters.quantized());
        masters.load_into(&mut model)?;
        Ok((model, tokenizer))
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Checkpoint`].
    pub fn load_tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_file(&self.file("tokenizer.json"))
    }
}

/// Name of the copy of a step.
#[must_use]
pub fn copy_of_step(step: u64) -> String {
    format!("{STEP_PREFIX}{step:08}")
}

fn step_of_copy(name: &str) -> Option<u64> {
    name.strip_prefix(STEP_PREFIX)?.parse().ok()
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if path.exists() => Err(Error::io(path, "remove")(e)),
        _ => Ok(()),
    }
}

fn run_state(file: &TensorFile) -> Result<RunState> {
    let json = file.metadata(STATE_KEY).ok_or_else(|| {
        file.problem("has no settings of a run; it was not written by bitnet-trainer fit")
    })?;
    let state: RunState = serde_json::from_str(json)
        .map_err(|e| file.problem(format!("its settings cannot be read: {e}")))?;
    state.settings.validate()?;
    Ok(state)
}

fn named<'a>(prefix: &str, param: &Param<f32>, values: &'a [f32]) -> Named<'a> {
    Named {
        name: format!("{prefix}{}", param.name),
        shape: param.shape(),
        values,
    }
}

fn names(model: &Model<f32>, prefixes: &[&str]) -> impl Iterator<Item = String> {
    let params = model.params();
    let name = |param: &&Param<f32>| {
        prefixes
            .iter()
            .map(|p| format!("{p}{}", param.name))
            .collect()
    };
    let all: Vec<Vec<String>> = params.iter().map(name).collect();
    all.into_iter().flatten()
}
