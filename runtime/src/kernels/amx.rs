//! AMX: products of whole tiles, for prefill.
//!
//! A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of activations (16
//! tokens by 64 columns) by a tile of digits (16 planes of 4 columns by 16 rows, in the order in
//! which panels lie in memory) and adds to a tile of sums (16 tokens by the rows of a group).
//!
//! Plainly: for every 16 tokens and every group, clear the sums; unpack and multiply 64 columns at
//! a time; subtract what `d = t + 1` adds, the sum of the token's activations; store. Departures:
//!
//! 1. Two tiles of tokens meet two groups: four loads serve four products, and four sums in flight
//!    cover the time that a product takes (about 50 cycles, where one can begin every 16). A tile
//!    or a group without a partner goes with another one's data, and the result is dropped: alone
//!    it would wait for its own sums as long.
//! 2. [`BLOCK_TILES`] tiles of tokens share an unpacking, [`PLANES`] planes at a time. In between,
//!    sums wait in memory; with the panels they fit the first-level cache.
//! 3. Sums begin at minus the sum of the activations instead of zero.
//! 4. Columns beyond the matrix are left out, but for up to three in its last plane, whose digit is
//!    one: their activations are in the subtracted sum and so cost nothing.
//! 5. The last tile of tokens ends at the last token, and takes tokens of the tile before once
//!    more; each is stored once. Fewer than 16 tokens make tiles of as many rows.
//! 6. The last step ends at the last column in the same way: columns that were taken before meet
//!    digits of zero. So nothing beyond a token's codes is read, and nothing is copied.
//! 7. Few tokens, and matrices narrower than a tile, are left to AVX-512 ([`MIN_TOKENS`]).
//!
//! Stable Rust has no tile intrinsics, so the instructions are written out. The compiler itself
//! never uses tiles: what is loaded by [`Tiles::configure`] stays until it is released.
//!
//! The harness and the tests of equal logits pass with this set under the Bochs emulator (snapshot of
//! August 2026, its signed byte products corrected to Intel's definition). Nothing has been timed.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _xgetbv, CpuidResult};
use core::marker::PhantomData;
use core::ops::Range;

use bitnet_formats::ternary::{GROUP_ROWS, LINE_BYTES};
use bitnet_formats::{TernaryLayout, TernaryView};

use super::walk::{self, Line, Panel, Sums, TOKEN_BLOCK};
use super::{Activations, Isa, Kernels, Output, TernaryGemm};
use super::{avx512vbmi, avx512vnni, x86};

/// The set, where the machine has it and the system lets this process use it.
pub(super) fn kernels() -> Option<Kernels> {
    let vbmi = avx512vbmi::kernels()?;
    let usable = cfg!(feature = "std")
        && x86::has!("xsave")
        && machine_has_tiles()
        && system_saves_tiles()
        && system_permits_tiles();
    usable.then_some(Kernels {
        isa: Isa::Amx,
        ternary_gemm,
        ..vbmi
    })
}

/// Fewer tokens take the dot products of AVX-512. By Intel's instruction tables for Sapphire Rapids,
/// 64 columns of two groups take those 16 cycles a token (32 products, two each cycle), and tiles 50
/// to 64 cycles for any number of tokens up to 32. From eight tokens on that is half, which leaves
/// something for the moves of sums.
const MIN_TOKENS: usize = 8;

/// Rows of a tile: tokens, or planes of digits.
const TILE_ROWS: usize = 16;
/// Columns of a tile of activations or digits.
const STEP_COLS: usize = 64;
/// Row groups that go side by side.
const GROUPS: usize = 2;
/// Planes of a panel, whole steps and whole lines of both layouts.
const PLANES: usize = 160;
/// Tiles of tokens that share an unpacking. The more they are the less it counts; 16 KB of sums and
/// 20 KB of panels leave room for activations in a first-level cache of 48 KB.
const BLOCK_TILES: usize = TOKEN_BLOCK / TILE_ROWS;

