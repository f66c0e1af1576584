//! From a payload to T5-R16 lines.

use core::ops::Range;

use super::flat::FlatReader;
use super::rans::{RansReader, STATES};
use super::shape::{Shape, TRITS};
use super::tables::{MAX_CLASSES, Table, Tables, TritWeights};
use super::{Damaged, PackedError, T5_BYTE};
use crate::dtype::Dtype;
use crate::ternary::{GROUP_ROWS, LINE_BYTES, LineCodes, TernaryLayout, t5_digits};

/// Bytes of a row of a full line, and symbols that hold its trits.
const ROW_BYTES: usize = LINE_BYTES / GROUP_ROWS;
const T5: TernaryLayout = TernaryLayout::T5R16;

/// A packed ternary matrix.
#[derive(Clone, Copy, Debug)]
pub struct PackedView<'w> {
    shape: Shape,
    scale: f32,
    payload: &'w [u8],
    /// Trit weights of the classes; none where chunks are flat.
    classes: &'w [TritWeights],
    /// Class of each row, half a byte each; empty where there is one class.
    row_classes: &'w [u8],
    /// Lengths of all chunks but the last.
    lengths: &'w [[u8; 4]],
    chunks: &'w [u8],
}

impl<'w> PackedView<'w> {
    /// A view of a payload, of which only the head is read.
    ///
    /// # Errors
    ///
    /// The head does not fit the shape or the payload, or there are more than 1024 weights a byte.
    pub fn new(
        (rows, cols): (usize, usize),
        scale: f32,
        payload: &'w [u8],
    ) -> Result<Self, PackedError> {
        let shape = Shape { rows, cols };
        let fewest = Dtype::Packed.min_payload_bytes(rows, cols);
        if rows == 0 || cols == 0 || (payload.len() as u64) < fewest {
            return Err(PackedError::Head);
        }
        let (&n_classes, rest) = payload.split_first().ok_or(PackedError::Head)?;
        let n_classes = usize::from(n_classes);
        if n_classes > MAX_CLASSES {
            return Err(PackedError::Head);
        }
        let (classes, rest) = split(rest, 3 * n_classes)?;
        let (row_classes, rest) = split(rest, if n_classes > 1 { rows.div_ceil(2) } else { 0 })?;
        let (lengths, chunks) = split(rest, 4 * (shape.n_chunks() - 1))?;
        let view = Self {
            shape,
            scale,
            payload,
            classes: classes.as_chunks().0,
            row_classes,
            lengths: lengths.as_chunks().0,
            chunks,
        };
        view.check()?;
        Ok(view)
    }

    fn check(&self) -> Result<(), PackedError> {
        let weights = self.classes.iter().all(|weights| *weights != [0; 3]);
        let rows = (0..self.shape.rows)
            .all(|row| usize::from(self.class(row)) < self.classes.len().max(1));
        let spare =
            self.shape.rows % 2 == 1 && self.row_classes.last().is_some_and(|last| last >> 4 != 0);
        if !weights || !rows || spare || self.chunk_bytes(self.n_chunks() - 1).is_none() {
            return Err(PackedError::Head);
        }
        Ok(())
    }

