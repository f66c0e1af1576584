//! The loops around a register tile.
//!
//! A tile multiplies a few rows of `a` with a panel of `b`, `NR` columns wide. Both come as words of
//! 32 bits that hold one f32, two bf16 or four bytes: as many steps along `k` at once. Around it,
//! from the outside in:
//!
//! 1. `k` is cut into even blocks of at most `K_BLOCK` words, `n` into blocks of `N_BLOCK` columns:
//!    that much of `b` is packed into panels, small enough for the second-level cache.
//! 2. `m` is cut into blocks of `M_BLOCK` rows. Of `a` they are read where they lie if they can be,
//!    and packed otherwise.
//! 3. For every panel, all rows of the block, a tile at a time: the panel stays in the first-level
//!    cache.
//!
//! The order of the sums depends on `k` alone.

use std::cell::RefCell;
use std::ops::Range;

use ndarray::{ArrayViewMut2, s};
use zerocopy::{Immutable, IntoBytes};

use super::contiguous::contiguous;
use super::pack::{self, Block, PackedA, Widen};
use super::reference;
use super::rows::Rows;
use super::{ExactProduct, Operand, Product};
use crate::ops::simd::vectorized;

const K_BLOCK: usize = 256;
const N_BLOCK: usize = 512;
const M_BLOCK: usize = 256;

/// `c = alpha * sum + beta * c`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blend {
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

/// `c = (sum - offset) as f32 * factor`, of one offset and factor for each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale<'f> {
    pub(super) offsets: &'f [i32],
    pub(super) factors: &'f [f32],
}

/// Operands of one tile.
#[derive(Debug)]
pub(super) struct TileJob<'a, F> {
    /// Word `k` of row `i` of `a` lies at `a + i * a_row + k * a_step` bytes, at any alignment.
    pub(super) a: *const u8,
    pub(super) a_row: usize,
    pub(super) a_step: usize,
    /// `[depth, NR]`.
    pub(super) b: &'a [u32],
    /// Row `i` of the result at `c + i * c_row` elements.
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// 1 to `MR`.
    pub(super) rows: usize,
    /// 1 to `NR`.
    pub(super) cols: usize,
    pub(super) finish: F,
}

/// A register tile; having one is proof that the processor can run it.
pub(super) trait Tile: Copy {
    /// Rows.
    const MR: usize;
    /// Columns.
    const NR: usize;
    /// What happens to the sums.
    type Finish<'f>: Copy;

    /// Computes one tile.
    ///
    /// # Safety
    ///
    /// `a` is readable at the words of `rows` rows and `b.len() / NR` steps; `c` is readable and
    /// writable at `cols` elements of `rows` rows.
    unsafe fn run(self, job: &TileJob<'_, Self::Finish<'_>>);

    /// Writes word `ks[i]` of row `rows[j]` to `panel[i * NR + j]`; there are at most `NR` rows.
    fn transpose<E: IntoBytes + Immutable>(
        self,
        b: Rows<'_, E>,
        rows: Range<usize>,
        ks: Range<usize>,
        panel: &mut [u32],
    );
}

#[derive(Default)]
struct Scratch {
    a: Vec<u32>,
    b: Vec<u32>,
    sums: Vec<i32>,
    factors: Vec<f32>,
}

thread_local! {
    /// Packed blocks. Kept, so that products allocate nothing once a thread has seen their size.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A tile of floats, and how its words are packed.
pub(super) trait FloatTile: for<'f> Tile<Finish<'f> = Blend> {
    /// Steps along `k` in a word.
    const DEPTH: usize;

    /// A block of `a`.
    fn rows<'s>(a: Rows<'s, f32>, block: Block, scratch: &'s mut Vec<u32>) -> PackedA<'s>;

    /// A block of the transpose of `a`, columns divided by `scales` if there are any.
    fn columns<'s>(
        a: Rows<'_, f32>,
        block: Block,
        scales: &[f32],
        scratch: &'s mut Vec<u32>,
    ) -> PackedA<'s>;

    /// A block of `b`.
    fn panels<'s, E: Widen>(b: Rows<'_, E>, block: Block, scratch: &'s mut Vec<u32>) -> &'s [u32];
}

