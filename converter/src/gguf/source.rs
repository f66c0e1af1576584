//! The tensors of a GGUF file, streamed.

use std::collections::BTreeSet;

use bitnet_formats::quant::{absmax, linear_factor};
use bitnet_formats::{Attention, Dtype, ModelConfig, TensorClass, TensorRole, TensorSpec};

use crate::error::ConvertError;
use crate::gguf::error::GgufError;
use crate::gguf::kinds::{I2sLayout, Kind, NotACode, tq_scale, tq1_0_codes, tq2_0_codes};
use crate::gguf::model::{Arch, GgufModel, tensor_stem};
use crate::gguf::reader::{Gguf, TensorInfo, Value};
use crate::gguf::write::SCALES_KEY;
use crate::groups::{CodeRows, DequantizedRows, TernaryGroups};
use crate::rows::WeightRows;
use crate::source::Source;

/// A GGUF file that holds exactly the tensors of a model.
#[derive(Debug)]
pub struct GgufSource<'f> {
    file: &'f Gguf,
    model: GgufModel,
    i2s: I2sLayout,
}

impl<'f> GgufSource<'f> {
    /// Checks that every tensor of the model is there with its shape and a type it can have, and
    /// nothing else.
    ///
    /// # Errors
    ///
    /// The first tensor that is missing, misshapen, of the wrong type, or left over.
    pub fn new(file: &'f Gguf, model: GgufModel, i2s: I2sLayout) -> Result<Self, ConvertError> {
        let source = Self { file, model, i2s };
        let mut left: BTreeSet<&str> = file.tensors().map(|t| t.name.as_str()).collect();
        for spec in model.config.tensors() {
            if spec.role != TensorRole::RopeInvFreq {
                source.check(&spec, &mut left)?;
            }
        }
        match left.first() {
            Some(name) => Err(ConvertError::ExtraTensor {
                tensor: (*name).to_owned(),
                count: left.len(),
            }),
            None => Ok(source),
        }
    }

    /// Type in which the file stores the embedding.
    #[must_use]
    pub fn embedding_kind(&self) -> Option<Kind> {
        Some(self.file.tensor("token_embd.weight")?.kind)
    }

    /// Type in which it stores its first projection.
    #[must_use]
    pub fn weights_kind(&self) -> Option<Kind> {
        Some(self.file.tensor("blk.0.attn_q.weight")?.kind)
    }

    /// The scale that a file of this project holds beside that of the format, which may be rounded and
    /// always multiplies. It must mean the same.
    fn own_scale(&self, spec: &TensorSpec, scale: f32) -> Result<f32, ConvertError> {
        let Some(Value::Numbers(scales)) = self.file.value(SCALES_KEY) else {
            return Ok(scale);
        };
        let convention = self.model.config.weight_scale;
        let same = |own: &f32| {
            // Half a unit in the last place of f16, and a rounding of f32.
            (linear_factor(convention, *own, 1.0) / scale - 1.0).abs() <= 1.0 / 2040.0
        };
        let own = self.place(spec).and_then(|place| scales.get(place));
        let own = own.map(|own| *own as f32);
        own.filter(same).ok_or_else(|| {
            self.gguf(GgufError::Unsupported {
                key: SCALES_KEY.to_owned(),
                found: format!("{own:?} for {}", spec.role.name()),
                reason: "it contradicts the scale of the tensor",
            })
        })
    }

    /// Place of a tensor among the ternary ones.
    fn place(&self, spec: &TensorSpec) -> Option<usize> {
        let tensors = self.model.config.tensors();
        let mut ternary = tensors.filter(|t| t.role.class() == TensorClass::Ternary);
        ternary.position(|t| t == *spec)
    }

    fn check(&self, spec: &TensorSpec, left: &mut BTreeSet<&str>) -> Result<(), ConvertError> {
        let tensor = self.tensor(spec)?;
        check_shape(tensor, spec)?;
        if let Some(reason) = self.wrong_kind(tensor, spec) {
            return Err(self.gguf(GgufError::Kind {
                tensor: tensor.name.clone(),
                kind: tensor.kind.name().to_owned(),
                reason,
            }));
        }
        left.remove(tensor.name.as_str());
        let scale = self.extra_scale(spec);
        if let Some(scale) = scale.filter(|_| spec.role.class() == TensorClass::Ternary) {
            left.remove(scale.name.as_str());
        }
        Ok(())
    }

