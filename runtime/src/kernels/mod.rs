//! The inner loops, behind one table of functions.
//!
//! `scalar` is the definition. Every other set must equal it bit for bit; `tests` runs them all
//! over the same cases. Lengths are checked here, once.
//!
//! A set other than the first two is a module with one function `kernels() -> Option<Kernels>`,
//! which gives the table where the machine has the instructions and nothing elsewhere: a function
//! of a set cannot be reached but through its table. With `std` the machine is asked; without, the
//! features the crate was compiled for decide, as they always do for wasm.

#[cfg(neon)]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512attention;
#[cfg(target_arch = "x86_64")]
mod avx512vbmi;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[deny(unsafe_code)]
pub(crate) mod coarse;
#[cfg(neon)]
mod dotprod;
#[cfg(arm_dsp)]
mod dsp;
#[cfg(vectors)]
#[deny(unsafe_code)]
mod float;
#[cfg(neon)]
mod i8mm;
#[cfg(neon)]
mod neon;
#[deny(unsafe_code)]
mod portable;
mod read;
#[deny(unsafe_code)]
mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod simd128;
mod stripes;
#[cfg(any(small_core, all(test, target_arch = "x86_64")))]
#[deny(unsafe_code)]
mod swar;
#[cfg(test)]
mod tests;
#[cfg(vectors)]
mod walk;
#[cfg(any(small_core, all(test, target_arch = "x86_64")))]
#[deny(unsafe_code)]
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86coarse;

use core::ops::Range;

use bitnet_formats::quant::NonFinite;
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{Activation, MatrixView, TernaryView, VectorView};

#[cfg(neon)]
use aarch64::prefetch;
pub use coarse::CoarseRows;
pub(crate) use stripes::{HeadRows, HeadShape};
pub use stripes::{Output, Stripes};
#[cfg(target_arch = "x86_64")]
use x86::prefetch;

/// A set of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// The definition, written to be read.
    Scalar,
    /// Plain Rust arranged so that the compiler vectorises it for any target.
    Portable,
    /// Two products to a 32-bit multiplication, for small cores without vectors.
    Swar,
    /// 32-bit Arm with the DSP extension.
    Dsp,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX2 and its VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 BW and VNNI.
    Avx512Vnni,
    /// x86-64 with AVX-512 BW, VNNI and VBMI.
    Avx512Vbmi,
    /// x86-64 with all of these and AMX for bytes, where Linux lets the process use it: looking for
    /// this set asks for that permission.
    Amx,
    /// AArch64 with NEON, which is nearly all there is.
    Neon,
    /// AArch64 with the byte dot product.
    DotProd,
    /// AArch64 with the byte dot product and the int8 matrix product.
    I8mm,
    /// WebAssembly with its 128-bit vectors.
    Simd128,
}

impl Isa {
    /// Every set, slowest first.
    pub const ALL: [Self; 13] = [
        Self::Scalar,
        Self::Portable,
        Self::Swar,
        Self::Dsp,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512Vnni,
        Self::Avx512Vbmi,
        Self::Amx,
        Self::Neon,
        Self::DotProd,
        Self::I8mm,
        Self::Simd128,
    ];

    /// The name users type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Swar => "swar",
            Self::Dsp => "dsp",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Vbmi => "avx512vbmi",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::DotProd => "dotprod",
            Self::I8mm => "i8mm",
            Self::Simd128 => "simd128",
        }
    }
}

/// Int8 activations of several tokens, each with a scale of its own.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    codes: &'a [i8],
    stride: usize,
}

impl<'a> Activations<'a> {
    /// Tokens of `stride` codes each. A token's codes beyond the matrix width must be zero up to
    /// the next multiple of [`CODE_PADDING`].
    ///
    /// # Panics
    ///
    /// If `codes` is not a whole number of tokens.
    #[must_use]
    pub fn new(codes: &'a [i8], stride: usize) -> Self {
        assert!(stride > 0 && codes.len().is_multiple_of(stride));
        Self { codes, stride }
    }

    /// Number of tokens.
    #[inline]
    #[must_use]
    pub const fn n_tokens(&self) -> usize {
        self.codes.len() / self.stride
    }

    #[inline(always)]
    fn token(&self, t: usize) -> &'a [i8] {
        &self.codes[t * self.stride..][..self.stride]
    }
}

/// Activations are zero-padded to a multiple of this: it holds whole lines of both layouts.
pub const CODE_PADDING: usize = 80;

/// What happens to an output that is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `out = y`.
    Set,
    /// `out += y`: the residual.
    Add,
}

