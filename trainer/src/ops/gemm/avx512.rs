//! Register tiles for AVX-512: 8 rows of 32 columns in sixteen registers.

use std::arch::x86_64::*;
use std::ops::Range;

use zerocopy::{Immutable, IntoBytes};

use super::pack::{self, Block, PackedA, Widen};
use super::rows::Rows;
use super::tiled::{Blend, FloatTile, Scale, Tile, TileJob};

const MR: usize = 8;
const NR: usize = 32;
const LANES: usize = 16;

/// Words are f32; a step is a fused multiply-add.
#[derive(Clone, Copy, Debug)]
pub(super) struct F32(());

/// Words are two bf16; a step adds both products to an f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16(());

/// Words are four bytes, signed in `a`, unsigned in `b`; a step adds four products to an i32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Int8(());

fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
}

impl F32 {
    pub(super) fn new() -> Option<Self> {
        has_avx512().then_some(Self(()))
    }
}

impl Bf16 {
    pub(super) fn new() -> Option<Self> {
        (has_avx512() && is_x86_feature_detected!("avx512bf16")).then_some(Self(()))
    }
}

impl Int8 {
    pub(super) fn new() -> Option<Self> {
        (has_avx512() && is_x86_feature_detected!("avx512vnni")).then_some(Self(()))
    }
}

/// A tile whose sums begin as `$zero` and take a word of `a` and sixteen of `b` by `$step`.
macro_rules! tile {
    ($tile:ty, $features:literal, $finish:ty, $zero:expr, $step:expr) => {
        impl Tile for $tile {
            const MR: usize = MR;
            const NR: usize = NR;
            type Finish<'f> = $finish;

            unsafe fn run(self, job: &TileJob<'_, Self::Finish<'_>>) {
                type Job<'a, 'f> = TileJob<'a, <$tile as Tile>::Finish<'f>>;
                #[target_feature(enable = $features)]
                unsafe fn rows<const R: usize>(job: &Job<'_, '_>) {
                    let mut sums = [[$zero; 2]; R];
                    let mut a = job.a;
                    for b in job.b.as_chunks::<NR>().0 {
                        let b: *const __m512i = b.as_ptr().cast();
                        // SAFETY: the 32 words of `b`.
                        let b = unsafe { [b.read_unaligned(), b.add(1).read_unaligned()] };
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let word: *const i32 = a.wrapping_add(i * job.a_row).cast();
                            // SAFETY: the caller's promise for this step of row `i`.
                            let a = _mm512_set1_epi32(unsafe { word.read_unaligned() });
                            *sums = [$step(sums[0], a, b[0]), $step(sums[1], a, b[1])];
                        }
                        a = a.wrapping_add(job.a_step);
                    }
                    let masks = masks(job.cols);
                    for (i, sums) in sums.into_iter().enumerate() {
                        for (half, sum) in sums.into_iter().enumerate() {
                            let c = job.c.wrapping_add(i * job.c_row + half * LANES);
                            // SAFETY: the caller's promise for row `i`; the mask ends at `cols`.
                            unsafe { job.finish.store(i, sum, c, masks[half]) };
                        }
                    }
                }
                // SAFETY: the value proves the features; the rest is the caller's promise.
                unsafe {
                    match job.rows {
                        1 => rows::<1>(job),
                        2 => rows::<2>(job),
                        3 => rows::<3>(job),
                        4 => rows::<4>(job),
                        5 => rows::<5>(job),
                        6 => rows::<6>(job),
                        7 => rows::<7>(job),
                        _ => rows::<MR>(job),
                    }
                }
            }

            fn transpose<E: IntoBytes + Immutable>(
                self,
                b: Rows<'_, E>,
                rows: Range<usize>,
                ks: Range<usize>,
                panel: &mut [u32],
            ) {
                // SAFETY: the value proves AVX-512.
                unsafe { transpose(b, rows, ks, panel) }
            }
        }
    };
}

tile!(F32, "avx512f", Blend, _mm512_setzero_ps(), |sum, a, b| {
    _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
});
tile!(
    Bf16,
    "avx512f,avx512bf16",
    Blend,
    _mm512_setzero_ps(),
    |sum, a, b| dot_bf16(sum, a, b)
);
tile!(
    Int8,
    "avx512f,avx512vnni",
    Scale<'f>,
    _mm512_setzero_si512(),
    |sum, a, b| _mm512_dpbusd_epi32(sum, b, a)
);

impl FloatTile for F32 {
    const DEPTH: usize = 1;

    fn rows<'s>(a: Rows<'s, f32>, block: Block, scratch: &'s mut Vec<u32>) -> PackedA<'s> {
        pack::rows_f32(a, block, MR, scratch)
    }

    fn columns<'s>(
        a: Rows<'_, f32>,
        block: Block,
        scales: &[f32],
        scratch: &'s mut Vec<u32>,
    ) -> PackedA<'s> {
        pack::columns_f32::<MR>(a, block, scales, scratch)
    }

    fn panels<'s, E: Widen>(b: Rows<'_, E>, block: Block, scratch: &'s mut Vec<u32>) -> &'s [u32] {
        pack::panels_f32::<NR, E>(b, block, scratch)
    }
}

