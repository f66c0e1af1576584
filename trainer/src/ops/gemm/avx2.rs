//! Register tiles for AVX2: 4 rows of 16 columns in eight registers.

use std::arch::x86_64::*;
use std::ops::Range;

use zerocopy::{Immutable, IntoBytes};

use super::pack::{self, Block, PackedA, Widen};
use super::rows::Rows;
use super::tiled::{Blend, FloatTile, Scale, Tile, TileJob};

const MR: usize = 4;
const NR: usize = 16;
const LANES: usize = 8;

/// Words are f32; a step is a fused multiply-add.
#[derive(Clone, Copy, Debug)]
pub(super) struct F32(());

/// Words are four bytes, signed in `a`; in `b` 0, 1 or 2. A step adds four products to an i32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Int8(());

impl F32 {
    pub(super) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

impl Int8 {
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

/// A tile whose sums begin as `$zero` and take a word of `a` and eight of `b` by `$step`.
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
                        let b: *const __m256i = b.as_ptr().cast();
                        // SAFETY: the 16 words of `b`.
                        let b = unsafe { [b.read_unaligned(), b.add(1).read_unaligned()] };
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let word: *const i32 = a.wrapping_add(i * job.a_row).cast();
                            // SAFETY: the caller's promise for this step of row `i`.
                            let a = _mm256_set1_epi32(unsafe { word.read_unaligned() });
                            *sums = [$step(sums[0], a, b[0]), $step(sums[1], a, b[1])];
                        }
                        a = a.wrapping_add(job.a_step);
                    }
                    for (i, sums) in sums.into_iter().enumerate() {
                        let mut line = [0.0; NR];
                        for (half, sum) in sums.into_iter().enumerate() {
                            let values = job.finish.values(i, sum);
                            // SAFETY: one half of the sixteen floats.
                            unsafe { _mm256_storeu_ps(line[half * LANES..].as_mut_ptr(), values) };
                        }
                        let c = job.c.wrapping_add(i * job.c_row);
                        for (j, y) in line[..job.cols].iter().enumerate() {
                            // SAFETY: the caller's promise for row `i` and the first columns.
                            unsafe { job.finish.store_one(*y, c.wrapping_add(j)) };
                        }
                    }
                }
                // SAFETY: the value proves the features; the rest is the caller's promise.
                unsafe {
                    match job.rows {
                        1 => rows::<1>(job),
                        2 => rows::<2>(job),
                        3 => rows::<3>(job),
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
                pack::transpose(b, rows, ks, panel, NR);
            }
        }
    };
}

tile!(F32, "avx2,fma", Blend, _mm256_setzero_ps(), |sum, a, b| {
    _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum)
});
tile!(
    Int8,
    "avx2",
    Scale<'f>,
    _mm256_setzero_si256(),
    |sum, a, b| dot_bytes(sum, a, b)
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

/// Pairs of products stay within 2 * 2 * 128, far inside an i16.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_bytes(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(b, a);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

impl Blend {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn values(&self, _row: usize, sum: __m256) -> __m256 {
        _mm256_mul_ps(sum, _mm256_set1_ps(self.alpha))
    }

    /// # Safety
    ///
    /// `c` is writable, and readable if `beta` is not 0.
    #[inline(always)]
    unsafe fn store_one(&self, y: f32, c: *mut f32) {
        let old = match self.beta {
            0.0 => 0.0,
            // SAFETY: the caller's promise.
            beta => beta * unsafe { c.read() },
        };
        // SAFETY: the caller's promise.
        unsafe { c.write(y + old) };
    }
}

impl Scale<'_> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn values(&self, row: usize, sum: __m256i) -> __m256 {
        let sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(self.offsets[row]));
        _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(self.factors[row]))
    }

    /// # Safety
    ///
    /// `c` is writable.
    #[inline(always)]
    unsafe fn store_one(&self, y: f32, c: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { c.write(y) };
    }
}
