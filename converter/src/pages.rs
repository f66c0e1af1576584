//! Giving pages of a memory map back, so that the peak of a conversion does not grow with the file.

use std::cell::Cell;

/// Bytes of a file that may be in memory at a time.
const MOST_HELD: u64 = 16 << 20;

/// Counts bytes that are read from a map, and has it give its pages back when they are many.
pub struct Pages<'r> {
    release: &'r dyn Fn(),
    held: Cell<u64>,
}

impl<'r> Pages<'r> {
    /// Pages of a file whose map is told by `release` that what was read is not needed soon.
    #[must_use]
    pub const fn new(release: &'r dyn Fn()) -> Self {
        Self {
            release,
            held: Cell::new(0),
        }
    }

    /// So many bytes were read.
    pub fn read(&self, bytes: u64) {
        let held = self.held.get().saturating_add(bytes);
        self.held.set(held);
        if held >= MOST_HELD {
            (self.release)();
            self.held.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_reads_add_up() {
        let releases = Cell::new(0);
        let count = || releases.set(releases.get() + 1);
        let pages = Pages::new(&count);
        (0..64).for_each(|_| pages.read(MOST_HELD / 32));
        assert_eq!(releases.get(), 2);
    }
}
