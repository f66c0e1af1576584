//! `--verify`: every weight, scale and norm of a new file against the source it came from.
//!
//! The source is read a second time and the file is unpacked with the reader's own code. What must be
//! equal is equal bit for bit: codes, weight scales and gains. Embedding and head are compared in the type
//! they are stored as: what their rows round to must be what the file holds.

use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{Archive, Row, TensorClass, TensorSpec};

use crate::btn::ViewRows;
use crate::error::ConvertError;
use crate::groups::CodeRows;
use crate::names::tensor_name;
use crate::pages::Pages;
use crate::source::Source;
use crate::write::int8_row;

/// How much was found equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Ternary codes.
    pub codes: u64,
    /// Scales of ternary matrices.
    pub scales: u64,
    /// Elements of norms.
    pub gains: u64,
    /// Elements of embedding and head.
    pub values: u64,
}

/// Compares a file with its source.
///
/// # Errors
///
/// [`ConvertError::Differs`] at the first difference, or the source cannot be read.
pub fn verify(
    archive: &Archive<'_>,
    source: &dyn Source,
    pages: &Pages<'_>,
) -> Result<Verified, ConvertError> {
    let mut verified = Verified::default();
    for (spec, _) in archive.tensors() {
        match spec.role.class() {
            TensorClass::Ternary => ternary(archive, source, &spec, pages, &mut verified)?,
            TensorClass::Matrix => matrix(archive, source, &spec, pages, &mut verified)?,
            TensorClass::Vector => vector(archive, source, &spec, &mut verified)?,
        }
    }
    Ok(verified)
}

fn differs(spec: &TensorSpec, row: usize) -> ConvertError {
    let name = tensor_name(spec.role, spec.layer);
    ConvertError::Differs {
        tensor: name.unwrap_or_else(|| spec.role.name().to_owned()),
        row,
    }
}

fn ternary(
    archive: &Archive<'_>,
    source: &dyn Source,
    spec: &TensorSpec,
    pages: &Pages<'_>,
    verified: &mut Verified,
) -> Result<(), ConvertError> {
    let mut stored = ViewRows::of(archive, spec.role, spec.layer)?;
    let mut groups = source.ternary(spec)?;
    if groups.scale().to_bits() != stored.scale().to_bits() {
        return Err(differs(spec, 0));
    }
    let mut row = 0;
    let mut found = Vec::new();
    while let Some(codes) = groups.next_group()? {
        found.resize(codes.len(), 0);
        stored.read(row, &mut found)?;
        if let Some(at) = codes.iter().zip(&found).position(|(a, b)| a != b) {
            return Err(differs(spec, row + at / spec.cols));
        }
        row += GROUP_ROWS;
        pages.read(stored.group_bytes() as u64);
        verified.codes += codes.len() as u64;
    }
    verified.scales += 1;
    Ok(())
}

fn matrix(
    archive: &Archive<'_>,
    source: &dyn Source,
    spec: &TensorSpec,
    pages: &Pages<'_>,
    verified: &mut Verified,
) -> Result<(), ConvertError> {
    let stored = archive.matrix(spec.role);
    let stored = stored.ok_or_else(|| differs(spec, 0))?;
    let mut rows = source.rows(spec)?;
    let mut values = vec![0.0; spec.cols];
    let mut codes = vec![0i8; spec.cols];
    for row in 0..spec.rows {
        rows.read(row, &mut values)?;
        let equal = match stored.row(row) {
            Row::I8(found, scale) => {
                let expected = int8_row(&values, &mut codes);
                let codes = codes.iter().map(|code| *code as u8);
                expected.to_bits() == scale.to_bits() && codes.eq(found.iter().copied())
            }
            stored => equal_floats(stored, &values),
        };
        if !equal {
            return Err(differs(spec, row));
        }
        pages.read(stored.dtype.payload_bytes(1, spec.cols));
    }
    verified.values += spec.rows as u64 * spec.cols as u64;
    Ok(())
}

/// What the values round to in the type of the row.
fn equal_floats(stored: Row<'_>, values: &[f32]) -> bool {
    use bitnet_formats::float::{f32_to_bf16, f32_to_f16};
    let halves = |row: &[[u8; 2]], narrow: fn(f32) -> u16| {
        let row = row.iter().map(|bytes| u16::from_le_bytes(*bytes));
        row.eq(values.iter().map(|v| narrow(*v)))
    };
    match stored {
        Row::F32(row) => row
            .iter()
            .map(f32::to_bits)
            .eq(values.iter().map(|v| v.to_bits())),
        Row::F16(row) => halves(row, f32_to_f16),
        Row::BF16(row) => halves(row, f32_to_bf16),
        Row::I8(..) => false,
    }
}

fn vector(
    archive: &Archive<'_>,
    source: &dyn Source,
    spec: &TensorSpec,
    verified: &mut Verified,
) -> Result<(), ConvertError> {
    let stored = archive.vector(spec.role, spec.layer);
    let stored = stored.ok_or_else(|| differs(spec, 0))?;
    let mut values = vec![0.0; spec.cols];
    if spec.role.is_trained() {
        source.rows(spec)?.read(0, &mut values)?;
    } else {
        values = source.inv_freq(spec.cols);
    }
    let bits = values.iter().map(|v| v.to_bits());
    if !stored.iter().map(f32::to_bits).eq(bits) {
        return Err(differs(spec, 0));
    }
    verified.gains += spec.cols as u64;
    Ok(())
}
