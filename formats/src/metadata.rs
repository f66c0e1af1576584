//! Small sections beside the weights: the configuration, special tokens, self-test vectors.

use crate::config::ModelConfig;
use crate::config_wire;
use crate::error::FormatError;
use crate::section::SectionKind;

/// Newest configuration version this crate reads. It writes the oldest that can say what is meant.
pub const CONFIG_VERSION: u16 = 2;
/// Most bytes a configuration may take.
pub const MAX_CONFIG_BYTES: usize = 4_096;

/// Encodes a configuration section: version, then postcard.
///
/// # Panics
///
/// Never: [`MAX_CONFIG_BYTES`] holds every configuration.
#[must_use]
pub fn encode_config<'b>(config: &ModelConfig, buf: &'b mut [u8; MAX_CONFIG_BYTES]) -> &'b [u8] {
    let (version, body) = buf.split_at_mut(2);
    let (number, len) = config_wire::encode(config, body);
    version.copy_from_slice(&number.to_le_bytes());
    &buf[..2 + len]
}

/// Decodes and validates a configuration section.
///
/// # Errors
///
/// A newer version, bytes that do not decode or are left over, or a rule that is broken.
pub fn decode_config(bytes: &[u8]) -> Result<ModelConfig, FormatError> {
    let content = FormatError::SectionContent(SectionKind::Config);
    let (version, body) = bytes.split_first_chunk().ok_or(content)?;
    let found = u16::from_le_bytes(*version);
    if found > CONFIG_VERSION {
        return Err(FormatError::ConfigVersion {
            found,
            supported: CONFIG_VERSION,
        });
    }
    let (config, rest) = config_wire::decode(found, body).ok_or(content)?;
    if !rest.is_empty() {
        return Err(content);
    }
    config.validate()?;
    Ok(config)
}

/// Begin-of-text and stop ids: `u32 bos` (0xffffffff for none), `u32 n`, then `n` stop ids.
#[derive(Clone, Copy, Debug)]
pub struct SpecialTokens<'w> {
    /// Token that begins a text, where the model has one.
    pub bos: Option<u32>,
    stop: &'w [[u8; 4]],
}

impl<'w> SpecialTokens<'w> {
    /// Decodes the section.
    ///
    /// # Errors
    ///
    /// The length does not fit the count.
    pub fn decode(bytes: &'w [u8]) -> Result<Self, FormatError> {
        let content = FormatError::SectionContent(SectionKind::SpecialTokens);
        let (words, rest) = bytes.as_chunks::<4>();
        let ([bos, n], stop) = words.split_first_chunk().ok_or(content)?;
        if !rest.is_empty() || u32::from_le_bytes(*n) as usize != stop.len() {
            return Err(content);
        }
        let bos = u32::from_le_bytes(*bos);
        Ok(Self {
            bos: (bos != u32::MAX).then_some(bos),
            stop,
        })
    }

    /// Ids that end a text.
    pub fn stop_ids(&self) -> impl ExactSizeIterator<Item = u32> + 'w {
        self.stop.iter().map(|id| u32::from_le_bytes(*id))
    }
}

/// Encodes a special-tokens section.
#[cfg(feature = "std")]
#[must_use]
pub fn encode_special_tokens(bos: Option<u32>, stop: &[u32]) -> std::vec::Vec<u8> {
    let head = [bos.unwrap_or(u32::MAX), stop.len() as u32];
    head.iter()
        .chain(stop)
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// How keys and values are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Int8 latent codes for latent attention, which loses nothing; f16 for grouped attention.
    Native,
    /// f16 keys and values.
    F16,
    /// f32 keys and values; for latent attention the same as `Native`.
    F32,
}

impl KvType {
    /// Its code in a self-test section.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Native => 0,
            Self::F16 => 1,
            Self::F32 => 2,
        }
    }

    /// The type with this code, if there is one.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        [Self::Native, Self::F16, Self::F32]
            .into_iter()
            .find(|kv| kv.code() == code)
    }

    /// The name users type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// One prompt and the hash of all its logits.
#[derive(Clone, Copy, Debug)]
pub struct SelfTest<'w> {
    /// Cache the hash was computed with.
    pub kv: KvType,
    /// 64-bit FNV-1a over the little-endian f32 bits of the logits of all positions in order.
    pub logits_hash: u64,
    ids: &'w [[u8; 4]],
}

impl<'w> SelfTest<'w> {
    /// The prompt.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = u32> + 'w {
        self.ids.iter().map(|id| u32::from_le_bytes(*id))
    }
}

/// The self-test section: cases of `u32 kv`, `u32 n`, `u64 hash`, `n` ids, to its end.
#[derive(Clone, Copy, Debug)]
pub struct SelfTests<'w>(&'w [u8]);

impl<'w> SelfTests<'w> {
    /// Decodes and checks the section against a configuration.
    ///
    /// # Errors
    ///
    /// A case is cut short, empty, too long for the model, or names an id outside the vocabulary.
    pub fn decode(bytes: &'w [u8], config: &ModelConfig) -> Result<Self, FormatError> {
        let content = FormatError::SectionContent(SectionKind::SelfTest);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (case, tail) = take_case(rest).ok_or(content)?;
            let n = case.ids.len();
            let legal = n >= 1 && n <= config.max_seq_len;
            if !legal || case.ids().any(|id| id as usize >= config.vocab_size) {
                return Err(content);
            }
            rest = tail;
        }
        Ok(Self(bytes))
    }
}