/// Even pieces of `0..n` of at most `most`, all but the last a multiple of 32.
fn pieces(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let piece = n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(32);
    (0..n)
        .step_by(piece.max(1))
        .map(move |at| at..n.min(at + piece))
}

/// The rows of `a` as they lie, or those of its transpose.
enum A<'a> {
    Rows(Rows<'a, f32>),
    Columns(Rows<'a, f32>),
}

impl<'a> A<'a> {
    /// `None` where neither rows nor columns are contiguous, or rows would have to be scaled.
    fn of(p: &Product<'a, f32>) -> Option<Self> {
        let rows = Rows::new(p.a).filter(|_| p.scales.is_empty());
        rows.map(Self::Rows)
            .or_else(|| Rows::new(p.a.reversed_axes()).map(Self::Columns))
    }

    fn pack<'s, F: FloatTile>(
        &'s self,
        block: Block,
        scales: &[f32],
        scratch: &'s mut Vec<u32>,
    ) -> PackedA<'s> {
        match self {
            Self::Rows(rows) => F::rows(*rows, block, scratch),
            Self::Columns(rows) => F::columns(*rows, block, scales, scratch),
        }
    }
}

/// The rows of `b` as they lie, or those of its transpose.
enum B<'a> {
    Values(Rows<'a, f32>),
    Codes(Rows<'a, i8>),
    Columns(Rows<'a, f32>),
}

impl<'a> B<'a> {
    /// `None` where neither rows nor columns are contiguous; columns have to be of single words.
    fn of<F: FloatTile>(b: Operand<'a, f32>) -> Option<Self> {
        match b {
            Operand::Codes(view) => Rows::new(view).map(Self::Codes),
            Operand::Values(view) => Rows::new(view).map(Self::Values).or_else(|| {
                let columns = Rows::new(view.reversed_axes()).filter(|_| F::DEPTH == 1);
                columns.map(Self::Columns)
            }),
        }
    }

    fn pack<'s, F: FloatTile>(
        &self,
        tile: F,
        block: Block,
        scratch: &'s mut Vec<u32>,
    ) -> &'s [u32] {
        match self {
            Self::Values(rows) => F::panels(*rows, block, scratch),
            Self::Codes(rows) => F::panels(*rows, block, scratch),
            Self::Columns(rows) => pack::transposed_panels(tile, *rows, block, scratch),
        }
    }
}

/// See [`Product`].
pub(super) fn product<F: FloatTile>(tile: F, p: &Product<'_, f32>, c: ArrayViewMut2<'_, f32>) {
    assert_eq!((p.a.nrows(), p.b.dim().1), c.dim(), "shape of the result");
    assert_eq!(p.a.ncols(), p.b.dim().0, "inner dimensions");
    assert!(p.scales.is_empty() || p.scales.len() == p.a.ncols());
    match (A::of(p), B::of::<F>(p.b)) {
        (Some(a), Some(b)) => {
            SCRATCH.with_borrow_mut(|scratch| blocks(tile, p, &a, &b, c, scratch))
        }
        _ => product(tile, &contiguous(p).as_product(p), c),
    }
}

fn blocks<F: FloatTile>(
    tile: F,
    p: &Product<'_, f32>,
    a: &A<'_>,
    b: &B<'_>,
    mut c: ArrayViewMut2<'_, f32>,
    scratch: &mut Scratch,
) {
    let (m, n) = c.dim();
    for ks in pieces(p.a.ncols(), K_BLOCK * F::DEPTH) {
        let beta = if ks.start == 0 { p.beta } else { 1.0 };
        let finish = |_| Blend {
            alpha: p.alpha,
            beta,
        };
        let block = |outer: &Range<usize>| Block {
            outer: outer.clone(),
            ks: ks.clone(),
        };
        for ns in pieces(n, N_BLOCK) {
            let b = b.pack(tile, block(&ns), &mut scratch.b);
            for ms in pieces(m, M_BLOCK) {
                let a = a.pack::<F>(block(&ms), p.scales, &mut scratch.a);
                tiles(tile, &a, b, c.slice_mut(s![ms, ns.clone()]), finish);
            }
        }
    }
}