impl FloatTile for Bf16 {
    const DEPTH: usize = 2;

    fn rows<'s>(a: Rows<'s, f32>, block: Block, scratch: &'s mut Vec<u32>) -> PackedA<'s> {
        pack::rows_bf16(a, block, MR, scratch)
    }

    fn columns<'s>(
        a: Rows<'_, f32>,
        block: Block,
        scales: &[f32],
        scratch: &'s mut Vec<u32>,
    ) -> PackedA<'s> {
        pack::columns_bf16::<MR>(a, block, scales, scratch)
    }

    fn panels<'s, E: Widen>(b: Rows<'_, E>, block: Block, scratch: &'s mut Vec<u32>) -> &'s [u32] {
        pack::panels_bf16::<NR, E>(b, block, scratch)
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: all three are 64 bytes in which every pattern is a value.
    let [a, b]: [__m512bh; 2] = unsafe { std::mem::transmute([a, b]) };
    _mm512_dpbf16_ps(sum, a, b)
}

/// The columns of each half of a tile.
fn masks(cols: usize) -> [__mmask16; 2] {
    let all = u32::MAX >> (NR - cols.clamp(1, NR));
    [all as u16, (all >> LANES) as u16]
}

impl Blend {
    /// # Safety
    ///
    /// `c` is writable at the elements of `mask`, and readable if `beta` is not 0.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(&self, _row: usize, sum: __m512, c: *mut f32, mask: __mmask16) {
        let mut y = _mm512_mul_ps(sum, _mm512_set1_ps(self.alpha));
        if self.beta != 0.0 {
            // SAFETY: the caller's promise; other elements are not touched.
            let old = unsafe { _mm512_maskz_loadu_ps(mask, c) };
            y = _mm512_add_ps(y, _mm512_mul_ps(old, _mm512_set1_ps(self.beta)));
        }
        // SAFETY: the caller's promise; other elements are not touched.
        unsafe { _mm512_mask_storeu_ps(c, mask, y) };
    }
}

impl Scale<'_> {
    /// # Safety
    ///
    /// `c` is writable at the elements of `mask`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(&self, row: usize, sum: __m512i, c: *mut f32, mask: __mmask16) {
        let sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(self.offsets[row]));
        let y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(self.factors[row]));
        // SAFETY: the caller's promise; other elements are not touched.
        unsafe { _mm512_mask_storeu_ps(c, mask, y) };
    }
}

/// See [`Tile::transpose`]: blocks of 16 words of 16 rows.
#[target_feature(enable = "avx512f")]
fn transpose<E: IntoBytes + Immutable>(
    b: Rows<'_, E>,
    rows: Range<usize>,
    ks: Range<usize>,
    panel: &mut [u32],
) {
    for (block, first) in rows.clone().step_by(LANES).enumerate() {
        let last = rows.end.min(first + LANES);
        for (at, k) in ks.clone().step_by(LANES).enumerate() {
            let count = LANES.min(ks.end - k);
            let mut words = [_mm512_setzero_si512(); LANES];
            for (word, row) in words.iter_mut().zip(first..last) {
                let bytes = &b.row_bytes(row)[4 * k..4 * (k + count)];
                // SAFETY: the mask has `count` words, which are all of `bytes`.
                *word = unsafe { _mm512_maskz_loadu_epi32(masks(count)[0], bytes.as_ptr().cast()) };
            }
            let lines = panel[at * LANES * NR..].chunks_exact_mut(NR);
            for (line, column) in lines.zip(transposed(words)).take(count) {
                let line = &mut line[block * LANES..][..LANES];
                // SAFETY: 16 words of `panel`.
                unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), column) };
            }
        }
    }
}

/// The transpose of 16 x 16 words: pairs of words, pairs of those, then the 128-bit quarters twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(x: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut y = x;
    for i in 0..8 {
        y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    // z[4g + c] holds column c (mod 4) of rows 4g..4g+4, a quarter for each of columns c, c + 4...
    let mut z = y;
    for g in 0..4 {
        for half in 0..2 {
            let (low, high) = (y[4 * g + half], y[4 * g + 2 + half]);
            z[4 * g + 2 * half] = _mm512_unpacklo_epi64(low, high);
            z[4 * g + 2 * half + 1] = _mm512_unpackhi_epi64(low, high);
        }
    }
    let mut out = x;
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(z[c], z[4 + c]);
        let odd = _mm512_shuffle_i32x4::<0xdd>(z[c], z[4 + c]);
        let even_high = _mm512_shuffle_i32x4::<0x88>(z[8 + c], z[12 + c]);
        let odd_high = _mm512_shuffle_i32x4::<0xdd>(z[8 + c], z[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(even, even_high);
        out[c + 8] = _mm512_shuffle_i32x4::<0xdd>(even, even_high);
        out[c + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odd_high);
        out[c + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_high);
    }
    out
}