    /// Why a tensor may not be stored as it is.
    fn wrong_kind(&self, tensor: &TensorInfo, spec: &TensorSpec) -> Option<&'static str> {
        let codes = matches!(tensor.kind, Kind::TQ1_0 | Kind::TQ2_0 | Kind::I2S);
        if spec.role.class() != TensorClass::Ternary {
            return codes.then_some("embedding, head and norms are not ternary in a .btn file");
        }
        let inverted = self.model.arch == Arch::BitnetB158 && self.extra_scale(spec).is_none();
        match tensor.kind {
            _ if codes => None,
            Kind::Q8_0 | Kind::Q6K => Some("this matrix must be ternary, and it is rounded"),
            _ if inverted => Some(
                "the converter that writes float files of this architecture inverts their scales; \
                 convert the original or an I2_S file",
            ),
            _ => None,
        }
    }

    fn gguf(&self, source: GgufError) -> ConvertError {
        ConvertError::Gguf {
            path: self.file.path().to_owned(),
            source,
        }
    }

    fn tensor(&self, spec: &TensorSpec) -> Result<&'f TensorInfo, ConvertError> {
        let stem = tensor_stem(spec.role, spec.layer).unwrap_or_default();
        let name = format!("{stem}.weight");
        let tensor = self.file.tensor(&name);
        tensor.ok_or_else(|| ConvertError::MissingTensor {
            tensor: name,
            expected: vec![spec.rows, spec.cols],
        })
    }

    /// A scale beside a matrix, which multiplies what the matrix gives.
    fn extra_scale(&self, spec: &TensorSpec) -> Option<&'f TensorInfo> {
        let stem = tensor_stem(spec.role, spec.layer)?;
        let tensor = self.file.tensor(&format!("{stem}.scale"))?;
        let one = (tensor.kind, tensor.rows, tensor.cols) == (Kind::F32, 1, 1);
        one.then_some(tensor)
    }

    fn read_extra_scale(&self, spec: &TensorSpec) -> Result<f32, ConvertError> {
        let Some(tensor) = self.extra_scale(spec) else {
            return Ok(1.0);
        };
        let mut scale = [0; 4];
        self.file.read(tensor, 0, &mut scale)?;
        Ok(f32::from_le_bytes(scale))
    }

    /// Codes in the order of the file, and what one is worth.
    fn codes(&self, tensor: &'f TensorInfo) -> Result<(Box<dyn CodeRows + 'f>, f32), ConvertError> {
        match tensor.kind {
            Kind::TQ1_0 | Kind::TQ2_0 => {
                let rows = TqRows::new(self.file, tensor)?;
                let scale = rows.scale;
                Ok((Box::new(rows), scale))
            }
            Kind::I2S => {
                let mut scale = [0; 4];
                let codes = tensor.rows as u64 * tensor.cols as u64 / 4;
                self.file.read(tensor, codes, &mut scale)?;
                let rows = I2sRows::new(self.file, tensor, self.i2s);
                Ok((Box::new(rows), f32::from_le_bytes(scale)))
            }
            _ => {
                let shape = (tensor.rows, tensor.cols);
                let rows = DenseRows::new(self.file, tensor);
                let rows = DequantizedRows::new(rows, shape, &tensor.name)?;
                let scale = rows.scale();
                Ok((Box::new(rows), scale))
            }
        }
    }

    /// Rows of a head, where their order in the file is that of interleaved pairs.
    fn permuted_head(&self, role: TensorRole) -> Option<usize> {
        let is_qk = matches!(role, TensorRole::Q | TensorRole::K);
        let Attention::Grouped { head_dim, .. } = self.model.config.attention else {
            return None;
        };
        (is_qk && self.model.arch.permutes_heads()).then_some(head_dim)
    }
}