    /// Rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Scale of the whole matrix, in the convention of [`crate::WeightScale`].
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.scale
    }

    /// The payload.
    #[must_use]
    pub const fn bytes(&self) -> &'w [u8] {
        self.payload
    }

    /// Number of chunks, at least one.
    #[must_use]
    pub const fn n_chunks(&self) -> usize {
        self.shape.n_chunks()
    }

    /// The row groups of a chunk.
    ///
    /// Chunks are all row groups of the matrix in order.
    #[must_use]
    pub const fn chunk_groups(&self, index: usize) -> Range<usize> {
        self.shape.chunk(index)
    }

    /// What decoding looks up.
    #[must_use]
    pub fn tables(&self) -> Tables {
        Tables::new(self.classes)
    }

    /// Decodes the whole matrix as T5-R16 into `to`.
    ///
    /// # Errors
    ///
    /// [`PackedError::Chunk`]; what `to` holds then is unspecified.
    ///
    /// # Panics
    ///
    /// If `to` has not the [`packed_bytes`](TernaryLayout::packed_bytes) of the shape.
    pub fn decode(&self, to: &mut [u8]) -> Result<(), PackedError> {
        let group_bytes = T5.group_bytes(self.shape.cols);
        assert_eq!(to.len(), self.shape.n_groups() * group_bytes);
        let tables = self.tables();
        for index in 0..self.n_chunks() {
            let groups = self.chunk_groups(index);
            let to = &mut to[groups.start * group_bytes..groups.end * group_bytes];
            self.decode_chunk(index, &tables, to)?;
        }
        Ok(())
    }

    /// Decodes a chunk. `to` is cut into as many equal parts as the chunk has row groups; each gets its
    /// group as T5-R16 at its end, so that a wider layout can be made of it in place.
    ///
    /// # Errors
    ///
    /// [`PackedError::Chunk`]; what `to` holds then is unspecified.
    ///
    /// # Panics
    ///
    /// If there is no such chunk, or the parts are not equal or too small.
    pub fn decode_chunk(
        &self,
        index: usize,
        tables: &Tables,
        to: &mut [u8],
    ) -> Result<(), PackedError> {
        let n_groups = self.chunk_groups(index).len();
        assert!(index < self.n_chunks() && to.len().is_multiple_of(n_groups));
        let part = to.len() / n_groups;
        let begin = part.checked_sub(T5.group_bytes(self.shape.cols));
        let begin = begin.expect("a part holds a group");
        self.read_chunk(index, tables, |group, line, bytes| {
            to[group * part + begin + line * LINE_BYTES..][..LINE_BYTES].copy_from_slice(bytes);
        })
    }

    /// Reads everything, and keeps nothing.
    ///
    /// # Errors
    ///
    /// [`PackedError::Chunk`].
    pub fn verify(&self) -> Result<(), PackedError> {
        let tables = self.tables();
        (0..self.n_chunks()).try_for_each(|index| self.read_chunk(index, &tables, |_, _, _| ()))
    }

    /// Calls `put` with the number of a group in the chunk, of a line in the group, and the line.
    fn read_chunk(
        &self,
        index: usize,
        tables: &Tables,
        put: impl FnMut(usize, usize, &[u8; LINE_BYTES]),
    ) -> Result<(), PackedError> {
        let read = || {
            let chunk = self.chunk_bytes(index).ok_or(Damaged)?;
            let groups = self.chunk_groups(index);
            match self.classes {
                [] => self.read_lines(&groups, Flat::new(chunk)?, put),
                _ => self.read_lines(&groups, Classes::new(chunk, tables)?, put),
            }
        };
        read().map_err(|Damaged| PackedError::Chunk { index })
    }

    fn read_lines(
        &self,
        groups: &Range<usize>,
        mut symbols: impl Symbols,
        mut put: impl FnMut(usize, usize, &[u8; LINE_BYTES]),
    ) -> Result<(), Damaged> {
        for (index, group) in groups.clone().enumerate() {
            let rows = self.shape.group_rows(group);
            let classes = core::array::from_fn(|row| self.class(group * GROUP_ROWS + row));
            for line in 0..self.shape.full_lines() {
                let mut bytes = [0; LINE_BYTES];
                symbols.line(&classes, &mut bytes[..ROW_BYTES * rows])?;
                put(index, line, &bytes);
            }
        }
        let mut tail = Tail::new(self, groups, symbols);
        if self.shape.tail_cols() > 0 {
            for (index, group) in groups.clone().enumerate() {
                put(index, self.shape.full_lines(), &tail.line(group)?);
            }
        }
        tail.finish()
    }

    /// Class of a row; 0 beyond the last.
    fn class(&self, row: usize) -> u8 {
        let pair = self.row_classes.get(row / 2).copied().unwrap_or(0);
        pair >> (4 * (row % 2)) & 15
    }

    fn chunk_bytes(&self, index: usize) -> Option<&'w [u8]> {
        let length = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) as usize;
        let before = self.lengths.iter().take(index).map(length);
        let start = before.fold(0usize, usize::saturating_add);
        let rest = self.chunks.get(start..)?;
        match self.lengths.get(index) {
            Some(bytes) => rest.get(..length(bytes)),
            None => Some(rest),
        }
    }
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), PackedError> {
    bytes.split_at_checked(at).ok_or(PackedError::Head)
}

/// The symbols of a chunk in their order, as stored T5 bytes.
trait Symbols {
    /// Those of a full line; four for each row, whose classes are given.
    fn line(&mut self, classes: &[u8; GROUP_ROWS], out: &mut [u8]) -> Result<(), Damaged>;
    /// The `index`-th of `n` behind all lines.
    fn tail(&mut self, index: usize, n: usize, class: u8) -> Result<u8, Damaged>;
    /// Nothing may be left.
    fn finish(&self) -> Result<(), Damaged>;
}