/// Digits of 64 columns: a tile.
type Step = [Line; TILE_ROWS];
/// Sums of a tile of tokens, `[token][group]`.
#[repr(C, align(64))]
struct TileSums([[Sums; GROUPS]; TILE_ROWS]);

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn ternary_gemm(job: &TernaryGemm<'_>, out: &mut Output<'_>) {
    if job.activations.n_tokens() < MIN_TOKENS || job.weights.cols < STEP_COLS {
        return avx512vbmi::ternary_gemm(job, out);
    }
    let tiles = Tiles::configure(job.activations);
    let mut panels = [const { Panel([[0; LINE_BYTES]; PLANES]) }; GROUPS];
    let mut sums = [const { TileSums([[[0; GROUP_ROWS]; GROUPS]; TILE_ROWS]) }; BLOCK_TILES];
    let mut starts = [[0; TILE_ROWS]; BLOCK_TILES];
    let n_tiles = job.factors.len().div_ceil(TILE_ROWS);
    for first in (0..n_tiles).step_by(BLOCK_TILES) {
        let n = BLOCK_TILES.min((n_tiles - first).next_multiple_of(2));
        let (sums, starts) = (&mut sums[..n], &mut starts[..n]);
        for (tile, starts) in (first..).zip(&mut *starts) {
            *starts = tiles.minus_code_sums(tile, job.weights.cols);
        }
        for group in job.groups.clone().step_by(GROUPS) {
            let part = Part {
                groups: group..job.groups.end.min(group + GROUPS),
                first,
            };
            part.ask_for_outputs(job, out);
            for (sums, starts) in sums.iter_mut().zip(&*starts) {
                sums.0 = starts.map(|start| [[start; GROUP_ROWS]; GROUPS]);
            }
            part.add_products(&job.weights, &tiles, &mut panels, sums);
            part.store(job, &tiles, sums, out);
        }
    }
}

/// Outputs that are computed together.
struct Part {
    /// One or two row groups.
    groups: Range<usize>,
    /// First tile of tokens.
    first: usize,
}

impl Part {
    /// Tokens of up to [`BLOCK_TILES`] tiles, of `n` tokens in all.
    fn tokens(&self, n: usize) -> Range<usize> {
        let first = self.first * TILE_ROWS;
        first..n.min(first + BLOCK_TILES * TILE_ROWS)
    }

    /// They are due when the columns have been walked.
    fn ask_for_outputs(&self, job: &TernaryGemm<'_>, out: &mut Output<'_>) {
        for token in self.tokens(job.factors.len()) {
            for group in self.groups.clone() {
                x86::prefetch_for_writing(out.slice(token, job.rows(group)));
            }
        }
    }

    /// Unpacks some columns, multiplies, and goes on to the next.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn add_products(
        &self,
        weights: &TernaryView<'_>,
        tiles: &Tiles<'_>,
        panels: &mut [Panel<PLANES>; GROUPS],
        sums: &mut [TileSums],
    ) {
        let n_planes = n_planes(weights.cols);
        for start in (0..n_planes).step_by(PLANES) {
            let planes = start..n_planes.min(start + PLANES);
            for (group, panel) in self.groups.clone().zip(&mut *panels) {
                unpack(weights, group, planes.clone(), panel);
            }
            for (i, sums) in sums.as_chunks_mut().0.iter_mut().enumerate() {
                multiply(tiles, self.first + 2 * i, planes.clone(), panels, sums);
            }
        }
    }

    /// Of a tile that was moved back, the tokens that are new are stored.
    #[target_feature(enable = "avx512f")]
    fn store(
        &self,
        job: &TernaryGemm<'_>,
        tiles: &Tiles<'_>,
        sums: &[TileSums],
        out: &mut Output<'_>,
    ) {
        for token in self.tokens(job.factors.len()) {
            let tile = token / TILE_ROWS;
            let row = token - tiles.first_token(tile);
            for (group, sums) in self.groups.clone().zip(&sums[tile - self.first].0[row]) {
                walk::store_group(job, out, (group, token), sums, job.factors[token]);
            }
        }
    }
}

/// Planes of four columns.
const fn n_planes(cols: usize) -> usize {
    cols.div_ceil(4)
}

/// Writes the digits of some planes of a group. Planes that do not fill their step are moved to its
/// end, behind zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack(
    weights: &TernaryView<'_>,
    group: usize,
    planes: Range<usize>,
    panel: &mut Panel<PLANES>,
) {
    let line_planes = weights.layout.planes();
    let lines = &weights.group(group)[planes.start / line_planes..];
    let lines = &lines[..planes.len().div_ceil(line_planes)];
    match weights.layout {
        TernaryLayout::T5R16 => avx512vbmi::unpack_t5(lines, panel),
        TernaryLayout::T2R16 => avx512vnni::unpack_t2(lines, panel),
    }
    let rest = planes.len() % TILE_ROWS;
    if rest > 0 {
        let last = &mut panel.0[planes.len() - rest..][..TILE_ROWS];
        last.copy_within(..rest, TILE_ROWS - rest);
        last[..TILE_ROWS - rest].fill([0; LINE_BYTES]);
    }
}

