//! Metadata and tensor names of a GGUF file, in the words of [`bitnet_formats`].

use bitnet_formats::{
    Activation, Attention, ModelConfig, Norms, Output, Rope, RopePairing, TensorRole, WeightScale,
};

use crate::gguf::error::GgufError;
use crate::gguf::reader::{Gguf, Value};
use crate::gguf::write::CONVENTION_KEY;

type Result<T> = std::result::Result<T, GgufError>;

/// The architectures that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// `bitnet`: SiLU and sub-norms.
    Bitnet,
    /// `bitnet-25` and `bitnet-b1.58`: squared ReLU and sub-norms.
    BitnetB158,
    /// `llama`: SiLU; the rows of q and k are in the order of interleaved rotary pairs.
    Llama,
    /// `qwen3` with a norm in every linear: bitnet-embedding.
    Qwen3,
}

impl Arch {
    fn of(name: &str) -> Result<Self> {
        let reason = match name {
            "bitnet" => return Ok(Self::Bitnet),
            "bitnet-25" | "bitnet-b1.58" => return Ok(Self::BitnetB158),
            "llama" => return Ok(Self::Llama),
            "qwen3" => return Ok(Self::Qwen3),
            "gemma3" => "norms after the sub-layers, local attention and GELU are not built",
            _ => "read are bitnet, bitnet-25, bitnet-b1.58, llama and qwen3",
        };
        let arch = name.to_owned();
        Err(GgufError::Arch { arch, reason })
    }

    /// True where the rows of a query and key head are in the order of interleaved pairs.
    #[must_use]
    pub const fn permutes_heads(self) -> bool {
        matches!(self, Self::Llama)
    }
}

/// What a GGUF file says of its model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GgufModel {
    /// Its architecture.
    pub arch: Arch,
    /// Its shape.
    pub config: ModelConfig,
}

impl GgufModel {
    /// Reads the metadata.
    ///
    /// # Errors
    ///
    /// The first key that is missing, of the wrong type, or asks for what is not built.
    pub fn read(file: &Gguf) -> Result<Self> {
        let name = text(file, "general.architecture")?;
        let name = name.ok_or_else(|| GgufError::Missing("general.architecture".to_owned()))?;
        let arch = Arch::of(name)?;
        let keys = Keys { file, arch: name };
        let config = config(&keys, arch)?;
        config.validate()?;
        Ok(Self { arch, config })
    }
}

fn config(keys: &Keys<'_>, arch: Arch) -> Result<ModelConfig> {
    keys.refuse("expert_count", "mixtures of experts are not built", |v| {
        v == Some(0.0)
    })?;
    let window = "sliding windows are not built";
    keys.refuse("attention.sliding_window", window, |v| v == Some(0.0))?;
    refuse_scaling(keys)?;
    let embedding = keys.tensor("token_embd.weight")?;
    let output = match arch {
        Arch::Qwen3 => Output::Embedding,
        _ => Output::Logits,
    };
    // The bitnet architectures have no head of their own, whatever the file holds.
    let tied = output == Output::Logits && keys.file.tensor("output.weight").is_none();
    Ok(ModelConfig {
        hidden_size: keys.size("embedding_length")?,
        intermediate_size: keys.size("feed_forward_length")?,
        n_layers: keys.size("block_count")?,
        n_heads: keys.size("attention.head_count")?,
        attention: attention(keys)?,
        vocab_size: embedding,
        max_seq_len: keys.size("context_length")?,
        rope: Rope {
            theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
            pairing: RopePairing::HalfRotation,
        },
        activation: match arch {
            Arch::BitnetB158 => Activation::SquaredRelu,
            Arch::Bitnet | Arch::Llama | Arch::Qwen3 => Activation::Silu,
        },
        norms: norms(keys, arch)?,
        tie_embeddings: tied,
        weight_scale: convention(keys.file)?,
        qk_latent_dim: None,
        output,
        pruned_ffn: false,
    })
}

/// Scales of the format multiply; files of this project say how their own scales enter.
fn convention(file: &Gguf) -> Result<WeightScale> {
    match text(file, CONVENTION_KEY)? {
        None | Some("multiply") => Ok(WeightScale::Multiply),
        Some("divide") => Ok(WeightScale::Divide),
        Some(other) => Err(GgufError::Unsupported {
            key: CONVENTION_KEY.to_owned(),
            found: other.to_owned(),
            reason: "it must be multiply or divide",
        }),
    }
}

fn norms(keys: &Keys<'_>, arch: Arch) -> Result<Norms> {
    const KEY: &str = "attention.layer_norm_rms_epsilon";
    let eps = keys.float(KEY)?;
    let eps = eps.ok_or_else(|| GgufError::Missing(keys.name(KEY)))?;
    match arch {
        Arch::Bitnet | Arch::BitnetB158 => Ok(Norms::sub_ln(eps)),
        Arch::Llama => Ok(Norms::pre(eps)),
        Arch::Qwen3 if keys.file.tensor("blk.0.attn_q_norm_in.weight").is_none() => {
            Err(GgufError::Arch {
                arch: "qwen3".to_owned(),
                reason: "without norms in its linears it is no bitnet-embedding",
            })
        }
        Arch::Qwen3 => Ok(Norms {
            qk_norm: true,
            in_linear: Some(eps),
            ..Norms::pre(eps)
        }),
    }
}

