//! A `.btn` file as a source: to pack it otherwise, or to give its model back in other formats.

use bitnet_formats::ternary::GROUP_ROWS;
use bitnet_formats::{
    Archive, Dtype, MatrixView, ModelConfig, TensorClass, TensorRole, TensorSpec, TernaryView,
    VectorView,
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
        let view = self.0.ternary(spec.role, spec.layer).expect(PRESENT);
        let rows = Box::new(ViewRows::new(view));
        Ok(TernaryGroups::as_stored(rows, view.scale, spec))
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

/// Rows of a packed matrix, unpacked a group at a time.
pub(crate) struct ViewRows<'w> {
    view: TernaryView<'w>,
    /// The group that `codes` holds.
    group: Option<usize>,
    codes: Vec<i8>,
}

impl<'w> ViewRows<'w> {
    pub(crate) fn new(view: TernaryView<'w>) -> Self {
        Self {
            view,
            group: None,
            codes: vec![0; GROUP_ROWS * view.cols],
        }
    }

    fn row(&mut self, row: usize) -> &[i8] {
        let (group, within) = (row / GROUP_ROWS, row % GROUP_ROWS);
        let cols = self.view.cols;
        if self.group != Some(group) {
            let rows = self.view.group_rows(group);
            let bytes = self.view.group(group).as_flattened();
            let codes = &mut self.codes[..rows * cols];
            self.view.layout.unpack_group(bytes, cols, codes);
            self.group = Some(group);
        }
        &self.codes[within * cols..][..cols]
    }
}

impl CodeRows for ViewRows<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        for (i, out) in out.chunks_exact_mut(self.view.cols).enumerate() {
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
