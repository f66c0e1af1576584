//! Counts cycles of the core's clock with SysTick.
//!
//! Under QEMU with `-icount shift=0` an instruction takes one nanosecond of virtual time, so the
//! counter gives instructions; on a board it gives cycles.

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::{SYST, syst::SystClkSource};

use crate::board::CLOCK_HZ;

const RELOAD: u32 = 0x00ff_ffff;

/// How often the 24-bit counter went round.
static ROUNDS: AtomicU32 = AtomicU32::new(0);

/// The running counter.
pub struct Counter(());

impl Counter {
    /// Starts it.
    #[must_use]
    pub fn start(mut timer: SYST) -> Self {
        timer.set_clock_source(SystClkSource::Core);
        timer.set_reload(RELOAD);
        timer.clear_current();
        timer.enable_interrupt();
        timer.enable_counter();
        Self(())
    }

    /// Cycles of the core's clock since the start.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        loop {
            let rounds = ROUNDS.load(Ordering::Relaxed);
            let left = SYST::get_current();
            // The same number before and after: the counter did not go round in between.
            if rounds == ROUNDS.load(Ordering::Relaxed) {
                return u64::from(rounds) * u64::from(RELOAD + 1) + u64::from(RELOAD - left);
            }
        }
    }

    /// Instructions since `cycles`, where one takes a nanosecond.
    #[must_use]
    pub fn instructions_since(&self, cycles: u64) -> u64 {
        (self.cycles() - cycles) * 1_000_000_000 / u64::from(CLOCK_HZ)
    }
}

#[cortex_m_rt::exception]
fn SysTick() {
    ROUNDS.store(ROUNDS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
