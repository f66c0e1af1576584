//! Columns of a row-major array, which several threads may fill.
//!
//! A product of row groups writes some columns of every token's row; a token's keys are some columns
//! of every head's row of the cache. Such columns never touch, but they interleave in memory, so no
//! slice can stand for them: [`Stripes`] does. It is a `[n_rows, width]` array together with the right
//! to some of its columns, and is split like a slice.

use core::marker::PhantomData;
use core::ops::Range;

/// Exclusive access to some columns of an array, in all rows.
pub struct Stripes<'a, T> {
    start: *mut T,
    n_rows: usize,
    width: usize,
    owned: Range<usize>,
    lent: PhantomData<&'a mut [T]>,
}

/// The outputs of a product, `[n_tokens, rows]`: the columns are the rows of the weights.
pub type Output<'a> = Stripes<'a, f32>;

// SAFETY: `Stripes` is an exclusive borrow of elements that may themselves move to another thread.
unsafe impl<T: Send> Send for Stripes<'_, T> {}

impl<'a, T> Stripes<'a, T> {
    /// All of `array`, `[_, width]`.
    ///
    /// # Panics
    ///
    /// If `array` is not a whole number of rows.
    #[must_use]
    pub fn new(array: &'a mut [T], width: usize) -> Self {
        assert!(width > 0 && array.len().is_multiple_of(width));
        Self {
            start: array.as_mut_ptr(),
            n_rows: array.len() / width,
            width,
            owned: 0..width,
            lent: PhantomData,
        }
    }

    /// The columns below `column`, and the others.
    #[must_use]
    pub(crate) fn split_at(self, column: usize) -> (Self, Self) {
        let column = column.clamp(self.owned.start, self.owned.end);
        let part = |owned| Self { owned, ..self };
        (part(self.owned.start..column), part(column..self.owned.end))
    }

    pub(super) const fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) const fn width(&self) -> usize {
        self.width
    }

    /// Some owned columns of one row.
    ///
    /// # Panics
    ///
    /// If the row or a column is not part of this.
    #[inline(always)]
    pub(crate) fn slice(&mut self, row: usize, columns: Range<usize>) -> &mut [T] {
        assert!(row < self.n_rows && columns.start <= columns.end);
        assert!(self.owned.start <= columns.start && columns.end <= self.owned.end);
        let first = row * self.width + columns.start;
        // SAFETY: `new` had exclusive access to `n_rows * width` elements for 'a. The asserts put
        // row and columns inside of those, and `owned`, which `split_at` makes disjoint, keeps every
        // other `Stripes` of the same array away from these; `&mut self` keeps this one away.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(first), columns.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_columns_of_every_row() {
        let mut array = [0; 12];
        let (mut left, right) = Stripes::new(&mut array, 6).split_at(2);
        let (mut middle, mut right) = right.split_at(5);
        left.slice(1, 0..2).fill(1);
        middle.slice(0, 2..4).fill(2);
        right.slice(1, 5..6).fill(3);
        assert_eq!(array, [0, 0, 2, 2, 0, 0, 1, 1, 0, 0, 0, 3]);
    }

    #[test]
    #[should_panic(expected = "owned")]
    fn foreign_columns_are_refused() {
        let mut array = [0; 12];
        let (_, mut right) = Stripes::new(&mut array, 6).split_at(2);
        right.slice(0, 1..3);
    }
}