/// Adds panels times two tiles of tokens: first the full steps, then the one moved back.
fn multiply(
    tiles: &Tiles<'_>,
    first: usize,
    planes: Range<usize>,
    panels: &[Panel<PLANES>; GROUPS],
    sums: &mut [TileSums; 2],
) {
    let steps = panels.each_ref().map(|panel| panel.0.as_chunks().0);
    let n_full = planes.len() / TILE_ROWS;
    let full = steps.map(|steps| &steps[..n_full]);
    tiles.multiply(first, 4 * planes.start, full, sums);
    if !planes.len().is_multiple_of(TILE_ROWS) {
        let last = steps.map(|steps| &steps[n_full..=n_full]);
        tiles.multiply(first, 4 * planes.end - STEP_COLS, last, sums);
    }
}

/// What `ldtilecfg` loads.
#[derive(Default)]
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<TileConfig>() == 64);

impl TileConfig {
    /// Registers 0 to 3 are sums and 4 and 5 activations, of `n_tokens` rows; 6 and 7 are digits.
    fn new(n_tokens: usize) -> Self {
        let mut config = Self {
            palette: 1,
            ..Self::default()
        };
        config.row_bytes[..8].fill(STEP_COLS as u16);
        config.rows[..6].fill(n_tokens as u8);
        config.rows[6..8].fill(TILE_ROWS as u8);
        config
    }
}

/// Assembly that changes tile registers, all of them as far as the compiler is told.
macro_rules! tile_asm {
    ($($arguments:tt)*) => {
        asm!(
            $($arguments)*,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// The tile registers of this thread, configured for some tokens, until this is dropped.
struct Tiles<'a> {
    activations: Activations<'a>,
    /// Tokens of a tile.
    rows: usize,
    /// Registers are a thread's own: this cannot go to another.
    of_thread: PhantomData<*const ()>,
}

impl<'a> Tiles<'a> {
    fn configure(activations: Activations<'a>) -> Self {
        let rows = activations.n_tokens().min(TILE_ROWS);
        let config = TileConfig::new(rows);
        // SAFETY: the instruction reads the 64 bytes of `config`. The machine has it, and palette 1
        // has eight tiles of these sizes (`machine_has_tiles`); the system has given the permission
        // (`system_permits_tiles`). Nothing else in this crate uses tiles.
        unsafe { tile_asm!("ldtilecfg [{}]", in(reg) &raw const config) }
        Self {
            activations,
            rows,
            of_thread: PhantomData,
        }
    }

    /// First token of a tile. A tile that would pass the last token is moved back to end there.
    fn first_token(&self, tile: usize) -> usize {
        (tile * TILE_ROWS).min(self.activations.n_tokens() - self.rows)
    }

    /// Where the sums of a tile begin: minus the sum of the activations that meet the digits of a
    /// row, up to the end of its last plane.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn minus_code_sums(&self, tile: usize, cols: usize) -> [i32; TILE_ROWS] {
        let mut sums = [0; TILE_ROWS];
        for (token, sum) in (self.first_token(tile)..).zip(&mut sums[..self.rows]) {
            let codes = &self.activations.token(token)[..4 * n_planes(cols)];
            *sum = -codes.iter().map(|code| i32::from(*code)).sum::<i32>();
        }
        sums
    }

    /// The activations that the tile meets from `column` on in `n_steps` steps: rows are a token's
    /// stride apart, the last ends with the slice.
    fn codes(&self, tile: usize, column: usize, n_steps: usize) -> &'a [i8] {
        let stride = self.activations.stride;
        let start = self.first_token(tile) * stride + column;
        &self.activations.codes[start..][..(self.rows - 1) * stride + n_steps * STEP_COLS]
    }

    /// Adds the products of two tiles of tokens, `first` and the next, and two groups: `digits`
    /// meet the activations from `column` on.
    fn multiply(
        &self,
        first: usize,
        column: usize,
        digits: [&[Step]; GROUPS],
        sums: &mut [TileSums; 2],
    ) {
        let n_steps = digits[0].len();
        assert_eq!(digits[1].len(), n_steps);
        if n_steps == 0 {
            return;
        }
        let codes = [first, first + 1].map(|tile| self.codes(tile, column, n_steps));
        // SAFETY: having `self`, the tiles of this thread are configured: tiles 0 to 5 have
        // `self.rows` rows, 6 and 7 have 16, all of 64 bytes. Sums are rows of 128 bytes for two
        // groups, 16 to a tile of tokens, at least `self.rows`; they are read and written within
        // `sums`. Step `i` reads row `r` of the activations at `r * stride + 64 i` of `codes`, which
        // ends with the last row's last step, and the 1,024 bytes of step `i` of each of `digits`;
        // `i` counts to `n_steps`, which is not zero.
        unsafe {
            tile_asm!(
                "tileloadd tmm0, [{sums} + {sums_stride}*1]",
                "tileloadd tmm1, [{sums} + {sums_stride}*1 + {group}]",
                "tileloadd tmm2, [{sums} + {sums_stride}*1 + {tile}]",
                "tileloadd tmm3, [{sums} + {sums_stride}*1 + {tile} + {group}]",
                "2:",
                "tileloadd tmm4, [{codes0} + {codes_stride}*1]",
                "tileloadd tmm6, [{digits0} + {line}*1]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{digits1} + {line}*1]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{codes1} + {codes_stride}*1]",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "add {codes0}, {step_cols}",
                "add {codes1}, {step_cols}",
                "add {digits0}, {step_bytes}",
                "add {digits1}, {step_bytes}",
                "dec {n_steps}",
                "jnz 2b",
                "tilestored [{sums} + {sums_stride}*1], tmm0",
                "tilestored [{sums} + {sums_stride}*1 + {group}], tmm1",
                "tilestored [{sums} + {sums_stride}*1 + {tile}], tmm2",
                "tilestored [{sums} + {sums_stride}*1 + {tile} + {group}], tmm3",
                sums = in(reg) sums.as_mut_ptr(),
                sums_stride = in(reg) size_of::<[Sums; GROUPS]>(),
                group = const size_of::<Sums>(),
                tile = const size_of::<TileSums>(),
                codes0 = inout(reg) codes[0].as_ptr() => _,
                codes1 = inout(reg) codes[1].as_ptr() => _,
                codes_stride = in(reg) self.activations.stride,
                step_cols = const STEP_COLS,
                digits0 = inout(reg) digits[0].as_ptr() => _,
                digits1 = inout(reg) digits[1].as_ptr() => _,
                line = in(reg) LINE_BYTES,
                step_bytes = const size_of::<Step>(),
                n_steps = inout(reg) n_steps => _
            );
        }
    }
}

