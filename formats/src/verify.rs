//! The full check: every byte of a file.

use crc32fast::Hasher;

use crate::archive::{Archive, range};
use crate::dtype::{ALIGNMENT, Dtype, Row};
use crate::error::{Covered, FormatError, TensorProblem};
use crate::header::{PREAMBLE_BYTES, TensorEntry, check_crc};
use crate::quant::{NonFinite, absmax};
use crate::schema::TensorSpec;
use crate::ternary::{GROUP_ROWS, LINE_BYTES, LineCodes, TernaryLayout, TernaryView};

/// Bytes between two calls of a `tick`.
const TICK_BYTES: usize = 1 << 20;

impl Archive<'_> {
    /// Reads every byte: all checksums, padding, byte values that are no code, values that are not
    /// finite. A file that passes gives the same logits on every machine.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong. Time is linear in the size; nothing is allocated.
    pub fn verify(&self) -> Result<(), FormatError> {
        self.verify_with(|_| ())
    }

    /// As [`verify`](Self::verify), and calls `tick` after every few MiB with the number of bytes
    /// read since the last call: for a progress bar, or to let a mapped file's pages go. Bytes are
    /// read twice: once for the checksums, once for their meaning.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub fn verify_with(&self, tick: impl FnMut(usize)) -> Result<(), FormatError> {
        self.verify_all(tick, true)
    }

    /// As [`verify`](Self::verify), but for the trits of packed tensors: whoever decodes them meets what
    /// is wrong there, and need not wait for another to decode them too.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub fn verify_undecoded(&self) -> Result<(), FormatError> {
        self.verify_all(|_| (), false)
    }

    /// `decode` says whether packed tensors are decoded.
    fn verify_all(&self, mut tick: impl FnMut(usize), decode: bool) -> Result<(), FormatError> {
        self.verify_checksums(&mut tick)?;
        self.verify_section_padding()?;
        if let Some(tokenizer) = self.tokenizer()? {
            tokenizer.verify()?;
        }
        self.chat()?;
        for (index, (spec, entry)) in self.tensors().enumerate() {
            self.verify_tail(&entry)
                .and_then(|()| match Dtype::from_code(entry.dtype) {
                    Some(Dtype::Packed) if !decode => Ok(()),
                    _ => self.verify_tensor(&spec, &entry, &mut tick),
                })
                .map_err(|problem| FormatError::Tensor { index, problem })?;
        }
        Ok(())
    }

    /// Hashes each section once; the checksum of the body is combined from theirs.
    fn verify_checksums(&self, tick: &mut impl FnMut(usize)) -> Result<(), FormatError> {
        let mut body = Hasher::new();
        let mut end = PREAMBLE_BYTES as u64;
        for (index, entry) in self.sections().enumerate() {
            body.update(range(self.bytes(), end, entry.offset - end)?);
            let mut section = Hasher::new();
            for piece in range(self.bytes(), entry.offset, entry.bytes)?.chunks(TICK_BYTES) {
                section.update(piece);
                tick(piece.len());
            }
            body.combine(&section);
            check_crc(Covered::Section(index), entry.crc, section.finalize())?;
            end = entry.offset + entry.bytes;
        }
        check_crc(Covered::Body, self.preamble().body_crc, body.finalize())
    }

    fn verify_section_padding(&self) -> Result<(), FormatError> {
        let mut end = self.preamble().header_bytes();
        for entry in self.sections() {
            let padding = range(self.bytes(), end, entry.offset - end)?;
            if padding.iter().any(|b| *b != 0) {
                return Err(FormatError::Reserved { offset: end });
            }
            end = entry.offset + entry.bytes;
        }
        Ok(())
    }

    fn verify_tensor(
        &self,
        spec: &TensorSpec,
        entry: &TensorEntry,
        tick: &mut impl FnMut(usize),
    ) -> Result<(), TensorProblem> {
        match Dtype::from_code(entry.dtype) {
            Some(Dtype::Ternary(_)) => match self.ternary(spec.role, spec.layer) {
                Some(view) => {
                    tick(view.bytes().len());
                    verify_ternary(&view, entry.offset)
                }
                None => Err(TensorProblem::Dtype(entry.dtype)),
            },
            #[cfg(feature = "packed")]
            Some(Dtype::Packed) => self.verify_packed(spec, entry, tick),
            Some(Dtype::F32) if spec.rows == 1 => self.verify_vector(spec),
            _ => self.verify_matrix(spec, entry, tick),
        }
    }

    #[cfg(feature = "packed")]
    fn verify_packed(
        &self,
        spec: &TensorSpec,
        entry: &TensorEntry,
        tick: &mut impl FnMut(usize),
    ) -> Result<(), TensorProblem> {
        let packed = self.packed(spec.role, spec.layer);
        let packed = packed.ok_or(TensorProblem::Dtype(entry.dtype))?;
        let view = packed.map_err(TensorProblem::Packed)?;
        tick(view.bytes().len());
        view.verify().map_err(TensorProblem::Packed)
    }

    /// Padding between a tensor and the next, or the end of the file.
    fn verify_tail(&self, entry: &TensorEntry) -> Result<(), TensorProblem> {
        let offset = entry.offset + entry.bytes;
        let pad = offset.next_multiple_of(ALIGNMENT as u64) - offset;
        let tail = self.bytes().get(offset as usize..).unwrap_or(&[]);
        let zero = tail.iter().take(pad as usize).all(|b| *b == 0);
        if zero {
            Ok(())
        } else {
            Err(TensorProblem::Padding { offset })
        }
    }

    fn verify_vector(&self, spec: &TensorSpec) -> Result<(), TensorProblem> {
        let finite = self
            .vector(spec.role, spec.layer)
            .is_some_and(|v| v.iter().all(f32::is_finite));
        if finite {
            Ok(())
        } else {
            Err(TensorProblem::NonFinite { row: 0 })
        }
    }

    fn verify_matrix(
        &self,
        spec: &TensorSpec,
        entry: &TensorEntry,
        tick: &mut impl FnMut(usize),
    ) -> Result<(), TensorProblem> {
        let matrix = self
            .matrix(spec.role)
            .ok_or(TensorProblem::Dtype(entry.dtype))?;
        let row_bytes = matrix.bytes().len() / matrix.rows;
        let rows_per_tick = (TICK_BYTES / row_bytes.max(1)).max(1);
        for row in 0..matrix.rows {
            verify_row(matrix.row(row), matrix.cols)
                .map_err(|_| TensorProblem::NonFinite { row })?;
            if (row + 1) % rows_per_tick == 0 {
                tick(rows_per_tick * row_bytes);
            }
        }
        Ok(())
    }
}

