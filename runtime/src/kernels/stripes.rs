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

/// Outputs of attention, `[n_tokens, n_heads, width]`, by the cached rows they come from.
///
/// Units are numbered by key and value head first, then token, then query head of the group: those
/// that read the same cache follow each other, while their rows interleave in memory.
pub(crate) struct HeadRows<'a> {
    start: *mut f32,
    shape: HeadShape,
    width: usize,
    owned: Range<usize>,
    lent: PhantomData<&'a mut [f32]>,
}

// SAFETY: `HeadRows` is an exclusive borrow of floats, which may move to another thread.
unsafe impl Send for HeadRows<'_> {}

/// How many units there are, and what they are.
#[derive(Clone, Copy)]
pub(crate) struct HeadShape {
    pub(crate) n_tokens: usize,
    pub(crate) n_kv_heads: usize,
    /// Query heads of a key and value head.
    pub(crate) group: usize,
}

impl HeadShape {
    pub(crate) const fn units(self) -> usize {
        self.n_kv_heads * self.units_per_kv_head()
    }

    pub(crate) const fn units_per_kv_head(self) -> usize {
        self.n_tokens * self.group
    }

    /// Token and query head of a unit: every pair is that of one unit.
    pub(crate) const fn token_and_head(self, unit: usize) -> (usize, usize) {
        let (kv_head, rest) = (
            unit / self.units_per_kv_head(),
            unit % self.units_per_kv_head(),
        );
        (rest / self.group, kv_head * self.group + rest % self.group)
    }
}

impl<'a> HeadRows<'a> {
    /// All of `out`.
    ///
    /// # Panics
    ///
    /// If `out` does not have the shape.
    pub(crate) fn new(out: &'a mut [f32], shape: HeadShape, width: usize) -> Self {
        assert_eq!(out.len(), shape.units() * width);
        Self {
            start: out.as_mut_ptr(),
            shape,
            width,
            owned: 0..shape.units(),
            lent: PhantomData,
        }
    }

    /// The units below `unit`, and the others.
    pub(crate) fn split_at(self, unit: usize) -> (Self, Self) {
        let unit = unit.clamp(self.owned.start, self.owned.end);
        let part = |owned| Self { owned, ..self };
        (part(self.owned.start..unit), part(unit..self.owned.end))
    }

    /// The row of an owned unit.
    ///
    /// # Panics
    ///
    /// If the unit is not part of this.
    pub(crate) fn row(&mut self, unit: usize) -> &mut [f32] {
        assert!(self.owned.contains(&unit));
        let (token, head) = self.shape.token_and_head(unit);
        let row = token * self.shape.n_kv_heads * self.shape.group + head;
        // SAFETY: `new` had exclusive access to `units * width` floats for 'a, and a unit, which the
        // assert puts below `units`, has token and head within the shape, so its row is inside of
        // those. Different units have different rows, and `owned`, which `split_at` makes disjoint,
        // keeps every other `HeadRows` of the array away; `&mut self` keeps this one away.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(row * self.width), self.width) }
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
    fn each_unit_has_a_token_and_head_of_its_own() {
        let shape = HeadShape {
            n_tokens: 3,
            n_kv_heads: 2,
            group: 2,
        };
        let mut out = [9.0; 12];
        let (mut low, mut high) = HeadRows::new(&mut out, shape, 1).split_at(5);
        (0..5).for_each(|unit| low.row(unit)[0] = unit as f32);
        (5..12).for_each(|unit| high.row(unit)[0] = unit as f32);
        let expected = [0., 1., 6., 7., 2., 3., 8., 9., 4., 5., 10., 11.];
        assert_eq!(out, expected);
    }

    #[test]
    #[should_panic(expected = "owned")]
    fn foreign_columns_are_refused() {
        let mut array = [0; 12];
        let (_, mut right) = Stripes::new(&mut array, 6).split_at(2);
        right.slice(0, 1..3);
    }
}
