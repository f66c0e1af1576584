//! Folders with synthetic models in them, and `bitnet-run` as a process.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bitnet_formats::metadata::encode_special_tokens;
use bitnet_formats::{Attention, ModelConfig, Preset, SectionKind};
use bitnet_tests::synthetic::{Storage, bigrams, model_with};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Begin of text, in the tests' tokenizer.
pub(crate) const BOS: u32 = 256;
/// End of text.
pub(crate) const EOS: u32 = 257;
/// Bytes and two special tokens.
pub(crate) const VOCAB_SIZE: usize = 258;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let outcome = Self {
            code: output.status.code().expect("an exit, not a signal"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        outcome
    }
}

impl Outcome {
    /// Standard output of a run that did what it was told.
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.success()).unwrap()
    }

    /// The message of a run that failed, having printed no result.
    pub(crate) fn failure(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "");
        self.stderr
    }
}

/// A folder to work in.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with this model as `m.btn`.
    pub(crate) fn with(model: &[u8]) -> Self {
        let place = Self::new();
        place.write("m.btn", model);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Names in the folder, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .current_dir(self.0.path())
            .args(args)
            // Help is as wide as this says.
            .env_remove("COLUMNS")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).output().unwrap().into()
    }

    /// With this on standard input.
    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut command = assert_cmd::Command::new(program());
        command.current_dir(self.0.path()).args(args);
        command.write_stdin(input).output().unwrap().into()
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bitnet-run"))
}

/// A small random model with grouped attention.
pub(crate) fn grouped() -> ModelConfig {
    ModelConfig {
        hidden_size: 48,
        intermediate_size: 72,
        n_layers: 2,
        n_heads: 2,
        attention: Attention::Grouped {
            n_kv_heads: 1,
            head_dim: 24,
        },
        vocab_size: VOCAB_SIZE,
        max_seq_len: 32,
        ..Preset::Nano.config()
    }
}

/// The same with latent attention.
pub(crate) fn latent() -> ModelConfig {
    ModelConfig {
        attention: Attention::Latent {
            kv_lora_rank: 32,
            qk_nope_head_dim: 20,
            qk_rope_head_dim: 8,
            v_head_dim: 16,
        },
        ..grouped()
    }
}

/// A random model with the byte tokenizer.
pub(crate) fn speaking(config: &ModelConfig) -> Vec<u8> {
    model_with(
        config,
        Storage::default(),
        3,
        &[(SectionKind::Tokenizer, &tokenizer(&tokenizer_json()))],
    )
}

/// A random model that knows token ids only.
pub(crate) fn mute(config: &ModelConfig) -> Vec<u8> {
    model_with(config, Storage::default(), 3, &[])
}

/// A model that says `text` after its first character, then stops. Every byte may come only once.
pub(crate) fn reciting(text: &str) -> Vec<u8> {
    let mut successors = [u32::from(b'.'); VOCAB_SIZE];
    for pair in text.as_bytes().windows(2) {
        let entry = &mut successors[usize::from(pair[0])];
        assert_eq!(*entry, u32::from(b'.'), "a byte comes twice");
        *entry = u32::from(pair[1]);
    }
    successors[usize::from(*text.as_bytes().last().unwrap())] = EOS;
    let tokenizer = tokenizer(&tokenizer_json());
    let stop = encode_special_tokens(Some(BOS), &[EOS]);
    let sections = [
        (SectionKind::Tokenizer, &tokenizer[..]),
        (SectionKind::SpecialTokens, &stop[..]),
    ];
    bigrams(&successors, &sections)
}

/// The tokenizer section of a tokenizer.json.
pub(crate) fn tokenizer(json: &str) -> Vec<u8> {
    bitnet_converter::tokenizer::section(json).unwrap()
}

/// A tokenizer.json with an id for every byte, which begins each text with [`BOS`].
pub(crate) fn tokenizer_json() -> String {
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let sequence = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let vocab = (0..=255u8).map(|b| (letter(b).to_string(), json!(b)));
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>")],
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, sequence],
            "pair": [begin, sequence, sequence],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [BOS], "tokens": ["<s>"] } },
        },
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab.collect::<serde_json::Map<_, _>>(), "merges": [],
        },
    })
    .to_string()
}

/// The letter that stands for a byte in byte-level vocabularies: itself where it is printable, else
/// the next free one from U+0100.
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count();
    char::from_u32(0x100 + before as u32).unwrap()
}
