//! How much memory a run takes, before it starts.
//!
//! What a run allocates follows from its settings, to the byte but for small change: lists of jobs,
//! stacks, one packed tile per thread. What the process holds before that (program, text, tokenizer)
//! is not estimated but asked of the system, where it says.

use bitnet_formats::{ModelConfig, TensorClass};

use crate::data::TokenDataset;
use crate::error::{Error, Result};
use crate::eval::sequences_at_once;
use crate::model::attention::Widths;
use crate::model::linear_input::OwnNorms;
use crate::model::sequence::parts;
use crate::model::{Keep, head_rows};
use crate::ops::attention::score_rows;
use crate::ranks::Ranks;
use crate::settings::{CheckpointActivations, Settings, TrainSettings};
use crate::system;

const F32: u64 = 4;
const F64: u64 = 8;
/// What a program without a text holds, where the system does not say.
const PROGRAM_BYTES: u64 = 16 << 20;
/// Tokens of the prompt of a sample, at most; it is a few words.
pub const PROMPT_TOKENS: usize = 64;

/// Bytes a run will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters of the model.
    pub parameters: u64,
    /// Master weights, gradients, both moments, and the codes of the BitLinears.
    pub weight_bytes: u64,
    /// Activations and their gradients, of all sequences of a micro-batch.
    pub activation_bytes: u64,
    /// Activations of an evaluation and its sample, beside those of training.
    pub evaluation_bytes: u64,
    /// What the process holds before all this: program, text, tokens, tokenizer.
    pub held_bytes: u64,
    /// The most it has held before, to make tokenizer and tokens.
    pub reached_bytes: u64,
    /// What sequences keep for the backward pass.
    pub keep: Keep,
}

/// What decides about memory besides the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Threads of the run.
    pub threads: usize,
    /// Tokens that an evaluation reads.
    pub validation_tokens: usize,
    /// What the process holds already.
    pub held_bytes: u64,
    /// The most it has held.
    pub reached_bytes: u64,
    /// Processes that share the micro-batches of a step.
    pub ranks: usize,
    /// Those of them that share this memory.
    pub ranks_here: usize,
}

impl Surroundings {
    /// Of a run on the current rayon pool whose text is in memory.
    #[must_use]
    pub fn now(data: &TokenDataset, ranks: &Ranks) -> Self {
        let text = (data.train.bytes + data.validation.bytes) as u64;
        let ids = (data.train.tokens.len() + data.validation.tokens.len()) as u64;
        let held_bytes = system::resident_bytes().unwrap_or(PROGRAM_BYTES + text + F32 * ids);
        Self {
            threads: rayon::current_num_threads(),
            validation_tokens: data.validation.tokens.len(),
            held_bytes,
            reached_bytes: system::peak_resident_bytes().unwrap_or(held_bytes),
            ranks: ranks.count(),
            ranks_here: ranks.on_this_machine(),
        }
    }

    /// True if there is room for what every process here is still to allocate.
    fn has_room_for(&self, estimate: &MemoryEstimate) -> bool {
        system::has_room_for(self.ranks_here as u64 * estimate.new_bytes())
    }
}

impl MemoryEstimate {
    /// For these settings, with `vocab_size` filled in.
    #[must_use]
    pub fn new(settings: &Settings, keep: Keep, around: &Surroundings) -> Self {
        let (config, train) = (&settings.model, &settings.train);
        Self {
            parameters: config.parameter_count(),
            weight_bytes: weight_bytes(config, train, around.ranks),
            activation_bytes: train.batch as u64 * worker_bytes(config, train, keep, around),
            evaluation_bytes: evaluation_bytes(config, train, around),
            held_bytes: around.held_bytes,
            reached_bytes: around.reached_bytes,
            keep,
        }
    }

    /// As the settings say; where they leave it open, all activations are kept if there is room.
    #[must_use]
    pub fn choose(settings: &Settings, around: &Surroundings) -> Self {
        let keeping = |keep| Self::new(settings, keep, around);
        match settings.train.checkpoint_activations {
            CheckpointActivations::On => keeping(Keep::Inputs),
            CheckpointActivations::Off => keeping(Keep::Activations),
            CheckpointActivations::Auto => {
                let all = keeping(Keep::Activations);
                match around.has_room_for(&all) {
                    true => all,
                    false => keeping(Keep::Inputs),
                }
            }
        }
    }

