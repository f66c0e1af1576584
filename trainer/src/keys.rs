//! `--set key=value`: every setting by name, in one table.

use std::str::FromStr;

use bitnet_formats::{Activation, Attention};

use crate::error::{Error, Result};
use crate::held_out::SplitKind;
use crate::ops::gemm::Precision;
use crate::schedule::ScheduleKind;
use crate::settings::{CheckpointActivations, OrderKind, Settings};

/// One setting: its name, what it means, and how a value reaches it.
pub struct Key {
    /// What users type before the `=`.
    pub name: &'static str,
    /// Meaning, with unit and range.
    pub help: &'static str,
    set: fn(&mut Settings, &str) -> std::result::Result<(), String>,
    get: fn(&Settings) -> Option<String>,
}

impl Key {
    /// The value in force, as `--set` takes it; `None` for a size of the other kind of attention.
    #[must_use]
    pub fn value(&self, settings: &Settings) -> Option<String> {
        (self.get)(settings)
    }
}

macro_rules! key {
    ($name:literal, $($field:ident).+, $help:literal) => {
        Key {
            name: $name,
            help: $help,
            set: |s, v| parse(v, &mut s.$($field).+),
            get: |s| Some(s.$($field).+.to_string()),
        }
    };
}

/// A size of the attention kind in force.
macro_rules! attention_key {
    ($name:literal, $kind:ident, $field:ident, $help:literal) => {
        Key {
            name: $name,
            help: $help,
            set: |s, v| match &mut s.model.attention {
                Attention::$kind { $field, .. } => parse(v, $field),
                _ => Err(wrong_attention($name)),
            },
            get: |s| match &s.model.attention {
                Attention::$kind { $field, .. } => Some($field.to_string()),
                _ => None,
            },
        }
    };
}

