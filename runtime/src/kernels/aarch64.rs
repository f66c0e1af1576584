//! What the AArch64 sets share besides the order of things: prefetching, and asking for features.

use core::arch::asm;

/// How far ahead of the loads memory is asked for. A group is a linear stream and the next group
/// follows it, as does the next matrix of the file, so running over an end fetches what comes next.
const PREFETCH_BYTES: usize = 2_048;

/// Asks for the memory that will be read [`PREFETCH_BYTES`] after `at`.
#[inline(always)]
pub(super) fn prefetch_after<T>(at: *const T) {
    prefetch_at::<PREFETCH_BYTES>(at.cast());
}

/// Asks for the line at an address.
#[inline(always)]
pub(super) fn prefetch(at: *const i8) {
    prefetch_at::<0>(at);
}

/// The intrinsic is not yet in the stable compiler.
#[inline(always)]
fn prefetch_at<const AHEAD: usize>(at: *const i8) {
    // SAFETY: a prefetch is a hint: it changes nothing that a program can see, and never faults,
    // whatever the address.
    unsafe {
        asm!(
            "prfm pldl1keep, [{at}, {ahead}]",
            at = in(reg) at.addr(),
            ahead = const AHEAD,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// True where the machine has all of the features: found out at run time with `std`, decided by the
/// compiler's target without.
macro_rules! has {
    ($($feature:tt),+) => {{
        #[cfg(feature = "std")]
        let found = $(std::arch::is_aarch64_feature_detected!($feature))&&+;
        #[cfg(not(feature = "std"))]
        let found = $(cfg!(target_feature = $feature))&&+;
        found
    }};
}
pub(super) use has;
