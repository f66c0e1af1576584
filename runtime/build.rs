//! Finds out whether a 32-bit Arm target has the DSP extension.
//!
//! Stable compilers keep the target features of 32-bit Arm to themselves: `cfg(target_feature =
//! "dsp")` is false there even where the compiler uses it. The name of the target and the flags say
//! it as well. The result is the configuration `arm_dsp`.

use std::env;

/// Cores with the extension that have a target of their own kind without it.
const DSP_CORES: [&str; 5] = [
    "cortex-m33",
    "cortex-m35p",
    "cortex-m52",
    "cortex-m55",
    "cortex-m85",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(arm_dsp)");
    if var("CARGO_CFG_TARGET_ARCH") == "arm" && has_dsp() {
        println!("cargo::rustc-cfg=arm_dsp");
    }
}

/// Every 32-bit Arm profile from ARMv6 on has it but the small M cores; in ARMv8-M it is optional.
fn has_dsp() -> bool {
    let target = var("TARGET");
    let always = [
        "armv6",
        "armv7",
        "thumbv7em",
        "thumbv7neon",
        "thumbv7a",
        "thumbv8r",
        "armv8r",
    ];
    let listed = var("CARGO_CFG_TARGET_FEATURE");
    let flags = var("CARGO_ENCODED_RUSTFLAGS");
    let flag = |flag: &str| {
        flags
            .split(['\u{1f}', '=', ',', ' '])
            .any(|part| part == flag)
    };
    let named = always.iter().any(|prefix| target.starts_with(prefix));
    let asked = flag("+dsp") || DSP_CORES.iter().any(|core| flag(core));
    (named || asked || listed.split(',').any(|f| f == "dsp")) && !flag("-dsp")
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