/// Ternary matrix times int8 tokens: `out[t][row] (+)= (acc as f32) * factors[t]`.
pub struct TernaryGemm<'a> {
    /// The matrix, `[rows, cols]`.
    pub weights: TernaryView<'a>,
    /// Row groups to compute.
    pub groups: Range<usize>,
    /// The tokens.
    pub activations: Activations<'a>,
    /// One per token ([`bitnet_formats::quant::linear_factor`]).
    pub factors: &'a [f32],
    /// What to do with the result.
    pub store: Store,
}

impl TernaryGemm<'_> {
    /// The rows of a group.
    #[inline(always)]
    fn rows(&self, group: usize) -> Range<usize> {
        let first = group * GROUP_ROWS;
        first..first + self.weights.group_rows(group)
    }
}

/// A hidden state, ready for a dense head.
#[derive(Clone, Copy, Debug)]
pub enum HeadInput<'a> {
    /// For f32, f16 and bf16 rows.
    F32(&'a [f32]),
    /// For int8 rows: codes and the reciprocal of their scale.
    I16(&'a [i16], f32),
}

/// Keys or values of one head at successive positions, `[n, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum CacheRows<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Bits of f16.
    F16(&'a [u16]),
}

/// What latent attention caches of `n` positions.
#[derive(Clone, Copy, Debug)]
pub struct Latents<'a> {
    /// Codes of the normed latent, `[n, kv_lora_rank]`.
    pub codes: &'a [i8],
    /// What takes their products to keys and values, `[n]`.
    pub factors: &'a [f32],
    /// Rotated keys shared by the heads, `[n, qk_rope_head_dim]`.
    pub rope_keys: &'a [f32],
}

