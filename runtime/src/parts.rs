//! Work on disjoint parts of arrays, by one thread or several.
//!
//! A stage is a number of units, and each unit owns a part of what the stage writes. Arrays are split
//! where the units are, statically: a unit's result never depends on who computes it.

use core::ops::Range;

use bitnet_formats::ternary::GROUP_ROWS;

use crate::buffers::{Workspace, Workspaces};
use crate::error::RunError;
use crate::kernels::{HeadRows, Output, Stripes};
#[cfg(feature = "std")]
use crate::parallel::Threads;

/// Something that consists of parts, one for each unit, in order.
pub(crate) trait Split: Sized {
    /// The parts of the units below `unit`, and the others. Units keep their numbers.
    fn split_at(self, unit: usize) -> (Self, Self);
}

/// Rows of an array, one for each unit from `first` on; the last may be short.
pub(crate) struct Rows<'a, T> {
    rows: &'a mut [T],
    width: usize,
    first: usize,
}

impl<'a, T> Rows<'a, T> {
    pub(crate) fn new(rows: &'a mut [T], width: usize) -> Self {
        let first = 0;
        Self { rows, width, first }
    }

    /// The row of a unit.
    pub(crate) fn row(&mut self, unit: usize) -> &mut [T] {
        let start = (unit - self.first) * self.width;
        let end = self.rows.len().min(start + self.width);
        &mut self.rows[start..end]
    }

    /// Everything that is left.
    pub(crate) fn all(self) -> &'a mut [T] {
        self.rows
    }
}

impl<T> Split for Rows<'_, T> {
    fn split_at(self, unit: usize) -> (Self, Self) {
        let Self { rows, width, first } = self;
        let unit = unit.max(first);
        let (low, high) = rows.split_at_mut(rows.len().min((unit - first) * width));
        let part = |rows, first| Self { rows, width, first };
        (part(low, first), part(high, unit))
    }
}

/// Outputs of a ternary product whose first row group is unit `first`.
pub(crate) struct Groups<'a> {
    pub(crate) output: Output<'a>,
    first: usize,
}

impl<'a> Groups<'a> {
    /// `out` is `[n_tokens, rows]`.
    pub(crate) fn new(out: &'a mut [f32], rows: usize, first: usize) -> Self {
        let output = Output::new(out, rows);
        Self { output, first }
    }

    /// Those of some units that are groups of this product, counted from its first.
    pub(crate) fn groups(&self, units: &Range<usize>, n_groups: usize) -> Range<usize> {
        let group = |unit: usize| unit.saturating_sub(self.first).min(n_groups);
        group(units.start)..group(units.end)
    }
}

impl Split for Groups<'_> {
    fn split_at(self, unit: usize) -> (Self, Self) {
        let Self { output, first } = self;
        let (low, high) = output.split_at(unit.saturating_sub(first) * GROUP_ROWS);
        let part = |output| Self { output, first };
        (part(low), part(high))
    }
}

/// Rows of a cache by head, `[kv_head][position][width]`; unit `t` is position `start + t`.
pub(crate) struct Positions<'a, T> {
    heads: Stripes<'a, T>,
    start: usize,
    width: usize,
}

impl<'a, T> Positions<'a, T> {
    pub(crate) fn new(cache: &'a mut [T], capacity: usize, start: usize, width: usize) -> Self {
        Self {
            heads: Stripes::new(cache, capacity * width),
            start,
            width,
        }
    }

    pub(crate) fn row(&mut self, head: usize, unit: usize) -> &mut [T] {
        let first = (self.start + unit) * self.width;
        self.heads.slice(head, first..first + self.width)
    }
}

impl<T> Split for Positions<'_, T> {
    fn split_at(self, unit: usize) -> (Self, Self) {
        let Self {
            heads,
            start,
            width,
        } = self;
        let (low, high) = heads.split_at((start + unit) * width);
        let part = |heads| Self {
            heads,
            start,
            width,
        };
        (part(low), part(high))
    }
}

impl Split for HeadRows<'_> {
    fn split_at(self, unit: usize) -> (Self, Self) {
        HeadRows::split_at(self, unit)
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    fn split_at(self, unit: usize) -> (Self, Self) {
        let ((a, c), (b, d)) = (self.0.split_at(unit), self.1.split_at(unit));
        ((a, b), (c, d))
    }
}

impl<A: Split, B: Split, C: Split> Split for (A, B, C) {
    fn split_at(self, unit: usize) -> (Self, Self) {
        let ((a, d), (b, e)) = (self.0.split_at(unit), self.1.split_at(unit));
        let (c, f) = self.2.split_at(unit);
        ((a, b, c), (d, e, f))
    }
}