/// Every value of a row must be finite.
fn verify_row(row: Row<'_>, cols: usize) -> Result<(), NonFinite> {
    let mut values = [0.0; 256];
    for start in (0..cols).step_by(values.len()) {
        let values = &mut values[..256.min(cols - start)];
        row.part(start, values.len()).to_f32(values);
        absmax(values)?;
    }
    Ok(())
}

fn verify_ternary(view: &TernaryView<'_>, offset: u64) -> Result<(), TensorProblem> {
    let legal: [bool; 256] = core::array::from_fn(|b| view.layout.is_code(b as u8));
    if let Some(at) = view.bytes().iter().position(|b| !legal[usize::from(*b)]) {
        return Err(TensorProblem::NotACode {
            offset: offset + at as u64,
            byte: view.bytes()[at],
        });
    }
    let group_bytes = view.layout.group_bytes(view.cols) as u64;
    for group in 0..view.n_groups() {
        let rows = view.group_rows(group);
        let lines = view.group(group);
        // Only the last line can have columns beyond the matrix, only the last group rows.
        let first = if rows < GROUP_ROWS {
            0
        } else {
            lines.len() - 1
        };
        for (i, line) in lines.iter().enumerate().skip(first) {
            let cols = view
                .layout
                .block_cols()
                .min(view.cols - i * view.layout.block_cols());
            if !padding_is_zero(view.layout, line, rows, cols) {
                let line_offset = (i * LINE_BYTES) as u64;
                let offset = offset + group as u64 * group_bytes + line_offset;
                return Err(TensorProblem::Padding { offset });
            }
        }
    }
    Ok(())
}

fn padding_is_zero(
    layout: TernaryLayout,
    line: &[u8; LINE_BYTES],
    rows: usize,
    cols: usize,
) -> bool {
    let mut codes = LineCodes::default();
    layout.unpack_line(line, &mut codes);
    let used = &codes[..layout.block_cols()];
    used.iter().enumerate().all(|(col, column)| {
        let first = if col < cols { rows } else { 0 };
        column[first..].iter().all(|code| *code == 0)
    })
}