    /// What the run is still to allocate.
    #[must_use]
    pub const fn new_bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes + self.evaluation_bytes
    }

    /// The most that the process will have held.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.reached_bytes.max(self.held_bytes + self.new_bytes())
    }

    /// Checks that the system has room for what is still to be allocated.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] with the numbers, and what would help.
    pub fn check(&self, settings: &Settings, around: &Surroundings) -> Result<()> {
        match around.has_room_for(self) {
            true => Ok(()),
            false => Err(Error::Memory(self.refusal(
                settings,
                around,
                system::available_bytes(),
            ))),
        }
    }

    fn refusal(
        &self,
        settings: &Settings,
        around: &Surroundings,
        available: Option<u64>,
    ) -> String {
        let available = available.map_or_else(
            || "the system does not give as much".to_owned(),
            |bytes| format!("{} are available", mib(bytes)),
        );
        let available = match around.ranks_here {
            1 => available,
            n => format!("{available} to {n} ranks"),
        };
        format!(
            "the run needs {} more, and {available}: {} for weights, gradients and moments, {} for \
             activations, {} for evaluations. {}; --ignore-memory starts it all the same",
            mib(self.new_bytes()),
            mib(self.weight_bytes),
            mib(self.activation_bytes),
            mib(self.evaluation_bytes),
            self.remedy(settings, around)
        )
    }

    /// The first of the ways to less memory that is left, with what it saves.
    fn remedy(&self, settings: &Settings, around: &Surroundings) -> String {
        let with = |change: &dyn Fn(&mut TrainSettings), keep| {
            let mut settings = settings.clone();
            change(&mut settings.train);
            mib(Self::new(&settings, keep, around).new_bytes())
        };
        if self.keep == Keep::Activations {
            let bytes = with(&|_| (), Keep::Inputs);
            return format!("With --set train.checkpoint_activations=on it is {bytes}");
        }
        let (batch, context) = (settings.train.batch, settings.train.context);
        if batch > 1 {
            let bytes = with(&|train| train.batch = 1, self.keep);
            return format!(
                "With --batch 1, and train.accumulation {batch} times as large, it is {bytes}"
            );
        }
        if self.activation_bytes + self.evaluation_bytes > self.weight_bytes / 4 {
            let half = context.div_ceil(2);
            let bytes = with(&|train| train.context = half, self.keep);
            return format!("With --context {half} it is {bytes}");
        }
        "Only a smaller model needs less: --preset, model.n_layers, model.hidden_size, a smaller \
         vocabulary"
            .into()
    }
}

/// `1234.5 MiB`.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Heads of one sequence that run at the same time, so that `sequences` fill the threads.
#[must_use]
pub fn heads_at_once(config: &ModelConfig, threads: usize, sequences: usize) -> usize {
    threads.div_ceil(sequences).clamp(1, config.n_heads)
}

fn weight_bytes(config: &ModelConfig, train: &TrainSettings, ranks: usize) -> u64 {
    let ternary: u64 = config
        .tensors()
        .filter(|t| t.role.class() == TensorClass::Ternary)
        .map(|t| t.rows as u64 * t.cols as u64)
        .sum();
    let embeddings = if config.tie_embeddings { 1 } else { 2 };
    let embeddings = embeddings * config.vocab_size as u64 * config.hidden_size as u64;
    // The gradient of one micro-batch of embedding and head, where it adds to that of earlier ones.
    let spare = if train.accumulation > ranks {
        embeddings
    } else {
        0
    };
    let rope = config.max_seq_len as u64 * config.rope_dim() as u64;
    F32 * (4 * config.parameter_count() + spare + rope) + code_bytes(train) * ternary
}

/// A code takes a byte; without quantisers, be it at the beginning alone, it is the value itself.
const fn code_bytes(train: &TrainSettings) -> u64 {
    if train.quantize && train.fp_steps == 0 && train.ramp_steps == 0 {
        1
    } else {
        F32
    }
}

fn worker_bytes(
    config: &ModelConfig,
    train: &TrainSettings,
    keep: Keep,
    around: &Surroundings,
) -> u64 {
    let tapes = keep.tapes(config.n_layers);
    let heads = heads_at_once(config, around.threads, train.batch);
    let len = train.context;
    let sequence = sequence_bytes(
        config,
        len,
        code_bytes(train),
        (config.n_layers, tapes),
        heads,
    );
    let grads: u64 = parts(len)
        .map(|p| grads_bytes(config, p.len() as u64))
        .sum();
    sequence + grads + F64 * head_rows(config, len) as u64
}

/// Windows that are evaluated at the same time, or a sample after them.
fn evaluation_bytes(config: &ModelConfig, train: &TrainSettings, around: &Surroundings) -> u64 {
    let len = train.context.min(around.validation_tokens.max(2) - 1);
    let windows = around.validation_tokens.max(2).div_ceil(train.context);
    let at_once = sequences_at_once(around.threads, len).min(windows);
    let heads = heads_at_once(config, around.threads, at_once);
    let evaluation = at_once as u64 * sequence_bytes(config, len, code_bytes(train), (1, 1), heads);
    let sample = match train.sample_tokens {
        0 => 0,
        tokens => {
            let len = config.max_seq_len.min(tokens + PROMPT_TOKENS);
            sequence_bytes(config, len, code_bytes(train), (1, 1), 1)
        }
    };
    evaluation.max(sample)
}

/// A [`Sequence`](crate::model::Sequence) that keeps inputs and tapes of so many blocks.
fn sequence_bytes(
    config: &ModelConfig,
    len: usize,
    code: u64,
    (inputs, tapes): (usize, usize),
    heads: usize,
) -> u64 {
    let (inputs, tapes) = (inputs as u64, tapes as u64);
    let hidden = config.hidden_size as u64;
    let part = |rows: u64| {
        let streams = F32 * rows * hidden * (1 + inputs);
        streams + tapes * tape_bytes(config, rows, code) + norm_bytes(rows, hidden, F32)
    };
    let parts: u64 = parts(len).map(|p| part(p.len() as u64)).sum();
    let logits = (head_rows(config, len) * config.vocab_size) as u64;
    let log_sum_exp = tapes * (config.n_heads * len) as u64;
    parts + F32 * (logits + log_sum_exp) + heads as u64 * head_bytes(config, len)
}