impl<P: Split, const N: usize> Split for [P; N] {
    fn split_at(self, unit: usize) -> (Self, Self) {
        let mut rest = [const { None }; N];
        let mut slots = rest.iter_mut();
        let low = self.map(|part| {
            let (low, high) = part.split_at(unit);
            if let Some(slot) = slots.next() {
                *slot = Some(high);
            }
            low
        });
        (low, rest.map(|high| high.expect("one for each part")))
    }
}

/// The units `n` threads get of `units`: as even as whole units allow, ascending.
#[cfg(any(feature = "std", test))]
fn share(units: &Range<usize>, index: usize, n: usize) -> Range<usize> {
    let at = |i: usize| units.start + units.len() * i / n;
    at(index)..at(index + 1)
}

/// Who does the work: the calling thread, and those it was lent.
#[derive(Clone, Copy)]
pub(crate) struct Workers<'p> {
    #[cfg(feature = "std")]
    threads: Option<&'p Threads>,
    #[cfg(not(feature = "std"))]
    nobody: core::marker::PhantomData<&'p ()>,
}

impl<'p> Workers<'p> {
    /// The calling thread alone.
    pub(crate) const fn alone() -> Self {
        Self {
            #[cfg(feature = "std")]
            threads: None,
            #[cfg(not(feature = "std"))]
            nobody: core::marker::PhantomData,
        }
    }

    #[cfg(feature = "std")]
    pub(crate) const fn lent(threads: &'p Threads) -> Self {
        Self {
            threads: Some(threads),
        }
    }

    /// Calls `work` with some of the units, their parts and a workspace, until all units have had
    /// their turn. `parts` are those of the whole stage.
    ///
    /// Of several errors the one of the lowest units is returned.
    pub(crate) fn run<P: Split + Send>(
        self,
        units: Range<usize>,
        parts: P,
        spaces: &mut Workspaces<'_>,
        work: impl Fn(Range<usize>, P, Workspace<'_>) -> Result<(), RunError> + Sync,
    ) -> Result<(), RunError> {
        let parts = parts.split_at(units.start).1.split_at(units.end).0;
        #[cfg(feature = "std")]
        if let Some(threads) = self.threads {
            let n = threads.count().min(spaces.count()).min(units.len());
            if n > 1 {
                return shared::run(threads, n, units, parts, spaces, work);
            }
        }
        work(units, parts, spaces.first())
    }
}

#[cfg(feature = "std")]
mod shared {
    use std::sync::{Mutex, PoisonError};

    use super::{Range, RunError, Split, Workspace, Workspaces, share};
    use crate::parallel::{MAX_THREADS, Threads};

    /// Hands each of `n` threads its units. The mutexes are never contended: each is filled before
    /// the threads start and emptied by its own.
    pub(super) fn run<P: Split + Send>(
        threads: &Threads,
        n: usize,
        units: Range<usize>,
        mut parts: P,
        spaces: &mut Workspaces<'_>,
        work: impl Fn(Range<usize>, P, Workspace<'_>) -> Result<(), RunError> + Sync,
    ) -> Result<(), RunError> {
        let tasks = [const { Mutex::new(None) }; MAX_THREADS];
        for (i, (task, space)) in tasks.iter().zip(spaces.each()).take(n).enumerate() {
            let units = share(&units, i, n);
            let (own, rest) = parts.split_at(units.end);
            parts = rest;
            *lock(task) = Some((units, own, space));
        }
        let failed = Mutex::new(None);
        threads.run(&|i| {
            let Some((units, parts, space)) = tasks.get(i).and_then(|task| lock(task).take())
            else {
                return;
            };
            if let Err(error) = work(units, parts, space) {
                let mut failed = lock(&failed);
                if failed.is_none_or(|(worker, _)| i < worker) {
                    *failed = Some((i, error));
                }
            }
        });
        let failed = *lock(&failed);
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_all_units_evenly() {
        for (units, n) in [(0..7, 3), (5..6, 1), (10..30, 8), (0..64, 64)] {
            let mut next = units.start;
            for i in 0..n {
                let share = share(&units, i, n);
                assert_eq!(share.start, next);
                assert!(share.len().abs_diff(units.len() / n) <= 1);
                next = share.end;
            }
            assert_eq!(next, units.end);
        }
    }

    #[test]
    fn parts_keep_the_numbers_of_their_units() {
        let (mut tokens, mut rows) = ([0; 7], [0.0; 2 * 40]);
        let parts = (Rows::new(&mut tokens, 2), Groups::new(&mut rows, 40, 1));
        let (low, (mut tokens, groups)) = parts.split_at(2);
        assert_eq!(low.0.all().len(), 4);
        assert_eq!(low.1.groups(&(0..2), 3), 0..1);
        assert_eq!(tokens.row(2).len(), 2);
        assert_eq!(tokens.row(3).len(), 1);
        assert_eq!(groups.groups(&(2..9), 3), 1..3);
    }
}