fn check_shape(tensor: &TensorInfo, spec: &TensorSpec) -> Result<(), ConvertError> {
    let is_matrix = spec.role.class() != TensorClass::Vector;
    let same = (tensor.rows, tensor.cols) == (spec.rows, spec.cols);
    if same && tensor.is_matrix == is_matrix {
        return Ok(());
    }
    Err(ConvertError::Shape {
        tensor: tensor.name.clone(),
        expected: vec![spec.rows, spec.cols],
        found: vec![tensor.rows, tensor.cols],
    })
}

impl Source for GgufSource<'_> {
    fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    fn ternary(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        let tensor = self.tensor(spec)?;
        let (codes, scale) = self.codes(tensor)?;
        let scale = scale * self.read_extra_scale(spec)?;
        if !scale.is_finite() || scale <= 0.0 {
            return Err(ConvertError::BadScale {
                tensor: tensor.name.clone(),
                value: scale,
            });
        }
        let scale = self.own_scale(spec, scale)?;
        let codes: Box<dyn CodeRows> = match self.permuted_head(spec.role) {
            Some(head_dim) => Box::new(HalfRotation {
                codes,
                head_dim,
                cols: spec.cols,
            }),
            None => codes,
        };
        Ok(TernaryGroups::new(codes, scale, &self.model.config, spec))
    }

    fn rows(&self, spec: &TensorSpec) -> Result<Box<dyn WeightRows + '_>, ConvertError> {
        Ok(Box::new(DenseRows::new(self.file, self.tensor(spec)?)))
    }
}

/// Undoes the order of rows that interleaved rotary pairs ask for: row `2 j + p` of a head in the file
/// is row `p * head_dim / 2 + j` of a head that is rotated by halves.
struct HalfRotation<'f> {
    codes: Box<dyn CodeRows + 'f>,
    head_dim: usize,
    cols: usize,
}

impl CodeRows for HalfRotation<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        let half = self.head_dim / 2;
        for (i, out) in out.chunks_exact_mut(self.cols).enumerate() {
            let (head, row) = ((first + i) / self.head_dim, (first + i) % self.head_dim);
            let stored = head * self.head_dim + 2 * (row % half) + row / half;
            self.codes.read(stored, out)?;
        }
        Ok(())
    }
}

/// Rows of ternary blocks that all have the same scale, or none.
struct TqRows<'f> {
    file: &'f Gguf,
    tensor: &'f TensorInfo,
    scale: f32,
    bytes: Vec<u8>,
}

impl<'f> TqRows<'f> {
    /// Reads all block scales.
    fn new(file: &'f Gguf, tensor: &'f TensorInfo) -> Result<Self, ConvertError> {
        let mut rows = Self {
            file,
            tensor,
            scale: 0.0,
            bytes: vec![0; (tensor.bytes / tensor.rows as u64) as usize],
        };
        for row in 0..tensor.rows {
            rows.load(row)?;
            for block in rows.bytes.chunks_exact(tensor.kind.block_bytes()) {
                rows.scale = one_scale(file, tensor, rows.scale, tq_scale(block))?;
            }
        }
        if rows.scale == 0.0 {
            // All weights are zero: any scale will do.
            rows.scale = 1.0;
        }
        Ok(rows)
    }

    fn load(&mut self, row: usize) -> Result<(), ConvertError> {
        let start = row as u64 * self.bytes.len() as u64;
        self.file.read(self.tensor, start, &mut self.bytes)
    }

    fn block(&self, block: &[u8], codes: &mut [i8; 256]) -> Result<(), NotACode> {
        if tq_scale(block) == 0.0 {
            codes.fill(0);
            return Ok(());
        }
        match (block.try_into(), block.try_into()) {
            (Ok(block), _) => tq1_0_codes(block, codes),
            (_, Ok(block)) => return tq2_0_codes(block, codes),
            _ => unreachable!("the type has blocks of one of these sizes"),
        }
        Ok(())
    }
}