/// A tape of a block over `rows` positions.
fn tape_bytes(config: &ModelConfig, rows: u64, code: u64) -> u64 {
    let widths = Widths::of(config);
    let (hidden, ffn) = (config.hidden_size as u64, config.intermediate_size as u64);
    let attention = (widths.q + widths.kv_a + widths.kv_b + widths.heads) as u64;
    let own = OwnNorms::of(config);
    let norms = [
        (hidden, own.attention),
        (hidden, own.ffn),
        (widths.heads as u64, own.o),
        (widths.latent as u64, 0),
        (ffn, own.down),
    ];
    let norms: u64 = norms
        .iter()
        .map(|(width, own)| input_bytes(rows, *width, *own as u64, code))
        .sum();
    F32 * rows * (attention + hidden + 3 * ffn) + norms
}

/// What the norms before linears leave: the shared one values, where linears have their own.
fn input_bytes(rows: u64, width: u64, own: u64, code: u64) -> u64 {
    let shared = if own == 0 { code } else { F32 };
    norm_bytes(rows, width, shared) + own * norm_bytes(rows, width, code)
}

/// What a norm leaves: codes of so many bytes, two numbers per position, the gradient of the gain.
fn norm_bytes(rows: u64, width: u64, code: u64) -> u64 {
    code * rows * width + F32 * (2 * rows + width)
}

/// Gradients of a part.
fn grads_bytes(config: &ModelConfig, rows: u64) -> u64 {
    let widths = Widths::of(config);
    let (hidden, ffn) = (config.hidden_size as u64, config.intermediate_size as u64);
    let (heads, own) = (widths.heads as u64, OwnNorms::of(config));
    let attention = (widths.q + widths.kv_a + widths.latent + widths.kv_b) as u64;
    let own = own.attention.min(1) as u64 * hidden
        + own.o.min(1) as u64 * heads
        + own.down.min(1) as u64 * ffn;
    F32 * rows * (attention + 2 * heads + 5 * hidden + 4 * ffn + own)
}

/// Buffers of one head.
fn head_bytes(config: &ModelConfig, len: usize) -> u64 {
    let operands = 4 * (config.qk_head_dim() + config.v_head_dim());
    let scores = 2 * score_rows(len);
    F32 * (len * (operands + scores)) as u64 + (len * size_of::<usize>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    const AROUND: Surroundings = Surroundings {
        threads: 2,
        validation_tokens: 1000,
        held_bytes: 1 << 20,
        reached_bytes: 1 << 20,
        ranks: 1,
        ranks_here: 1,
    };

    fn estimate(settings: &Settings, keep: Keep) -> MemoryEstimate {
        MemoryEstimate::new(settings, keep, &AROUND)
    }

    /// The largest preset with its vocabulary fits a machine of 24 GB, and only with little kept.
    #[test]
    fn the_largest_preset_fits_24_gb() {
        let settings = Settings::preset(Preset::BitNet700m);
        assert_eq!(settings.model.vocab_size, 128_256);
        assert_eq!(settings.train.context, 2048);
        let gb = |keep| estimate(&settings, keep).total_bytes() / 1_000_000_000;
        assert!(gb(Keep::Inputs) < 15, "{}", gb(Keep::Inputs));
        assert!(gb(Keep::Activations) > gb(Keep::Inputs) + 3);
    }

    #[test]
    fn a_refusal_has_the_numbers_and_a_remedy() {
        let mut settings = Settings::preset(Preset::Small);
        let refusal = |settings: &Settings, keep| {
            estimate(settings, keep).refusal(settings, &AROUND, Some(5 << 20))
        };
        let message = refusal(&settings, Keep::Activations);
        let needed = mib(estimate(&settings, Keep::Activations).new_bytes());
        assert!(
            message.contains(&format!("needs {needed} more")),
            "{message}"
        );
        assert!(message.contains("5.0 MiB are available"), "{message}");
        let less = mib(estimate(&settings, Keep::Inputs).new_bytes());
        let remedy = format!("train.checkpoint_activations=on it is {less}");
        assert!(message.contains(&remedy), "{message}");
        let message = refusal(&settings, Keep::Inputs);
        assert!(message.contains("With --batch 1, and train.accumulation 8 times"));
        settings.train.batch = 1;
        settings.train.context = 32;
        assert!(refusal(&settings, Keep::Inputs).contains("Only a smaller model"));
    }

    #[test]
    fn what_the_system_has_no_room_for_is_refused() {
        let mut settings = Settings::preset(Preset::BitNet700m);
        settings.train.batch = 100_000;
        let estimate = estimate(&settings, Keep::Activations);
        let error = estimate.check(&settings, &AROUND).unwrap_err();
        assert!(matches!(error, Error::Memory(_)), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}
