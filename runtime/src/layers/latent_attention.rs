//! Causal attention of one head over the quantised latent, absorbed (arXiv 2405.04434, section 2.1).
//!
//! With the latent codes `c_j` and factor `f_j` of position `j`, a key is `f_j W_uk c_j` and a value
//! `f_j W_uv c_j`. Neither is ever made: the query is taken to the latent once, and the weighted sum
//! of latents is taken to the value once.

use core::ops::Range;

use bitnet_formats::TernaryView;
use bitnet_formats::ternary::GROUP_ROWS;

use crate::kernels::{Kernels, Latents};

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
        let (kernels, rank) = (self.kernels, work.q_latent.len());
        kernels.ternary_f32(&self.key, self.groups(rank), q_nope, work.q_latent);
        kernels.latent_scores([work.q_latent, q_rope], latents, self.scale, work.scores);
        kernels.softmax(work.scores);
        kernels.latent_mix(latents, work.scores, work.o_latent);
        let groups = self.groups(out.len());
        kernels.ternary_f32(&self.value, groups, work.o_latent, out);
    }

    /// Row groups of this head in a half with `width` rows per head.
    fn groups(&self, width: usize) -> Range<usize> {
        self.head * width / GROUP_ROWS..(self.head + 1) * width / GROUP_ROWS
    }
}
