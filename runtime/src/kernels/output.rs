//! The outputs of a product, which several threads may fill.
//!
//! A product of row groups writes a stripe of every token's row. Stripes of different groups never
//! touch, but they interleave in memory, so no slice can stand for one: [`Output`] does. It is a
//! `[n_tokens, rows]` array together with the right to some of its columns, and is split like a slice.

use core::marker::PhantomData;
use core::ops::Range;

/// Exclusive access to the rows `owned` of a product, for all tokens.
pub struct Output<'a> {
    start: *mut f32,
    n_tokens: usize,
    rows: usize,
    owned: Range<usize>,
    lent: PhantomData<&'a mut [f32]>,
}

// SAFETY: an `Output` is an exclusive borrow of floats, which may move to another thread.
unsafe impl Send for Output<'_> {}

impl<'a> Output<'a> {
    /// All of `out`, `[n_tokens, rows]`.
    ///
    /// # Panics
    ///
    /// If `out` is not a whole number of tokens.
    #[must_use]
    pub fn new(out: &'a mut [f32], rows: usize) -> Self {
        assert!(rows > 0 && out.len().is_multiple_of(rows));
        Self {
            start: out.as_mut_ptr(),
            n_tokens: out.len() / rows,
            rows,
            owned: 0..rows,
            lent: PhantomData,
        }
    }

    /// The rows below `row`, and the others.
    #[must_use]
    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        let row = row.clamp(self.owned.start, self.owned.end);
        let part = |owned| Self { owned, ..self };
        (part(self.owned.start..row), part(row..self.owned.end))
    }

    pub(super) const fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// Some owned rows of one token.
    ///
    /// # Panics
    ///
    /// If the token or a row is not part of this output.
    #[inline(always)]
    pub(super) fn slice(&mut self, token: usize, rows: Range<usize>) -> &mut [f32] {
        assert!(token < self.n_tokens && rows.start <= rows.end);
        assert!(self.owned.start <= rows.start && rows.end <= self.owned.end);
        let first = token * self.rows + rows.start;
        // SAFETY: `new` had exclusive access to `n_tokens * rows` floats for 'a. The asserts put
        // token and rows inside of those, and `owned`, which `split_at` makes disjoint, keeps every
        // other `Output` of the same array away from these; `&mut self` keeps this one away.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(first), rows.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_stripes_of_every_token() {
        let mut out = [0.0; 12];
        let (mut left, right) = Output::new(&mut out, 6).split_at(2);
        let (mut middle, mut right) = right.split_at(5);
        left.slice(1, 0..2).fill(1.0);
        middle.slice(0, 2..4).fill(2.0);
        right.slice(1, 5..6).fill(3.0);
        assert_eq!(out, [0., 0., 2., 2., 0., 0., 1., 1., 0., 0., 0., 3.]);
    }

    #[test]
    #[should_panic(expected = "owned")]
    fn foreign_rows_are_refused() {
        let mut out = [0.0; 12];
        let (_, mut right) = Output::new(&mut out, 6).split_at(2);
        right.slice(0, 1..3);
    }
}
