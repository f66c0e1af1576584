//! What kind of machine the target is.
//!
//! `vectors` is a machine whose vectors have kernel sets, whether all of its kind have them or a look
//! at run time must tell. `neon` is one of those: AArch64, little-endian, with vectors.
//!
//! `small_core` is a machine with 32-bit registers and, as far as this project uses it, no vectors.
//! `arm_dsp` is one of those with the DSP instructions of Arm. Stable compilers keep the target
//! features of 32-bit Arm to themselves: `cfg(target_feature = "dsp")` is false there even where the
//! compiler uses it. The name of the target and the flags say it as well.

use std::env;

/// Cores with DSP instructions that share a target with cores without.
const DSP_CORES: [&str; 5] = [
    "cortex-m33",
    "cortex-m35p",
    "cortex-m52",
    "cortex-m55",
    "cortex-m85",
];
/// Of those, the ones with vectors of floats.
const VECTOR_CORES: [&str; 3] = ["cortex-m52", "cortex-m55", "cortex-m85"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(small_core, arm_dsp, neon, vectors)");
    let arch = var("CARGO_CFG_TARGET_ARCH");
    if arch == "arm" || arch == "riscv32" {
        println!("cargo::rustc-cfg=small_core");
    }
    if arch == "arm" {
        arm();
    }
    let little_endian = var("CARGO_CFG_TARGET_ENDIAN") == "little";
    let neon = arch == "aarch64" && little_endian && listed("neon");
    if neon {
        println!("cargo::rustc-cfg=neon");
    }
    if neon || arch == "x86_64" || (arch == "wasm32" && listed("simd128")) {
        println!("cargo::rustc-cfg=vectors");
    }
}

/// True where the compiler lists a feature of the target.
fn listed(feature: &str) -> bool {
    let features = var("CARGO_CFG_TARGET_FEATURE");
    features.split(',').any(|listed| listed == feature)
}

fn arm() {
    let target = Target::from_cargo();
    assert!(
        !target.has("mve.fp", &VECTOR_CORES),
        "vector floats of this core flush subnormals, which NUMERICS.md does not allow: \
         compile with -C target-feature=-mve.fp"
    );
    // Every 32-bit Arm profile from ARMv6 on has it but the small M cores; in ARMv8-M it is optional.
    let always = [
        "armv6",
        "armv7",
        "armv8r",
        "thumbv7a",
        "thumbv7em",
        "thumbv7neon",
        "thumbv8r",
    ];
    let named = always.iter().any(|prefix| target.name.starts_with(prefix));
    if target.has("dsp", &DSP_CORES) || (named && !target.flag("-dsp")) {
        println!("cargo::rustc-cfg=arm_dsp");
    }
}

/// What the compiler is told.
struct Target {
    name: String,
    /// Its flags.
    flags: String,
}

impl Target {
    fn from_cargo() -> Self {
        Self {
            name: var("TARGET"),
            flags: var("CARGO_ENCODED_RUSTFLAGS"),
        }
    }

    /// True where the target has a feature: listed, asked for, or of one of these cores.
    fn has(&self, feature: &str, cores: &[&str]) -> bool {
        let asked = self.flag(&format!("+{feature}")) || cores.iter().any(|core| self.flag(core));
        (listed(feature) || asked) && !self.flag(&format!("-{feature}"))
    }

    fn flag(&self, flag: &str) -> bool {
        let mut parts = self.flags.split(['\u{1f}', '=', ',', ' ']);
        parts.any(|part| part == flag)
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