impl Drop for Tiles<'_> {
    /// Gives the registers back: a thread without tiles costs the system nothing to switch.
    fn drop(&mut self) {
        // SAFETY: `configure` has run, so the machine has the instruction; it only clears tiles.
        unsafe { tile_asm!("tilerelease") }
    }
}

/// True where the machine has tiles of the sizes used here, and multiplies bytes.
fn machine_has_tiles() -> bool {
    let max_leaf = cpuid(0, 0).eax;
    let features = cpuid(7, 0).edx;
    let (tile, int8) = (features & 1 << 24 != 0, features & 1 << 25 != 0);
    if max_leaf < 0x1d || !tile || !int8 {
        return false;
    }
    let palette = cpuid(0x1d, 1);
    let (row_bytes, n_tiles) = (palette.ebx & 0xffff, palette.ebx >> 16);
    let rows = palette.ecx & 0xffff;
    row_bytes as usize >= STEP_COLS && rows as usize >= TILE_ROWS && n_tiles >= 8
}

#[allow(
    unused_unsafe,
    reason = "safe since a later Rust than the oldest supported"
)]
fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 machine has the instruction.
    unsafe { __cpuid_count(leaf, subleaf) }
}

/// True where the system keeps configuration and contents of tiles (bits 17 and 18 of XCR0) when it
/// switches threads.
fn system_saves_tiles() -> bool {
    const TILES: u64 = 3 << 17;
    // SAFETY: the machine has `xsave`, and the system has enabled it, or `has!` would not have found
    // AVX-512.
    let enabled = unsafe { _xgetbv(0) };
    enabled & TILES == TILES
}

/// Asks for the permission that Linux wants from a process before it uses tiles, since they need 8
/// KB more for each thread that does: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, of Linux
/// 5.16. It holds for all threads and may be asked for again.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn system_permits_tiles() -> bool {
    const SYS_ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: the call takes two numbers and touches no memory of the process; the instruction
    // changes the three registers that are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Elsewhere nobody has written down here how to ask.
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
const fn system_permits_tiles() -> bool {
    false
}