/// All settings, in the order help lists them.
pub const KEYS: &[Key] = &[
    key!(
        "model.hidden_size",
        model.hidden_size,
        "width of the residual stream"
    ),
    key!(
        "model.intermediate_size",
        model.intermediate_size,
        "width of the feed-forward layer"
    ),
    key!("model.n_layers", model.n_layers, "blocks"),
    key!("model.n_heads", model.n_heads, "query heads"),
    Key {
        name: "model.attention",
        help: "latent or grouped; sets the sizes of that kind to defaults, so give it first",
        set: set_attention,
        get: |s| Some(attention_name(&s.model.attention).into()),
    },
    attention_key!(
        "model.n_kv_heads",
        Grouped,
        n_kv_heads,
        "grouped: key/value heads; divides n_heads"
    ),
    attention_key!(
        "model.head_dim",
        Grouped,
        head_dim,
        "grouped: width of a head; even"
    ),
    attention_key!(
        "model.kv_lora_rank",
        Latent,
        kv_lora_rank,
        "latent: width of the latent; multiple of 16"
    ),
    attention_key!(
        "model.qk_nope_head_dim",
        Latent,
        qk_nope_head_dim,
        "latent: key width without position"
    ),
    attention_key!(
        "model.qk_rope_head_dim",
        Latent,
        qk_rope_head_dim,
        "latent: key width with position; even"
    ),
    attention_key!(
        "model.v_head_dim",
        Latent,
        v_head_dim,
        "latent: value width; multiple of 16"
    ),
    key!(
        "model.max_seq_len",
        model.max_seq_len,
        "positions the model is made for"
    ),
    key!(
        "model.rope.theta",
        model.rope.theta,
        "base of the rotary frequencies"
    ),
    key!("model.norms.eps", model.norms.eps, "epsilon of all norms"),
    Key {
        name: "model.norms.in_linear",
        help: "epsilon of a norm inside every linear, after all others and with a gain of its own, \
               with grouped attention; none: no such norms",
        set: set_in_linear,
        get: |s| Some(in_linear(s.model.norms.in_linear)),
    },
    Key {
        name: "model.sub_norms",
        help: "true: norms before o_proj and down_proj too, as in BitNet b1.58; false: as in Llama, \
               with grouped attention",
        set: set_sub_norms,
        get: |s| Some(s.model.norms.attn_sub_norm.to_string()),
    },
    key!(
        "model.tie_embeddings",
        model.tie_embeddings,
        "true or false: the embedding is the head"
    ),
    Key {
        name: "model.activation",
        help: "squared-relu or silu",
        set: set_activation,
        get: |s| name_of(&ACTIVATIONS, s.model.activation),
    },
    Key {
        name: "train.steps",
        help: "optimiser steps; sets warmup, eval_every and save_every, so give it first",
        set: set_steps,
        get: |s| Some(s.train.steps.to_string()),
    },
    key!("train.batch", train.batch, "sequences per micro-batch"),
    key!(
        "train.context",
        train.context,
        "tokens per sequence; at most model.max_seq_len"
    ),
    key!(
        "train.accumulation",
        train.accumulation,
        "micro-batches per step"
    ),
    Key {
        name: "train.lr",
        help: "peak learning rate; sets min_lr to a tenth and stage2_lr to two thirds of it",
        set: set_lr,
        get: |s| Some(s.train.lr.to_string()),
    },
    key!("train.min_lr", train.min_lr, "floor of the learning rate"),
    key!(
        "train.stage2_lr",
        train.stage2_lr,
        "two-stage: where the second line starts"
    ),
    Key {
        name: "train.schedule",
        help: "linear, cosine or two-stage",
        set: set_schedule,
        get: |s| name_of(&SCHEDULES, s.train.schedule),
    },
    key!("train.warmup", train.warmup, "steps of linear warm-up"),
    key!("train.beta1", train.beta1, "Adam's first decay, in [0, 1)"),
    key!("train.beta2", train.beta2, "Adam's second decay, in [0, 1)"),
    key!("train.eps", train.eps, "Adam's epsilon"),
    key!(
        "train.weight_decay",
        train.weight_decay,
        "decay of the BitLinear matrices"
    ),
    key!(
        "train.decay_embedding",
        train.decay_embedding,
        "true or false: embedding and head decay too"
    ),
    key!(
        "train.clip",
        train.clip,
        "largest global norm of a gradient"
    ),
    key!(
        "train.seed",
        train.seed,
        "seed of weights, batches and samples"
    ),
    key!(
        "train.val_fraction",
        train.val_fraction,
        "share of the text that validates"
    ),
    Key {
        name: "train.split",
        help: "what validates. document: one of every 1/val_fraction documents, drawn by seed; tail: \
               the end of each; auto: document for JSON Lines, separators or 20 files, else tail",
        set: set_split,
        get: |s| name_of(&SPLITS, s.train.split),
    },
    Key {
        name: "train.order",
        help: "random: windows at random places; shuffled: every window once an epoch; repeat: the \
               same windows in every micro-batch, to see that a model learns at all",
        set: set_order,
        get: |s| name_of(&ORDERS, s.train.order),
    },
    Key {
        name: "train.precision",
        help: "how gradients enter the products of linear layers. f32; bf16: rounded, quicker, on \
               processors with AVX-512 BF16",
        set: set_precision,
        get: |s| name_of(&PRECISIONS, s.train.precision),
    },
    key!(
        "train.mask_documents",
        train.mask_documents,
        "true or false: attention ends where a document begins"
    ),
    key!(
        "train.eval_every",
        train.eval_every,
        "steps between evaluations; 0: at the end only"
    ),
    key!(
        "train.save_every",
        train.save_every,
        "steps between checkpoints; 0: at the end only"
    ),
    key!(
        "train.spike_factor",
        train.spike_factor,
        "a step whose gradient norm is so many times the median of the last 32 is left out; 0: none"
    ),
    key!(
        "train.patience",
        train.patience,
        "evaluations without a new best after which the run stops; 0: never"
    ),
    key!(
        "train.keep_best",
        train.keep_best,
        "true or false: the model of the best evaluation is kept in best/"
    ),
    key!(
        "train.keep_last",
        train.keep_last,
        "models of the last so many checkpoints are kept in step-N/; 0: none"
    ),
    Key {
        name: "train.checkpoint_activations",
        help: "on: keep each block's input only and compute the rest again in the backward pass, for \
               less memory; off; auto: on where the run does not fit otherwise. Same result",
        set: set_checkpointing,
        get: |s| name_of(&CHECKPOINTING, s.train.checkpoint_activations),
    },
    key!(
        "train.sample_tokens",
        train.sample_tokens,
        "tokens of sample text at each evaluation; 0: none"
    ),
    key!(
        "train.quantize",
        train.quantize,
        "true or false: false trains plain f32, to compare"
    ),
    key!(
        "train.dropout",
        train.dropout,
        "share of a layer's outputs that are left out while training, in [0, 1)"
    ),
    key!(
        "train.fp_steps",
        train.fp_steps,
        "first steps in full precision, before the quantisers are on"
    ),
    key!(
        "train.ramp_steps",
        train.ramp_steps,
        "steps after those in which weights go in a line from plain to ternary"
    ),
    key!(
        "train.tensorboard",
        train.tensorboard,
        "true or false: event files for tensorboard --logdir"
    ),
];

type SetResult = std::result::Result<(), String>;