/// The functions of one instruction set. Having one is proof that the machine can run it.
///
/// The functions are safe but for that proof; they rely on the lengths that the methods check only
/// to be right, not to be safe.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    ternary_gemm: unsafe fn(&TernaryGemm<'_>, out: &mut Output<'_>),
    ternary_f32: unsafe fn(&TernaryView<'_>, Range<usize>, x: &[f32], out: &mut [f32]),
    head: unsafe fn(&MatrixView<'_>, Range<usize>, HeadInput<'_>, out: &mut [f32]),
    coarse: unsafe fn(&CoarseRows<'_>, Range<usize>, x: &[i8], out: &mut [f32]),
    float: FloatKernels,
}

type RmsNorm = unsafe fn(&[f32], &VectorView<'_>, f32, &mut [f32]) -> Result<(), NonFinite>;

type ScoresOf = unsafe fn(&[&[f32]], CacheRows<'_>, f32, &mut [f32], usize);

/// The functions of a set on floats; [`Kernels`] has a method for each.
#[derive(Clone, Copy)]
struct FloatKernels {
    rms_norm: RmsNorm,
    quantize: unsafe fn(&[f32], &mut [i8]) -> Result<f32, NonFinite>,
    softmax: unsafe fn(&mut [f32]),
    gated: unsafe fn(Activation, &mut [f32], &[f32]),
    narrow: unsafe fn(&[f32], &mut [u16]),
    scores_of: ScoresOf,
    add_mixes: unsafe fn(CacheRows<'_>, &[f32], usize, &mut [f32], usize),
    latent_scores: unsafe fn([&[f32]; 2], &Latents<'_>, f32, &mut [f32]),
    latent_mix: unsafe fn(&Latents<'_>, &[f32], &mut [f32]),
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Kernels").field(&self.isa).finish()
    }
}

impl Kernels {
    /// The fastest set this machine can run.
    #[must_use]
    pub fn detect() -> Self {
        // One set is the answer on these machines: the others are not even linked. A module with
        // vectors is refused where there are none, so there is nothing to find out.
        #[cfg(arm_dsp)]
        return dsp::KERNELS;
        #[cfg(all(small_core, not(arm_dsp)))]
        return swar::KERNELS;
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        return simd128::KERNELS;
        #[cfg(not(any(small_core, all(target_arch = "wasm32", target_feature = "simd128"))))]
        {
            let fastest = Isa::ALL.into_iter().rev().find_map(Self::for_isa);
            fastest.unwrap_or(portable::KERNELS)
        }
    }

    /// The definition.
    #[must_use]
    pub const fn scalar() -> Self {
        scalar::KERNELS
    }

    /// A named set, where this machine can run it.
    #[must_use]
    pub fn for_isa(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Scalar => Some(scalar::KERNELS),
            Isa::Portable => Some(portable::KERNELS),
            #[cfg(any(small_core, all(test, target_arch = "x86_64")))]
            Isa::Swar => Some(swar::KERNELS),
            #[cfg(arm_dsp)]
            Isa::Dsp => Some(dsp::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::kernels(),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avxvnni::kernels(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512vnni::kernels(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vbmi => avx512vbmi::kernels(),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => amx::kernels(),
            #[cfg(neon)]
            Isa::Neon => neon::kernels(),
            #[cfg(neon)]
            Isa::DotProd => dotprod::kernels(),
            #[cfg(neon)]
            Isa::I8mm => i8mm::kernels(),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => Some(simd128::KERNELS),
            #[allow(unreachable_patterns, reason = "not all sets are of one machine")]
            _ => None,
        }
    }

    /// Every set this machine can run.
    pub fn available() -> impl Iterator<Item = Self> {
        Isa::ALL.into_iter().filter_map(Self::for_isa)
    }

    /// Which set this is.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs a ternary product. `out` is `[n_tokens, rows]`; only the rows of the job's groups are
    /// touched.
    ///
    /// # Panics
    ///
    /// If a length does not fit the job.
    pub fn ternary_gemm(&self, job: &TernaryGemm<'_>, out: &mut [f32]) {
        self.ternary_gemm_into(job, &mut Output::new(out, job.weights.rows));
    }

    /// As [`ternary_gemm`](Self::ternary_gemm), into an output that holds the rows of the job's
    /// groups.
    ///
    /// # Panics
    ///
    /// If a length does not fit the job, or a row is not part of the output.
    pub fn ternary_gemm_into(&self, job: &TernaryGemm<'_>, out: &mut Output<'_>) {
        let n_tokens = job.activations.n_tokens();
        assert!(job.activations.stride >= job.weights.cols.next_multiple_of(CODE_PADDING));
        assert!(job.groups.end <= job.weights.n_groups());
        assert_eq!(job.factors.len(), n_tokens);
        assert_eq!((out.n_rows(), out.width()), (n_tokens, job.weights.rows));
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.ternary_gemm)(job, out) };
    }

    /// Ternary rows times an f32 vector: `out[r] = sum over ascending k of t[r][k] * x[k]`, without
    /// a scale. `out` holds the rows of `groups` alone; all groups must be full.
    ///
    /// # Panics
    ///
    /// If a length does not fit.
    pub fn ternary_f32(
        &self,
        weights: &TernaryView<'_>,
        groups: Range<usize>,
        x: &[f32],
        out: &mut [f32],
    ) {
        assert_eq!(x.len(), weights.cols);
        assert!(groups.end * 16 <= weights.rows);
        assert_eq!(out.len(), groups.len() * 16);
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.ternary_f32)(weights, groups, x, out) };
    }

    /// Dense rows times a hidden state: the logits of `rows`, into `out`.
    ///
    /// # Panics
    ///
    /// If a length or the input's type does not fit the matrix.
    pub fn head(
        &self,
        matrix: &MatrixView<'_>,
        rows: Range<usize>,
        input: HeadInput<'_>,
        out: &mut [f32],
    ) {
        let i8_rows = matrix.dtype == bitnet_formats::Dtype::I8Rows;
        let (len, fits) = match input {
            HeadInput::F32(x) => (x.len(), !i8_rows),
            HeadInput::I16(x, _) => (x.len(), i8_rows),
        };
        assert!(fits && len == matrix.cols);
        assert!(rows.end <= matrix.rows && out.len() == rows.len());
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.head)(matrix, rows, input, out) };
    }

    /// Asks for memory that will be read soon, where the machine can be asked.
    #[inline(always)]
    pub(crate) fn prefetch(&self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            prefetch(line.as_ptr().cast());
        }
    }

    /// Rows of coarse codes times a vector: exact integers, rounded to f32 once.
    ///
    /// # Panics
    ///
    /// If a length does not fit.
    pub fn coarse(&self, codes: &CoarseRows<'_>, rows: Range<usize>, x: &[i8], out: &mut [f32]) {
        assert!(x.len() == codes.cols() && rows.end <= codes.rows());
        assert_eq!(out.len(), rows.len());
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.coarse)(codes, rows, x, out) };
    }

    /// RmsNorm: `out = (x * r) * gain`, `r = 1 / sqrt(mean(x^2) + eps)`.
    ///
    /// # Errors
    ///
    /// The sum of squares is not finite.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn rms_norm(
        &self,
        x: &[f32],
        gain: &VectorView<'_>,
        eps: f32,
        out: &mut [f32],
    ) -> Result<(), NonFinite> {
        assert!(x.len() == gain.len() && x.len() == out.len());
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.float.rms_norm)(x, gain, eps, out) }
    }

    /// Quantises one token to int8: [`bitnet_formats::quant::quantize_activations`].
    ///
    /// # Errors
    ///
    /// A value is not finite.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn quantize(&self, x: &[f32], codes: &mut [i8]) -> Result<f32, NonFinite> {
        assert_eq!(x.len(), codes.len());
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.float.quantize)(x, codes) }
    }

    /// Replaces scores by probabilities.
    pub fn softmax(&self, scores: &mut [f32]) {
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.float.softmax)(scores) };
    }

    /// `gate = activation(gate) * up`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn gated(&self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.float.gated)(activation, gate, up) };
    }

    /// Rounds to the nearest f16, ties to even: [`bitnet_formats::float::f32_to_f16`].
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn narrow(&self, x: &[f32], out: &mut [u16]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.float.narrow)(x, out) };
    }

    /// `scores[i][j] = (keys[j] . queries[i]) * scale`, in sixteen lanes. Row `i` of the scores
    /// begins at `i * stride`; what follows its last score is left alone.
    ///
    /// # Panics
    ///
    /// If the queries differ in length, the keys are not whole rows of that length, or a row of
    /// scores does not hold one for each key.
    pub fn scores(
        &self,
        queries: &[&[f32]],
        keys: CacheRows<'_>,
        scale: f32,
        scores: &mut [f32],
        stride: usize,
    ) {
        let Some(width) = queries.first().map(|query| query.len()) else {
            return;
        };
        assert!(queries.iter().all(|query| query.len() == width));
        let n = rows_of(keys.len(), width);
        assert!(stride >= n && scores.len() >= (queries.len() - 1) * stride + n);
        if n > 0 {
            // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
            unsafe { (self.float.scores_of)(queries, keys, scale, scores, stride) };
        }
    }

    /// `outs[i] += sum_j weights[i][j] * values[j]`, ascending. `outs` is `[_, width]`; row `i` of the
    /// weights begins at `i * stride`.
    ///
    /// # Panics
    ///
    /// If outputs or values are not whole rows, or a row of weights does not hold one for each value.
    pub fn add_mixes(
        &self,
        values: CacheRows<'_>,
        weights: &[f32],
        stride: usize,
        outs: &mut [f32],
        width: usize,
    ) {
        let (n, m) = (rows_of(values.len(), width), rows_of(outs.len(), width));
        assert!(stride >= n && weights.len() + stride >= m * stride + n);
        if n > 0 {
            // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
            unsafe { (self.float.add_mixes)(values, weights, stride, outs, width) };
        }
    }

    /// `scores[j] = scale * (f_j * (q_latent . c_j) + q_rope . k_j)`; the query is
    /// `[q_latent, q_rope]`.
    ///
    /// # Panics
    ///
    /// If there is not one position for each score.
    pub fn latent_scores(
        &self,
        query: [&[f32]; 2],
        latents: &Latents<'_>,
        scale: f32,
        scores: &mut [f32],
    ) {
        let n = scores.len();
        assert_eq!(latents.codes.len(), n * query[0].len());
        assert_eq!(latents.rope_keys.len(), n * query[1].len());
        assert_eq!(latents.factors.len(), n);
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.float.latent_scores)(query, latents, scale, scores) };
    }

    /// `out = sum_j (weights[j] * f_j) * c_j`, ascending.
    ///
    /// # Panics
    ///
    /// If there is not one position for each weight.
    pub fn latent_mix(&self, latents: &Latents<'_>, weights: &[f32], out: &mut [f32]) {
        assert_eq!(latents.codes.len(), weights.len() * out.len());
        assert_eq!(latents.factors.len(), weights.len());
        // SAFETY: the table exists, so the machine has the instructions (`Self::for_isa`).
        unsafe { (self.float.latent_mix)(latents, weights, out) };
    }
}

