//! Master weights to start from: a run of ours, a public ternary model, or a plain Llama.
//!
//! Files, shards, names, shapes and element types are read and checked by the converter's own code, so
//! what converts can be trained on, as far as it holds weights that training had.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bitnet_converter::convert::InputKind;
use bitnet_converter::family::TensorNames;
use bitnet_converter::names::{CheckpointTensor, checkpoint_tensors};
use bitnet_converter::rows::{StoredRows, WeightRows};
use bitnet_converter::{Checkpoint, CheckpointConfig, CheckpointSource};
use bitnet_formats::{ModelConfig, Preset};

use crate::checkpoint::RunFolder;
use crate::config_json;
use crate::data::{Input, check_tokenizer};
use crate::error::{Error, Result};
use crate::files::write_bytes;
use crate::keys::KEYS;
use crate::model::Model;
use crate::param::{Param, ParamKind};
use crate::recipe::Recipe;
use crate::settings::Settings;
use crate::tensor::flat_mut;
use crate::tokenizer::{Tokenizer, TokenizerKind};

/// Elements that are read at a time.
const BLOCK_ELEMENTS: usize = 1 << 20;
/// The one setting of a shape that a run may change: positions are not learned.
const FREE_KEY: &str = "model.max_seq_len";
/// Vocabularies are padded with unused rows, to a multiple of this at most.
const VOCABULARY_PADDING: usize = 256;

/// Files that a run keeps from where it starts: what else is known of texts and chats.
pub const SIDECARS: [&str; 4] = [
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
];

/// What a run keeps besides weights and tokenizer, in memory: the run may replace where it starts.
#[derive(Clone, Debug)]
pub struct Inherited {
    files: Vec<(&'static str, Vec<u8>)>,
    bos: Option<u32>,
    eos: Vec<u32>,
}

impl Inherited {
    /// Writes the files, and the ids into the `config.json` that is there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Checkpoint`].
    pub fn save(&self, folder: &RunFolder) -> Result<()> {
        for (name, bytes) in &self.files {
            write_bytes(&folder.file(name), bytes)?;
        }
        let path = folder.file("config.json");
        let json = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let json = config_json::with_token_ids(&json, self.bos, &self.eos)
            .map_err(|problem| Error::checkpoint(&path, problem))?;
        write_bytes(&path, json.as_bytes())
    }
}

/// A checkpoint of master weights, opened and checked; the weights are still on disk.
#[derive(Debug)]
pub struct Masters {
    folder: PathBuf,
    checkpoint: Checkpoint,
    config: CheckpointConfig,
    quantized: bool,
}

impl Masters {
    /// Opens a folder, a safetensors file or an index of shards, with its `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] or [`Error::Source`]: what is missing, left over or misshapen, and codes
    /// where master weights should be.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = Error::source(path);
        refuse_codes(path)?;
        let checkpoint = Checkpoint::open(path).map_err(&wrong)?;
        let json_path = checkpoint.dir().join("config.json");
        let json = fs::read_to_string(&json_path).map_err(Error::io(&json_path, "read"))?;
        let any = |suffix: &str| checkpoint.names().any(|name| name.ends_with(suffix));
        let (config, quantized) = config_json::read(&json, TensorNames::new(&any))
            .map_err(|problem| Error::checkpoint(&json_path, problem))?;
        CheckpointSource::new(&checkpoint, &config).map_err(&wrong)?;
        Ok(Self {
            folder: path.into(),
            checkpoint,
            config,
            quantized,
        })
    }

    /// Shape and conventions.
    #[must_use]
    pub const fn model(&self) -> &ModelConfig {
        &self.config.model
    }

    /// False if they are of a network without quantisers, as far as `config.json` says.
    #[must_use]
    pub const fn quantized(&self) -> bool {
        self.quantized
    }

