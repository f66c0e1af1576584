//! Loops compiled for the vectors this machine has.
//!
//! A release is built for any x86-64, whose vectors hold four floats. [`vectorized!`] compiles a
//! loop once more for each wider kind, and runs the widest that the machine has. The copies differ
//! in width alone: every operation stays the same IEEE operation, nothing is contracted or
//! reordered, so the bits are the same.

/// Runs an expression compiled for the widest vectors of this machine.
///
/// What it calls takes part as far as it is inlined: mark it `#[inline(always)]`. The expression is
/// spelt out for each width, so that each copy has one caller, into which the compiler puts it.
macro_rules! vectorized {
    ($body:expr) => {
        match $crate::ops::simd::Width::detect() {
            #[cfg(target_arch = "x86_64")]
            $crate::ops::simd::Width::Avx512(vectors) => vectors.run(|| $body),
            #[cfg(target_arch = "x86_64")]
            $crate::ops::simd::Width::Avx2(vectors) => vectors.run(|| $body),
            $crate::ops::simd::Width::Plain => $crate::ops::simd::plain(|| $body),
        }
    };
}
pub(crate) use vectorized;

/// Runs `f` as it is.
#[inline(always)]
pub(crate) fn plain<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// The widest vectors of a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Width {
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    /// Those the crate is compiled for.
    Plain,
}

impl Width {
    /// Asks the machine once.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn detect() -> Self {
        static WIDTH: std::sync::OnceLock<Width> = std::sync::OnceLock::new();
        *WIDTH.get_or_init(|| {
            let avx512 = x86::Avx512::new().map(Self::Avx512);
            let avx2 = || x86::Avx2::new().map(Self::Avx2);
            avx512.or_else(avx2).unwrap_or(Self::Plain)
        })
    }

    /// There is one kind on other machines.
    #[cfg(not(target_arch = "x86_64"))]
    #[inline]
    pub(crate) fn detect() -> Self {
        Self::Plain
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) mod x86 {
    /// Proof of AVX-512.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Avx512(());

    /// Proof of AVX2.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Avx2(());

    impl Avx512 {
        pub(super) fn new() -> Option<Self> {
            let has = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            has.then_some(Self(()))
        }

        /// Runs `f`, compiled for it.
        #[inline(always)]
        pub(crate) fn run<R>(self, f: impl FnOnce() -> R) -> R {
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn wide<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            // SAFETY: `new`, the only source of the value, checked these four features.
            unsafe { wide(f) }
        }
    }

    impl Avx2 {
        pub(super) fn new() -> Option<Self> {
            is_x86_feature_detected!("avx2").then_some(Self(()))
        }

        /// Runs `f`, compiled for it.
        #[inline(always)]
        pub(crate) fn run<R>(self, f: impl FnOnce() -> R) -> R {
            #[inline]
            #[target_feature(enable = "avx2")]
            fn wide<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            // SAFETY: `new`, the only source of the value, checked this feature.
            unsafe { wide(f) }
        }
    }
}
