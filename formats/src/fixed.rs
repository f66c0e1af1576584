//! The configuration of a file that is part of a program, read while the program is compiled.
//!
//! What [`crate::metadata::decode_config`] does with postcard at run time, as a `const fn`: buffers
//! can then be statics of exactly the planned size, and a model that does not fit its device is a
//! compile error. Nothing is verified here; [`crate::Archive::open`] does that.

use crate::config::{
    Activation, Attention, ModelConfig, NormKind, Norms, Output, Rope, RopePairing, WeightScale,
};
use crate::header::{MAGIC, PREAMBLE_BYTES, SECTION_ENTRY_BYTES};
use crate::metadata::CONFIG_VERSION;
use crate::section::SectionKind;

/// The configuration of a `.btn` file; `None` if the bytes are no such file or its configuration is
/// of another version.
///
/// ```
/// use bitnet_formats::{ModelConfig, fixed::config_of};
///
/// static MODEL: &[u8] = b"not a model";
/// const CONFIG: Option<ModelConfig> = config_of(MODEL);
/// assert!(CONFIG.is_none());
/// ```
#[must_use]
pub const fn config_of(file: &[u8]) -> Option<ModelConfig> {
    let Some(section) = config_section(file) else {
        return None;
    };
    let mut reader = Reader {
        rest: section,
        failed: false,
    };
    let version = u16::from_le_bytes([reader.byte(), reader.byte()]);
    let mut config = read_config(&mut reader);
    if version == 2 {
        config = read_departures(&mut reader, config);
    }
    // A version that is added later has to be read here as well.
    const { assert!(CONFIG_VERSION == 2) };
    let known = version == 1 || version == 2;
    if known && !reader.failed && reader.rest.is_empty() {
        Some(config)
    } else {
        None
    }
}

const fn config_section(file: &[u8]) -> Option<&[u8]> {
    let mut preamble = Reader {
        rest: file,
        failed: false,
    };
    let mut i = 0;
    while i < MAGIC.len() {
        if preamble.byte() != MAGIC[i] {
            return None;
        }
        i += 1;
    }
    preamble.skip(32 - MAGIC.len() as u64);
    let n_sections = preamble.u32();
    let mut table = Reader {
        rest: file,
        failed: preamble.failed,
    };
    table.skip(PREAMBLE_BYTES as u64);
    let mut index = 0;
    while index < n_sections && !table.failed {
        let kind = table.u32();
        table.skip(4);
        let (offset, bytes) = (table.u64(), table.u64());
        table.skip(SECTION_ENTRY_BYTES as u64 - 24);
        if kind == SectionKind::Config as u32 {
            let mut section = Reader {
                rest: file,
                failed: false,
            };
            section.skip(offset);
            return section.take(bytes);
        }
        index += 1;
    }
    None
}

/// The fields in their order, as postcard writes them.
const fn read_config(r: &mut Reader<'_>) -> ModelConfig {
    let (hidden_size, intermediate_size) = (r.size(), r.size());
    let (n_layers, n_heads) = (r.size(), r.size());
    let attention = match r.size() {
        0 => Attention::Grouped {
            n_kv_heads: r.size(),
            head_dim: r.size(),
        },
        variant => {
            r.require(variant == 1);
            Attention::Latent {
                kv_lora_rank: r.size(),
                qk_nope_head_dim: r.size(),
                qk_rope_head_dim: r.size(),
                v_head_dim: r.size(),
            }
        }
    };
    let mut config = ModelConfig {
        hidden_size,
        intermediate_size,
        n_layers,
        n_heads,
        attention,
        vocab_size: r.size(),
        max_seq_len: r.size(),
        rope: Rope {
            theta: r.f32(),
            pairing: match r.flag() {
                false => RopePairing::HalfRotation,
                true => RopePairing::Interleaved,
            },
        },
        activation: match r.flag() {
            false => Activation::SquaredRelu,
            true => Activation::Silu,
        },
        norms: Norms {
            attn_sub_norm: false,
            ffn_sub_norm: false,
            ..Norms::pre(r.f32())
        },
        tie_embeddings: false,
        weight_scale: WeightScale::Multiply,
        qk_latent_dim: None,
        output: Output::Logits,
        pruned_ffn: false,
    };
    config.norms.attn_sub_norm = r.flag();
    config.norms.ffn_sub_norm = r.flag();
    config.tie_embeddings = r.flag();
    if r.flag() {
        config.weight_scale = WeightScale::Divide;
    }
    config
}