/// The one scale of a tensor, given that of the blocks before (zero for none) and that of a block.
fn one_scale(
    file: &Gguf,
    tensor: &TensorInfo,
    before: f32,
    block: f32,
) -> Result<f32, ConvertError> {
    if block == 0.0 || block == before {
        return Ok(before);
    }
    if before == 0.0 {
        return Ok(block);
    }
    Err(ConvertError::Gguf {
        path: file.path().to_owned(),
        source: GgufError::BlockScales {
            tensor: tensor.name.clone(),
            first: before,
            second: block,
        },
    })
}

impl CodeRows for TqRows<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        let block_bytes = self.tensor.kind.block_bytes();
        for (i, out) in out.chunks_exact_mut(self.tensor.cols).enumerate() {
            self.load(first + i)?;
            let blocks = self.bytes.chunks_exact(block_bytes);
            for (b, (block, codes)) in blocks.zip(out.as_chunks_mut().0).enumerate() {
                let found = self.block(block, codes);
                found.map_err(|NotACode(at)| not_a_code(self.tensor, first + i, 256 * b + at))?;
            }
        }
        Ok(())
    }
}

/// Codes of an I2_S tensor, whose blocks run over the rows.
struct I2sRows<'f> {
    file: &'f Gguf,
    tensor: &'f TensorInfo,
    layout: I2sLayout,
    bytes: Vec<u8>,
    codes: Vec<i8>,
}

impl<'f> I2sRows<'f> {
    const fn new(file: &'f Gguf, tensor: &'f TensorInfo, layout: I2sLayout) -> Self {
        Self {
            file,
            tensor,
            layout,
            bytes: Vec::new(),
            codes: Vec::new(),
        }
    }
}

impl CodeRows for I2sRows<'_> {
    fn read(&mut self, first: usize, out: &mut [i8]) -> Result<(), ConvertError> {
        let start = first * self.tensor.cols;
        // Whole blocks around the rows.
        let blocks = start / 128..(start + out.len()).div_ceil(128);
        self.bytes.resize(32 * blocks.len(), 0);
        self.codes.resize(128 * blocks.len(), 0);
        self.file
            .read(self.tensor, 32 * blocks.start as u64, &mut self.bytes)?;
        let pairs = self.bytes.as_chunks().0.iter();
        for (b, (block, codes)) in pairs.zip(self.codes.as_chunks_mut().0).enumerate() {
            let found = self.layout.codes(block, codes);
            found.map_err(|NotACode(at)| {
                let index = 128 * (blocks.start + b) + at;
                let cols = self.tensor.cols;
                not_a_code(self.tensor, index / cols, index % cols)
            })?;
        }
        out.copy_from_slice(&self.codes[start - 128 * blocks.start..][..out.len()]);
        Ok(())
    }
}

fn not_a_code(tensor: &TensorInfo, row: usize, col: usize) -> ConvertError {
    let tensor = tensor.name.clone();
    ConvertError::NotACode { tensor, row, col }
}

/// Rows of numbers.
struct DenseRows<'f> {
    file: &'f Gguf,
    tensor: &'f TensorInfo,
    bytes: Vec<u8>,
}

impl<'f> DenseRows<'f> {
    const fn new(file: &'f Gguf, tensor: &'f TensorInfo) -> Self {
        Self {
            file,
            tensor,
            bytes: Vec::new(),
        }
    }
}

impl WeightRows for DenseRows<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.kind {
            Kind::F16 => Dtype::F16,
            Kind::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    fn read(&mut self, first: usize, out: &mut [f32]) -> Result<(), ConvertError> {
        let kind = self.tensor.kind;
        let bytes = |values: usize| values / kind.block() * kind.block_bytes();
        self.bytes.resize(bytes(out.len()), 0);
        let start = bytes(first * self.tensor.cols) as u64;
        self.file.read(self.tensor, start, &mut self.bytes)?;
        kind.decode(&self.bytes, out);
        if absmax(out).is_ok() {
            return Ok(());
        }
        let place = out.iter().position(|v| !v.is_finite()).unwrap_or(0);
        Err(ConvertError::NonFinite {
            tensor: self.tensor.name.clone(),
            index: (first * self.tensor.cols + place) as u64,
            value: out[place],
        })
    }
}
