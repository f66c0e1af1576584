//! A `.btn` file as a source: to pack it otherwise, or to give its model back in other formats.

use std::borrow::Cow;

use bitnet_formats::error::TensorProblem;
use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{
    Archive, Dtype, FormatError, MatrixView, ModelConfig, TensorClass, TensorRole, TensorSpec,
    TernaryLayout, VectorView,
};

use crate::error::ConvertError;
use crate::groups::{CodeRows, TernaryGroups};
use crate::rows::WeightRows;
use crate::source::Source;

/// The tensors of an opened file.
#[derive(Clone, Copy, Debug)]
pub struct BtnSource<'a, 'w>(pub &'a Archive<'w>);

impl Source for BtnSource<'_, '_> {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn ternary(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        let rows = ViewRows::of(self.0, spec.role, spec.layer)?;
        let scale = rows.scale();
        Ok(TernaryGroups::as_stored(Box::new(rows), scale, spec))
    }

    fn rows(&self, spec: &TensorSpec) -> Result<Box<dyn WeightRows + '_>, ConvertError> {
        Ok(match spec.role.class() {
            TensorClass::Matrix => Box::new(self.0.matrix(spec.role).expect(PRESENT)),
            _ => Box::new(self.0.vector(spec.role, spec.layer).expect(PRESENT)),
        })
    }

    fn ffn_widths(&self) -> Vec<usize> {
        let layers = 0..self.config().n_layers;
        layers.map(|layer| self.0.ffn_width(layer)).collect()
    }

    fn inv_freq(&self, _n: usize) -> Vec<f32> {
        let stored = self.0.vector(TensorRole::RopeInvFreq, None);
        stored.expect(PRESENT).iter().collect()
    }
}

/// `Archive::open` accepts only files with every tensor of their configuration.
const PRESENT: &str = "opened archives have every tensor";

/// Rows of a ternary matrix, unpacked a group at a time.
pub(crate) struct ViewRows<'w> {
    layout: TernaryLayout,
    shape: (usize, usize),
    scale: f32,
    /// Those of the file, or what was decoded from them.
    bytes: Cow<'w, [u8]>,
    /// The group that `codes` holds.
    group: Option<usize>,
    codes: Vec<i8>,
}

impl<'w> ViewRows<'w> {
    /// A tensor of an opened file, decoded where it is packed.
    ///
    /// # Errors
    ///
    /// It is packed and damaged.
    pub(crate) fn of(
        archive: &Archive<'w>,
        role: TensorRole,
        layer: Option<usize>,
    ) -> Result<Self, FormatError> {
        let (shape, scale) = archive.ternary_shape(role, layer).expect(PRESENT);
        let (layout, bytes) = match archive.ternary(role, layer) {
            Some(view) => (view.layout, Cow::Borrowed(view.bytes())),
            None => (
                TernaryLayout::T5R16,
                Cow::Owned(decode(archive, role, layer)?),
            ),
        };
        Ok(Self {
            layout,
            shape,
            scale,
            bytes,
            group: None,
            codes: vec![0; GROUP_ROWS * shape.1],
        })
    }

    /// Scale of the matrix.
    pub(crate) const fn scale(&self) -> f32 {
        self.scale
    }

    /// Bytes of a row group as it is unpacked.
    pub(crate) const fn group_bytes(&self) -> usize {
        self.layout.group_bytes(self.shape.1)
    }

    fn row(&mut self, row: usize) -> &[i8] {
        let (group, within) = (row / GROUP_ROWS, row % GROUP_ROWS);
        let (rows, cols) = self.shape;
        if self.group != Some(group) {
            let rows = GROUP_ROWS.min(rows - group * GROUP_ROWS);
            let group_bytes = self.group_bytes();
            let bytes = &self.bytes[group * group_bytes..][..group_bytes];
            let codes = &mut self.codes[..rows * cols];
            self.layout.unpack_group(bytes, cols, codes);
            self.group = Some(group);
        }
        &self.codes[within * cols..][..cols]
    }
}

/// A packed tensor as T5.
fn decode(
    archive: &Archive<'_>,
    role: TensorRole,
    layer: Option<usize>,
) -> Result<Vec<u8>, FormatError> {
    let damaged = |error| FormatError::Tensor {
        index: archive.config().tensor_index(role, layer).unwrap_or(0),
        problem: TensorProblem::Packed(error),
    };
    let view = archive
        .packed(role, layer)
        .expect(PRESENT)
        .map_err(damaged)?;
    let mut bytes = vec![0; TernaryLayout::T5R16.packed_bytes(view.rows(), view.cols()) as usize];
    view.decode(&mut bytes).map_err(damaged)?;
    Ok(bytes)
}

impl CodeRows for ViewRows<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        for (i, out) in out.chunks_exact_mut(self.shape.1).enumerate() {
            out.copy_from_slice(self.row(first + i));
        }
        Ok(())
    }
}

impl WeightRows for MatrixView<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn read(&mut self, first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
        for (i, out) in out.chunks_exact_mut(self.cols).enumerate() {
            self.row(first + i).to_f32(out);
        }
        Ok(())
    }
}

impl WeightRows for VectorView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn read(&mut self, _first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
        out.iter_mut().zip(self.iter()).for_each(|(o, v)| *o = v);
        Ok(())
    }
}