/// Applies one `key=value`.
///
/// # Errors
///
/// [`Error::Usage`] for a key that does not exist, naming the nearest that does, and for a value
/// the key cannot have.
pub fn apply(settings: &mut Settings, assignment: &str) -> Result<()> {
    let usage = |message: String| Error::Usage(format!("--set {assignment}: {message}"));
    let Some((name, value)) = assignment.split_once('=') else {
        return Err(usage("write it as key=value".into()));
    };
    let Some(key) = KEYS.iter().find(|key| key.name == name.trim()) else {
        let nearest = nearest(name, KEYS.iter().map(|key| key.name));
        return Err(usage(format!(
            "there is no setting {name:?}; the nearest is {nearest} (fit --help lists all)"
        )));
    };
    (key.set)(settings, value.trim()).map_err(usage)
}

/// The candidate fewest edits away from `name`, the first of equals.
///
/// # Panics
///
/// Without candidates.
pub fn nearest<'c>(name: &str, candidates: impl Iterator<Item = &'c str>) -> &'c str {
    candidates
        .min_by_key(|candidate| edit_distance(name, candidate))
        .expect("there is a candidate")
}

/// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut current = vec![i + 1];
        for (j, b) in b.iter().enumerate() {
            let replaced = previous[j] + usize::from(a != *b);
            current.push(replaced.min(previous[j + 1] + 1).min(current[j] + 1));
        }
        previous = current;
    }
    previous[b.len()]
}

fn parse<V: FromStr>(value: &str, field: &mut V) -> SetResult {
    *field = value.parse().map_err(|_| {
        let kind = std::any::type_name::<V>();
        let kind = match kind {
            "bool" => "true or false",
            "f32" | "f64" => "a number",
            _ => "a whole number",
        };
        format!("{value:?} is not {kind}")
    })?;
    Ok(())
}

fn one_of<V: Copy>(value: &str, choices: &[(&str, V)]) -> std::result::Result<V, String> {
    let found = choices.iter().find(|(name, _)| *name == value);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("{value:?} is not one of {}", names.join(", "))
    })
}

fn set_attention(settings: &mut Settings, value: &str) -> SetResult {
    let model = &mut settings.model;
    // The default sizes of a kind keep the width of a head near hidden_size / n_heads.
    let head_dim = (model.hidden_size / model.n_heads.max(1)).max(2) & !1;
    let grouped = Attention::Grouped {
        n_kv_heads: model.n_heads,
        head_dim,
    };
    let latent = Attention::Latent {
        kv_lora_rank: (model.hidden_size / 2).max(16) & !15,
        qk_nope_head_dim: head_dim,
        qk_rope_head_dim: (head_dim / 2).max(2) & !1,
        v_head_dim: head_dim.next_multiple_of(16),
    };
    model.attention = one_of(value, &[("latent", latent), ("grouped", grouped)])?;
    Ok(())
}

const ACTIVATIONS: [(&str, Activation); 2] = [
    ("squared-relu", Activation::SquaredRelu),
    ("silu", Activation::Silu),
];

const SCHEDULES: [(&str, ScheduleKind); 3] = [
    ("linear", ScheduleKind::Linear),
    ("cosine", ScheduleKind::Cosine),
    ("two-stage", ScheduleKind::TwoStage),
];

const SPLITS: [(&str, SplitKind); 3] = [
    ("auto", SplitKind::Auto),
    ("tail", SplitKind::Tail),
    ("document", SplitKind::Document),
];

const ORDERS: [(&str, OrderKind); 3] = [
    ("random", OrderKind::Random),
    ("shuffled", OrderKind::Shuffled),
    ("repeat", OrderKind::Repeat),
];

const CHECKPOINTING: [(&str, CheckpointActivations); 3] = [
    ("auto", CheckpointActivations::Auto),
    ("on", CheckpointActivations::On),
    ("off", CheckpointActivations::Off),
];

fn set_checkpointing(settings: &mut Settings, value: &str) -> SetResult {
    settings.train.checkpoint_activations = one_of(value, &CHECKPOINTING)?;
    Ok(())
}

const PRECISIONS: [(&str, Precision); 2] = [("f32", Precision::F32), ("bf16", Precision::Bf16)];

fn set_precision(settings: &mut Settings, value: &str) -> SetResult {
    settings.train.precision = one_of(value, &PRECISIONS)?;
    Ok(())
}

fn set_split(settings: &mut Settings, value: &str) -> SetResult {
    settings.train.split = one_of(value, &SPLITS)?;
    Ok(())
}

fn set_order(settings: &mut Settings, value: &str) -> SetResult {
    settings.train.order = one_of(value, &ORDERS)?;
    Ok(())
}

