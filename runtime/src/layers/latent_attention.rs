//! Causal attention of one head over the quantised latent, absorbed (arXiv 2405.04434, section 2.1).
//!
//! With the latent codes `c_j` and factor `f_j` of position `j`, a key is `f_j W_uk c_j` and a value
//! `f_j W_uv c_j`. Neither is ever made: the query is taken to the latent once, and the weighted sum
//! of latents is taken to the value once.

use core::ops::Range;

use bitnet_formats::TernaryView;
use bitnet_formats::ternary::GROUP_ROWS;

use crate::kernels::Kernels;
use crate::layers::softmax::softmax;
use crate::math::{dot16, sum16};

/// The cached positions, `n` of them.
pub(crate) struct Latents<'a> {
    /// `[n, kv_lora_rank]`.
    pub(crate) codes: &'a [i8],
    /// `[n]`.
    pub(crate) factors: &'a [f32],
    /// `[n, qk_rope_head_dim]`.
    pub(crate) rope_keys: &'a [f32],
}

/// Arrays one head works in.
pub(crate) struct Work<'a> {
    /// `[n]`.
    pub(crate) scores: &'a mut [f32],
    /// `[kv_lora_rank]`.
    pub(crate) q_latent: &'a mut [f32],
    /// `[kv_lora_rank]`.
    pub(crate) o_latent: &'a mut [f32],
}

/// One head of `kv_b_proj`.
pub(crate) struct LatentHead<'a> {
    pub(crate) kernels: &'a Kernels,
    /// Key half of all heads, `[n_heads * kv_lora_rank, qk_nope_head_dim]`.
    pub(crate) key: TernaryView<'a>,
    /// Value half of all heads, `[n_heads * v_head_dim, kv_lora_rank]`.
    pub(crate) value: TernaryView<'a>,
    /// Which head.
    pub(crate) head: usize,
    /// `1 / sqrt(qk_head_dim)`.
    pub(crate) scale: f32,
}

impl LatentHead<'_> {
    /// Output of the head; `query` is `[nope | rope]`, `out` is `[v_head_dim]`.
    pub(crate) fn attend(
        &self,
        query: &[f32],
        latents: &Latents<'_>,
        work: &mut Work<'_>,
        out: &mut [f32],
    ) {
        let (q_nope, q_rope) = query.split_at(self.key.cols);
        let rank = work.q_latent.len();
        self.kernels
            .ternary_f32(&self.key, self.groups(rank), q_nope, work.q_latent);
        self.score(q_rope, latents, work);
        softmax(work.scores);
        mix(latents, work);
        let groups = self.groups(out.len());
        self.kernels
            .ternary_f32(&self.value, groups, work.o_latent, out);
    }

    /// Row groups of this head in a half with `width` rows per head.
    fn groups(&self, width: usize) -> Range<usize> {
        self.head * width / GROUP_ROWS..(self.head + 1) * width / GROUP_ROWS
    }

    /// `scale * (f_j * (q_latent . c_j) + q_rope . k_j)` for every position.
    fn score(&self, q_rope: &[f32], latents: &Latents<'_>, work: &mut Work<'_>) {
        let q_latent = &*work.q_latent;
        let codes = latents.codes.chunks_exact(q_latent.len());
        let keys = latents.rope_keys.chunks_exact(q_rope.len());
        let positions = codes.zip(latents.factors).zip(keys);
        for (score, ((codes, factor), key)) in work.scores.iter_mut().zip(positions) {
            let content = sum16(codes.len(), |l| q_latent[l] * f32::from(codes[l]));
            *score = self.scale * (factor * content + dot16(q_rope, key));
        }
    }
}

/// `o_latent = sum_j (p_j f_j) c_j`, ascending.
fn mix(latents: &Latents<'_>, work: &mut Work<'_>) {
    work.o_latent.fill(0.0);
    let codes = latents.codes.chunks_exact(work.o_latent.len());
    for ((p, factor), codes) in work.scores.iter().zip(latents.factors).zip(codes) {
        let weight = p * factor;
        work.o_latent
            .iter_mut()
            .zip(codes)
            .for_each(|(o, c)| *o += weight * f32::from(*c));
    }
}