/// Bytes at the start of an array that [`CacheRows::prefetch`] asks for.
const PREFETCH_BYTES: usize = 2_048;

/// Asks for the line at an address, which these machines leave to themselves.
#[cfg(not(any(neon, target_arch = "x86_64")))]
#[inline(always)]
const fn prefetch(_at: *const i8) {}

/// Number of rows of an array.
fn rows_of(len: usize, width: usize) -> usize {
    assert!(width > 0 && len.is_multiple_of(width));
    len / width
}

impl CacheRows<'_> {
    /// Asks for the first rows: they will be read soon, and nothing before them tells the machine.
    pub(crate) fn prefetch(&self) {
        let (start, bytes) = match self {
            Self::F32(rows) => (rows.as_ptr().cast::<i8>(), size_of_val(*rows)),
            Self::F16(rows) => (rows.as_ptr().cast(), size_of_val(*rows)),
        };
        for offset in (0..bytes.min(PREFETCH_BYTES)).step_by(64) {
            prefetch(start.wrapping_add(offset));
        }
    }

    /// Some of the rows, which have `width` elements.
    pub(crate) fn slice(&self, rows: Range<usize>, width: usize) -> Self {
        let elements = rows.start * width..rows.end * width;
        match self {
            Self::F32(all) => Self::F32(&all[elements]),
            Self::F16(all) => Self::F16(&all[elements]),
        }
    }

    const fn len(&self) -> usize {
        match self {
            Self::F32(rows) => rows.len(),
            Self::F16(rows) => rows.len(),
        }
    }
}