struct Classes<'w, 't> {
    reader: RansReader<'w>,
    tables: &'t Tables,
}

impl<'w, 't> Classes<'w, 't> {
    fn new(chunk: &'w [u8], tables: &'t Tables) -> Result<Self, Damaged> {
        let reader = RansReader::new(chunk)?;
        Ok(Self { reader, tables })
    }
}

impl Symbols for Classes<'_, '_> {
    #[inline(always)]
    fn line(&mut self, classes: &[u8; GROUP_ROWS], out: &mut [u8]) -> Result<(), Damaged> {
        let pairs = classes.as_chunks::<2>().0;
        for (out, classes) in out.chunks_mut(STATES).zip(pairs) {
            let tables: [&Table; 2] = classes.map(|class| self.tables.of(class));
            self.reader.read(tables, out);
        }
        self.reader.check()
    }

    fn tail(&mut self, index: usize, _n: usize, class: u8) -> Result<u8, Damaged> {
        let byte = self.reader.read_one(index, self.tables, class);
        self.reader.check()?;
        Ok(byte)
    }

    fn finish(&self) -> Result<(), Damaged> {
        self.reader.finish()
    }
}

struct Flat<'w> {
    reader: FlatReader<'w>,
    /// The second symbol of a pair.
    held: usize,
}

impl<'w> Flat<'w> {
    fn new(chunk: &'w [u8]) -> Result<Self, Damaged> {
        let reader = FlatReader::new(chunk)?;
        Ok(Self { reader, held: 0 })
    }
}

impl Symbols for Flat<'_> {
    #[inline(always)]
    fn line(&mut self, _classes: &[u8; GROUP_ROWS], out: &mut [u8]) -> Result<(), Damaged> {
        for pair in out.as_chunks_mut::<2>().0 {
            *pair = self.reader.pair().map(|symbol| T5_BYTE[symbol]);
        }
        Ok(())
    }

    fn tail(&mut self, index: usize, n: usize, _class: u8) -> Result<u8, Damaged> {
        if index % 2 == 1 {
            return Ok(T5_BYTE[self.held]);
        }
        let [symbol, held] = match index + 1 < n {
            true => self.reader.pair(),
            false => [self.reader.last()?, 0],
        };
        self.held = held;
        Ok(T5_BYTE[symbol])
    }

    fn finish(&self) -> Result<(), Damaged> {
        self.reader.finish()
    }
}

/// The trits beyond the full lines: row by row, five a symbol.
struct Tail<'v, 'w, S> {
    view: &'v PackedView<'w>,
    symbols: S,
    first_row: usize,
    /// Symbols, and those read.
    n: usize,
    read: usize,
    /// Digits of the symbol read last, and those used.
    digits: [u8; TRITS],
    used: usize,
}

impl<'v, 'w, S: Symbols> Tail<'v, 'w, S> {
    fn new(view: &'v PackedView<'w>, groups: &Range<usize>, symbols: S) -> Self {
        Self {
            view,
            symbols,
            first_row: groups.start * GROUP_ROWS,
            n: view.shape.tail_symbols(groups),
            read: 0,
            digits: [1; TRITS],
            used: TRITS,
        }
    }

    /// The last line of a group.
    fn line(&mut self, group: usize) -> Result<[u8; LINE_BYTES], Damaged> {
        let mut codes = LineCodes::default();
        for row in 0..self.view.shape.group_rows(group) {
            for column in &mut codes[..self.view.shape.tail_cols()] {
                column[row] = self.trit()?;
            }
        }
        let mut line = [0; LINE_BYTES];
        T5.pack_line(&codes, &mut line);
        Ok(line)
    }

    fn trit(&mut self) -> Result<i8, Damaged> {
        if self.used == TRITS {
            // A symbol belongs to the row of its first trit.
            let row = self.first_row + self.read * TRITS / self.view.shape.tail_cols();
            let byte = self.symbols.tail(self.read, self.n, self.view.class(row))?;
            self.digits = t5_digits(byte);
            self.read += 1;
            self.used = 0;
        }
        self.used += 1;
        Ok(self.digits[self.used - 1] as i8 - 1)
    }

    /// What fills the last symbol is zero, and no symbol is left.
    fn finish(&self) -> Result<(), Damaged> {
        match self.digits[self.used..].iter().all(|digit| *digit == 1) {
            true => self.symbols.finish(),
            false => Err(Damaged),
        }
    }
}
