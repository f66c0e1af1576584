//! Packing a ternary matrix again in another layout.

use bitnet_formats::ternary::{GROUP_ROWS, LINE_BYTES, LineCodes, t5_digits};
use bitnet_formats::{TernaryLayout, TernaryView};

type Line = [u8; LINE_BYTES];

/// Packs a matrix again: `to` becomes the same matrix in `layout`.
///
/// # Panics
///
/// If `to` has not the [`packed_bytes`](TernaryLayout::packed_bytes) of the shape.
pub fn repack(from: &TernaryView<'_>, layout: TernaryLayout, to: &mut [u8]) {
    assert_eq!(to.len() as u64, layout.packed_bytes(from.rows, from.cols));
    if layout == from.layout {
        to.copy_from_slice(from.bytes());
        return;
    }
    for (index, group) in to
        .chunks_exact_mut(layout.group_bytes(from.cols))
        .enumerate()
    {
        let (from_lines, lines) = (from.group(index), group.as_chunks_mut().0);
        match (from.layout, layout) {
            (TernaryLayout::T5R16, TernaryLayout::T2R16) => expand(from_lines, lines),
            _ => by_columns(from, index, layout, lines),
        }
    }
}

/// Digits of every stored T5 byte: the first four as T2 stores them, the fifth in bits 8 and 9.
const FIELDS: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let [a, b, c, d, e] = t5_digits(byte as u8);
        table[byte] =
            a as u16 | (b as u16) << 2 | (c as u16) << 4 | (d as u16) << 6 | (e as u16) << 8;
        byte += 1;
    }
    table
};

/// A row group from T5 to T2.
///
/// Byte `j` of every line, in both layouts, belongs to the same row and the same columns modulo
/// four. So four T5 lines are five T2 lines byte by byte: four times ten bits, cut into five times
/// eight.
fn expand(t5: &[Line], t2: &mut [Line]) {
    for (t5, t2) in t5.chunks(4).zip(t2.chunks_mut(5)) {
        t2.copy_from_slice(&five_of_four(t5)[..t2.len()]);
    }
}

/// A row group from T5 to T2 in place: its T5 lines stand at the end of the room for its T2 lines.
///
/// Of n blocks of four lines, the T5 lines begin at least n - 1 lines into the room. So the end of what
/// block i becomes, line 5 (i + 1), is not beyond the first line of block i + 1.
#[cfg(feature = "packed")]
pub(crate) fn expand_in_place(group: &mut [u8], cols: usize) {
    let lines: &mut [Line] = group.as_chunks_mut().0;
    let first = lines.len() - TernaryLayout::T5R16.group_lines(cols);
    for (block, t5) in (first..lines.len()).step_by(4).enumerate() {
        let end = lines.len().min(t5 + 4);
        let t2 = five_of_four(&lines[t5..end]);
        let room = &mut lines[5 * block..];
        let n = room.len().min(5);
        room[..n].copy_from_slice(&t2[..n]);
    }
}

/// Five T2 lines of up to four T5 lines; zero trits for those that lack.
#[inline(always)]
fn five_of_four(t5: &[Line]) -> [Line; 5] {
    const ZERO: Line = [0; LINE_BYTES];
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| t5.get(i).unwrap_or(&ZERO));
    let mut lines = [ZERO; 5];
    for j in 0..LINE_BYTES {
        let bits = [d, c, b, a].iter().fold(0u64, |bits, line| {
            bits << 10 | u64::from(FIELDS[usize::from(line[j])])
        });
        for (line, byte) in lines.iter_mut().zip(bits.to_le_bytes()) {
            line[j] = byte;
        }
    }
    lines
}

/// A row group between any layouts.
fn by_columns(from: &TernaryView<'_>, group: usize, layout: TernaryLayout, to: &mut [Line]) {
    let mut source = Columns::new(from, group);
    for line in to {
        let mut codes = LineCodes::default();
        for column in &mut codes[..layout.block_cols()] {
            *column = source.next();
        }
        layout.pack_line(&codes, line);
    }
}

/// The columns of a row group, one after another; zeros after the last.
struct Columns<'w> {
    layout: TernaryLayout,
    lines: core::slice::Iter<'w, [u8; LINE_BYTES]>,
    codes: LineCodes,
    at: usize,
}

impl<'w> Columns<'w> {
    fn new(view: &TernaryView<'w>, group: usize) -> Self {
        let layout = view.layout;
        let lines = view.group(group).iter();
        Self {
            layout,
            lines,
            codes: LineCodes::default(),
            at: layout.block_cols(),
        }
    }

    fn next(&mut self) -> [i8; GROUP_ROWS] {
        if self.at == self.layout.block_cols() {
            match self.lines.next() {
                Some(line) => self.layout.unpack_line(line, &mut self.codes),
                None => self.codes = LineCodes::default(),
            }
            self.at = 0;
        }
        self.at += 1;
        self.codes[self.at - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TernaryLayout::{T2R16, T5R16};

    /// Every byte a file could hold, those that are no code included, in every column.
    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 167 + i / 256 * 59) as u8).collect()
    }

    #[test]
    fn expanding_equals_going_by_columns() {
        for cols in (1..=120).chain([1_536, 6_912]) {
            let packed = bytes(T5R16.packed_bytes(33, cols) as usize);
            let from = TernaryView::new(T5R16, (33, cols), 1.0, &packed).unwrap();
            let mut found = vec![0xff; T2R16.packed_bytes(33, cols) as usize];
            repack(&from, T2R16, &mut found);
            let mut expected = found.clone();
            expected.fill(0);
            let groups = expected.chunks_exact_mut(T2R16.group_bytes(cols));
            for (index, group) in groups.enumerate() {
                by_columns(&from, index, T2R16, group.as_chunks_mut().0);
            }
            assert_eq!(found, expected, "{cols} columns");
        }
    }

    #[test]
    #[cfg(feature = "packed")]
    fn expanding_in_place_equals_expanding() {
        for cols in (1..=400).chain([1_536, 6_912, 65_535]) {
            let packed = bytes(T5R16.group_bytes(cols));
            let from = TernaryView::new(T5R16, (16, cols), 1.0, &packed).unwrap();
            let mut expected = vec![0xff; T2R16.group_bytes(cols)];
            repack(&from, T2R16, &mut expected);
            let mut found = vec![0xee; expected.len()];
            let start = found.len() - packed.len();
            found[start..].copy_from_slice(&packed);
            expand_in_place(&mut found, cols);
            assert_eq!(found, expected, "{cols} columns");
        }
    }

    #[test]
    fn there_and_back() {
        for cols in [1, 20, 77, 160] {
            let codes: Vec<i8> = (0..32 * cols).map(|i| (i * i % 3) as i8 - 1).collect();
            let mut packed = vec![0; T5R16.packed_bytes(32, cols) as usize];
            let groups = packed.chunks_exact_mut(T5R16.group_bytes(cols));
            let rows = codes.chunks_exact(GROUP_ROWS * cols);
            rows.zip(groups)
                .for_each(|(codes, group)| T5R16.pack_group(codes, cols, group));
            let from = TernaryView::new(T5R16, (32, cols), 1.0, &packed).unwrap();
            let mut wide = vec![0; T2R16.packed_bytes(32, cols) as usize];
            repack(&from, T2R16, &mut wide);
            let wide = TernaryView::new(T2R16, (32, cols), 1.0, &wide).unwrap();
            let mut back = vec![0; packed.len()];
            repack(&wide, T5R16, &mut back);
            assert_eq!(back, packed);
            repack(&from, T5R16, &mut back);
            assert_eq!(back, packed);
        }
    }
}