fn set_activation(settings: &mut Settings, value: &str) -> SetResult {
    settings.model.activation = one_of(value, &ACTIVATIONS)?;
    Ok(())
}

fn set_in_linear(settings: &mut Settings, value: &str) -> SetResult {
    let norms = &mut settings.model.norms;
    norms.in_linear = match value {
        "none" => None,
        _ => Some(
            value
                .parse()
                .map_err(|_| format!("{value:?} is neither a number nor none"))?,
        ),
    };
    Ok(())
}

fn in_linear(eps: Option<f32>) -> String {
    eps.map_or_else(|| "none".into(), |eps| eps.to_string())
}

/// Both or none: no public architecture has one of the two.
fn set_sub_norms(settings: &mut Settings, value: &str) -> SetResult {
    let norms = &mut settings.model.norms;
    parse(value, &mut norms.attn_sub_norm)?;
    norms.ffn_sub_norm = norms.attn_sub_norm;
    Ok(())
}

fn set_schedule(settings: &mut Settings, value: &str) -> SetResult {
    settings.train.schedule = one_of(value, &SCHEDULES)?;
    Ok(())
}

/// The word for a choice: the inverse of [`one_of`].
fn name_of<V: Copy + PartialEq>(choices: &[(&str, V)], value: V) -> Option<String> {
    let found = choices.iter().find(|(_, choice)| *choice == value);
    found.map(|(name, _)| (*name).to_owned())
}

const fn attention_name(attention: &Attention) -> &'static str {
    match attention {
        Attention::Grouped { .. } => "grouped",
        Attention::Latent { .. } => "latent",
    }
}

fn set_lr(settings: &mut Settings, value: &str) -> SetResult {
    let mut lr = 0.0;
    parse(value, &mut lr)?;
    settings.set_lr(lr);
    Ok(())
}

fn set_steps(settings: &mut Settings, value: &str) -> SetResult {
    let mut steps = 0;
    parse(value, &mut steps)?;
    settings.set_steps(steps);
    Ok(())
}

fn wrong_attention(key: &str) -> String {
    let kind = match key {
        "model.n_kv_heads" | "model.head_dim" => "grouped",
        _ => "latent",
    };
    format!("the model has the other kind of attention; --set model.attention={kind} first")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::Preset;

    fn error(assignment: &str) -> String {
        let mut settings = Settings::preset(Preset::Nano);
        apply(&mut settings, assignment).unwrap_err().to_string()
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        assert!(error("model.hiden_size=3").contains("the nearest is model.hidden_size"));
        assert!(error("train.learning_rate=3").contains("the nearest is train."));
        assert!(error("train.lr").contains("key=value"));
    }

    #[test]
    fn values_must_fit_their_key() {
        assert!(error("train.steps=-1").contains("is not a whole number"));
        assert!(error("train.lr=fast").contains("is not a number"));
        assert!(error("train.quantize=1").contains("is not true or false"));
        assert!(error("train.schedule=step").contains("linear, cosine, two-stage"));
        assert!(error("model.norms.in_linear=yes").contains("neither a number nor none"));
        assert!(error("model.head_dim=8").contains("model.attention=grouped first"));
    }

    /// Every key accepts a value of its kind and changes something.
    /// What is printed can be given back: every printed value sets what it came from.
    #[test]
    fn printed_settings_rebuild_themselves() {
        for preset in Preset::ALL {
            let original = Settings::preset(preset);
            let mut rebuilt = Settings::preset(Preset::Nano);
            for key in KEYS {
                if let Some(value) = key.value(&original) {
                    apply(&mut rebuilt, &format!("{}={value}", key.name)).unwrap();
                }
            }
            rebuilt.model.vocab_size = original.model.vocab_size;
            rebuilt.model.weight_scale = original.model.weight_scale;
            assert_eq!(rebuilt, original);
        }
    }

    #[test]
    fn every_key_reaches_its_field() {
        for key in KEYS {
            let before = match key.name {
                "model.n_kv_heads" | "model.head_dim" => "grouped",
                _ => "latent",
            };
            let mut settings = Settings::preset(Preset::Nano);
            apply(&mut settings, &format!("model.attention={before}")).unwrap();
            let old = settings.clone();
            let values = [
                "7", "0.375", "false", "true", "grouped", "silu", "linear", "tail", "shuffled",
                "bf16", "on",
            ];
            let changed = values.iter().any(|value| {
                let mut at = old.clone();
                apply(&mut at, &format!("{}={value}", key.name)).is_ok() && at != old
            });
            assert!(changed, "{}", key.name);
        }
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
