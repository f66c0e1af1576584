//! Rows of a matrix as slices, without the cost of a view each.

use std::marker::PhantomData;

use ndarray::ArrayView2;
use zerocopy::{Immutable, IntoBytes};

/// A matrix whose rows are contiguous.
#[derive(Debug)]
pub(super) struct Rows<'a, E> {
    base: *const E,
    stride: usize,
    rows: usize,
    cols: usize,
    lent: PhantomData<&'a E>,
}

impl<E> Clone for Rows<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Rows<'_, E> {}

impl<'a, E> Rows<'a, E> {
    /// `None` if the rows of `view` are not contiguous.
    pub(super) fn new(view: ArrayView2<'a, E>) -> Option<Self> {
        let (rows, cols) = view.dim();
        let (stride, step) = (view.strides()[0], view.strides()[1]);
        let stride = if rows > 1 { stride } else { cols as isize };
        (stride >= 0 && (step == 1 || cols < 2)).then(|| Self {
            base: view.as_ptr(),
            stride: stride as usize,
            rows,
            cols,
            lent: PhantomData,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes from a row to the next.
    pub(super) fn stride_bytes(&self) -> usize {
        self.stride * size_of::<E>()
    }

    pub(super) fn as_ptr(&self) -> *const E {
        self.base
    }

    /// Row `i`.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &'a [E] {
        assert!(i < self.rows);
        // SAFETY: `new` had a view of `rows` rows of `cols` elements whose rows are `stride` and
        // whose elements are 1 apart, lent for `'a`; `i` is one of its rows.
        unsafe { std::slice::from_raw_parts(self.base.add(i * self.stride), self.cols) }
    }

    /// Row `i` as bytes.
    #[inline(always)]
    pub(super) fn row_bytes(&self, i: usize) -> &'a [u8]
    where
        E: IntoBytes + Immutable,
    {
        self.row(i).as_bytes()
    }
}