/// See [`ExactProduct`].
pub(super) fn exact_product<K>(tile: K, p: &ExactProduct<'_>, mut y: ArrayViewMut2<'_, f32>)
where
    K: for<'f> Tile<Finish<'f> = Scale<'f>>,
{
    assert_eq!((p.x.nrows(), p.w.nrows()), y.dim(), "shape of the result");
    assert_eq!(p.x.ncols(), p.w.ncols(), "inner dimensions");
    let (Some(x), Some(w)) = (Rows::new(p.x), Rows::new(p.w)) else {
        return reference::exact_product(p, y);
    };
    if !x.cols().is_multiple_of(4) {
        return reference::exact_product(p, y);
    }
    let (m, n, k) = (x.len(), w.len(), x.cols());
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch {
            b, sums, factors, ..
        } = scratch;
        factors.clear();
        factors.extend(p.factors());
        sums.clear();
        sums.extend((0..m).map(|i| sum_of_codes(x.row(i))));
        for ns in pieces(n, N_BLOCK) {
            let block = |outer, ks| Block { outer, ks };
            let b = pack::transposed_panels(tile, w, block(ns.clone(), 0..k / 4), b);
            vectorized!(b.iter_mut().for_each(|word| *word = one_more(*word)));
            let a = PackedA::in_place(x, block(0..m, 0..k), K::MR);
            let finish = |rows: Range<usize>| Scale {
                offsets: &sums[rows.clone()],
                factors: &factors[rows],
            };
            tiles(tile, &a, b, y.slice_mut(s![.., ns]), finish);
        }
    });
}

/// What the products with `w + 1` have too much.
fn sum_of_codes(codes: &[i8]) -> i32 {
    vectorized!(codes.iter().map(|code| i32::from(*code)).sum())
}

/// One more in each byte: -1, 0, 1 become 0, 1, 2. The top bits stay out of the sum, so that
/// nothing carries.
#[inline(always)]
fn one_more(word: u32) -> u32 {
    ((word & 0x7f7f_7f7f) + 0x0101_0101) ^ (word & 0x8080_8080)
}

/// All tiles of a block of `c`.
fn tiles<'f, K: Tile>(
    tile: K,
    a: &PackedA<'_>,
    b: &[u32],
    mut c: ArrayViewMut2<'_, f32>,
    finish: impl Fn(Range<usize>) -> K::Finish<'f>,
) {
    let (m, n) = c.dim();
    let (row, step) = (c.strides()[0], c.strides()[1]);
    assert!(
        (row >= 0 || m < 2) && (step == 1 || n < 2),
        "rows of the result are contiguous"
    );
    let (c, c_row) = (c.as_mut_ptr(), row.unsigned_abs());
    let panels = b.chunks_exact((a.depth * K::NR).max(1));
    for (b, at) in panels.zip((0..n).step_by(K::NR)) {
        for (group, i) in (0..m).step_by(K::MR).enumerate() {
            let rows = K::MR.min(m - i);
            let job = TileJob {
                a: a.group(group),
                a_row: a.row_bytes,
                a_step: a.step_bytes,
                b,
                c: c.wrapping_add(i * c_row + at),
                c_row,
                rows,
                cols: K::NR.min(n - at),
                finish: finish(i..i + rows),
            };
            // SAFETY: `a` holds `depth` words of `m` rows, and `b` as many steps; `c` is a block of
            // `m` by `n`, rows contiguous and `c_row` apart, lent for writing. The tile is in both.
            unsafe { tile.run(&job) };
        }
    }
}