    /// The settings that a run from here begins with: this shape, batch and context of the preset tiny,
    /// the recipe mission.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let model = self.config.model;
        let mut train = Settings::preset(Preset::Tiny).train;
        Recipe::Mission.apply(&mut train);
        train.context = train.context.min(model.max_seq_len);
        Settings { model, train }
    }

    /// Reads the weights into a model of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if a weight is not finite or cannot be read, [`Error::Checkpoint`] if a matrix
    /// holds codes written out as floats.
    ///
    /// # Panics
    ///
    /// If the model has another shape.
    pub fn load_into(&self, model: &mut Model<f32>) -> Result<()> {
        let mut params: BTreeMap<String, &mut Param<f32>> = model
            .params_mut()
            .into_iter()
            .map(|param| (param.name.clone(), param))
            .collect();
        let naming = CheckpointSource::new(&self.checkpoint, &self.config)
            .map_err(Error::source(&self.folder))?
            .naming();
        let stored = naming.checkpoint_tensors(&self.config.model);
        for (stored, public) in stored.zip(checkpoint_tensors(&self.config.model)) {
            let param = params.remove(&public.name).expect("models of one shape");
            self.read_into(&stored, param)?;
        }
        assert!(params.is_empty(), "models of one shape");
        model.refresh();
        Ok(())
    }

    fn read_into(&self, stored: &CheckpointTensor, param: &mut Param<f32>) -> Result<()> {
        let wrong = Error::source(&self.folder);
        let tensor = self.checkpoint.tensor(&stored.name).expect("checked");
        let mut rows = StoredRows::new(tensor, stored.cols).map_err(&wrong)?;
        let at_once = (BLOCK_ELEMENTS / stored.cols).max(1);
        let blocks = flat_mut(&mut param.value).chunks_mut(at_once * stored.cols);
        for (i, block) in blocks.enumerate() {
            rows.read(i * at_once, block).map_err(&wrong)?;
        }
        match param.kind == ParamKind::Linear && are_codes(flat_mut(&mut param.value)) {
            true => Err(self.problem(format!(
                "tensor {} holds one value but for its sign, and zero: ternary codes written out as \
                 floats. {NEEDS_MASTERS}",
                stored.name
            ))),
            false => Ok(()),
        }
    }

    /// What a run from here keeps besides weights and tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn inherited(&self) -> Result<Inherited> {
        let mut files = Vec::new();
        for name in SIDECARS {
            let path = self.checkpoint.dir().join(name);
            if path.exists() {
                files.push((name, fs::read(&path).map_err(Error::io(&path, "read"))?));
            }
        }
        Ok(Inherited {
            files,
            bos: self.config.bos_token_id,
            eos: self.config.eos_token_ids.clone(),
        })
    }

    /// Settings of a run must leave the shape as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] naming a setting that does not.
    pub fn check_shape(&self, settings: &Settings) -> Result<()> {
        let own = Settings {
            model: self.config.model,
            train: settings.train.clone(),
        };
        let of_shape = |name: &str| name.starts_with("model.") && name != FREE_KEY;
        for key in KEYS.iter().filter(|key| of_shape(key.name)) {
            let (own, asked) = (key.value(&own), key.value(settings));
            if own != asked {
                let text = |value: Option<String>| value.unwrap_or_else(|| "without it".into());
                return Err(Error::Usage(format!(
                    "{} is {}, but the weights of --init {} are {}; leave it out: a checkpoint brings \
                     its shape",
                    key.name,
                    text(asked),
                    self.folder.display(),
                    text(own)
                )));
            }
        }
        Ok(())
    }

    /// The tokenizer of these weights: the one beside them, or one that is given and gives its ids.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] or [`Error::Checkpoint`] if there is none or it is another's; as
    /// [`Tokenizer::new`].
    pub fn tokenizer(&self, given: Option<&TokenizerKind>, input: &Input) -> Result<Tokenizer> {
        let path = self.checkpoint.dir().join("tokenizer.json");
        let own = path.exists().then(|| Tokenizer::from_file(&path));
        let tokenizer = match (self.given(given, input)?, own.transpose()?) {
            (None, Some(own)) => own,
            (Some((what, given)), Some(own)) if !given.has_ids_of(&own) => {
                return Err(Error::Usage(format!(
                    "{what}: its ids are not those of {}, which the weights were trained with",
                    path.display()
                )));
            }
            (Some((_, given)), _) => given,
            (None, None) => {
                return Err(Error::Usage(format!(
                    "--init {}: there is no tokenizer.json beside the weights; give the model's by \
                     --tokenizer FILE",
                    self.folder.display()
                )));
            }
        };
        self.check_vocabulary(&tokenizer)?;
        if let Input::Documents(documents) = input {
            check_tokenizer(&tokenizer, documents.needs())?;
        }
        Ok(tokenizer)
    }

    /// The tokenizer that options or tokens bring, and what to call it.
    fn given(
        &self,
        kind: Option<&TokenizerKind>,
        input: &Input,
    ) -> Result<Option<(&'static str, Tokenizer)>> {
        match (input, kind) {
            (Input::Prepared(prepared), None) => Ok(Some(("--data", prepared.tokenizer()?))),
            (Input::Documents(_), None) => Ok(None),
            (Input::Documents(_), Some(TokenizerKind::File(path))) => {
                Ok(Some(("--tokenizer", Tokenizer::from_file(path)?)))
            }
            (_, Some(_)) => Err(Error::Usage(format!(
                "--tokenizer: the weights of --init {} have their vocabulary already; leave it out, or \
                 name the tokenizer.json that they were trained with",
                self.folder.display()
            ))),
        }
    }

    /// Every id needs a row, and rows without an id are padding.
    pub(crate) fn check_vocabulary(&self, tokenizer: &Tokenizer) -> Result<()> {
        let (ids, rows) = (tokenizer.vocab_size(), self.config.model.vocab_size);
        if ids <= rows && rows <= ids.next_multiple_of(VOCABULARY_PADDING) {
            return Ok(());
        }
        Err(self.problem(format!(
            "the tokenizer has {ids} ids, but config.json says vocab_size {rows}: files of two models"
        )))
    }

    fn problem(&self, problem: impl Into<String>) -> Error {
        Error::checkpoint(&self.folder, problem)
    }
}

const NEEDS_MASTERS: &str = "Training goes on from master weights, which rounding to codes loses; give \
                             the checkpoint that these were made from";

/// Files that can hold nothing but codes.
fn refuse_codes(path: &Path) -> Result<()> {
    let kind = match InputKind::of(path).map_err(Error::source(path))? {
        InputKind::Checkpoint => return Ok(()),
        InputKind::Gguf => "a GGUF file",
        InputKind::Btn => "a .btn file",
    };
    let problem = format!("{kind} holds ternary codes. {NEEDS_MASTERS}");
    Err(Error::checkpoint(path, problem))
}

/// True for values that are all -a, 0 and a of one a. No matrix of zeros is.
fn are_codes(values: &[f32]) -> bool {
    let Some(size) = values.iter().map(|w| w.abs()).find(|w| *w != 0.0) else {
        return false;
    };
    values.len() > 2 && values.iter().all(|w| *w == 0.0 || w.abs() == size)
}
