//! What the x86 sets share besides the order of things: prefetching, and asking for features.

use core::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};

use bitnet_formats::ternary::LINE_BYTES;

use super::walk::Line;

/// How far ahead of the loads memory is asked for. A group is a linear stream and the next group
/// follows it, as does the next matrix of the file, so running over an end fetches what comes next.
const PREFETCH_BYTES: usize = 4_096;

/// Asks for the memory that will be read [`PREFETCH_BYTES`] after `at`.
#[inline(always)]
pub(super) fn prefetch_after<T>(at: *const T) {
    prefetch(at.cast::<i8>().wrapping_add(PREFETCH_BYTES));
}

/// Asks for the line that is `n` lines after this: one that goes into the next panel, which is due
/// after all tokens have met this one.
#[inline(always)]
pub(super) fn prefetch_ahead(line: &Line, n: usize) {
    prefetch(line.as_ptr().cast::<i8>().wrapping_add(n * LINE_BYTES));
}

/// Asks for the outputs of a group: rows of tokens lie far apart, and a store that misses the cache
/// holds up those behind it.
#[inline(always)]
pub(super) fn prefetch_for_writing(out: &[f32]) {
    // SAFETY: as in `prefetch`; machines without the hint for writing take it for one to read or for
    // no operation.
    unsafe { _mm_prefetch::<_MM_HINT_ET0>(out.as_ptr().cast()) };
}

/// Asks for the line at an address.
#[inline(always)]
pub(super) fn prefetch(at: *const i8) {
    // SAFETY: a prefetch is a hint that reads nothing and never faults, whatever the address; SSE,
    // which has it, is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
}

/// True where the machine has all of the features: found out at run time with `std`, decided by the
/// compiler's target without.
macro_rules! has {
    ($($feature:tt),+) => {{
        #[cfg(feature = "std")]
        let found = $(std::arch::is_x86_feature_detected!($feature))&&+;
        #[cfg(not(feature = "std"))]
        let found = $(cfg!(target_feature = $feature))&&+;
        found
    }};
}
pub(super) use has;
