//! A processor told to round otherwise than by default: an error, never other bits.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(unsafe_code, reason = "the float control register has no safe access")]

use core::arch::asm;

use bitnet_formats::Preset;
use bitnet_runtime::RunError;
use bitnet_tests::synthetic::{Storage, model};
use bitnet_tests::{Run, with_session};

/// Flush results to zero; take subnormal operands as zero; round down, up, towards zero.
#[cfg(target_arch = "x86_64")]
const MODES: [u64; 5] = [1 << 15, 1 << 6, 1 << 13, 2 << 13, 3 << 13];
/// Flush to zero; round up, down, towards zero.
#[cfg(target_arch = "aarch64")]
const MODES: [u64; 4] = [1 << 24, 1 << 22, 2 << 22, 3 << 22];

#[cfg(target_arch = "x86_64")]
fn control() -> u64 {
    let mut value = 0u32;
    // SAFETY: writes the four bytes of `value`.
    unsafe { asm!("stmxcsr [{}]", in(reg) &mut value) };
    u64::from(value)
}

#[cfg(target_arch = "x86_64")]
fn set_control(value: u64) {
    let value = value as u32;
    // SAFETY: no reserved bit is set and no exception is unmasked: only rounding changes.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &value) };
}

#[cfg(target_arch = "aarch64")]
fn control() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, fpcr", out(reg) value) };
    value
}

#[cfg(target_arch = "aarch64")]
fn set_control(value: u64) {
    // SAFETY: no trap is enabled: only rounding changes.
    unsafe { asm!("msr fpcr, {}", in(reg) value) };
}

#[test]
fn no_mode_but_the_default_computes() {
    let file = model(&Preset::Nano.config(), Storage::default(), 1);
    with_session(&file, Run::default(), |session| {
        let expected = session.prefill(&[1, 2, 3]).unwrap().to_vec();
        let default = control();
        for mode in MODES {
            session.truncate(0).unwrap();
            set_control(default | mode);
            let result = session.prefill(&[1, 2, 3]).map(<[f32]>::to_vec);
            set_control(default);
            assert_eq!(result, Err(RunError::Rounding), "{mode:#x}");
            assert_eq!(session.position(), 0);
        }
        assert_eq!(session.prefill(&[1, 2, 3]).unwrap(), expected);
    });
}