/// What version 2 adds.
const fn read_departures(r: &mut Reader<'_>, mut config: ModelConfig) -> ModelConfig {
    if r.flag() {
        config.norms.kind = NormKind::Layer;
    }
    config.norms.block = r.flag();
    config.norms.qk_norm = r.flag();
    config.norms.in_linear = if r.flag() { Some(r.f32()) } else { None };
    config.qk_latent_dim = if r.flag() { Some(r.size()) } else { None };
    config.output = match r.size() {
        0 => Output::Logits,
        1 => Output::TernaryLogits,
        variant => {
            r.require(variant == 2);
            Output::Embedding
        }
    };
    config.pruned_ffn = r.flag();
    config
}

/// Reads little-endian and postcard numbers. Past the end it gives zeros and remembers the failure.
struct Reader<'b> {
    rest: &'b [u8],
    failed: bool,
}

impl<'b> Reader<'b> {
    const fn require(&mut self, condition: bool) {
        self.failed |= !condition;
    }

    const fn take(&mut self, bytes: u64) -> Option<&'b [u8]> {
        if bytes > self.rest.len() as u64 {
            self.failed = true;
            return None;
        }
        let (taken, rest) = self.rest.split_at(bytes as usize);
        self.rest = rest;
        Some(taken)
    }

    const fn skip(&mut self, bytes: u64) {
        self.take(bytes);
    }

    const fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((byte, rest)) => {
                self.rest = rest;
                *byte
            }
            None => {
                self.failed = true;
                0
            }
        }
    }

    const fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    const fn u64(&mut self) -> u64 {
        let low = self.u32() as u64;
        low | (self.u32() as u64) << 32
    }

    const fn f32(&mut self) -> f32 {
        f32::from_bits(self.u32())
    }

    /// A bool, or the number of one of two variants.
    const fn flag(&mut self) -> bool {
        let byte = self.byte();
        self.require(byte < 2);
        byte == 1
    }

    /// A size: seven bits a byte, lowest first. No legal size needs more than 28 bits.
    const fn size(&mut self) -> usize {
        let (mut value, mut shift) = (0, 0);
        while shift < 28 {
            let byte = self.byte();
            value |= ((byte & 0x7f) as usize) << shift;
            if byte < 0x80 {
                return value;
            }
            shift += 7;
        }
        self.failed = true;
        value
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::metadata::{MAX_CONFIG_BYTES, encode_config};
    use crate::presets::Preset;
    use std::vec::Vec;

    /// A file with nothing but a configuration section, which `config_of` reads without checks.
    fn file(config: &ModelConfig) -> Vec<u8> {
        let mut buffer = [0; MAX_CONFIG_BYTES];
        let section = encode_config(config, &mut buffer);
        let mut file = Vec::from(MAGIC);
        file.resize(32, 0);
        file.extend(1u32.to_le_bytes());
        file.resize(PREAMBLE_BYTES, 0);
        file.extend((SectionKind::Config as u32).to_le_bytes());
        file.extend([0; 4]);
        file.extend(128u64.to_le_bytes());
        file.extend((section.len() as u64).to_le_bytes());
        file.resize(128, 0);
        file.extend(section);
        file
    }

    #[test]
    fn every_configuration_reads_as_postcard_reads_it() {
        for preset in Preset::ALL {
            for flags in 0..8 {
                let mut config = preset.config();
                config.norms.attn_sub_norm = flags & 1 != 0;
                config.tie_embeddings = flags & 2 != 0;
                config.rope.pairing = match flags & 4 {
                    0 => RopePairing::HalfRotation,
                    _ => RopePairing::Interleaved,
                };
                assert_eq!(config_of(&file(&config)), Some(config));
                config.norms.qk_norm = true;
                config.norms.in_linear = (flags & 1 != 0).then_some(1e-6);
                config.qk_latent_dim = (flags & 2 != 0).then_some(300);
                config.output =
                    [Output::Logits, Output::TernaryLogits, Output::Embedding][flags % 3];
                config.norms.kind = [NormKind::Rms, NormKind::Layer][flags % 2];
                config.pruned_ffn = flags & 4 != 0;
                assert_eq!(config_of(&file(&config)), Some(config));
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_or_changed_is_none() {
        let whole = file(&Preset::Nano.config());
        for n in 0..whole.len() {
            assert_eq!(config_of(&whole[..n]), None, "{n} bytes");
        }
        for (at, value) in [(0, 0), (32, 0), (64, 2), (72, 129), (80, 1), (128, 3)] {
            let mut changed = whole.clone();
            changed[at] = value;
            assert_eq!(config_of(&changed), None, "byte {at}");
        }
    }
}