impl<'w> Iterator for SelfTests<'w> {
    type Item = SelfTest<'w>;

    fn next(&mut self) -> Option<SelfTest<'w>> {
        let (case, rest) = take_case(self.0)?;
        self.0 = rest;
        Some(case)
    }
}

fn take_case(bytes: &[u8]) -> Option<(SelfTest<'_>, &[u8])> {
    let (kv, rest) = bytes.split_first_chunk::<4>()?;
    let (n, rest) = rest.split_first_chunk::<4>()?;
    let (hash, rest) = rest.split_first_chunk::<8>()?;
    let id_bytes = usize::try_from(u32::from_le_bytes(*n))
        .ok()?
        .checked_mul(4)?;
    let (ids, rest) = rest.split_at_checked(id_bytes)?;
    let case = SelfTest {
        kv: KvType::from_code(u32::from_le_bytes(*kv))?,
        logits_hash: u64::from_le_bytes(*hash),
        ids: ids.as_chunks().0,
    };
    Some((case, rest))
}

/// Appends one case to the bytes of a self-test section.
#[cfg(feature = "std")]
pub fn push_self_test(out: &mut std::vec::Vec<u8>, kv: KvType, ids: &[u32], logits_hash: u64) {
    out.extend(kv.code().to_le_bytes());
    out.extend((ids.len() as u32).to_le_bytes());
    out.extend(logits_hash.to_le_bytes());
    out.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::config::{NormKind, Output};
    use crate::presets::Preset;

    #[test]
    fn configs_round_trip_and_reject_what_is_left_over() {
        for preset in Preset::ALL {
            let mut buf = [0; MAX_CONFIG_BYTES];
            let len = encode_config(&preset.config(), &mut buf).len();
            assert_eq!(decode_config(&buf[..len]), Ok(preset.config()));
            let content = Err(FormatError::SectionContent(SectionKind::Config));
            assert_eq!(decode_config(&buf[..len + 1]), content);
            assert_eq!(decode_config(&buf[..len - 1]), content);
            buf[0] = 3;
            let version = FormatError::ConfigVersion {
                found: 3,
                supported: 2,
            };
            assert_eq!(decode_config(&buf[..len]), Err(version));
        }
    }

    /// What version 1 can say is written as version 1, so that older readers read it.
    #[test]
    fn the_version_is_the_oldest_that_will_do() {
        let plain = Preset::BitNetLarge.config();
        let departures: [fn(&mut ModelConfig); 7] = [
            |c| c.norms.kind = NormKind::Layer,
            |c| c.norms.block = false,
            |c| c.norms.qk_norm = true,
            |c| c.norms.in_linear = Some(1e-6),
            |c| c.qk_latent_dim = Some(8),
            |c| c.pruned_ffn = true,
            |c| (c.output, c.tie_embeddings) = (Output::Embedding, false),
        ];
        let mut buf = [0; MAX_CONFIG_BYTES];
        assert_eq!(encode_config(&plain, &mut buf)[..2], [1, 0]);
        for departure in departures {
            let mut config = plain;
            departure(&mut config);
            let bytes = encode_config(&config, &mut buf);
            assert_eq!(bytes[..2], [2, 0]);
            assert_eq!(decode_config(bytes), Ok(config));
            for len in 0..bytes.len() {
                assert!(decode_config(&bytes[..len]).is_err(), "{len}");
            }
        }
        buf[0] = 0;
        assert!(decode_config(&buf).is_err());
    }

    #[test]
    fn special_tokens_round_trip() {
        let bytes = encode_special_tokens(Some(7), &[1, 2, 3]);
        let tokens = SpecialTokens::decode(&bytes).unwrap();
        assert_eq!(tokens.bos, Some(7));
        assert_eq!(tokens.stop_ids().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(
            SpecialTokens::decode(&encode_special_tokens(None, &[]))
                .unwrap()
                .bos,
            None
        );
        for len in 0..bytes.len() {
            assert!(SpecialTokens::decode(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn self_tests_round_trip_and_check_their_ids() {
        let config = Preset::Nano.config();
        let mut bytes = Vec::new();
        push_self_test(&mut bytes, KvType::Native, &[1, 2, 3], 0x1234);
        push_self_test(&mut bytes, KvType::F32, &[511], u64::MAX);
        let cases: Vec<_> = SelfTests::decode(&bytes, &config).unwrap().collect();
        assert_eq!(cases.len(), 2);
        assert_eq!(
            (cases[0].kv, cases[0].logits_hash),
            (KvType::Native, 0x1234)
        );
        assert_eq!(cases[1].ids().collect::<Vec<_>>(), [511]);
        assert!(SelfTests::decode(&bytes[..bytes.len() - 1], &config).is_err());
        for bad in [&[512][..], &[], &[0; 257]] {
            let mut bytes = Vec::new();
            push_self_test(&mut bytes, KvType::F16, bad, 0);
            assert!(
                SelfTests::decode(&bytes, &config).is_err(),
                "{} ids",
                bad.len()
            );
        }
    }
}