fn attention(keys: &Keys<'_>) -> Result<Attention> {
    let n_heads = keys.size("attention.head_count")?;
    let n_kv_heads = keys.size_or("attention.head_count_kv", n_heads)?;
    let hidden = keys.size("embedding_length")?;
    let implied = hidden.checked_div(n_heads).unwrap_or(0);
    let head_dim = keys.size_or("attention.key_length", implied)?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        let found = keys.size_or(key, head_dim)?;
        if found != head_dim {
            return Err(GgufError::Unsupported {
                key: keys.name(key),
                found: found.to_string(),
                reason: "it must be the width of a head",
            });
        }
    }
    Ok(Attention::Grouped {
        n_kv_heads,
        head_dim,
    })
}

/// Scaling by a factor of one is none.
fn refuse_scaling(keys: &Keys<'_>) -> Result<()> {
    const REASON: &str = "only the default rotary embedding is read";
    let kind = text(keys.file, &keys.name("rope.scaling.type"))?;
    if !matches!(kind, None | Some("none" | "linear")) {
        return Err(GgufError::Unsupported {
            key: keys.name("rope.scaling.type"),
            found: kind.unwrap_or_default().to_owned(),
            reason: REASON,
        });
    }
    let one = |value: Option<f64>| value == Some(1.0);
    keys.refuse("rope.scaling.factor", REASON, one)?;
    keys.refuse("rope.scale_linear", REASON, one)
}

/// The keys of an architecture.
struct Keys<'f> {
    file: &'f Gguf,
    arch: &'f str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn wrong_type(&self, key: &str, expected: &'static str) -> GgufError {
        let key = self.name(key);
        GgufError::WrongType { key, expected }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match self.file.value(&self.name(key)) {
            None => Ok(None),
            Some(Value::Uint(n)) => match usize::try_from(*n) {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(self.wrong_type(key, "a size")),
            },
            // One number for all layers; a list of several would be a model of uneven layers.
            Some(Value::Numbers(_)) => Err(GgufError::Unsupported {
                key: self.name(key),
                found: "a list".to_owned(),
                reason: "layers that differ are not built",
            }),
            Some(_) => Err(self.wrong_type(key, "a whole number")),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?
            .ok_or_else(|| GgufError::Missing(self.name(key)))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        match self.file.value(&self.name(key)) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x as f32)),
            Some(_) => Err(self.wrong_type(key, "a float")),
        }
    }

    /// Refuses a key that is there unless its number is allowed.
    fn refuse(
        &self,
        key: &str,
        reason: &'static str,
        allowed: impl Fn(Option<f64>) -> bool,
    ) -> Result<()> {
        let Some(value) = self.file.value(&self.name(key)) else {
            return Ok(());
        };
        let number = match value {
            Value::Uint(n) => Some(*n as f64),
            Value::Int(n) => Some(*n as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        };
        if allowed(number) {
            return Ok(());
        }
        Err(GgufError::Unsupported {
            key: self.name(key),
            found: number.map_or("no number".to_owned(), |n| n.to_string()),
            reason,
        })
    }

    /// Rows of a tensor.
    fn tensor(&self, name: &str) -> Result<usize> {
        let tensor = self.file.tensor(name);
        let tensor = tensor.ok_or_else(|| GgufError::Missing(format!("tensor {name}")))?;
        Ok(tensor.rows)
    }
}

/// The text of a key, if it is there.
pub(crate) fn text<'f>(file: &'f Gguf, key: &str) -> Result<Option<&'f str>> {
    let wrong = || GgufError::WrongType {
        key: key.to_owned(),
        expected: "UTF-8 text",
    };
    match file.value(key) {
        None => Ok(None),
        Some(Value::Text(bytes)) => std::str::from_utf8(bytes).map(Some).map_err(|_| wrong()),
        Some(_) => Err(wrong()),
    }
}

/// Name of a tensor, without its last part (`.weight`); `None` for a role these files do not store.
#[must_use]
pub fn tensor_stem(role: TensorRole, layer: Option<usize>) -> Option<String> {
    use TensorRole as R;
    let stem = match role {
        R::Embedding => "token_embd",
        R::FinalNorm => "output_norm",
        R::Head => "output",
        R::AttnNorm => "attn_norm",
        R::Q => "attn_q",
        R::K => "attn_k",
        R::V => "attn_v",
        R::AttnSubNorm => "attn_sub_norm",
        R::O => "attn_output",
        R::FfnNorm => "ffn_norm",
        R::Gate => "ffn_gate",
        R::Up => "ffn_up",
        R::FfnSubNorm => "ffn_sub_norm",
        R::Down => "ffn_down",
        R::QInputNorm => "attn_q_norm_in",
        R::KInputNorm => "attn_k_norm_in",
        R::VInputNorm => "attn_v_norm_in",
        R::OInputNorm => "attn_output_norm_in",
        R::GateInputNorm => "ffn_gate_norm_in",
        R::UpInputNorm => "ffn_up_norm_in",
        R::DownInputNorm => "ffn_down_norm_in",
        R::QHeadNorm => "attn_q_norm",
        R::KHeadNorm => "attn_k_norm",
        _ => return None,
    };
    match layer {
        Some(layer) if role.is_in_block() => Some(format!("blk.{layer}.{stem}")),
        None if !role.is_in_block() => Some(stem.to_owned()),
        _ => None,
    }
}
